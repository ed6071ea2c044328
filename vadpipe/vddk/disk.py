"""Disks of VMs and local VMDK files, read through VDDK.

Sectors are known in this room only: what is offered here counts bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import trio
from numpy.typing import NDArray

from pipeline.buffers import Buffer, BufferPool
from pipeline.errors import ConfigError
from pipeline.extents import Extents
from pipeline.units import CLUSTER, SPAN, MiB

from .abi import MAX_CHUNKS, MIN_CHUNK, SECTOR
from .access import DiskAccess, VmAccess
from .calls import call_once
from .connection import Connection, QueryRefused
from .library import (
    TMP_DIRECTORY,
    distribution_root,
    find_library,
    settings_file,
    working_directory,
)
from .limits import Limits
from .requests import Batch, split
from .tally import VddkStatistics

Compression = Literal["none", "zlib", "fastlz", "skipz"]
Allocation = Literal["queried", "unavailable"]

CHUNK = MIN_CHUNK * SECTOR  # the finest that allocation can be asked for: 64 KiB
QUERY_SPAN = MAX_CHUNKS * CHUNK  # the most that one query may cover: 32 GiB


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
        with self._library(access) as common:

            def order() -> dict[str, object]:
                mine = {"transports": self.transports, "compression": self.compression}
                return {**access.order(), **common, **mine}

            library = Path(common["library"])
            connection = Connection(library, pool.fileno(), access.path, order, self._limits)
            async with connection.serving():
                yield await VddkDisk.probed(connection, self.request, self.may_hot_add)

    @property
    def may_hot_add(self) -> bool:
        """Whether a disk may come to be attached to this machine: the library tries that unless told otherwise."""
        return self.transports is None or "hotadd" in self.transports.split(":")

    def tmp_directory(self, access: VmAccess) -> Path:
        """Where the library remembers what it hot-added of this VM. Raises ConfigError."""
        own = self.config.get(TMP_DIRECTORY)
        return Path(own) if own else working_directory(access.server, access.vm)

    async def prepare_for_access(self, access: VmAccess, identity: str) -> None:
        """Lock the VM against Storage vMotion, to be called before its snapshot is taken; vCenter only.

        `identity`: at most 50 characters, needed to end it. Raises VddkError, also where somebody else holds it.
        """
        await self._call("PrepareForAccess", access, identity)

    async def end_access(self, access: VmAccess, identity: str) -> None:
        """End the lock that was taken with this identity, by any process. Raises VddkError."""
        await self._call("EndAccess", access, identity)

    async def clean_up(self, access: VmAccess) -> CleanedUp:
        """Detach what processes that are gone left hot-added to this machine, of all VMs with this `tmp_directory`.

        Raises VddkError.
        """
        answer = await self._call("Cleanup", access)
        return CleanedUp(int(str(answer["cleaned"])), int(str(answer["remaining"])))

    async def _call(self, call: str, access: VmAccess, identity: str = "") -> Mapping[str, object]:
        with self._library(access) as common:
            order = {**access.order(), **common, "identity": identity}
            if call == "Cleanup":
                order["vm"] = ""  # so it is after a crash
            return await call_once(Path(common["library"]), call, order, self._limits, access.subject)

    @contextmanager
    def _library(self, access: VmAccess) -> Iterator[dict[str, str]]:
        """Which library, and how it is set up, for a child's order. Raises ConfigError."""
        library = find_library(self.libdir)
        with settings_file(self.config, self.tmp_directory(access)) as config:
            root = distribution_root(library)
            yield {"library": str(library), "root": str(root), "config": str(config)}

    @property
    def _limits(self) -> Limits:
        return Limits(
            self.depth, self.call_timeout_s, self.open_timeout_s, self.end_timeout_s,
            self.restarts, self.restart_pause_s,
        )  # fmt: skip


@dataclass(frozen=True)
class CleanedUp:
    """How many hot-added disks were detached, and how many could not be."""

    cleaned: int
    remaining: int


class VddkDisk:
    """A disk that is open for reading. `allocation` says whether holes are known, and if not,
    `allocation_reason` why not."""

    def __init__(self, connection: Connection, request: int, may_hot_add: bool) -> None:
        self._connection = connection
        self._request = request
        self._may_hot_add = may_hot_add
        self.allocation: Allocation = "queried"
        self.allocation_reason = ""

    @classmethod
    async def probed(cls, connection: Connection, request: int, may_hot_add: bool) -> VddkDisk:
        """Find out whether allocation can be queried at all, without alarming the log's readers."""
        disk = cls(connection, request, may_hot_add)
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

    @property
    def may_be_attached(self) -> bool:
        """Whether something of the VM may be hot-added to this machine although the disk was closed."""
        counts = self.statistics()
        return self._may_hot_add and bool(counts.unclean or counts.remaining)

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
