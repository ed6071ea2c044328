"""Spans for the stages to work on."""

import gc

import pytest

from pipeline import (
    SPAN,
    Extents,
    Span,
    Unchanged,
    Zeros,
)
from pipeline.buffers import Buffer
from pipeline.testing.fakes import PatternDisk


def take(pool):
    """A buffer without waiting; those of cancelled runs may still wait for the collector."""
    pool.fileno()  # maps the memory
    if not pool.statistics().free:
        gc.collect()
    return Buffer(pool, pool._free.popleft())


@pytest.fixture
def disk():
    return PatternDisk(4 * SPAN + 8192 + 512, seed=3, hole_ratio=0.3, zero_ratio=0.3)


@pytest.fixture
def spans(disk):
    """A function that gives the whole disk as spans, behind a gap of each kind."""

    def make(transform=lambda span: span):
        items = [Zeros(0, SPAN), Unchanged(SPAN, SPAN)]
        for offset in range(2 * SPAN, disk.capacity, SPAN):
            length = min(SPAN, disk.capacity - offset)
            buffer = take(disk.pool)
            buffer.array[:length] = disk.bytes_at(offset, length)
            buffer.array[length:] = 255  # what lies behind the disk is undefined
            data = Extents.whole(length, offset)
            span = Span(offset=offset, length=length, data=data, zeros=Extents.empty(), buffer=buffer)
            items.append(transform(span))
        return items

    return make
