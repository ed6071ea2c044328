"""Finding grains that are stored already, and planning frames of the new ones.

The stage runs in the event loop and not on threads: it decides in the order of the disk what is new, and
all disks of a point share one index. It touches 32 bytes per grain, never the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from trio.abc import ReceiveChannel, SendChannel

from pipeline import (
    DIGEST_SIZE,
    NO_FRAME,
    DedupedSpan,
    DigestedSpan,
    Digests,
    Gap,
    GrainIndex,
    MiB,
    PlannedFrame,
    Stage,
    Unchanged,
    Zeros,
)
from pipeline.digest_table import DigestTable

# One frame is compressed, sealed, indexed and stored as a whole (docs/design.md, section 3).
FRAME = 1 * MiB


@dataclass(frozen=True)
class Dedupe(Stage[DigestedSpan | Gap, DedupedSpan | Gap]):
    """Digested spans in, the same spans out with the place of every grain: in a stored frame or a planned one.

    Out: `frames` are runs of new grains that lie together on the disk, at most 1 MiB each. Gaps pass.
    Memory: one span, and what the index holds. Cancel: frames that were promised to the index and not stored;
    a repository drops them with the unpublished point.
    """

    index: GrainIndex

    async def run(
        self, inbox: ReceiveChannel[DigestedSpan | Gap], outbox: SendChannel[DedupedSpan | Gap]
    ) -> None:
        async for item in inbox:
            if isinstance(item, Zeros | Unchanged):
                await outbox.send(item)
            else:
                await outbox.send(dedupe(item, self.index))
            del item  # its buffer must not wait for the next item


class MemoryIndex:
    """A grain index that lives as long as the program: for embedding and for measuring. 80 bytes per grain."""

    def __init__(self) -> None:
        self._table = DigestTable(1 << 16)
        self._frame = np.empty(self._table.capacity, dtype=np.uint64)
        self._place = np.empty(self._table.capacity, dtype=np.int64)
        self._frames = 0

    def lookup(self, digest: Digests) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        row = self._table.lookup(digest)
        return np.where(row >= 0, self._frame[row], NO_FRAME), np.where(row >= 0, self._place[row], 0)

    def add_frame(self, grain_length: NDArray[np.int64], digest: Digests) -> int:
        if len(self._table) + len(digest) > self._table.capacity:
            self._grow()
        row = self._table.insert(digest)
        number, self._frames = self._frames, self._frames + 1
        self._frame[row] = number
        self._place[row] = np.cumsum(grain_length) - grain_length
        return number

    def _grow(self) -> None:
        old, self._table = self._table, DigestTable(2 * self._table.capacity)
        self._table.insert(old.digest)
        self._frame = np.resize(self._frame, self._table.capacity)
        self._place = np.resize(self._place, self._table.capacity)


def dedupe(span: DigestedSpan, index: GrainIndex) -> DedupedSpan:
    """The kernel of Dedupe, for one index and in the order of the disk."""
    frame, place = index.lookup(span.digest)
    unknown = np.flatnonzero(frame == NO_FRAME)
    frames: list[PlannedFrame] = []
    new = np.zeros(len(frame), dtype=np.bool_)
    if len(unknown):
        first, inverse = _first_of_equals(span.digest[unknown])
        new[unknown[first]] = True
        for low, high in frame_borders(new, span.grain_offset, span.grain_length):
            length = span.grain_length[low:high]
            number = index.add_frame(length, span.digest[low:high])
            frame[low:high] = number
            place[low:high] = np.cumsum(length) - length
            frames.append(PlannedFrame(number, low, high))
        originals = unknown[first][inverse]
        frame[unknown] = frame[originals]
        place[unknown] = place[originals]
    return DedupedSpan(
        **vars(span),
        grain_frame=frame,
        grain_place=place,
        known=~new,
        frames=frames,
    )


def frame_borders(
    new: NDArray[np.bool_], offset: NDArray[np.int64], length: NDArray[np.int64]
) -> list[tuple[int, int]]:
    """Rows [low, high) of the frames: new grains side by side on the disk, as many as fit."""
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
    rows = np.ascontiguousarray(digest).view(np.dtype((np.void, DIGEST_SIZE))).ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    return first, inverse
