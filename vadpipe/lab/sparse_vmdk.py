"""Hosted sparse extents (VMDK files with the magic KDMV): create, read, write, allocate.

    header | descriptor | redundant grain directory, tables | grain directory, tables | grains ...

All grain tables exist from the start, as in every monolithicSparse disk, and until they are used they are
holes in the file, so 4 TiB cost nothing. They lie one after the other: the two sets of tables are two arrays of
sector numbers, indexed by grain, and are mapped into memory. Looking up a thousand grains is one slice,
entering them is one store; other processes see it at once and a kill does not lose it. Grains are appended;
the order bytes, redundant entry, entry keeps the file readable at every moment.

Source: VMware's "Virtual Disk Format 5.0" note.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.extents import Extents

from .vmdk_descriptor import SECTOR
from .vmdk_files import LabDiskError, data_extents, joined, opened, read_at, units_where, write_at

GRAIN_SECTORS = 128
GRAIN = GRAIN_SECTORS * SECTOR
MAGIC = b"KDMV"

_TABLE_ENTRIES = 512
_TABLE_SECTORS = _TABLE_ENTRIES * 4 // SECTOR
_DESCRIPTOR_SECTORS = 20
_LINE_END_TEST, _REDUNDANT_TABLES = 1 << 0, 1 << 1

# magic, version, flags, capacity, grain size, descriptor offset and size, entries per table, redundant grain
# directory, grain directory, overhead (all in sectors), unclean shutdown, line end test, compression.
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")

Below = Callable[[int, int], bytes | bytearray]


@dataclass(frozen=True)
class _Layout:
    """Where the parts of an extent of `capacity` bytes lie, in sectors."""

    capacity: int

    @property
    def tables(self) -> int:
        return -(-self.capacity // (GRAIN * _TABLE_ENTRIES))

    @property
    def directory_sectors(self) -> int:
        return -(-self.tables * 4 // SECTOR)

    @property
    def redundant_directory(self) -> int:
        return 1 + _DESCRIPTOR_SECTORS

    @property
    def redundant_tables(self) -> int:
        return self.redundant_directory + self.directory_sectors

    @property
    def directory(self) -> int:
        return self.redundant_tables + self.tables * _TABLE_SECTORS

    @property
    def first_table(self) -> int:
        return self.directory + self.directory_sectors

    @property
    def overhead(self) -> int:
        end = self.first_table + self.tables * _TABLE_SECTORS
        return -(-end // GRAIN_SECTORS) * GRAIN_SECTORS

    def header(self) -> bytes:
        return _HEADER.pack(
            MAGIC, 1, _LINE_END_TEST | _REDUNDANT_TABLES, self.capacity // SECTOR, GRAIN_SECTORS,
            1, _DESCRIPTOR_SECTORS, _TABLE_ENTRIES, self.redundant_directory, self.directory, self.overhead,
            0, b"\n \r\n", 0,
        )  # fmt: skip

    def directory_entries(self, first_table: int) -> bytes:
        """A grain directory whose tables lie one after the other."""
        return (first_table + _TABLE_SECTORS * np.arange(self.tables)).astype("<u4").tobytes()


def create_sparse(path: Path, capacity: int, descriptor: str) -> None:
    """Create an extent without grains. `capacity` in bytes; raises FileExistsError."""
    layout = _Layout(capacity)
    with opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
        os.truncate(fd, layout.overhead * SECTOR)
        write_at(fd, SECTOR, _padded(descriptor))
        entries = layout.directory_entries(layout.redundant_tables)
        write_at(fd, layout.redundant_directory * SECTOR, entries)
        write_at(fd, layout.directory * SECTOR, layout.directory_entries(layout.first_table))
        write_at(fd, 0, layout.header())


class SparseExtent:
    """An open hosted sparse extent made by `create_sparse`. Offsets and lengths in bytes."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        try:
            header = os.pread(self._fd, _HEADER.size, 0)
            sectors = _HEADER.unpack(header)[3] if len(header) == _HEADER.size else 0
            self.capacity = sectors * SECTOR
            self._layout = _Layout(self.capacity)
            if not sectors or header != self._layout.header():
                raise LabDiskError(
                    f"{path} is not a sparse extent of the lab: its header is not one the lab writes.",
                    remedy="Build the lab's VM again.",
                )
            self._table = self._mapped(self._layout.first_table, writable)
            self._redundant = self._mapped(self._layout.redundant_tables, writable)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        os.close(self._fd)

    @property
    def descriptor(self) -> str:
        area = os.pread(self._fd, _DESCRIPTOR_SECTORS * SECTOR, SECTOR)
        return area.rstrip(b"\0").decode()

    @descriptor.setter
    def descriptor(self, text: str) -> None:
        write_at(self._fd, SECTOR, _padded(text))

    def allocated(self, offset: int, length: int) -> Extents:
        """The allocated grains inside [offset, offset + length)."""
        first, last = offset // GRAIN, -(-(offset + length) // GRAIN)
        origin = self._layout.first_table * SECTOR
        used = data_extents(self._fd, origin + 4 * first, 4 * (last - first))
        parts = []
        for place, size in used:
            start, end = (place - origin) // 4, (place + size - origin) // 4
            parts.append(units_where(self._table[start:end] != 0, GRAIN, start * GRAIN, self.capacity))
        return joined(parts).within(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Overlay what this extent holds of [offset, offset + len(buffer)); the rest stays as it is."""
        end = offset + len(buffer)
        for grain, count, sector in self._segments(offset, end):
            if sector:
                low, high = max(offset, grain * GRAIN), min(end, (grain + count) * GRAIN)
                place = sector * SECTOR + low - grain * GRAIN
                read_at(self._fd, place, buffer[low - offset : high - offset])

    def write(self, offset: int, data: memoryview, below: Below) -> None:
        """Write; the rest of new grains that are only partly written comes from `below(offset, length)`."""
        end = offset + len(data)
        for grain, count, sector in self._segments(offset, end):
            low, high = max(offset, grain * GRAIN), min(end, (grain + count) * GRAIN)
            piece = data[low - offset : high - offset]
            if sector:
                write_at(self._fd, sector * SECTOR + low - grain * GRAIN, piece)
                continue
            head = below(grain * GRAIN, low - grain * GRAIN)
            stop = (grain + count) * GRAIN
            known = min(stop, self.capacity)  # the last grain of a disk is whole in the file all the same
            tail = below(high, known - high) + bytes(stop - known)
            self._append(grain, count, head, piece, tail)

    def _append(self, grain: int, count: int, *pieces: bytes | bytearray | memoryview) -> None:
        sector = -(-os.fstat(self._fd).st_size // GRAIN) * GRAIN_SECTORS
        if sector + count * GRAIN_SECTORS > 1 << 32:
            raise LabDiskError(
                f"{self.path} is full: grain tables address 2 TiB of one file.",
                remedy="Write less into one redo log, or make the disk flat.",
            )
        write_at(self._fd, sector * SECTOR, *pieces)
        entries = sector + GRAIN_SECTORS * np.arange(count)
        self._redundant[grain : grain + count] = entries
        self._table[grain : grain + count] = entries

    def _segments(self, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(grain, count, sector) of runs of grains that lie together in the file; sector 0: not allocated."""
        first, last = offset // GRAIN, -(-end // GRAIN)
        sectors = self._table[first:last].astype(np.int64)
        here, following = sectors[:-1], sectors[1:]
        together = np.where(here == 0, following == 0, following == here + GRAIN_SECTORS)
        starts = [0, *(np.flatnonzero(~together) + 1).tolist(), last - first]
        for start, stop in pairwise(starts):
            if start < stop:
                yield first + start, stop - start, int(sectors[start])

    def _mapped(self, first_sector: int, writable: bool) -> NDArray[np.uint32]:
        return np.memmap(
            self.path,
            dtype="<u4",
            mode="r+" if writable else "r",
            offset=first_sector * SECTOR,
            shape=(self._layout.tables * _TABLE_ENTRIES,),
        )


def _padded(descriptor: str) -> bytes:
    area = descriptor.encode().ljust(_DESCRIPTOR_SECTORS * SECTOR, b"\0")
    if len(area) > _DESCRIPTOR_SECTORS * SECTOR:
        raise ValueError(f"a descriptor of {len(descriptor)} characters does not fit into the extent")
    return area
