"""Disks of VMs and local VMDK files, read through VDDK.

Sectors are known in this room only: what is offered here counts bytes.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import trio
from numpy.typing import NDArray

from pipeline.buffers import Buffer, BufferPool
from pipeline.errors import ConfigError
from pipeline.extents import Extents
from pipeline.secrets import Secret
from pipeline.units import CLUSTER, SPAN, MiB

from .abi import MAX_CHUNKS, MIN_CHUNK, SECTOR
from .connection import Connection, QueryRefused
from .library import distribution_root, find_library, settings_file
from .limits import Limits
from .requests import Batch, split
from .tally import VddkStatistics

Compression = Literal["none", "zlib", "fastlz", "skipz"]
Allocation = Literal["queried", "unavailable"]

CHUNK = MIN_CHUNK * SECTOR  # the finest that allocation can be asked for: 64 KiB
QUERY_SPAN = MAX_CHUNKS * CHUNK  # the most that one query may cover: 32 GiB

# SHA-1 or SHA-256 of the certificate, hex pairs with colons between them.
_THUMBPRINT = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){19}((:[0-9A-Fa-f]{2}){12})?")


@dataclass(frozen=True, kw_only=True)
class DiskAccess:
    """Which disk, and how to get at it.

    `path`: "[datastore] folder/disk.vmdk" exactly as the snapshot's configuration names it, or an absolute
    path of a local VMDK when `vm` is empty. `vm` and `snapshot` are moref values such as "vm-16" and
    "snapshot-456". `server` is the vCenter or ESXi host, `thumbprint` that of its certificate. Login is by
    `user` and `password`, or by the `cookie` of a vSphere session.
    """

    path: str
    server: str = ""
    port: int = 443
    user: str = ""
    password: Secret | None = None
    cookie: Secret | None = None
    thumbprint: str = ""
    vm: str = ""
    snapshot: str | None = None

    @classmethod
    def local(cls, path: str | Path) -> DiskAccess:
        """A VMDK in the file system of this machine."""
        return cls(path=str(path))

    def __post_init__(self) -> None:
        """Refuse what the library would not check: a missing string makes it crash."""
        if not self.path:
            raise ConfigError(
                "A VDDK disk needs a path.", remedy="Give `path`, e.g. '[ds1] web01/web01.vmdk'."
            )
        for name in ("path", "server", "user", "thumbprint", "vm", "snapshot"):
            if "\0" in (getattr(self, name) or ""):
                raise ConfigError(f"`{name}` of {self.path!r} holds a NUL character.")
        if self.vm:
            self._check_remote()
        elif not Path(self.path).is_absolute():
            raise ConfigError(
                f"{self.path} is neither a disk of a VM nor an absolute path.",
                remedy="Give `vm`, the moref value of the VM, or the absolute path of a local VMDK.",
            )

    def _check_remote(self) -> None:
        for name in ("server", "user"):
            if not getattr(self, name):
                raise ConfigError(f"VDDK needs `{name}` to open {self.path}.", remedy=f"Give `{name}`.")
        if (self.password is None) == (self.cookie is None):
            raise ConfigError(
                f"VDDK needs either a password or a session cookie to open {self.path}.",
                remedy="Give `password` or `cookie`, as a Secret.",
            )
        if self.thumbprint and not _THUMBPRINT.fullmatch(self.thumbprint):
            raise ConfigError(
                f"{self.thumbprint!r} is not a certificate thumbprint.",
                remedy="Write it as 20 (SHA-1) or 32 (SHA-256) hex pairs with colons, e.g. 'AB:12:...'.",
            )

    def credentials(self) -> dict[str, object]:
        """The secrets themselves. Raises ConfigError when one is missing or empty."""
        revealed: dict[str, object] = {"password": "", "cookie": ""}
        for name, secret in (("password", self.password), ("cookie", self.cookie)):
            if self.vm and secret is not None:
                revealed[name] = text = secret.reveal()
                if not text or "\0" in text:
                    raise ConfigError(
                        f"The {name} for {self.server} is empty or holds a NUL.", remedy=f"Check {secret}."
                    )
        return revealed


@dataclass(frozen=True)
class Vddk:
    """How to read with VDDK. Making one does no I/O.

    libdir            root of the vmware-vix-disklib-distrib directory, VDDK 6.7 to 9.x
    transports        tried in this order, e.g. "hotadd:nbdssl"; None: what the library prefers
    compression       of nbd and nbdssl transfers
    depth, request    requests in flight per disk, bytes each; a host has 48 MB of buffers (96 MB from 8.0)
    call_timeout_s    a child that gives no sign of life for this long while it should is replaced
    open_timeout_s    the same for connecting and opening
    end_timeout_s     for closing and disconnecting, until the child is killed
    restarts          new children in a row without a byte read in between
    restart_pause_s   before the first of them; doubled for each further one
    config            settings of the library's configuration file, besides our defaults; no secrets
    """

    libdir: str | Path
    transports: str | None = None
    compression: Compression = "none"
    depth: int = 4  # the session's BufCount
    request: int = 1 * MiB  # the session's buffer
    call_timeout_s: float = 180.0  # the default of nfc.RequestTimeoutMs
    open_timeout_s: float = 300.0  # above nfc.AcceptTimeoutMs, 180 s
    end_timeout_s: float = 30.0
    restarts: int = 3
    restart_pause_s: float = 1.0
    config: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= 256:  # the vendor's sample allows as many
            raise ConfigError(f"depth={self.depth} is not between 1 and 256.")
        if self.request % CLUSTER or not CLUSTER <= self.request <= SPAN:
            raise ConfigError(f"request={self.request} is not a multiple of {CLUSTER} of at most {SPAN}.")
        for name, value in self.config.items():
            if any(mark in name + value for mark in '\r\n"'):
                raise ConfigError(f"The VDDK setting {name!r} holds a line break or a quotation mark.")

    @asynccontextmanager
    async def open(self, access: DiskAccess, pool: BufferPool) -> AsyncIterator[VddkDisk]:
        """The disk, open for reading into buffers of `pool`, in a child process of its own.

        Raises ConfigError (no library, no password) or VddkError. At the end the child is gone.
        """
        library = find_library(self.libdir)
        with settings_file(self.config) as config:

            def order() -> dict[str, object]:
                return {
                    **{name: getattr(access, name) for name in ("path", "server", "port", "user", "vm")},
                    **{"thumbprint": access.thumbprint, "snapshot": access.snapshot},
                    **access.credentials(),
                    **{
                        "library": str(library),
                        "root": str(distribution_root(library)),
                        "config": str(config),
                    },
                    **{"transports": self.transports, "compression": self.compression},
                }

            limits = Limits(
                self.depth, self.call_timeout_s, self.open_timeout_s, self.end_timeout_s,
                self.restarts, self.restart_pause_s,
            )  # fmt: skip
            connection = Connection(library, pool.fileno(), access.path, order, limits)
            async with connection.serving():
                yield await VddkDisk.probed(connection, self.request)


class VddkDisk:
    """A disk that is open for reading. `allocation` says whether holes are known, and if not,
    `allocation_reason` why not."""

    def __init__(self, connection: Connection, request: int) -> None:
        self._connection = connection
        self._request = request
        self.allocation: Allocation = "queried"
        self.allocation_reason = ""

    @classmethod
    async def probed(cls, connection: Connection, request: int) -> VddkDisk:
        """Find out whether allocation can be queried at all, without alarming the log's readers."""
        disk = cls(connection, request)
        if disk.capacity >= CHUNK:
            await disk._query(0, CHUNK, probing=True)
        return disk

    @property
    def capacity(self) -> int:
        """Bytes; a multiple of 512."""
        return self._connection.opened.capacity

    @property
    def transport(self) -> str:
        """file, san, hotadd, nbd or nbdssl: what the library chose."""
        return self._connection.opened.transport

    def statistics(self) -> VddkStatistics:
        return self._connection.statistics()

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        """Read the `wanted` extents; the byte at disk offset `o` goes to `buffer.array[o - offset]`.

        `offset` is a multiple of 4 KiB. Bytes beside `wanted` may change. Several reads may run at once and
        share the depth. Cancelled, it returns only when nothing writes into the buffer any more.
        Raises VddkError with call, code, path, offset and length.
        """
        batch = Batch()
        requests = split(batch, buffer.position, offset, wanted, self._request, self.capacity)
        if not requests:
            await trio.lowlevel.checkpoint()
            return
        await self._connection.read(batch, requests)

    async def allocated(self, offset: int, length: int) -> Extents:
        """What may hold data in [offset, offset + length), to 64 KiB; the rest reads as zero.

        Everything, when the library or the host cannot tell. Raises VddkError.
        """
        await trio.lowlevel.checkpoint()
        end = min(offset + length, self.capacity)
        # The last chunk of a disk may be a part of one: it cannot be asked for, so it counts as allocated.
        whole = self.capacity // CHUNK * CHUNK
        start, stop = offset // CHUNK * CHUNK, min(-(-end // CHUNK) * CHUNK, whole)
        places = range(start, stop, QUERY_SPAN)
        found = [await self._query(place, min(QUERY_SPAN, stop - place)) for place in places]
        found.append(Extents.whole(self.capacity - whole, whole))
        starts = np.concatenate([extents.start for extents in found])
        lengths = np.concatenate([extents.length for extents in found])
        return Extents.from_columns(starts, lengths).within(offset, end - offset)

    async def _query(self, offset: int, length: int, *, probing: bool = False) -> Extents:
        """The answer of one call; everything, once a call was of no use."""
        if self.allocation == "queried":
            try:
                runs = await self._connection.query(offset // SECTOR, length // SECTOR, probing=probing)
                return _checked(np.frombuffer(runs, dtype=np.int64) * SECTOR, offset, length)
            except QueryRefused as exc:
                self.allocation, self.allocation_reason = "unavailable", str(exc)
        return Extents.whole(length, offset)


def _checked(runs: NDArray[np.int64], offset: int, length: int) -> Extents:
    """Runs as extents, if they are ascending and inside the range that was asked for."""
    start, size = runs[0::2], runs[1::2]
    edges = np.column_stack((start, start + size)).ravel()
    outside = len(edges) and (edges[0] < offset or edges[-1] > offset + length)
    if outside or (size <= 0).any() or (np.diff(edges) < 0).any():
        raise QueryRefused("The query of allocated blocks gave ranges that make no sense.")
    return Extents.from_columns(start, size)
