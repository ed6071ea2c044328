"""A disk onto what is there already: an export of an NBD server, or a block device (a volume of LVM, a LUN).

`IntoNbd` also writes the images of a qemu-nbd that we start ourselves.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
from trio.abc import ReceiveChannel

from pipeline import (
    BufferPool,
    ConfigError,
    ContractError,
    MiB,
    Pipeline,
    Sink,
    SinkError,
    Span,
    Unchanged,
    Zeros,
)
from vadpipe.nbd import Nbd
from vadpipe.nbd.client import NbdError
from vadpipe.nbd.writer import NbdWriter, open_for_writing
from vadpipe.repository.format.restore_point import StoredDisk

from .images import only_disk
from .raw import check_end, released, translated, whole_disk, write_span
from .restoring import Contents, OpenTarget

_BLKZEROOUT: Final = 0x127F  # linux/fs.h: zero a range, without sending zeros where the device can
_ZEROS: Final = memoryview(bytes(MiB))
_ZEROING: Final = 256 * MiB  # bytes per call, so that a cancelled restore ends soon

_SPANS_AT_ONCE: Final = 2  # 8 requests of 1 MiB, what `Nbd` keeps in flight


class Writes:
    """Items that are being written, several at once; see `several_writes`."""

    def __init__(self, put: Callable[[Span | Zeros], Awaitable[object]], nursery: trio.Nursery) -> None:
        self.failures: list[SinkError | ContractError] = []
        self._put, self._nursery = put, nursery
        self._places = trio.Semaphore(_SPANS_AT_ONCE)

    async def start(self, item: Span | Zeros) -> None:
        """Begin to write an item, which is released afterwards; returns when there is a place for the next one."""
        await self._places.acquire()
        self._nursery.start_soon(self._write, item)
        del item
        async with self._places:
            return

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """All that was begun is written, and nothing begins, until the block ends."""
        for _ in range(_SPANS_AT_ONCE):
            await self._places.acquire()
        try:
            yield
        finally:
            for _ in range(_SPANS_AT_ONCE):
                self._places.release()

    async def _write(self, item: Span | Zeros) -> None:
        try:
            await self._put(item)
        except (SinkError, ContractError) as exc:
            self.failures.append(exc)
            self._nursery.cancel_scope.cancel()
        finally:
            if isinstance(item, Span):
                item.release()
            self._places.release()


@asynccontextmanager
async def several_writes(put: Callable[[Span | Zeros], Awaitable[object]]) -> AsyncIterator[Writes]:
    """Write items with `put`, so many at once as an NBD connection takes; all are written when the block ends.

    The first that fails ends the block, and its error comes out bare.
    """
    async with trio.open_nursery() as nursery:
        writes = Writes(put, nursery)
        yield writes
    if writes.failures:
        raise writes.failures[0]


@dataclass(frozen=True)
class NbdReceipt:
    """A disk that is written and durable. Bytes: `written` as data, `zeroed` as zeros; `capacity` is the disk's."""

    capacity: int
    written: int
    zeroed: int


@dataclass(frozen=True, eq=False)
class IntoNbd(Sink[Span | Zeros, NbdReceipt]):
    """Spans of a whole disk in; written to an export and flushed.

    In: spans and zeros, ascending, covering [0, capacity).
    Args:
        disk: From `open_for_writing`; at least as large as the disk.
        capacity: Bytes of the disk.
        fresh: The export reads as zero everywhere, so zeros are not written.

    Memory: two spans. Cancel: a part of the disk is written.
    Raises: SinkError when the server fails; ContractError when the input does not cover the disk.
    """

    disk: NbdWriter
    capacity: int
    fresh: bool = False

    async def run(self, inbox: ReceiveChannel[Span | Zeros]) -> NbdReceipt:
        reached = written = zeroed = 0

        async def put(item: Span | Zeros) -> None:
            if isinstance(item, Span):
                await self.disk.write(item.buffer, item.offset, item.data)
            if not self.fresh:
                for offset, length in _zeros(item):
                    await self.disk.write_zeros(offset, length)

        async with several_writes(put) as writes:
            async for item in inbox:
                if isinstance(item, Unchanged):
                    raise ContractError(f"The whole disk is needed; got {item!r}.")
                reached = whole_disk(item, reached)
                written += item.data.total if isinstance(item, Span) else 0
                zeroed += 0 if self.fresh else sum(length for _, length in _zeros(item))
                await writes.start(item)
                del item
            check_end(reached, self.capacity)
        await self.disk.flush()
        return NbdReceipt(self.capacity, written, zeroed)


def _zeros(item: Span | Zeros) -> Sequence[tuple[int, int]]:
    if isinstance(item, Zeros):
        return [(item.offset, item.length)]
    return list(item.data.inverted(item.offset, item.length))


def check_size(target: str, capacity: int, disk: StoredDisk) -> None:
    """Raises SinkError when a target of `capacity` bytes cannot take the disk."""
    if capacity < disk.capacity:
        raise SinkError(
            f"{target} has {capacity} bytes; disk {disk.key} has {disk.capacity}.",
            remedy="Name a target that is at least as large; nothing was written.",
        )


def needs_force(target: str, contents: Contents) -> None:
    """Raises ConfigError unless the restore may overwrite what is there."""
    if not contents.force:
        raise ConfigError(
            f"A restore overwrites what {target} holds.",
            remedy="Add --force if that is what you want; nothing was written.",
        )


