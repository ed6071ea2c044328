"""Reading the wanted extents of a disk into spans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import trio
from trio.abc import ReceiveChannel, SendChannel

from pipeline import SPAN, Disk, Extents, Gap, Span, Stage, Unchanged, Window, Zeros, run_ordered
from pipeline.composition import at_least, expect_disk


@dataclass(frozen=True)
class ReadSpans(Stage[Window, Span | Gap]):
    """Windows of a disk in, its bytes as spans out, with the gaps between them.

    In: windows in ascending order. Out: spans and gaps, ascending, covering the windows; a span lies within one
    multiple of SPAN, so that a later read of the same disk is cut at the same places.
    Memory: `ahead` + 1 spans, taken from the disk's pool. Cancel: waits for reads that are in flight.
    Raises: SourceError with disk, offset and length.
    """

    disk: Disk
    ahead: int = 2

    def __post_init__(self) -> None:
        expect_disk(self, self.disk)
        at_least(1, self, "ahead")

    async def run(self, inbox: ReceiveChannel[Window], outbox: SendChannel[Span | Gap]) -> None:
        async def read(piece: Span | Gap) -> Span | Gap:
            if isinstance(piece, Span):
                await self.disk.read(piece.buffer, piece.offset, piece.data)
            return piece

        async def cut(send: trio.MemorySendChannel[Span | Gap]) -> None:
            async with send:
                async for window in inbox:
                    for piece in pieces(window):
                        if isinstance(piece, Window):
                            await send.send(await self._span(piece))
                        else:
                            await send.send(piece)

        async with trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel[Span | Gap](0)
            nursery.start_soon(cut, send)
            await run_ordered(receive, outbox, read, concurrency=self.ahead)

    async def _span(self, cell: Window) -> Span:
        return Span(
            offset=cell.offset,
            length=cell.length,
            data=cell.data,
            zeros=cell.zeros,
            buffer=await self.disk.pool.acquire(),
        )


def pieces(window: Window) -> Iterator[Window | Gap]:
    """A window cut at multiples of SPAN: cells that hold data, and the gaps between them, ascending."""
    first = window.offset // SPAN
    edges = np.zeros(-(-(window.offset + window.length) // SPAN) - first + 1, dtype=np.int64)
    np.add.at(edges, window.data.start // SPAN - first, 1)
    np.add.at(edges, -(-window.data.end // SPAN) - first, -1)
    reached = window.offset
    end = window.offset + window.length
    for cell in np.flatnonzero(np.cumsum(edges)).tolist():
        offset = max((first + cell) * SPAN, window.offset)
        length = min((first + cell + 1) * SPAN, end) - offset
        yield from gaps(reached, offset - reached, window.zeros)
        yield Window(offset, length, window.data.within(offset, length), window.zeros.within(offset, length))
        reached = offset + length
    yield from gaps(reached, end - reached, window.zeros)


def gaps(offset: int, length: int, zeros: Extents) -> Iterator[Gap]:
    """A range without data as its zero and its unchanged parts, ascending."""
    reached = offset
    for start, size in zeros.within(offset, length):
        if start > reached:
            yield Unchanged(reached, start - reached)
        yield Zeros(start, size)
        reached = start + size
    if offset + length > reached:
        yield Unchanged(reached, offset + length - reached)
