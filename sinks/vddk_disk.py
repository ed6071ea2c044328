"""Disks of VMs, written through VDDK or by anything else that writes disks."""

from __future__ import annotations

from dataclasses import dataclass

import trio
from trio.abc import ReceiveChannel

from pipeline import (
    SPAN,
    Buffer,
    ContractError,
    Extents,
    GiB,
    Sink,
    Span,
    Unchanged,
    WritableDisk,
    Zeros,
)

# What one query of allocated blocks may cover.
_WINDOW = 32 * GiB


@dataclass(frozen=True)
class VddkReceipt:
    """A disk that was written and flushed. All counts are bytes.

    `written` is data, `zeros_written` what had to become zero; the rest was left alone. `allocated` is what the
    disk takes now, in units of the library, None where it cannot tell: a thin disk that was fresh takes hardly more
    than `written`.
    """

    key: str
    capacity: int
    written: int
    zeros_written: int
    allocated: int | None


@dataclass(frozen=True)
class IntoVddkDisk(Sink[Span | Zeros, VddkReceipt]):
    """Spans of a whole disk in, written to an open disk.

    In: spans and zeros, ascending, covering [0, capacity), in buffers of the disk's pool.
    A fresh disk reads as zero, so no zero is written to it and a thin one stays thin. Otherwise zeros are written
    where the disk may hold data. At the end the disk is flushed; it still has to be closed, and proven.
    Memory: `at_once` spans, and one more while zeros are written. Cancel: the disk is half written.

    Args:
        disk: An open disk, e.g. of `Vddk.open(..., write=True)`.
        fresh: The disk was made for this and nothing was written to it.
        at_once: Spans that are written at once.

    Raises: VddkError or SourceError when the disk cannot be written; ContractError when the input does not cover
    it.
    """

    disk: WritableDisk
    fresh: bool = True
    at_once: int = 3

    async def run(self, inbox: ReceiveChannel[Span | Zeros]) -> VddkReceipt:
        writer, reached, capacity = _Writer(self.disk), 0, self.disk.capacity
        places = trio.Semaphore(self.at_once)

        async def write(span: Span, zeros: Extents) -> None:
            try:
                await writer.write_span(span, zeros)
            finally:
                span.release()
                places.release()

        async with trio.open_nursery() as nursery:
            async for item in inbox:
                if isinstance(item, Unchanged) or item.offset != reached or reached + item.length > capacity:
                    raise ContractError(
                        f"{self.disk.key} needs all of its {capacity} bytes in order; got {item!r}."
                    )
                reached += item.length
                if isinstance(item, Span):
                    try:
                        zeros = Extents.empty() if self.fresh else await writer.needed(item.zeros)
                        await places.acquire()
                    except BaseException:
                        item.release()
                        raise
                    nursery.start_soon(write, item, zeros)
                elif not self.fresh:
                    await writer.write_zeros(await writer.needed(Extents.whole(item.length, item.offset)))
                del item
        if reached != capacity:
            raise ContractError(f"The disk has {capacity} bytes; {reached} arrived.")
        await writer.finish()
        await self.disk.flush()
        allocated = await _allocated(self.disk)
        return VddkReceipt(self.disk.key, capacity, writer.written, writer.zeros_written, allocated)


class _Writer:
    """Writes spans, and zeros.

    Zeros need a buffer of the pool. Waiting for one could wait for ever, because all may be in spans that wait for
    this sink. So zeros that find none are put off until the next span was written: they use its buffer.
    """

    def __init__(self, disk: WritableDisk) -> None:
        self._disk = disk
        self._asked = 0  # up to where the disk was asked what is allocated
        self._allocated = Extents.empty()
        self._put_off = Extents.empty()
        self.written = self.zeros_written = 0

    async def needed(self, zeros: Extents) -> Extents:
        """The part of these zeros where the disk may hold data. Call it in ascending order."""
        if not len(zeros):
            return zeros
        found = Extents.empty()
        # What was written meanwhile is not asked for: that would make the disk look anew.
        self._asked = max(self._asked, int(zeros.start[0]))
        while self._asked < int(zeros.end[-1]):
            found |= self._allocated & zeros
            length = min(_WINDOW, self._disk.capacity - self._asked)
            self._allocated = await self._disk.allocated(self._asked, length)
            self._asked += length
        return found | (self._allocated & zeros)

    async def write_span(self, span: Span, zeros: Extents) -> None:
        for offset, length in zeros:
            span.bytes_of(offset, length).fill(0)
        await self._disk.write(span.buffer, span.offset, span.data | zeros)
        self.written += span.data.total
        self.zeros_written += zeros.total
        if len(self._put_off):
            await self._zero(span.buffer)

    async def write_zeros(self, zeros: Extents) -> None:
        self._put_off |= zeros
        if len(self._put_off):
            try:
                buffer = self._disk.pool.acquire_nowait()
            except trio.WouldBlock:
                return
            await self._zero_and_release(buffer)

    async def finish(self) -> None:
        """Write what was put off; all spans of the input are written."""
        if len(self._put_off):
            await self._zero_and_release(await self._disk.pool.acquire())

    async def _zero_and_release(self, buffer: Buffer) -> None:
        try:
            await self._zero(buffer)
        finally:
            buffer.release()

    async def _zero(self, buffer: Buffer) -> None:
        zeros, self._put_off = self._put_off, Extents.empty()
        await trio.to_thread.run_sync(buffer.array.fill, 0)
        offset = 0
        for start, length in zeros:
            for place in range(max(offset, start // SPAN * SPAN), start + length, SPAN):
                part = zeros.within(place, SPAN)
                await self._disk.write(buffer, place, part)
                self.zeros_written += part.total
                offset = place + SPAN


async def _allocated(disk: WritableDisk) -> int | None:
    total = 0
    for offset in range(0, disk.capacity, _WINDOW):
        total += (await disk.allocated(offset, min(_WINDOW, disk.capacity - offset))).total
    return None if getattr(disk, "allocation", "queried") == "unavailable" else total
