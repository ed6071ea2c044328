"""Differences onto a disk that holds something already."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio
from trio.abc import ReceiveChannel

from pipeline import ContractError, GiB, MiB, Sink, Span, Unchanged
from pipeline.composition import at_least, expect_disk
from pipeline.protocols import WritableDisk

log = logging.getLogger("vadpipe." + __name__)

# How much may be written or looked at again after a kill.
FLUSH_WRITTEN = 256 * MiB
FLUSH_PASSED = 8 * GiB


async def _nothing() -> None:
    await trio.lowlevel.checkpoint()


async def _nobody(_position: int) -> None:
    await trio.lowlevel.checkpoint()


@dataclass(frozen=True)
class OverDiskReceipt:
    """What was written: `data` and `zeros` bytes; `spans` had something to write."""

    capacity: int
    data: int
    zeros: int
    spans: int


@dataclass(frozen=True)
class OverDisk(Sink[Span | Unchanged, OverDiskReceipt]):
    """Spans of differences in, written onto the disk.

    In: spans and unchanged ranges, ascending, covering [0, capacity). Of a span, `data` and `zeros` are written,
    and nothing else.
    The disk is flushed after every 256 MiB written, and at the end: nothing counts as written before.
    Memory: `ahead` spans. Cancel: waits for writes in flight; the disk is then mixed.
    Raises: the errors of the disk; ContractError when the input does not cover the disk.

    Args:
        disk: The disk; open for writing.
        begin: Is called before the first write, if there is one.
        reached: Is called with a position after everything before it was written and flushed.
        ahead: Spans that are written at once.
    """

    disk: WritableDisk
    begin: Callable[[], Awaitable[None]] = field(default=_nothing, repr=False)
    reached: Callable[[int], Awaitable[None]] = field(default=_nobody, repr=False)
    ahead: int = 2

    def __post_init__(self) -> None:
        expect_disk(self, self.disk)
        at_least(1, self, "ahead")

    async def run(self, inbox: ReceiveChannel[Span | Unchanged]) -> OverDiskReceipt:
        work = _Writing(self.disk, self.reached, trio.Semaphore(self.ahead))
        position, passed, begun = 0, 0, False
        async with trio.open_nursery() as nursery:
            async for item in inbox:
                if not isinstance(item, Span | Unchanged) or item.offset != position:
                    raise ContractError(f"Differences of a whole disk in order are needed; got {item!r}.")
                position += item.length
                passed += item.length
                if isinstance(item, Span):
                    if not begun:
                        await self.begin()
                        begun = True
                    await work.turns.acquire()
                    nursery.start_soon(work.write, item)
                    del item
                if work.unflushed >= FLUSH_WRITTEN or passed >= FLUSH_PASSED:
                    await work.settle(self.ahead, position)
                    passed = 0
            if position != self.disk.capacity:
                raise ContractError(f"The disk has {self.disk.capacity} bytes; {position} arrived.")
            await work.settle(self.ahead, position)
        return OverDiskReceipt(position, work.data, work.zeros, work.spans)


@dataclass
class _Writing:
    """The writes of one run. `unflushed`: bytes written since the last flush."""

    disk: WritableDisk
    reached: Callable[[int], Awaitable[None]]
    turns: trio.Semaphore
    unflushed: int = 0
    data: int = 0
    zeros: int = 0
    spans: int = 0

    async def write(self, span: Span) -> None:
        try:
            memory = span.buffer.array
            for offset, length in span.zeros:
                memory[offset - span.offset : offset - span.offset + length] = 0
            await self.disk.write(span.buffer, span.offset, span.data | span.zeros)
        finally:
            span.release()
            self.turns.release()
        self.data += span.data.total
        self.zeros += span.zeros.total
        self.unflushed += span.data.total + span.zeros.total
        self.spans += 1

    async def settle(self, ahead: int, position: int) -> None:
        """Wait for all writes, flush, and report the position."""
        for _ in range(ahead):
            await self.turns.acquire()
        if self.unflushed:
            await self.disk.flush()
        self.unflushed = 0
        await self.reached(position)
        for _ in range(ahead):
            self.turns.release()
