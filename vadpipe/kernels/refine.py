"""Narrowing changed chunks to changed clusters, by comparing with what the previous point holds there.

Change tracking reports 64 KiB where a guest wrote 4, and a chunk that is cut by content is 64 KiB on average. Of a
chunk that is not stored yet only the clusters that differ stay data; the others become unchanged, so the new map
takes the previous point's rows for them. Each run of changed clusters is a chunk of its own, cut further where
CutChunks would.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.extents import Extents
from pipeline.units import CLUSTER, SPAN
from pipeline.values import DIGEST_SIZE, CutSpan, DigestedSpan, Digests, Unchanged

from .chunks import cut
from .zeros import run_borders, zero_clusters

# A chunk stays whole unless at least one in this many of its clusters is unchanged and not zero. Its name is then
# the one that the same content has elsewhere, e.g. in a sibling that got the same update.
WORTH = 8

Mask = NDArray[np.bool_]
Column = NDArray[np.int64]


class PreviousContent(Protocol):
    """What the previous point holds of a disk. For one thread at a time, which may wait for files."""

    def stored(self, digest: Digests) -> Mask:
        """Which chunks the index knows. Promises nothing."""
        ...

    def read(self, into: NDArray[np.uint8], offset: int, wanted: Extents) -> Mask:
        """Fill `into` with the previous bytes; the byte at disk offset `o` goes to `into[o - offset]`.

        Args:
            into: Whole clusters.
            offset: A multiple of CLUSTER.
            wanted: In whole clusters, between two multiples of SPAN; a tail of the disk stays a tail.

        Returns:
            For each cluster of `into` whether it was filled: wanted, and readable.
        """
        ...


class Refiner:
    """The kernel of Refine, with the memory that it compares in: one span."""

    def __init__(self, previous: PreviousContent) -> None:
        self._previous = previous
        self._then = np.empty(SPAN, dtype=np.uint8)

    def __call__(self, digested: DigestedSpan) -> DigestedSpan | Unchanged:
        """The span with less data; what is equal to the previous point's bytes is unchanged."""
        if not len(digested.digest):
            return digested
        chunk_new = ~self._previous.stored(digested.digest)
        if not chunk_new.any():
            return digested
        cut_, span = digested.cut, digested.span
        wanted = Extents.from_columns(cut_.chunk_offset[chunk_new], cut_.chunk_length[chunk_new])
        size = -(-span.length // CLUSTER) * CLUSTER
        now, then = span.buffer.array[:size], self._then[:size]
        filled = self._previous.read(then, span.offset, wanted)
        now[span.length :] = then[span.length :] = 0  # behind the end of a disk that is no whole cluster
        equal = equal_clusters(now, then, filled)
        chunk_split = chunks_to_split(now, equal, filled, chunk_new, _places(cut_))
        return split(digested, chunk_split, equal) if chunk_split.any() else digested


def equal_clusters(now: NDArray[np.uint8], then: NDArray[np.uint8], compared: Mask) -> Mask:
    """Which clusters hold the same bytes; False where they are not to be compared."""
    equal = np.zeros(len(compared), dtype=np.bool_)
    for low, high in zip(*(border.tolist() for border in run_borders(compared)), strict=True):
        differs = _words(now)[low:high] != _words(then)[low:high]
        equal[low:high] = ~differs.any(axis=1)
    return equal


def chunks_to_split(
    now: NDArray[np.uint8], equal: Mask, filled: Mask, chunk_new: Mask, places: tuple[Column, Column]
) -> Mask:
    """Which chunks are to be split: new ones, all of whose clusters were compared, and enough of them equal.

    Zero clusters count for nothing: stored within a chunk they take no space.
    """
    first, last = places
    worth = equal.copy()
    worth[equal] = ~zero_clusters(_words(now)[equal])
    compared = _count_between(filled, first, last) == last - first
    same = _count_between(equal, first, last) == last - first
    chosen: Mask = (
        chunk_new & compared & (same | (_count_between(worth, first, last) * WORTH >= last - first))
    )
    return chosen


def split(digested: DigestedSpan, chunk_split: Mask, equal: Mask) -> DigestedSpan | Unchanged:
    """The span without the equal clusters of these chunks; the others in chunks of their own."""
    cut_, span = digested.cut, digested.span
    first, last = (column[chunk_split] for column in _places(cut_))
    inside = np.zeros(len(equal), dtype=np.bool_)
    for low, high in zip(first.tolist(), last.tolist(), strict=True):
        inside[low:high] = True
    dropped = _extents(inside & equal, span.offset, span.length)
    offset, length, digest = _named(digested, inside & ~equal)
    kept = ~chunk_split
    offset = np.concatenate((cut_.chunk_offset[kept], offset))
    length = np.concatenate((cut_.chunk_length[kept], length))
    order = np.argsort(offset)
    data = Extents.from_columns(offset, length)
    if not len(data) and not len(span.zeros):
        span.release()
        return Unchanged(span.offset, span.length, read=span.unchanged_read + dropped.total)
    narrowed = replace(span, data=data, unchanged_read=span.unchanged_read + dropped.total)
    digest = np.concatenate((digested.digest[kept], digest))[order]
    return DigestedSpan(CutSpan(narrowed, offset[order], length[order]), digest, digested.identity)


def _named(digested: DigestedSpan, changed: Mask) -> tuple[Column, Column, Digests]:
    """Offset, length and digest of the chunks that the runs of changed clusters are cut into."""
    span, memory = digested.span, digested.span.buffer.memory
    borders: list[tuple[int, int]] = []
    for start, size in _extents(changed, 0, span.length):
        ends = [start + end for end in cut(memory[start : start + size])]
        borders += zip([start, *ends], ends, strict=False)
    names = b"".join([digested.identity.digest(memory[low:high]) for low, high in borders])
    table = np.array(borders, dtype=np.int64).reshape(-1, 2)
    digest = np.frombuffer(names, np.uint8).reshape(-1, DIGEST_SIZE)
    return table[:, 0] + span.offset, table[:, 1] - table[:, 0], digest


def _extents(mask: Mask, offset: int, length: int) -> Extents:
    """Runs of clusters as extents of a span of this offset and length."""
    first, last = run_borders(mask)
    return Extents(first * CLUSTER + offset, np.minimum(last * CLUSTER, length) + offset)


def _places(cut_span: CutSpan) -> tuple[Column, Column]:
    """First and one-past-last cluster of each chunk in its span."""
    start = cut_span.chunk_offset - cut_span.span.offset
    return start // CLUSTER, -(-(start + cut_span.chunk_length) // CLUSTER)


def _count_between(mask: Mask, first: Column, last: Column) -> Column:
    """How many of the clusters [first, last) are marked, for each range."""
    count = np.concatenate(([0], np.cumsum(mask)))
    return count[last] - count[first]


def _words(clusters: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return clusters.view(np.uint64).reshape(-1, CLUSTER // 8)
