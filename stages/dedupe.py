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
    NO_FRAME,
    Assignment,
    ChunkIndex,
    DedupedSpan,
    DigestedSpan,
    Digests,
    Gap,
    Identity,
    KernelStage,
)
from vadpipe.kernels.dedupe import FRAME, assign, frame_borders
from vadpipe.kernels.digest import Blake3
from vadpipe.kernels.digest_table import DigestTable

__all__ = ["FRAME", "Dedupe", "MemoryIndex", "dedupe", "frame_borders"]


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

    def __init__(self, identity: Identity | None = None) -> None:
        self.identity: Identity = identity or Blake3()
        self._lock = threading.RLock()
        self._table = DigestTable(1 << 16)
        self._frame = np.empty(self._table.capacity, dtype=np.uint64)
        self._place = np.empty(self._table.capacity, dtype=np.int64)
        self._frames = 0
        self._added: list[tuple[Digests, NDArray[np.int64]]] = []  # inserted together: cheaper by far

    def assign(self, digest: Digests, offset: NDArray[np.int64], length: NDArray[np.int64]) -> Assignment:
        with self._lock:
            return assign(digest, offset, length, lookup=self.lookup, add_frame=self.add_frame)

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
    placed = index.assign(span.digest, span.chunk_offset, span.chunk_length)
    return DedupedSpan(
        **vars(span),
        chunk_frame=placed.frame,
        chunk_place=placed.place,
        known=placed.known,
        frames=placed.frames,
    )
