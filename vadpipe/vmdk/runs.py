"""Runs: where the bytes of a disk range lie, as numpy columns, and the overlay of the links of a chain.

A chain is a stack of step functions over the disk: for every byte a link has it (and where), or it is zero, or the
parent has the answer. The overlay of a child on its parent needs no loop over runs: the edges of both are merged,
binary search finds both answers at each edge, and the parent's is used where the child has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.extents import Extents, Offsets

# Values of the column `source` that name no file.
ZERO: Final = -1
PARENT: Final = -2
OUTSIDE: Final = -3


@dataclass(frozen=True, eq=False)
class Runs:
    """Consecutive runs of a disk range, one row each; bytes, int64.

    `start`, `end`: on the disk, ascending. `source`: which source has the bytes, ZERO, or PARENT. The bytes
    are in the source at `place` + `skip`, or, where `packed`, after unpacking what lies at `place` the bytes
    from `skip` on.
    """

    start: Offsets
    end: Offsets
    source: Offsets
    place: Offsets
    skip: Offsets
    packed: NDArray[np.bool_]

    @classmethod
    def one(cls, start: int, end: int, source: int, place: int = 0) -> Runs:
        """A single run, or none if it is empty."""
        nothing = np.zeros(1, dtype=np.int64)
        runs = cls(nothing + start, nothing + end, nothing + source, nothing + place, nothing, nothing > 0)
        return runs if end > start else runs.chosen(nothing > 0)

    @classmethod
    def joined(cls, pieces: Sequence[Runs]) -> Runs:
        """Pieces that follow each other, in order."""
        if len(pieces) == 1:
            return pieces[0]
        columns = [np.concatenate([getattr(piece, field.name) for piece in pieces]) for field in fields(cls)]
        return cls(*columns)

    def __len__(self) -> int:
        return len(self.start)

    def chosen(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Runs:
        """The given rows."""
        return Runs(*(getattr(self, field.name)[rows] for field in fields(self)))

    def moved(self, distance: int) -> Runs:
        """The same runs further along the disk."""
        return replace(self, start=self.start + distance, end=self.end + distance)

    def clipped(self, start: int, end: int) -> Runs:
        """The part inside [start, end)."""
        inside = self.chosen((self.end > start) & (self.start < end))
        low: Offsets = np.maximum(inside.start, start)
        skip = inside.skip + (low - inside.start)
        return Runs(low, np.minimum(inside.end, end), inside.source, inside.place, skip, inside.packed)

    def over(self, lower: Runs) -> Runs:
        """These runs with every PARENT replaced by `lower`, which must cover at least those."""
        if not len(lower):
            return self
        edges = np.union1d(
            self.start, lower.start[(lower.start > self.start[0]) & (lower.start < self.end[-1])]
        )
        ends = np.append(edges[1:], self.end[-1])
        mine = self._at(edges, ends)
        theirs = lower._at(edges, ends)
        below = mine.source == PARENT
        columns = (
            np.where(below, getattr(theirs, name), getattr(mine, name))
            for name in ("source", "place", "skip", "packed")
        )
        return Runs(edges, ends, *columns)

    def only(self, wanted: Extents) -> Runs:
        """The part inside `wanted`, which must lie within these runs."""
        if len(wanted) < 2:
            return self.clipped(*((int(wanted.start[0]), int(wanted.end[0])) if len(wanted) else (0, 0)))
        start = np.append(self.start[0], np.column_stack((wanted.start, wanted.end)).ravel())
        source = np.tile(np.array([OUTSIDE, PARENT], dtype=np.int64), len(wanted) + 1)[: len(start)]
        nothing = np.zeros(len(start), dtype=np.int64)
        end = np.append(start[1:], max(int(self.end[-1]), int(start[-1])))
        mask = Runs(start, end, source, nothing, nothing, nothing.astype(np.bool_))
        both = mask.chosen(mask.end > mask.start).over(self)
        return both.chosen(both.source != OUTSIDE)

    def merged(self) -> Runs:
        """Neighbours that continue each other on the disk and in their source become one run."""
        if len(self) < 2:
            return self
        byte = self.place + self.skip
        continues = (self.source[1:] == self.source[:-1]) & (self.start[1:] == self.end[:-1])
        follows = byte[1:] == byte[:-1] + (self.end - self.start)[:-1]
        continues &= (self.source[1:] < 0) | (follows & ~self.packed[1:] & ~self.packed[:-1])
        first = np.flatnonzero(np.concatenate(([True], ~continues)))
        last = np.append(first[1:], len(self)) - 1
        heads = self.chosen(first)
        return Runs(heads.start, self.end[last], heads.source, heads.place, heads.skip, heads.packed)

    def extents(self) -> Extents:
        """Where bytes lie in a source."""
        held = self.source >= 0
        return Extents.from_columns(self.start[held], (self.end - self.start)[held])

    def _at(self, edges: Offsets, ends: Offsets) -> Runs:
        """The rows that cover the given pieces; a piece outside of all gets the nearest row."""
        row = np.clip(np.searchsorted(self.start, edges, side="right") - 1, 0, None)
        skip = self.skip[row] + (edges - self.start[row])
        return Runs(edges, ends, self.source[row], self.place[row], skip, self.packed[row])
