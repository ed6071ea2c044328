"""A disk onto an export of an NBD server: of a server that the user names, or of a qemu-nbd that we start."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio
from trio.abc import ReceiveChannel

from pipeline import BufferPool, ConfigError, ContractError, Pipeline, Sink, SinkError, Span, Unchanged, Zeros
from vadpipe.nbd import Nbd
from vadpipe.nbd.client import NbdError
from vadpipe.nbd.writer import NbdWriter, open_for_writing
from vadpipe.repository.restore_point import StoredDisk

from .images import only_disk
from .raw import check_end, whole_disk
from .restoring import Contents, OpenTarget

_SPANS_AT_ONCE: Final = 2  # 8 requests of 1 MiB, what `Nbd` keeps in flight


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
        places = trio.Semaphore(_SPANS_AT_ONCE)
        failures: list[SinkError] = []

        async def put(item: Span | Zeros) -> None:
            try:
                if isinstance(item, Span):
                    await self.disk.write(item.buffer, item.offset, item.data)
                if not self.fresh:
                    for offset, length in _zeros(item):
                        await self.disk.write_zeros(offset, length)
            except SinkError as exc:
                failures.append(exc)
                nursery.cancel_scope.cancel()
            finally:
                if isinstance(item, Span):
                    item.release()
                places.release()

        async with trio.open_nursery() as nursery:
            await places.acquire()
            async for item in inbox:
                if isinstance(item, Unchanged):
                    raise ContractError(f"The whole disk is needed; got {item!r}.")
                reached = whole_disk(item, reached)
                written += item.data.total if isinstance(item, Span) else 0
                zeroed += 0 if self.fresh else sum(length for _, length in _zeros(item))
                nursery.start_soon(put, item)
                del item
                await places.acquire()
            check_end(reached, self.capacity)
        if failures:
            raise failures[0]
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
