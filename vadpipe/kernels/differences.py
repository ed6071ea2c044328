"""Where a disk differs from what a point holds: by digests of chunks first, by clusters inside those that differ.

All offsets of one call count from the begin of the same memory, and are whole clusters. A digest that agrees
proves a chunk without its bytes; only chunks whose digest differs, and parts of chunks, need the point's bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.units import CLUSTER
from pipeline.values import Digests

from .zeros import run_borders, zero_clusters

Bytes = NDArray[np.uint8]
Column = NDArray[np.int64]

_NONE: Column = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """The chunks of a frame, side by side: where each begins and ends in the frame in bytes, and its digest."""

    start: Column
    end: Column
    digest: Digests

    @classmethod
    def of(cls, length: NDArray[np.integer], digest: Digests) -> ChunkTable:
        end = np.cumsum(length, dtype=np.int64)
        return cls(end - length, end, digest)


def differing_parts(
    now: Bytes, offset: int, length: int, place: int, table: ChunkTable, name: Callable[[memoryview], bytes]
) -> list[tuple[int, int]]:
    """The parts of a range whose bytes have to be compared, as (offset, length); the rest is equal.

    Args:
        now: The bytes of the disk.
        offset: Where the range begins in `now`.
        length: Its length. The point holds `length` bytes of a frame there, from `place` on.
        place: Where they begin in the frame.
        table: The chunks of the frame.
        name: The digest of a chunk.
    """
    first = int(np.searchsorted(table.start, place, side="left"))
    last = int(np.searchsorted(table.end, place + length, side="right"))
    shift = offset - place
    if first >= last:  # not one whole chunk
        return [(offset, length)]
    memory, parts = now.data, []
    reached = offset
    starts, ends = (column[first:last].tolist() for column in (table.start, table.end))
    for number, (start, end) in enumerate(zip(starts, ends, strict=True), first):
        low, high = start + shift, end + shift
        if low > reached:
            parts.append((reached, low - reached))
        if name(memory[low:high]) != table.digest[number].tobytes():
            parts.append((low, high - low))
        reached = high
    if reached < offset + length:
        parts.append((reached, offset + length - reached))
    return parts


def take_differing(now: Bytes, then: Bytes) -> tuple[Column, Column]:
    """Copy the clusters of `then` that differ into `now`. Both have one length; the last cluster may be short.

    Returns:
        Begin and end of each run of clusters that differed, in bytes.
    """
    if np.array_equal(now, then):  # most parts are: a chunk of which the map uses a part, on an equal disk
        return _NONE, _NONE
    size = len(now)
    whole = size // CLUSTER
    differs = np.zeros(-(-size // CLUSTER), dtype=np.bool_)
    differs[:whole] = (_words(now[: whole * CLUSTER]) != _words(then[: whole * CLUSTER])).any(axis=1)
    differs[whole:] = not np.array_equal(now[whole * CLUSTER :], then[whole * CLUSTER :])
    first, last = run_borders(differs)
    start, end = first * CLUSTER, np.minimum(last * CLUSTER, size)
    for low, high in zip(start.tolist(), end.tolist(), strict=True):
        now[low:high] = then[low:high]
    return start, end


def clear_nonzero(now: Bytes) -> tuple[Column, Column]:
    """Fill every cluster that is not zero with zeros. The last one may be short.

    Returns:
        Begin and end of each run of clusters that were not zero, in bytes.
    """
    size = len(now)
    whole = size // CLUSTER
    holds = np.zeros(-(-size // CLUSTER), dtype=np.bool_)
    holds[:whole] = ~zero_clusters(_words(now[: whole * CLUSTER]))
    holds[whole:] = now[whole * CLUSTER :].any()
    first, last = run_borders(holds)
    start, end = first * CLUSTER, np.minimum(last * CLUSTER, size)
    for low, high in zip(start.tolist(), end.tolist(), strict=True):
        now[low:high] = 0
    return start, end


def _words(clusters: Bytes) -> NDArray[np.uint64]:
    return clusters.view(np.uint64).reshape(-1, CLUSTER // 8)
