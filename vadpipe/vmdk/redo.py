"""The sparse files of ESXi: COWD (`vmfsSparse`) and SE-sparse (`seSparse`) redo logs and thin disks.

Source: VMware technical note "Virtual Disk Format 5.0", section "ESXi Host Sparse Extents", for COWD. VMware never
documented SE-sparse; its layout is known from qemu's support of it. The tests compare both with qemu-img.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.errors import SourceError
from pipeline.extents import Offsets
from pipeline.units import MiB

from .descriptor import MAX_CAPACITY, SECTOR
from .files import RandomAccess
from .grains import ABSENT, Entries, GrainTables, SectorEntries, damaged
from .runs import PARENT, ZERO

COWD_MAGIC: Final = b"COWD"
SE_SPARSE_MAGIC: Final = struct.pack("<Q", 0xCAFE_BABE)

_COWD_HEADER = struct.Struct("<4sIIIIIII")
_COWD_PER_TABLE: Final = 4096
_COWD_HEADER_SECTORS: Final = 4

_SE_FIELDS: Final = 26  # of 64 bits each: six of geometry, four reserved, then eight pairs of place and size
_SE_VERSION: Final = 0x2_0000_0001
_SE_VOLATILE_MAGIC: Final = 0xCAFE_CAFE
_SE_ENTRY: Final = 8
_SE_TABLE_TAG: Final = 0x1000_0000

# 2 ** 36 grains are 256 TiB, four times the largest disk; it keeps their places within 64 bits.
_MAX_UPPER: Final = 1 << 24

# VMware writes 1 sector (COWD) and 8 (SE-sparse).
_MAX_GRAIN_SECTORS: Final = 1 * MiB // SECTOR
_MAX_TABLE_SECTORS: Final = 1 * MiB // SECTOR


def cowd_tables(file: RandomAccess) -> GrainTables:
    """The index of a COWD file. Raises SourceError."""
    content = file.read(0, SECTOR, "COWD header")
    magic, version, _, capacity, grain, directory, _, _ = _COWD_HEADER.unpack_from(content)
    if magic != COWD_MAGIC or version != 1:
        raise damaged(file.name, f"a COWD header of version 1 is expected, not {magic!r} {version}")
    _check_grain(file.name, grain)
    return GrainTables(
        file=file,
        format=SectorEntries(_COWD_HEADER_SECTORS),
        capacity=capacity * SECTOR,
        grain=grain * SECTOR,
        per_table=_COWD_PER_TABLE,
        directory=directory * SECTOR,
    )


@dataclass(frozen=True)
class SeSparseEntries:
    """Entries of 64 bits whose upper half byte is a type; tables and grains count from the start of their areas."""

    tables_offset: int
    tables_length: int
    table: int
    grains_offset: int
    grain: int
    dtype = np.dtype("<u8")

    def tables(self, entries: Entries) -> Offsets:
        index = (entries & np.uint64(0xFFFF_FFFF)).astype(np.int64)
        used = entries != 0
        tagged = (entries >> np.uint64(32)) == np.uint64(_SE_TABLE_TAG)
        if bool(np.any(used & ~(tagged & ((index + 1) * self.table <= self.tables_length)))):
            raise ValueError("an entry of the directory names no table")
        return np.where(used, self.tables_offset + index * self.table, ABSENT)

    def grains(self, entries: Entries) -> Offsets:
        kind = (entries >> np.uint64(60)).astype(np.int64)
        # The number of a grain is stored rotated: its lower 12 bits stand above its upper 48.
        low = (entries >> np.uint64(48)) & np.uint64(0xFFF)
        high = entries & np.uint64(0xFFFF_FFFF_FFFF)
        if bool(np.any((kind > 3) | ((kind == 0) & (entries != 0)))):
            raise ValueError("an entry has no known type")
        if bool(np.any((kind == 3) & (high >= _MAX_UPPER))):
            raise ValueError("an entry names a grain that no file can have")
        number = (low | (high << np.uint64(12))).astype(np.int64)
        unmapped_or_zero = (kind == 1) | (kind == 2)
        place = np.where(unmapped_or_zero, ZERO, self.grains_offset + number * self.grain)
        return np.where(kind == 0, PARENT, place)


def se_sparse_tables(file: RandomAccess) -> GrainTables:
    """The index of an SE-sparse file. Raises SourceError."""
    fields = struct.unpack_from(f"<{_SE_FIELDS}Q", file.read(0, SECTOR, "SE-sparse header"))
    magic, version, capacity, grain, table, flags = fields[:6]
    if magic != 0xCAFE_BABE or version != _SE_VERSION or flags:
        raise SourceError(
            f"{file.name} is not an SE-sparse file of the known version: {version:#x}, flags {flags:#x}.",
            remedy="Consolidate the VM's snapshots, or clone the disk to a flat one.",
            file=file.name,
        )
    volatile, directory, tables, tables_size = fields[10], fields[16], fields[18], fields[19]
    grains = fields[24]
    _check_grain(file.name, grain)
    if not 1 <= table <= _MAX_TABLE_SECTORS:
        raise damaged(file.name, f"a grain table has {table} sectors")
    if max(capacity, directory, tables, tables_size, grains, volatile) > MAX_CAPACITY // SECTOR:
        raise damaged(file.name, "its header claims sectors that no file can have")
    _check_journal(file, volatile * SECTOR)
    return GrainTables(
        file=file,
        format=SeSparseEntries(
            tables_offset=tables * SECTOR,
            tables_length=tables_size * SECTOR,
            table=table * SECTOR,
            grains_offset=grains * SECTOR,
            grain=grain * SECTOR,
        ),
        capacity=capacity * SECTOR,
        grain=grain * SECTOR,
        per_table=table * SECTOR // _SE_ENTRY,
        directory=directory * SECTOR,
    )


def _check_journal(file: RandomAccess, offset: int) -> None:
    """A journal that was not replayed holds changes of the tables that this reader does not apply."""
    magic, _, _, replay = struct.unpack_from("<4Q", file.read(offset, SECTOR, "volatile header"))
    if magic != _SE_VOLATILE_MAGIC:
        raise damaged(file.name, "its volatile header is not one")
    if replay:
        raise SourceError(
            f"{file.name} has a journal that was not replayed.",
            remedy="Power the VM on and off once, or consolidate its snapshots, so that ESXi replays it.",
            file=file.name,
        )


def _check_grain(file: str, sectors: int) -> None:
    if sectors & (sectors - 1) or not 1 <= sectors <= _MAX_GRAIN_SECTORS:
        raise damaged(file, f"a grain has {sectors} sectors, not a power of two up to {_MAX_GRAIN_SECTORS}")
