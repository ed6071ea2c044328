"""Grain tables: the two-level index that every sparse VMDK has, read by numpy.

A disk of many TiB has gigabytes of tables, so none is kept: a query about a range of the disk reads the entries of
that range, for one span a few hundred bytes from the page cache. Adjacent tables are read at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.extents import Offsets

from .descriptor import SECTOR
from .files import RandomAccess, cut_off
from .runs import PARENT, ZERO, Runs

Entries = NDArray[np.uint32] | NDArray[np.uint64]

# Byte 0 of a file is its header, so a place of 0 is free to say that there is no table.
ABSENT: Final = 0

# A compressed grain begins with its sector (8 bytes) and its size (4).
MARKER: Final = 12

_REMEDY = "The file is damaged; repair it (vmware-vdiskmanager -R, vmkfstools -x repair) or restore it."


def damaged(file: str, problem: str) -> SourceError:
    """The error for a file whose own facts contradict each other."""
    return SourceError(f"{file} is damaged: {problem}.", remedy=_REMEDY, file=file)


class EntryFormat(Protocol):
    """The meaning of a format's table entries."""

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]: ...

    def tables(self, entries: Entries) -> Offsets:
        """Directory entries -> byte offsets of grain tables; ABSENT where there is none. Raises ValueError."""
        ...

    def grains(self, entries: Entries) -> Offsets:
        """Table entries -> byte offsets of grains, ZERO or PARENT. Raises ValueError with a reason."""
        ...


@dataclass(frozen=True)
class SectorEntries:
    """Entries of 32 bits that count sectors: hosted sparse files and COWD.

    `first` is the lowest sector where data can lie; `zeroed`: an entry of 1 is a grain of zeros.
    """

    first: int
    zeroed: bool = False
    dtype = np.dtype("<u4")

    def tables(self, entries: Entries) -> Offsets:
        return entries.astype(np.int64) * SECTOR

    def grains(self, entries: Entries) -> Offsets:
        sector = entries.astype(np.int64)
        grains = np.where(sector == 0, PARENT, sector * SECTOR)
        if self.zeroed:
            grains[sector == 1] = ZERO
        if bool(np.any((grains >= 0) & (sector < self.first))):
            raise ValueError("an entry points into the header")
        return grains


@dataclass(frozen=True)
class GrainTables:
    """The index of one sparse file. Bytes, but for `per_table`: entries of a grain table.

    `directory` is the place of the grain directory; `packed`: grains are compressed.
    """

    file: RandomAccess
    format: EntryFormat
    capacity: int
    grain: int
    per_table: int
    directory: int
    packed: bool = False

    def __post_init__(self) -> None:
        tables = -(-self.capacity // (self.grain * self.per_table))
        size = tables * self.format.dtype.itemsize
        if self.directory < SECTOR or self.directory + size > self.file.size:
            raise cut_off(self.file.name, self.file.size, self.directory, size, "grain directory")

    def runs(self, source: int, offset: int, length: int) -> Runs:
        """The runs of [offset, offset + length), where the bytes of this file are called `source`."""
        first, end = offset // self.grain, -(-(offset + length) // self.grain)
        try:
            entries = self._entries(first, end)
            # Most of a thin disk is entries of 0: they become one run before anything is computed from them.
            head = np.flatnonzero(np.concatenate(([True], (entries[1:] != entries[:-1]) | (entries[1:] > 1))))
            place = self.format.grains(entries[head])
        except ValueError as error:
            raise damaged(self.file.name, f"in its grain tables {error}") from error
        start = (first + head) * self.grain
        self._check_inside(start, place)
        runs = Runs(
            start=start,
            end=(first + np.append(head[1:], end - first)) * self.grain,
            source=np.where(place < 0, place, source),
            place=np.maximum(place, 0),
            skip=np.zeros(len(place), dtype=np.int64),
            packed=(place >= 0) & self.packed,
        )
        return runs.merged().clipped(offset, offset + length)

    def _entries(self, first: int, end: int) -> Entries:
        """The table entries of grains [first, end); 0 where there is no table."""
        width = self.format.dtype.itemsize
        low, high = first // self.per_table, -(-end // self.per_table)
        raw = self.file.read(self.directory + low * width, (high - low) * width, "grain directory")
        tables = self.format.tables(np.frombuffer(raw, dtype=self.format.dtype))
        entries = np.zeros((high - low) * self.per_table, dtype=self.format.dtype)
        present = np.flatnonzero(tables != ABSENT)
        size = self.per_table * width
        breaks = np.flatnonzero((np.diff(present) != 1) | (np.diff(tables[present]) != size)) + 1
        for group in np.split(present, breaks) if len(present) else []:
            row, stop = int(group[0]) * self.per_table, int(group[-1] + 1) * self.per_table
            left, right = max(row, first - low * self.per_table), min(stop, end - low * self.per_table)
            at = int(tables[group[0]]) + (left - row) * width
            raw = self.file.read(at, (right - left) * width, "grain table")
            entries[left:right] = np.frombuffer(raw, dtype=self.format.dtype)
        return entries[first - low * self.per_table : end - low * self.per_table]

    def _check_inside(self, start: Offsets, place: Offsets) -> None:
        """Raise SourceError unless the grains for `start` of the disk lie inside the file."""
        size = np.full(len(place), MARKER) if self.packed else np.minimum(self.grain, self.capacity - start)
        beyond = np.flatnonzero((place >= 0) & (place + size > self.file.size))
        if len(beyond):
            row = int(beyond[0])
            what = f"grain for byte {int(start[row])} of the disk"
            raise cut_off(self.file.name, self.file.size, int(place[row]), int(size[row]), what)
