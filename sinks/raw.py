"""Raw images: sparse files, one per disk, and one disk to standard output."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

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
from vadpipe.files import create, publish, temporary_beside, write_at
from vadpipe.repository.format.restore_point import StoredDisk

from .images import image_name, only_disk, open_images
from .restoring import Contents, OpenTarget

STANDARD_OUTPUT: Final = 1

_ZEROS: Final = memoryview(bytes(MiB))


@dataclass(frozen=True)
class RawReceipt:
    """A finished image. `written` is bytes of data; the rest of `capacity` is holes."""

    path: Path
    capacity: int
    written: int


@dataclass(frozen=True)
class RawFile(Sink[Span | Zeros, RawReceipt]):
    """Spans of a whole disk in, a sparse raw image out.

    In: spans and zeros, ascending, covering [0, capacity).
    The image appears under its name only when it is complete and durable; until then its name is a random one.
    Memory: one span. Cancel: nothing remains.
    Raises: SinkError when the target cannot be written, or exists and `force` is false; ContractError when the
    input does not cover the disk.
    """

    path: Path
    capacity: int
    force: bool = False

    async def run(self, inbox: ReceiveChannel[Span | Zeros]) -> RawReceipt:
        reached = written = 0
        async with new_file(self.path, force=self.force) as file:
            await trio.to_thread.run_sync(os.truncate, file.descriptor, self.capacity)
            async for item in inbox:
                with released(item):
                    reached = whole_disk(item, reached)
                    if isinstance(item, Span):
                        written += await trio.to_thread.run_sync(write_span, file.descriptor, item)
            check_end(reached, self.capacity)
            await file.publish()
        return RawReceipt(self.path, self.capacity, written)


@contextmanager
def released(item: object) -> Iterator[None]:
    """The buffer of a span is given back after the block. An error would keep it, and other disks wait for it."""
    try:
        yield
    finally:
        if isinstance(item, Span):
            item.release()


def whole_disk(item: Span | Zeros | Unchanged, reached: int) -> int:
    """How far a disk has come with this item. Raises ContractError for a gap, and for what is not known."""
    if isinstance(item, Unchanged) or item.offset != reached:
        raise ContractError(f"An image needs the whole disk in order; got {item!r}.")
    return reached + item.length


def check_end(reached: int, capacity: int) -> None:
    """Raises ContractError unless the disk came to its end."""
    if reached != capacity:
        raise ContractError(f"The disk has {capacity} bytes; {reached} arrived.")


@dataclass(frozen=True)
class NewFile:
    """A file in the making: open for writing under a name of its own, `unfinished`."""

    final: Path
    unfinished: Path
    descriptor: int
    replace: bool

    async def publish(self) -> None:
        """Make it durable and give it its name. Raises SinkError."""
        with translated(self.final):
            await trio.to_thread.run_sync(os.fsync, self.descriptor)
            await trio.to_thread.run_sync(partial(publish, self.unfinished, self.final, replace=self.replace))


@asynccontextmanager
async def new_file(final: Path, *, force: bool) -> AsyncIterator[NewFile]:
    """A new file, which gets its name by `publish`; without that, nothing remains behind the block.

    Raises SinkError when it cannot be written, or exists and `force` is false.
    """
    unfinished = temporary_beside(final)
    with translated(final):
        descriptor = await trio.to_thread.run_sync(_create, unfinished, None if force else final)
        try:
            yield NewFile(final, unfinished, descriptor, force)
        finally:
            with trio.CancelScope(shield=True):  # short, or as long as the disk takes to close a large file
                await trio.to_thread.run_sync(_discard, descriptor, unfinished)


def _create(path: Path, unless: Path | None) -> int:
    """Makes nothing while there is a file `unless`. Raises OSError."""
    if unless is not None and os.path.lexists(unless):
        raise FileExistsError
    path.parent.mkdir(parents=True, exist_ok=True)
    return create(path)


def _discard(descriptor: int, unfinished: Path) -> None:
    os.close(descriptor)
    unfinished.unlink(missing_ok=True)


def write_span(descriptor: int, span: Span) -> int:
    """Write the data of a span where it lies on the disk. Returns its bytes; raises OSError."""
    memory = span.buffer.memory
    for offset, length in span.data:
        write_at(descriptor, memory[offset - span.offset : offset - span.offset + length], offset)
    return span.data.total


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Errors of the system as SinkErrors that name the file."""
    try:
        yield
    except FileExistsError as exc:
        raise SinkError(
            f"{path} exists already.", remedy="Choose another directory, or add --force.", path=str(path)
        ) from exc
    except OSError as exc:
        remedy = "Free space there or choose another directory." if exc.errno == errno.ENOSPC else ""
        raise SinkError(f"{path} cannot be written: {exc.strerror}.", remedy=remedy, path=str(path)) from exc


