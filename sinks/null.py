"""A sink and a target that keep nothing: for measuring what stands before them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from trio.abc import ReceiveChannel

from pipeline import (
    Capture,
    Disk,
    DiskReceipt,
    Evidence,
    FramedSpan,
    MachineId,
    PreviousDisk,
    Sink,
    Span,
    Unchanged,
    Zeros,
)
from vadpipe.kernels.dedupe import MemoryIndex


@dataclass(frozen=True)
class NullSink(Sink[object, DiskReceipt]):
    """Anything in, a receipt of what came out; buffers are given back.

    The receipt counts bytes: of framed spans what is new and what the encoded frames take, of other items their
    data as new. A job fills in which disk it is of.

    Memory: one item. Cancel: leaves nothing behind.
    """

    async def run(self, inbox: ReceiveChannel[object]) -> DiskReceipt:
        end = zero_read = zero = unchanged = known = new = stored = 0
        async for item in inbox:
            end = getattr(item, "offset", end) + getattr(item, "length", 0)
            data = getattr(item, "data", None)
            size = getattr(data, "total", 0)
            if isinstance(item, Zeros):
                zero_read, zero = zero_read + item.read, zero + item.length
            elif isinstance(item, Unchanged):
                known, unchanged = known + item.read, unchanged + item.length - item.read
            elif isinstance(item, FramedSpan):
                seen = int(item.chunk_length[item.known].sum())
                known, new = known + seen, new + size - seen
                stored += sum(len(frame.payload) for frame in item.frames)
            else:
                new += size
            span = getattr(item, "span", item)
            if isinstance(span, Span | FramedSpan):
                zero_read, zero = zero_read + span.zero_read, zero + span.zeros.total
                known += span.unchanged_read
                unchanged += span.length - span.data.total - span.zeros.total - span.unchanged_read
            release = getattr(item, "release", None)
            if release is not None:
                release()
        read = zero_read + known + new
        return DiskReceipt("", "", end, "", read, zero_read, zero - zero_read, unchanged, known, new, stored)


class NowherePoint(MemoryIndex):
    """The point of Nowhere: an index in memory for Digest and Dedupe, and nothing that is kept."""

    def previous(self, disk: Disk) -> PreviousDisk | None:
        return None

    async def publish(self, capture: Capture, disks: Sequence[DiskReceipt], evidence: Evidence | None) -> str:
        return "nothing kept"

    def __repr__(self) -> str:
        return "Nowhere()"


@dataclass(frozen=True)
class Nowhere:
    """A target without a repository, to run a job as a benchmark: `Job(machine, path, into=Nowhere())`.

    Its path ends with NullSink(); Digest(point) and Dedupe(point) work as with a repository, and find chunks of the
    same run only. Refine(point, disk) has no previous point to compare with.
    """

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Nowhere]:
        yield self

    @asynccontextmanager
    async def begin(self, machine: MachineId) -> AsyncIterator[NowherePoint]:
        yield NowherePoint()

    def planned(self) -> NowherePoint:
        return NowherePoint()

    def effects(self) -> Sequence[str]:
        return ["Keeps nothing: no restore point is made."]
