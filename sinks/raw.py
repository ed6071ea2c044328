"""A raw image of a disk: a sparse file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio
from trio.abc import ReceiveChannel

from pipeline import (
    ContractError,
    Sink,
    SinkError,
    Span,
    Unchanged,
    Zeros,
)
from vadpipe.files import create, publish, temporary_beside


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
        unfinished = temporary_beside(self.path)
        reached = written = 0
        with _translated(self.path), _removed_unless_renamed(unfinished):
            final = None if self.force else self.path
            descriptor = await trio.to_thread.run_sync(_create, unfinished, self.capacity, final)
            try:
                async for item in inbox:
                    if isinstance(item, Unchanged) or item.offset != reached:
                        raise ContractError(f"A raw image needs the whole disk in order; got {item!r}.")
                    reached += item.length
                    if isinstance(item, Span):
                        written += await trio.to_thread.run_sync(_write, descriptor, item)
                        item.release()
                    del item
                if reached != self.capacity:
                    raise ContractError(f"The disk has {self.capacity} bytes; {reached} arrived.")
                await trio.to_thread.run_sync(os.fsync, descriptor)
            finally:
                os.close(descriptor)
            await trio.to_thread.run_sync(partial(publish, replace=self.force), unfinished, self.path)
        return RawReceipt(self.path, self.capacity, written)


def _create(path: Path, capacity: int, unless: Path | None) -> int:
    """The file that will become the image; nothing is made while there is a file `unless`."""
    if unless is not None and os.path.lexists(unless):
        raise FileExistsError
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = create(path)
    try:
        os.truncate(descriptor, capacity)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _write(descriptor: int, span: Span) -> int:
    memory = span.buffer.memory
    for offset, length in span.data:
        part = memory[offset - span.offset : offset - span.offset + length]
        while part:
            count = os.pwrite(descriptor, part, offset)
            part, offset = part[count:], offset + count
    return span.data.total


@contextmanager
def _removed_unless_renamed(unfinished: Path) -> Iterator[None]:
    try:
        yield
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as exc:
        raise SinkError(
            f"{path} exists already.", remedy="Choose another directory, or add --force.", path=str(path)
        ) from exc
    except OSError as exc:
        remedy = "Free space there or choose another directory." if exc.errno == errno.ENOSPC else ""
        raise SinkError(f"{path} cannot be written: {exc.strerror}.", remedy=remedy, path=str(path)) from exc
