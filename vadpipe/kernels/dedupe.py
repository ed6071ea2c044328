"""Finding chunks that are stored already, and planning frames of the new ones.

It touches 32 bytes per chunk, never the data. It decides in the order of the disk which chunks are new. All disks
of a point share one index, which holds its own lock while it assigns the chunks of one span.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ContractError
from pipeline.protocols import Disk
from pipeline.units import MiB
from pipeline.values import (
    DIGEST_SIZE,
    NO_FRAME,
    Assignment,
    ChunkIndex,
    DedupedSpan,
    DigestedSpan,
    Digests,
    Identity,
    PlannedFrame,
)

from .digest import Blake3
from .digest_table import DigestTable

# One frame is compressed, sealed, indexed and stored as a whole (docs/design.md).
FRAME = 1 * MiB

# Frame number (NO_FRAME when unknown) and byte place in that frame, one row per digest.
Lookup = Callable[[Digests], tuple[NDArray[np.uint64], NDArray[np.int64]]]
# Plans a frame of chunks with these lengths and digests, which are unknown and distinct. Returns its number.
AddFrame = Callable[[NDArray[np.int64], Digests], int]


def dedupe_span(digested: DigestedSpan, index: ChunkIndex) -> DedupedSpan:
    """The kernel of Dedupe, in the order of the disk. Raises ContractError when the index has another identity."""
    if digested.identity != index.identity:
        raise ContractError(
            f"Digest named the chunks with {digested.identity!r}, but the index of Dedupe names them with "
            f"{index.identity!r}: it would find none of them again.",
            remedy="Give both the same point: Digest(point) and Dedupe(point).",
        )
    cut = digested.cut
    return DedupedSpan(digested, index.assign(digested.digest, cut.chunk_offset, cut.chunk_length))


def assign(
    digest: Digests,
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    *,
    lookup: Lookup,
    add_frame: AddFrame,
) -> Assignment:
    """The algorithm of `ChunkIndex.assign`. The caller holds the lock of what `lookup` and `add_frame` use.

    The new chunks of a span share frames of at most FRAME bytes, in their order, whatever lies between them:
    whoever reads the disk needs them together, and a frame of its own for each changed cluster would cost 208 bytes
    more of headers and tables. Equal new chunks are stored once. `offset` is for indexes that look at places;
    this algorithm does not.
    """
    frame, place = lookup(digest)
    unknown = np.flatnonzero(frame == NO_FRAME)
    frames: list[PlannedFrame] = []
    new = np.zeros(len(frame), dtype=np.bool_)
    if len(unknown):
        first, inverse = _first_of_equals(digest[unknown])
        new[unknown[first]] = True
        for rows in frame_rows(np.flatnonzero(new), length):
            number = add_frame(length[rows], digest[rows])
            frame[rows] = number
            place[rows] = np.cumsum(length[rows]) - length[rows]
            frames.append(PlannedFrame(number, int(rows[0]), int(rows[-1]) + 1))
        originals = unknown[first][inverse]
        frame[unknown] = frame[originals]
        place[unknown] = place[originals]
    return Assignment(frame, place, ~new, frames)


class MemoryIndex:
    """A chunk index that lives as long as the program: for embedding and for measuring. 80 bytes per chunk."""

    def __init__(self, identity: Identity | None = None) -> None:
        self.identity: Identity = identity or Blake3()
        self._lock = threading.Lock()
        self._table = DigestTable(1 << 16)
        self._frame = np.empty(self._table.capacity, dtype=np.uint64)
        self._place = np.empty(self._table.capacity, dtype=np.int64)
        self._frames = 0
        self._added: list[tuple[Digests, NDArray[np.int64]]] = []  # inserted together: cheaper by far

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity!r})"

    def previous_content(self, disk: Disk) -> None:
        """For Refine: there is no previous point."""

    def assign(self, digest: Digests, offset: NDArray[np.int64], length: NDArray[np.int64]) -> Assignment:
        """See pipeline.ChunkIndex."""
        with self._lock:
            return assign(digest, offset, length, lookup=self._lookup, add_frame=self._add_frame)

    def _lookup(self, digest: Digests) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        self._insert()
        row = self._table.lookup(digest)
        return np.where(row >= 0, self._frame[row], NO_FRAME), np.where(row >= 0, self._place[row], 0)

    def _add_frame(self, chunk_length: NDArray[np.int64], digest: Digests) -> int:
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


def frame_rows(new: NDArray[np.intp], length: NDArray[np.int64]) -> Iterator[NDArray[np.intp]]:
    """The rows of each frame: of the new rows as many as fit, one after the other."""
    end = np.cumsum(length[new])
    low = 0
    while low < len(new):
        start = int(end[low] - length[new[low]])
        high = max(low + 1, int(np.searchsorted(end, start + FRAME, side="right")))
        yield new[low:high]
        low = high


def _first_of_equals(digest: Digests) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The first row of each distinct digest, and for every row the number of its digest among those."""
    heads = np.ascontiguousarray(digest[:, :8]).view(np.uint64).ravel()
    if len(np.unique(heads)) == len(heads):  # nearly always, and much cheaper to see
        every = np.arange(len(heads))
        return every, every
    rows = np.ascontiguousarray(digest).view(np.dtype((np.void, DIGEST_SIZE))).ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    return first, inverse
