"""Extents: sorted, disjoint byte ranges of a disk, as numpy columns, and their algebra.

Every function is a kernel over whole arrays: a fragmented disk has millions of extents, so none of them
loops over extents in Python. The algebra works on the sorted edges of its operands: at each edge the
number of operands that cover what follows is known by a running sum, and a result is where that number
meets a condition.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Offsets = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Extents:
    """Byte ranges of a disk: `start` and `end` int64 columns, ascending, disjoint, not touching, not empty."""

    start: Offsets
    end: Offsets

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Extents:
        """From (offset, length) pairs in any order; overlaps are merged, empty ones dropped."""
        table = np.array(list(ranges), dtype=np.int64).reshape(-1, 2)
        return cls.from_columns(table[:, 0], table[:, 1])

    @classmethod
    def from_columns(cls, offset: NDArray[np.integer], length: NDArray[np.integer]) -> Extents:
        """From columns of offsets and lengths in any order; overlaps are merged, empty ones dropped."""
        start = np.asarray(offset, dtype=np.int64)
        end = start + np.asarray(length, dtype=np.int64)
        kept = end > start
        return _covered(start[kept], end[kept], at_least=1)

    @classmethod
    def empty(cls) -> Extents:
        return cls(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))

    @classmethod
    def whole(cls, length: int, offset: int = 0) -> Extents:
        return cls.of([(offset, length)])

    @property
    def length(self) -> Offsets:
        return self.end - self.start

    @cached_property
    def total(self) -> int:
        """Bytes covered."""
        return int(self.length.sum())

    def __len__(self) -> int:
        return len(self.start)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(offset, length) pairs."""
        return zip(self.start.tolist(), self.length.tolist(), strict=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Extents):
            return NotImplemented
        return np.array_equal(self.start, other.start) and np.array_equal(self.end, other.end)

    def __hash__(self) -> int:
        return hash((self.start.tobytes(), self.end.tobytes()))

    def __or__(self, other: Extents) -> Extents:
        return _covered(*_together(self, other), at_least=1)

    def __and__(self, other: Extents) -> Extents:
        return _covered(*_together(self, other), at_least=2)

    def __sub__(self, other: Extents) -> Extents:
        if not len(self):
            return self
        low, high = int(self.start[0]), int(self.end[-1])
        return self & other.inverted(low, high - low)

    def inverted(self, offset: int, length: int) -> Extents:
        """What of [offset, offset + length) is not covered."""
        inside = self.within(offset, length)
        start = np.concatenate(([offset], inside.end))
        end = np.concatenate((inside.start, [offset + length]))
        kept = end > start
        return Extents(start[kept], end[kept])

    def within(self, offset: int, length: int) -> Extents:
        """The part inside [offset, offset + length)."""
        low, high = offset, offset + length
        first = int(np.searchsorted(self.end, low, side="right"))
        last = int(np.searchsorted(self.start, high, side="left"))
        if first >= last or high <= low:
            return Extents.empty()
        return Extents(
            np.clip(self.start[first:last], low, high),
            np.clip(self.end[first:last], low, high),
        )

    def aligned(self, unit: int, capacity: int) -> Extents:
        """Widened outward to multiples of `unit` (a tail of the disk stays a tail)."""
        start = self.start // unit * unit
        end = np.minimum(-(-self.end // unit) * unit, capacity)
        return _covered(start, end, at_least=1)

    def __repr__(self) -> str:
        shown = ", ".join(f"{offset}+{length}" for offset, length in list(self)[:4])
        return f"Extents({len(self)}: {shown}{', ...' if len(self) > 4 else ''})"


def _together(one: Extents, other: Extents) -> tuple[Offsets, Offsets]:
    return np.concatenate((one.start, other.start)), np.concatenate((one.end, other.end))


def _covered(start: Offsets, end: Offsets, *, at_least: int) -> Extents:
    """Where at least that many of the given ranges overlap. Ranges must not be empty."""
    if not len(start):
        return Extents.empty()
    edges = np.concatenate((start, end))
    steps = np.concatenate((np.ones(len(start), np.int64), -np.ones(len(end), np.int64)))
    order = np.argsort(edges, kind="stable")  # starts stand before ends: touching ranges merge
    edges, depth = edges[order], np.cumsum(steps[order])
    inside = depth >= at_least
    opens = inside & ~np.concatenate(([False], inside[:-1]))
    closes = ~inside & np.concatenate(([False], inside[:-1]))
    start, end = edges[opens], edges[closes]
    kept = end > start  # two operands that only touch overlap in an empty range
    start, end = start[kept], end[kept]
    if at_least > 1 and len(start) > 1:  # a seam inside one operand may split what is one range
        joined = start[1:] == end[:-1]
        start, end = start[np.concatenate(([True], ~joined))], end[np.concatenate((~joined, [True]))]
    return Extents(start, end)
