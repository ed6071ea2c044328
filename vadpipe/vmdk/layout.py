"""A disk from its files: the extents of each link side by side, and the links of the chain in layers.

    leaf      |-- redo log ---------------------------|    asked first
    parent    |-- redo log ---------------------------|    asked where the leaf has nothing
    base      |-- extent 1 --|-- extent 2 --|-- zero -|    bytes that no link has are zero

A layout answers for any range of the disk, from the files' own tables, and keeps nothing in memory.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.extents import Extents
from pipeline.units import CLUSTER, GiB

from .descriptor import Descriptor
from .files import DiskFile
from .grains import GrainTables
from .runs import PARENT, ZERO, Runs
from .sparse import Deflated
from .vmx import redacted

# Grain table entries per batch; with all columns about 10 MiB of memory.
_BATCH: Final = 1 << 16


@dataclass(frozen=True)
class Source:
    """Where runs point to: an open file, and how its grains are unpacked if they are packed."""

    file: DiskFile
    deflated: Deflated | None = None

    def unpack(self, place: int) -> bytes:
        """The bytes of the packed grain at `place`."""
        if self.deflated is None:
            raise ValueError(f"{self.file.name} has no packed grains")
        return self.deflated.unpack(place)


@dataclass(frozen=True)
class Part:
    """A piece of a link: grain tables, or `offset` in a flat file, or (without a source) zeros. Bytes."""

    start: int
    length: int
    source: int = ZERO
    offset: int = 0
    tables: GrainTables | None = None

    def runs(self, start: int, end: int) -> Runs:
        """The runs of [start, end) of the disk, as far as they are inside the part."""
        low, high = max(start, self.start), min(end, self.start + self.length)
        if self.tables is not None:
            return self.tables.runs(self.source, low - self.start, high - low).moved(self.start)
        return Runs.one(low, high, self.source, self.offset + low - self.start)


@dataclass(frozen=True)
class Link:
    """One member of a chain: a descriptor and the parts that it names, in the order of the disk."""

    path: Path
    descriptor: Descriptor
    parts: Sequence[Part]
    unclean_shutdown: bool

    @property
    def capacity(self) -> int:
        return self.descriptor.capacity

    def runs(self, start: int, end: int) -> Runs:
        """The runs of [start, end); beyond the link's end, where a child was grown, all is zero."""
        pieces = [part.runs(start, end) for part in self.parts_in(start, end)]
        return Runs.joined([*pieces, Runs.one(max(start, self.capacity), end, ZERO)])

    def parts_in(self, start: int, end: int) -> Sequence[Part]:
        """The parts that overlap [start, end)."""
        first = bisect_right(self.parts, start, key=lambda part: part.start) - 1
        last = bisect_left(self.parts, end, key=lambda part: part.start)
        return [part for part in self.parts[max(first, 0) : last] if part.start + part.length > start]

    def facts(self) -> Mapping[str, object]:
        """The facts for a restore point; JSON values."""
        return {
            "file": str(self.path),
            "create_type": self.descriptor.create_type,
            "content_id": self.descriptor.content_id,
            "capacity": self.capacity,
            "unclean_shutdown": self.unclean_shutdown,
            "database": {key: redacted(key, value) for key, value in self.descriptor.database.items()},
        }


@dataclass(frozen=True)
class Layout:
    """A whole disk: its chain, the leaf first. Synchronous; all methods raise SourceError."""

    links: Sequence[Link]
    sources: Sequence[Source]

    @property
    def capacity(self) -> int:
        return self.links[0].capacity

    def plan(self, wanted: Extents) -> Runs:
        """Where the bytes of `wanted` lie; no row is PARENT. Wanted must be inside the disk."""
        if not len(wanted):
            return Runs.one(0, 0, ZERO)
        start, end = int(wanted.start[0]), int(wanted.end[-1])
        if start < 0 or end > self.capacity:
            raise ValueError(f"{start} to {end} is not inside a disk of {self.capacity} bytes")
        return self._runs(start, end).only(wanted).merged()

    def allocated(self, offset: int, length: int) -> Extents:
        """The extents in [offset, offset + length) that may hold data, in whole clusters; the rest is zero."""
        offset, end = max(offset, 0), min(offset + length, self.capacity)
        step = self._batch()
        found = [self._held(low, min(low + step, end)) for low in range(offset, end, step)]
        if not found:
            return Extents.empty()
        start = np.concatenate([extents.start for extents in found])
        stop = np.concatenate([extents.end for extents in found])
        # `aligned` also merges what touches at the border of two batches.
        return Extents(start, stop).aligned(CLUSTER, self.capacity).within(offset, end - offset)

    def _runs(self, start: int, end: int) -> Runs:
        runs = self.links[0].runs(start, end)
        for link in self.links[1:]:
            open_rows = np.flatnonzero(runs.source == PARENT)
            if not len(open_rows):
                break
            low, high = int(runs.start[open_rows[0]]), int(runs.end[open_rows[-1]])
            runs = runs.over(link.runs(low, high))
        source = np.where(runs.source == PARENT, ZERO, runs.source)
        return Runs(runs.start, runs.end, source, runs.place, runs.skip, runs.packed)

    def _held(self, start: int, end: int) -> Extents:
        """Grains count as data; of flat files, what the file system has stored."""
        runs = self._runs(start, end).merged()
        held = runs.extents()
        for link in self.links:
            for part in link.parts_in(start, end):
                if part.tables is not None or part.source == ZERO:
                    continue
                mine = runs.chosen(runs.source == part.source).extents()
                if len(mine):
                    low, high = int(mine.start[0]), int(mine.end[-1])
                    distance = part.offset - part.start
                    stored = self.sources[part.source].file.held(low + distance, high - low)
                    held -= mine - Extents(stored.start - distance, stored.end - distance)
        return held

    def _batch(self) -> int:
        """Bytes of the disk that have no more than _BATCH grains in any link."""
        grains = [part.tables.grain for link in self.links for part in link.parts if part.tables]
        return max(min(_BATCH * min(grains, default=GiB), self.capacity), CLUSTER)