@dataclass(frozen=True)
class RawDirectory:
    """One sparse raw image per disk: DIRECTORY/VM/POINT/scsi0-0.raw. One restore of a point at a time."""

    directory: Path

    def open(self, contents: Contents) -> AbstractAsyncContextManager[OpenTarget]:
        """Raises SinkError."""

        @asynccontextmanager
        async def write(disk: StoredDisk, path: Path, pool: BufferPool) -> AsyncIterator[Pipeline[object]]:
            yield contents.read(disk, pool) | RawFile(path, disk.capacity, contents.force)

        return open_images(self.directory, contents, lambda disk: [f"{image_name(disk.key)}.raw"], write)


@dataclass(frozen=True)
class RawStream(Sink[Span | Zeros, int]):
    """Spans of a whole disk in, its bytes out to a descriptor, zeros written out; the receipt counts them.

    In: spans and zeros, ascending, covering [0, capacity).
    Memory: one span. Cancel: what was written stays written; the reader gets less than the disk.
    Raises: SinkError when the reader is gone or the descriptor cannot be written; ContractError when the input does
    not cover the disk.
    """

    capacity: int
    descriptor: int = STANDARD_OUTPUT

    async def run(self, inbox: ReceiveChannel[Span | Zeros]) -> int:
        reached = 0
        with _open_stream(self.descriptor) as (descriptor, is_pipe):
            write = _write_pipe if is_pipe else _write_file
            async for item in inbox:
                before, reached = reached, whole_disk(item, reached)
                with released(item):
                    held = item.data if isinstance(item, Span) else ()
                    for offset, length in held:
                        await _write_zeros(write, descriptor, offset - before)
                        assert isinstance(item, Span)
                        await write(descriptor, item.bytes_of(offset, length).data)
                        before = offset + length
                    await _write_zeros(write, descriptor, reached - before)
            check_end(reached, self.capacity)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                await trio.to_thread.run_sync(os.fsync, descriptor)
        return reached


@contextmanager
def _open_stream(descriptor: int) -> Iterator[tuple[int, bool]]:
    """The descriptor to write to, and whether it is a pipe of ours that does not block."""
    own = -1
    try:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            # Opened anew: whether it blocks is a fact of the open file, which others have too.
            own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        yield (descriptor if own < 0 else own), own >= 0
    except OSError as exc:
        if exc.errno == errno.EPIPE:
            raise SinkError(
                "The reader of standard output closed it before the whole disk was written.",
                remedy="Look at its messages; what it got is not the whole disk.",
            ) from exc
        raise SinkError(f"Standard output cannot be written: {exc.strerror}.") from exc
    finally:
        if own >= 0:
            os.close(own)


async def _write_pipe(descriptor: int, content: memoryview) -> None:
    while content:
        await trio.lowlevel.wait_writable(descriptor)
        try:
            content = content[os.write(descriptor, content[:MiB]) :]
        except BlockingIOError:
            continue


async def _write_file(descriptor: int, content: memoryview) -> None:
    while content:
        content = content[await trio.to_thread.run_sync(os.write, descriptor, content) :]


async def _write_zeros(
    write: Callable[[int, memoryview], Awaitable[None]], descriptor: int, length: int
) -> None:
    while length > 0:
        part = _ZEROS[: min(length, len(_ZEROS))]
        await write(descriptor, part)
        length -= len(part)


@dataclass(frozen=True)
class StandardOutput:
    """The bytes of one disk to standard output, which nothing else is written to."""

    uses_standard_output: ClassVar[bool] = True

    @asynccontextmanager
    async def open(self, contents: Contents) -> AsyncIterator[OpenTarget]:
        """Raises ConfigError."""
        disk = only_disk(contents, "raw:-")
        if os.isatty(STANDARD_OUTPUT):
            raise ConfigError(
                "raw:- writes a disk to standard output, which is a terminal.",
                remedy="Redirect it to a file or a program.",
            )
        yield _OpenStandardOutput(contents, disk)


@dataclass(frozen=True)
class _OpenStandardOutput:
    contents: Contents
    disk: StoredDisk

    def place(self, disk: StoredDisk) -> str:
        return "standard output"

    @asynccontextmanager
    async def pipeline(self, disk: StoredDisk, pool: BufferPool) -> AsyncIterator[Pipeline[object]]:
        yield self.contents.read(disk, pool) | RawStream(disk.capacity)

    async def finish(self) -> Sequence[str]:
        return ()
