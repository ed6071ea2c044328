"""Disks of VMs and local VMDK files, read and written through VDDK.

Sectors are known in this room only: everything offered here counts bytes.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, overload

import numpy as np
import trio
from numpy.typing import NDArray

from pipeline.buffers import Buffer, BufferPool
from pipeline.errors import ChangeTrackingInvalid, ConfigError
from pipeline.extents import Extents
from pipeline.protocols import ChangedAreas
from pipeline.units import CLUSTER, SPAN, MiB

from .abi import MAX_CHUNKS, MIN_CHUNK, SECTOR
from .access import DiskAccess, VmAccess
from .client import Limits, call_once
from .connection import Connection, QueryRefused, VddkStatistics
from .library import TMP_DIRECTORY, distribution_root, find_library, settings_file, working_directory
from .requests import Batch, split
from .writing import WritableConnection

log = logging.getLogger(__name__)

Compression = Literal["none", "zlib", "fastlz", "skipz"]
Allocation = Literal["queried", "unavailable"]

CHUNK = MIN_CHUNK * SECTOR  # the finest granularity of a query of allocated blocks: 64 KiB
QUERY_SPAN = MAX_CHUNKS * CHUNK  # one query covers at most 32 GiB


@dataclass(frozen=True)
class Vddk:
    """How to read and write with VDDK. Making one does no I/O.

    Args:
        libdir: Root of the vmware-vix-disklib-distrib directory, VDDK 6.5 to 9.x.
        transports: Tried in this order, e.g. "hotadd:nbdssl"; None: the library's default order.
        compression: Of nbd and nbdssl transfers.
        unbuffered: Ask for unbuffered reads and writes; over NBD from vSphere 7.0 U2 on up to 4 times faster (KB
            313937), and what hotadd wants for writing.
        nfc_port: TCP port of the ESXi hosts' disk service; 0 is the library's default, 902.
        depth: Requests in flight per disk. An ESXi host has 48 MB of buffers for all of them (96 MB from 8.0).
        request: Bytes of a request.
        call_timeout_s: A child process that gives no sign of life for this long is replaced.
        open_timeout_s: The same while it connects and opens.
        end_timeout_s: For closing and disconnecting, until the child is killed.
        restarts: New children in a row without a byte transferred in between.
        restart_pause_s: Pause before the first of them; doubled for each further one.
        config: Settings of the library's configuration file, besides vadpipe's defaults; no secrets.

    Raises:
        ConfigError: A setting is out of range.
    """

    libdir: str | Path
    transports: str | None = None
    compression: Compression = "none"
    unbuffered: bool = False
    nfc_port: int = 0
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
        if not 0 <= self.nfc_port <= 65535:
            raise ConfigError(f"nfc_port={self.nfc_port} is not a TCP port.")
        for name, value in self.config.items():
            if any(mark in name + value for mark in '\r\n"'):
                raise ConfigError(f"The VDDK setting {name!r} has a line break or a quotation mark.")

    @overload
    def open(
        self, access: DiskAccess, pool: BufferPool | None = None, *, write: Literal[False] = False
    ) -> AbstractAsyncContextManager[VddkDisk]: ...

    @overload
    def open(
        self, access: DiskAccess, pool: BufferPool | None = None, *, write: Literal[True]
    ) -> AbstractAsyncContextManager[WritableVddkDisk]: ...

    def open(
        self, access: DiskAccess, pool: BufferPool | None = None, *, write: bool = False
    ) -> AbstractAsyncContextManager[VddkDisk]:
        """Open a disk, in a child process of its own that is gone at the end.

        A disk that is written is flushed and closed in order when the block ends normally, and VddkError is raised
        if that fails. When the block fails or is cancelled it is closed without a flush.

        Args:
            access: Which disk, and the login. A VM whose disk is written has to be powered off.
            pool: Buffers of this pool are read into and written from; None: a pool of its own.
            write: Open it for writing and reading.

        Raises:
            ConfigError: There is no library or no password.
            VddkError: The library cannot open the disk; or a written disk was not flushed or not closed.
        """
        pool = pool or BufferPool()
        return self._open_writable(access, pool) if write else self._open(access, pool)

    @asynccontextmanager
    async def _open(self, access: DiskAccess, pool: BufferPool) -> AsyncIterator[VddkDisk]:
        with self._library(access) as common:
            library, order = Path(str(common["library"])), self._order(access, common, write=False)
            connection = Connection(library, [pool.fileno()], access.path, order, self._limits)
            async with connection.serving():
                yield await VddkDisk(connection, access, pool, self.request, self.may_hot_add).probed()

    @asynccontextmanager
    async def _open_writable(self, access: DiskAccess, pool: BufferPool) -> AsyncIterator[WritableVddkDisk]:
        with self._library(access) as common:
            library, order = Path(str(common["library"])), self._order(access, common, write=True)
            connection = WritableConnection(library, pool.fileno(), access.path, order, self._limits)
            async with connection.serving():
                yield await WritableVddkDisk(
                    connection, access, pool, self.request, self.may_hot_add
                ).probed()

    def _order(
        self, access: DiskAccess, common: Mapping[str, object], *, write: bool
    ) -> Callable[[], dict[str, object]]:
        """Makes the order of each child: the secrets are revealed when one is started."""
        mine = {
            "transports": self.transports,
            "compression": self.compression,
            "unbuffered": self.unbuffered,
            "write": write,
        }
        return lambda: {**access.order(), **common, **mine}

    @property
    def may_hot_add(self) -> bool:
        """Whether the library may attach disks to this machine: it tries unless `transports` excludes hotadd."""
        return self.transports is None or "hotadd" in self.transports.split(":")

    def tmp_directory(self, access: VmAccess) -> Path:
        """Where the library records the disks of this VM that it attached to this machine. Raises ConfigError."""
        own = self.config.get(TMP_DIRECTORY)
        return Path(own) if own else working_directory(access.server, access.vm)

    async def prepare_for_access(self, access: VmAccess, identity: str) -> None:
        """Lock the VM against Storage vMotion. Call it before the snapshot is taken; vCenter only.

        Args:
            access: Which VM, and the login.
            identity: At most 50 characters; `end_access` needs the same.

        Raises:
            VddkError: The call failed, or somebody else holds the lock.
        """
        await self._call("PrepareForAccess", access, identity)

    async def end_access(self, access: VmAccess, identity: str) -> None:
        """End the lock with this identity, whichever process took it. Raises VddkError."""
        await self._call("EndAccess", access, identity)

    async def clean_up(self, access: VmAccess) -> CleanedUp:
        """Detach disks that ended processes left attached to this machine, of all VMs with this `tmp_directory`.

        Raises:
            VddkError: The call failed.
        """
        answer = await self._call("Cleanup", access)
        return CleanedUp(int(str(answer["cleaned"])), int(str(answer["remaining"])))

    async def _call(self, call: str, access: VmAccess, identity: str = "") -> Mapping[str, object]:
        with self._library(access) as common:
            order = {**access.order(), **common, "identity": identity}
            if call == "Cleanup":
                order["vm"] = ""  # Cleanup after a crash wants no VM
            return await call_once(Path(str(common["library"])), call, order, self._limits, access.subject)

    @contextmanager
    def _library(self, access: VmAccess) -> Iterator[dict[str, object]]:
        """The part of a child's order about the library. Raises ConfigError."""
        library = find_library(self.libdir)
        with settings_file(self.config, self.tmp_directory(access)) as config:
            root = distribution_root(library)
            yield {
                "library": str(library),
                "root": str(root),
                "config": str(config),
                "nfc_port": self.nfc_port,
            }

    @property
    def _limits(self) -> Limits:
        return Limits(
            self.depth, self.call_timeout_s, self.open_timeout_s, self.end_timeout_s,
            self.restarts, self.restart_pause_s,
        )  # fmt: skip


