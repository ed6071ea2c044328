"""Finding chunks that are stored already, and planning frames of the new ones.

It touches 32 bytes per chunk, never the data. It decides in the order of the disk what is new; all disks of a point
share one index, and take its lock for a span at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeline import (
    DIGEST_SIZE,
    NO_FRAME,
    ChunkIndex,
    DedupedSpan,
    DigestedSpan,
    Digests,
    Gap,
    KernelStage,
    MiB,
    PlannedFrame,
)
from vadpipe.kernels.digest_table import DigestTable

# One frame is compressed, sealed, indexed and stored as a whole (docs/design.md, section "What flows").
FRAME = 1 * MiB


@dataclass(frozen=True)
class Dedupe(KernelStage[DigestedSpan | Gap, DedupedSpan | Gap]):
    """Digested spans in, the same spans out with the place of every chunk: in a stored frame or a planned one.

    Out: `frames` are runs of new chunks that lie together on the disk, at most 1 MiB each. Gaps pass.
    Memory: the spans in hand, and what the index holds. Cancel: frames that were promised to the index and not
    stored; a repository drops them with the unpublished point.
    """

    index: ChunkIndex
    serial = True

    def kernel(self) -> Callable[[DigestedSpan], DedupedSpan]:
        return partial(dedupe, index=self.index)


class MemoryIndex:
    """A chunk index that lives as long as the program: for embedding and for measuring. 80 bytes per chunk."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._table = DigestTable(1 << 16)
        self._frame = np.empty(self._table.capacity, dtype=np.uint64)
        self._place = np.empty(self._table.capacity, dtype=np.int64)
        self._frames = 0
        self._added: list[tuple[Digests, NDArray[np.int64]]] = []  # inserted together: cheaper by far

    def lookup(self, digest: Digests) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        self._insert()
        row = self._table.lookup(digest)
        return np.where(row >= 0, self._frame[row], NO_FRAME), np.where(row >= 0, self._place[row], 0)

    def add_frame(self, chunk_length: NDArray[np.int64], digest: Digests) -> int:
        self._added.append((digest, np.cumsum(chunk_length) - chunk_length))
        number, self._frames = self._frames, self._frames + 1
        return number

    def _insert(self) -> None:
        if not self._added:
            return
        rows = [len(place) for _, place in self._added]
        while len(self._table) + sum(rows) > self._table.capacity:
            self._grow()
        row = self._table.insert(np.concatenate([digest for digest, _ in self._added]))
        self._frame[row] = np.repeat(np.arange(self._frames - len(rows), self._frames), rows)
        self._place[row] = np.concatenate([place for _, place in self._added])
        self._added = []

    def _grow(self) -> None:
        old, self._table = self._table, DigestTable(2 * self._table.capacity)
        self._table.insert(old.digest)
        self._frame = np.resize(self._frame, self._table.capacity)
        self._place = np.resize(self._place, self._table.capacity)


def dedupe(span: DigestedSpan, index: ChunkIndex) -> DedupedSpan:
    """The kernel of Dedupe, in the order of the disk."""
    with index.lock:
        return _dedupe(span, index)


def _dedupe(span: DigestedSpan, index: ChunkIndex) -> DedupedSpan:
    frame, place = index.lookup(span.digest)
    unknown = np.flatnonzero(frame == NO_FRAME)
    frames: list[PlannedFrame] = []
    new = np.zeros(len(frame), dtype=np.bool_)
    if len(unknown):
        first, inverse = _first_of_equals(span.digest[unknown])
        new[unknown[first]] = True
        for low, high in frame_borders(new, span.chunk_offset, span.chunk_length):
            length = span.chunk_length[low:high]
            number = index.add_frame(length, span.digest[low:high])
            frame[low:high] = number
            place[low:high] = np.cumsum(length) - length
            frames.append(PlannedFrame(number, low, high))
        originals = unknown[first][inverse]
        frame[unknown] = frame[originals]
        place[unknown] = place[originals]
    return DedupedSpan(
        **vars(span),
        chunk_frame=frame,
        chunk_place=place,
        known=~new,
        frames=frames,
    )


def frame_borders(
    new: NDArray[np.bool_], offset: NDArray[np.int64], length: NDArray[np.int64]
) -> list[tuple[int, int]]:
    """Rows [low, high) of the frames: new chunks side by side on the disk, as many as fit."""
    end = offset + length
    starts_run = new & ~np.concatenate(([False], new[:-1] & (end[:-1] == offset[1:])))
    borders: list[tuple[int, int]] = []
    run_of = np.cumsum(starts_run)
    for low in np.flatnonzero(starts_run).tolist():
        last = int(np.searchsorted(run_of, run_of[low], side="right"))
        stop = low + int(np.argmin(new[low:last])) if not new[low:last].all() else last
        while low < stop:
            high = int(np.searchsorted(end[low:stop], offset[low] + FRAME, side="right")) + low
            borders.append((low, max(high, low + 1)))
            low = borders[-1][1]
    return borders


def _first_of_equals(digest: Digests) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows where each distinct digest stands first, and for every row which of those it equals."""
    heads = np.ascontiguousarray(digest[:, :8]).view(np.uint64).ravel()
    if len(np.unique(heads)) == len(heads):  # nearly always, and much cheaper to see
        every = np.arange(len(heads))
        return every, every
    rows = np.ascontiguousarray(digest).view(np.dtype((np.void, DIGEST_SIZE))).ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    return first, inverse
