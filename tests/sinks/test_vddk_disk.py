"""IntoVddkDisk, on a disk in memory: what is written, what is left alone, what is refused."""

import numpy as np
import pytest
import trio

from pipeline import (
    SPAN,
    BufferPool,
    ContractError,
    Extents,
    KiB,
    SourceError,
    Span,
    TransferFailed,
    Unchanged,
    Zeros,
)
from pipeline.testing import (
    FaultyDisk,
    Items,
    PatternDisk,
    WritableMemoryDisk,
    all_free,
    check_sink,
    check_writer,
)
from sinks import IntoVddkDisk
from stages import AllocatedExtents, MarkZeros, ReadSpans

SIZE = 5 * SPAN + 512


def whole(disk):
    return AllocatedExtents(disk) | ReadSpans(disk) | MarkZeros()


@pytest.fixture
def source():
    return PatternDisk(SIZE, hole_ratio=0.4, zero_ratio=0.3)


@pytest.mark.parametrize("buffers", [1, 2, 6])
async def test_a_fresh_disk_gets_data_and_no_zeros(buffers):
    pool = BufferPool(buffers * SPAN)
    source = PatternDisk(SIZE, hole_ratio=0.4, zero_ratio=0.3, pool=pool)
    disk = WritableMemoryDisk(SIZE, pool=pool)
    receipt = await (whole(source) | IntoVddkDisk(disk)).run()
    assert np.array_equal(disk.content, source.bytes_at(0, SIZE))
    assert (receipt.key, receipt.capacity, receipt.zeros_written) == (disk.key, SIZE, 0)
    assert receipt.written == receipt.allocated < SIZE
    assert disk.unflushed == 0
    assert all_free(pool)


async def fill(disk, value):
    """Data everywhere but in every third piece of 64 KiB."""
    buffer = await disk.pool.acquire()
    buffer.array.fill(value)
    unit = 64 * KiB
    for number, offset in enumerate(range(0, SIZE - SIZE % unit, unit)):
        if number % 3:
            window = offset // SPAN * SPAN
            await disk.write(buffer, window, Extents.whole(unit, offset))
    buffer.release()


@pytest.mark.parametrize("buffers", [1, 2, 6])
async def test_a_used_disk_gets_zeros_where_it_may_hold_data(buffers):
    pool = BufferPool(buffers * SPAN)
    source = PatternDisk(SIZE, hole_ratio=0.4, zero_ratio=0.3, pool=pool)
    disk = WritableMemoryDisk(SIZE, pool=pool)
    await fill(disk, 77)
    before = await disk.allocated(0, SIZE)
    receipt = await (whole(source) | IntoVddkDisk(disk, fresh=False)).run()
    assert np.array_equal(disk.content, source.bytes_at(0, SIZE))
    assert 0 < receipt.zeros_written < SIZE - receipt.written
    after = await disk.allocated(0, SIZE)
    assert receipt.allocated == after.total
    assert receipt.zeros_written + receipt.written == after.total >= before.total
    assert all_free(pool)


async def test_zeros_before_any_span_are_written_when_all_buffers_wait_behind_them():
    pool = BufferPool(2 * SPAN)
    disk = WritableMemoryDisk(3 * SPAN, pool=pool)
    big = await pool.acquire()
    big.array.fill(9)
    for offset in range(0, 3 * SPAN, SPAN):
        await disk.write(big, offset, Extents.whole(SPAN, offset))
    big.release()
    spans = [Span.of(b"x" * SPAN, SPAN, pool=pool), Span.of(b"y" * SPAN, 2 * SPAN, pool=pool)]
    receipt = await (Items([Zeros(0, SPAN), *spans]) | IntoVddkDisk(disk, fresh=False)).run()
    assert not disk.content[:SPAN].any()
    assert (receipt.zeros_written, receipt.written) == (SPAN, 2 * SPAN)
    assert all_free(pool)


async def test_the_sink_keeps_the_rules(source):
    def items():
        pool = BufferPool(3 * SPAN)
        return [Zeros(0, SPAN), Span.of(b"a" * SPAN, SPAN, pool=pool), Zeros(2 * SPAN, SIZE - 2 * SPAN)]

    await check_sink(lambda: IntoVddkDisk(WritableMemoryDisk(SIZE)), items)


@pytest.mark.parametrize(
    "items",
    [
        [Zeros(0, SPAN)],  # too short
        [Zeros(SPAN, SPAN)],  # begins late
        [Zeros(0, SPAN), Zeros(2 * SPAN, SIZE - 2 * SPAN)],  # a gap
        [Zeros(0, SIZE + 512)],  # too long
        [Unchanged(0, SIZE)],  # what should be there?
    ],
)
async def test_a_disk_that_is_not_whole_is_refused(items):
    disk = WritableMemoryDisk(SIZE)
    with pytest.raises(TransferFailed) as failed:
        await (Items(items) | IntoVddkDisk(disk)).run()
    assert failed.group_contains(ContractError)
    assert not disk.content.any()


async def failures(source, method, nth):
    """The kinds of errors of a run in which one call fails. Nothing keeps the frames, which hold spans."""
    disk = FaultyDisk(WritableMemoryDisk(SIZE, pool=source.pool), method, nth)
    try:
        await (whole(source) | IntoVddkDisk(disk, fresh=False)).run()
    except TransferFailed as failed:
        return [type(error) for error in failed.exceptions]
    return []


@pytest.mark.parametrize(("method", "calls"), [("allocated", 2), ("write", 5), ("flush", 1)])
async def test_each_failing_call_is_one_error_and_leaves_no_buffer(source, method, calls):
    for nth in range(1, calls + 2):
        assert await failures(source, method, nth) == ([SourceError] if nth <= calls else [])
        assert all_free(source.pool)


async def test_the_disk_in_memory_passes_the_check_for_writers():
    disk = WritableMemoryDisk(SIZE)
    await check_writer(disk, lambda offset, length: disk.content[offset : offset + length].tobytes())


class Unwritable(WritableMemoryDisk):
    async def write(self, buffer, offset, wanted):
        await trio.lowlevel.checkpoint()
        raise SourceError("Injected: the disk is gone.")


async def test_a_disk_that_cannot_be_written_gives_its_buffers_back(source):
    disk = Unwritable(SIZE, pool=source.pool)
    with pytest.raises(TransferFailed) as failed:
        await (whole(source) | IntoVddkDisk(disk, at_once=1)).run()
    counted = source.pool.statistics()  # while the error is held
    assert counted.free == counted.buffers
    assert failed.group_contains(SourceError)