@dataclass(frozen=True)
class NbdTarget:
    """One disk onto an export of an NBD server, which must be at least as large. Needs `force`."""

    server: Nbd

    @asynccontextmanager
    async def open(self, contents: Contents) -> AsyncIterator[OpenTarget]:
        """Raises ConfigError, SinkError."""
        disk = only_disk(contents, "nbd:")
        needs_force(f"the export {self.server.export!r} of {self.server.server}", contents)
        try:
            async with open_for_writing(self.server) as writer:
                check_size(
                    f"The export {self.server.export!r} of {self.server.server}", writer.capacity, disk
                )
                yield _OpenExport(
                    contents, writer, f"{self.server.export or 'the export'} of {writer.server}"
                )
        except NbdError as exc:
            raise SinkError(exc.problem, remedy=exc.remedy, **exc.facts) from exc


@dataclass(frozen=True)
class _OpenExport:
    contents: Contents
    writer: NbdWriter
    name: str

    def place(self, disk: StoredDisk) -> str:
        return self.name

    @asynccontextmanager
    async def pipeline(self, disk: StoredDisk, pool: BufferPool) -> AsyncIterator[Pipeline[object]]:
        yield self.contents.read(disk, pool) | IntoNbd(self.writer, disk.capacity)

    async def finish(self) -> Sequence[str]:
        return larger(self.name, self.writer.capacity, self.contents)


def larger(name: str, capacity: int, contents: Contents) -> Sequence[str]:
    """A sentence when the target is larger than the disk on it."""
    rest = capacity - contents.disks[0].capacity
    if not rest:
        return []
    return [f"{name} is {rest} bytes larger than the disk; they were left as they are."]


@dataclass(frozen=True)
class IntoDevice(Sink[Span | Zeros, int]):
    """Spans of a whole disk in; written to an open block device, zeros too, and flushed. Returns bytes of data.

    In: spans and zeros, ascending, covering [0, capacity).
    Memory: one span. Cancel: a part of the disk is written.
    Raises: SinkError when the device fails; ContractError when the input does not cover the disk.
    """

    path: Path
    descriptor: int
    capacity: int

    async def run(self, inbox: ReceiveChannel[Span | Zeros]) -> int:
        reached = written = 0
        with translated(self.path):
            async for item in inbox:
                with released(item):
                    reached = whole_disk(item, reached)
                    if isinstance(item, Span):
                        written += await trio.to_thread.run_sync(write_span, self.descriptor, item)
                for offset, length in _zeros(item):
                    for place in range(offset, offset + length, _ZEROING):
                        size = min(_ZEROING, offset + length - place)
                        await trio.to_thread.run_sync(_write_zeros, self.descriptor, place, size)
            check_end(reached, self.capacity)
            await trio.to_thread.run_sync(os.fsync, self.descriptor)
        return written


def _write_zeros(descriptor: int, offset: int, length: int) -> None:
    try:
        fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("=QQ", offset, length))
    except OSError as exc:
        if exc.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        while length > 0:
            count = os.pwrite(descriptor, _ZEROS[: min(length, len(_ZEROS))], offset)
            offset, length = offset + count, length - count


@dataclass(frozen=True)
class DeviceTarget:
    """One disk onto a block device, which must be at least as large and not in use. Needs `force`."""

    path: Path

    @asynccontextmanager
    async def open(self, contents: Contents) -> AsyncIterator[OpenTarget]:
        """Raises ConfigError, SinkError."""
        disk = only_disk(contents, "device:")
        needs_force(str(self.path), contents)
        async with exclusive_device(self.path) as descriptor:
            size = os.lseek(descriptor, 0, os.SEEK_END)
            check_size(str(self.path), size, disk)
            yield _OpenDevice(contents, self.path, descriptor, size)


@asynccontextmanager
async def exclusive_device(path: Path) -> AsyncIterator[int]:
    """The device, for us alone: what is mounted, or part of a volume, cannot be opened. Raises SinkError."""
    try:
        if not stat.S_ISBLK((await trio.to_thread.run_sync(path.stat)).st_mode):
            raise SinkError(
                f"{path} is no block device.", remedy="Name one, or take raw:DIR for an image in a file."
            )
        descriptor = await trio.to_thread.run_sync(os.open, path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            raise SinkError(
                f"{path} is in use.",
                remedy="Unmount its file systems, and stop what has it open (lsblk, fuser); nothing was written.",
            ) from exc
        raise SinkError(
            f"{path} cannot be opened: {exc.strerror}.", remedy="Name a device that this user may write."
        ) from exc
    try:
        yield descriptor
    finally:
        with trio.CancelScope(shield=True):  # the last one to close a device waits until everything is on it
            await trio.to_thread.run_sync(os.close, descriptor)


@dataclass(frozen=True)
class _OpenDevice:
    contents: Contents
    path: Path
    descriptor: int
    size: int

    def place(self, disk: StoredDisk) -> str:
        return str(self.path)

    @asynccontextmanager
    async def pipeline(self, disk: StoredDisk, pool: BufferPool) -> AsyncIterator[Pipeline[object]]:
        yield self.contents.read(disk, pool) | IntoDevice(self.path, self.descriptor, disk.capacity)

    async def finish(self) -> Sequence[str]:
        return larger(str(self.path), self.size, self.contents)
