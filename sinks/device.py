"""A disk onto a block device: a volume of LVM, a LUN, a mapped RBD image."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
from trio.abc import ReceiveChannel

from pipeline import BufferPool, MiB, Pipeline, Sink, SinkError, Span, Zeros
from vadpipe.repository.restore_point import StoredDisk

from .images import only_disk
from .nbd import check_size, larger, needs_force
from .raw import check_end, translated, whole_disk, write_span
from .restoring import Contents, OpenTarget

_BLKZEROOUT: Final = 0x127F  # linux/fs.h: zero a range, without sending zeros where the device can
_ZEROS: Final = memoryview(bytes(MiB))
_ZEROING: Final = 256 * MiB  # bytes per call, so that a cancelled restore ends soon


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
                before, reached = reached, whole_disk(item, reached)
                zeros = [(before, reached - before)]
                if isinstance(item, Span):
                    written += await trio.to_thread.run_sync(write_span, self.descriptor, item)
                    zeros = list(item.data.inverted(item.offset, item.length))
                    item.release()
                del item
                for offset, length in zeros:
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
        with _opened(self.path) as descriptor:
            size = os.lseek(descriptor, 0, os.SEEK_END)
            check_size(str(self.path), size, disk)
            yield _OpenDevice(contents, self.path, descriptor, size)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The device, for us alone: what is mounted, or part of a volume, cannot be opened. Raises SinkError."""
    try:
        if not stat.S_ISBLK(path.stat().st_mode):
            raise SinkError(
                f"{path} is no block device.", remedy="Name one, or take raw:DIR for an image in a file."
            )
        descriptor = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
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
        os.close(descriptor)


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
