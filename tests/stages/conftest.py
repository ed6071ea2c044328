"""Spans for the stages to work on."""

import gc

import pytest

from pipeline import SPAN, Span, Unchanged, Zeros
from pipeline.testing.fakes import PatternDisk


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
            if not disk.pool.statistics().free:
                gc.collect()  # buffers of cancelled runs
            span = Span.of(disk.bytes_at(offset, length).data, offset, pool=disk.pool)
            span.buffer.array[length:] = 255  # what lies behind the disk is undefined
            items.append(transform(span))
        return items

    return make