@dataclass(frozen=True)
class CleanedUp:
    """How many hot-added disks were detached, and how many remain."""

    cleaned: int
    remaining: int


class VddkDisk:
    """A disk that is open for reading; a `pipeline.Disk` of its own, without change tracking.

    `key` is its path, `label` its file name. `allocation` says whether holes are known, `allocation_reason` why
    not.
    """

    change_id: None = None

    def __init__(
        self, connection: Connection, access: DiskAccess, pool: BufferPool, request: int, may_hot_add: bool
    ) -> None:
        self.key = access.path
        self.label = access.path.rpartition("/")[2]
        self.pool = pool
        self._connection = connection
        self._request = request
        self._may_hot_add = may_hot_add
        self.allocation: Allocation = "queried"
        self.allocation_reason = ""

    async def probed(self) -> Self:
        """The disk, when it is known whether allocated blocks can be queried at all."""
        if self.capacity >= CHUNK:
            await self._query(0, CHUNK, probing=True)
        return self

    @property
    def capacity(self) -> int:
        """Bytes; a multiple of 512."""
        return self._connection.opened.capacity

    @property
    def transport(self) -> str:
        """The library's choice: file, san, hotadd, nbd or nbdssl."""
        return self._connection.opened.transport

    @property
    def may_be_attached(self) -> bool:
        """Whether a disk of the VM may still be attached to this machine after closing."""
        counts = self.statistics()
        return self._may_hot_add and bool(counts.unclean or counts.remaining)

    def statistics(self) -> VddkStatistics:
        return self._connection.statistics()

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        """Read the `wanted` extents; the byte at disk offset `o` goes to `buffer.array[o - offset]`.

        Bytes beside `wanted` may change. Several reads may run at once and share the depth. A cancelled read
        returns only when nothing writes into the buffer any more.

        Args:
            buffer: A buffer of the disk's pool.
            offset: Of the buffer's first byte; a multiple of 4 KiB.
            wanted: Extents in [offset, offset + span).

        Raises:
            VddkError: Facts are call, code, path, offset and length.
        """
        batch = Batch()
        requests = split(batch, buffer.position, offset, wanted, self._request, self.capacity)
        if not requests:
            await trio.lowlevel.checkpoint()
            return
        await self._connection.transfer(batch, requests)

    async def allocated(self, offset: int, length: int) -> Extents:
        """What may hold data in [offset, offset + length), in units of 64 KiB; the rest reads as zero.

        It is everything when the library or the host cannot tell.

        Raises:
            VddkError: The connection failed for good.
        """
        await trio.lowlevel.checkpoint()
        end = min(offset + length, self.capacity)
        # The end of a disk that is not a whole chunk cannot be queried, so it counts as allocated.
        whole = self.capacity // CHUNK * CHUNK
        start, stop = offset // CHUNK * CHUNK, min(-(-end // CHUNK) * CHUNK, whole)
        places = range(start, stop, QUERY_SPAN)
        found = [await self._query(place, min(QUERY_SPAN, stop - place)) for place in places]
        found.append(Extents.whole(self.capacity - whole, whole))
        starts = np.concatenate([extents.start for extents in found])
        lengths = np.concatenate([extents.length for extents in found])
        return Extents.from_columns(starts, lengths).within(offset, end - offset)

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        """VDDK has no change tracking: vSphere answers that.

        Raises:
            ChangeTrackingInvalid: Always.
        """
        raise ChangeTrackingInvalid(
            f"{self.key} is read through VDDK alone, which has no change tracking.",
            remedy="Read it in full, or through VcenterVm, which asks vSphere for changed areas.",
            disk=self.key,
        )

    async def _query(self, offset: int, length: int, *, probing: bool = False) -> Extents:
        """Allocated extents of one range. After the first refused query every range counts as allocated."""
        if self.allocation == "queried":
            try:
                runs = await self._connection.query(offset // SECTOR, length // SECTOR, probing=probing)
                return _checked(np.frombuffer(runs, dtype=np.int64) * SECTOR, offset, length)
            except QueryRefused as exc:
                self.allocation, self.allocation_reason = "unavailable", str(exc)
                log.info("Allocated blocks of %s are unknown, so all of it is read: %s", self.key, exc)
        return Extents.whole(length, offset)


class WritableVddkDisk(VddkDisk):
    """A disk that is open for writing and reading; a `pipeline.WritableDisk`."""

    def __init__(
        self,
        connection: WritableConnection,
        access: DiskAccess,
        pool: BufferPool,
        request: int,
        may_hot_add: bool,
    ) -> None:
        super().__init__(connection, access, pool, request, may_hot_add)
        self._writing = connection

    async def write(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        """Write the `wanted` extents; the byte at disk offset `o` is `buffer.array[o - offset]`.

        When it returns, the library has acknowledged them and the buffer is free. They are safe only after `flush`.
        Several writes may run at once and share the depth, but not over the same range. A cancelled write returns
        only when nothing reads the buffer any more, and may have written any part.

        Args:
            buffer: A buffer of the disk's pool.
            offset: Of the buffer's first byte; a multiple of 4 KiB.
            wanted: Extents in [offset, offset + span), in whole clusters of 4 KiB, except at the disk's end.

        Raises:
            VddkError: Facts are call, code, path, offset and length. When it is `transient`, writing the disk
                again from the beginning may help.
        """
        batch = Batch()
        requests = split(batch, buffer.position, offset, wanted, self._request, self.capacity, write=True)
        if not requests:
            await trio.lowlevel.checkpoint()
            return
        await self._writing.write(batch, requests, buffer)

    async def flush(self) -> None:
        """Return when everything that was written before this call is on the disk.

        What was written through a connection that was lost is read again first and compared.

        Raises:
            VddkError: It is not. The disk cannot be used any more: another flush would prove nothing.
        """
        await self._writing.flush()

    async def allocated(self, offset: int, length: int) -> Extents:
        """As of a disk for reading. It flushes and opens the disk anew where this range was written meanwhile."""
        if self.allocation == "queried":
            await self._writing.renew(offset, length)
        return await super().allocated(offset, length)

    async def read_metadata(self, key: str) -> str:
        """A value of the disk's metadata, e.g. of "adapterType". Raises VddkError, also for an unknown key."""
        value = await self._writing.metadata("ReadMetadata", _plain("key", key))
        return value.partition(b"\0")[0].decode(errors="replace")

    async def write_metadata(self, key: str, value: str) -> None:
        """Set a value of the disk's metadata. Raises VddkError."""
        await self._writing.metadata("WriteMetadata", _plain("key", key), _plain("value", value))

    async def metadata_keys(self) -> list[str]:
        """The keys of the disk's metadata. Raises VddkError."""
        keys = await self._writing.metadata("GetMetadataKeys", "")
        return [key.decode(errors="replace") for key in keys.split(b"\0") if key]


def _plain(what: str, text: str) -> str:
    if "\0" in text:
        raise ConfigError(f"The metadata {what} {text!r} contains a NUL character.")
    return text


def _checked(runs: NDArray[np.int64], offset: int, length: int) -> Extents:
    """Runs as extents. Raises QueryRefused unless they are ascending and inside the range of the query."""
    start, size = runs[0::2], runs[1::2]
    edges = np.column_stack((start, start + size)).ravel()
    outside = len(edges) and (edges[0] < offset or edges[-1] > offset + length)
    if outside or (size <= 0).any() or (np.diff(edges) < 0).any():
        raise QueryRefused("The query of allocated blocks gave ranges out of order or out of bounds.")
    return Extents.from_columns(start, size)
