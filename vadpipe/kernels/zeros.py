"""Finding the clusters that hold nothing but zeros."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.extents import Extents
from pipeline.units import CLUSTER
from pipeline.values import Span, Zeros

# A shorter run of zero clusters inside data stays data: it compresses to nothing, while a border there would
# end a chunk and a frame. As long as the smallest chunk (vadpipe/kernels/chunks.py).
SHORTEST_RUN = 4

# Of the 512 words of a cluster, one in this many is looked at first: eight cache lines of 64.
SAMPLED = 64


def mark_zeros(span: Span) -> Span | Zeros:
    """The kernel of MarkZeros."""
    zero = zero_extents(span)
    if not len(zero):
        return span
    data = span.data - zero
    zeros = span.zeros | zero
    if not len(data) and zeros.total == span.length:
        span.release()
        return Zeros(span.offset, span.length, read=zero.total)
    return replace(span, data=data, zeros=zeros, zero_read=zero.total)


def zero_extents(span: Span) -> Extents:
    """The parts of the span's data that are whole extents of zero, or runs of zero clusters long enough."""
    whole = -(-span.length // CLUSTER)
    memory = span.buffer.array[: whole * CLUSTER]
    memory[span.length :] = 0  # the tail of a disk that is no whole number of clusters
    words = memory.view(np.uint64).reshape(whole, -1)
    empty = np.zeros(whole, dtype=np.bool_)
    first = (span.data.start - span.offset) // CLUSTER
    last = -(-(span.data.end - span.offset) // CLUSTER)
    for low, high in zip(first.tolist(), last.tolist(), strict=True):
        part = zero_clusters(words[low:high])
        if not part.all():
            drop_short_runs(part, SHORTEST_RUN)
        empty[low:high] = part
    start, end = run_borders(empty)
    offset = start * CLUSTER
    return Extents(offset + span.offset, np.minimum(end * CLUSTER, span.length) + span.offset)


def zero_clusters(words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which rows, one per cluster, hold nothing but zeros.

    A few words of each row are looked at first: nearly every cluster with data shows it there, and is not read.
    """
    zero: NDArray[np.bool_] = np.logical_not(words[:, ::SAMPLED].any(axis=1))
    candidates = np.flatnonzero(zero)
    zero[candidates] = np.logical_not(words[candidates].any(axis=1))
    return zero


def run_borders(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and one-past-last places of the runs of True."""
    steps = np.diff(mask.view(np.int8), prepend=0, append=0)
    return np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)


def drop_short_runs(mask: NDArray[np.bool_], shortest: int) -> None:
    """Set runs of True shorter than that to False, in place."""
    start, end = run_borders(mask)
    for low, high in zip(start.tolist(), end.tolist(), strict=True):
        if high - low < shortest:
            mask[low:high] = False
