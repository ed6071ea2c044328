"""Hosted sparse files, `KDMV`: monolithicSparse, twoGbMaxExtentSparse, streamOptimized.

Source: VMware technical note "Virtual Disk Format 5.0", sections "Simple Extents" and "Stream-Optimized
Compressed". Versions 1 to 3 are the same to a reader; flags say what is special.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from pipeline.errors import SourceError
from pipeline.units import SPAN, GiB

from .descriptor import MAX_CAPACITY, MAX_DESCRIPTOR, SECTOR
from .files import RandomAccess, cut_off
from .grains import MARKER, GrainTables, SectorEntries, damaged

MAGIC: Final = b"KDMV"

HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
GRAIN_MARKER = struct.Struct("<QI")

CHECKS_LINE_ENDS: Final = 1 << 0
REDUNDANT: Final = 1 << 1
_ZEROED_GRAINS: Final = 1 << 2
COMPRESSED: Final = 1 << 16
MARKERS: Final = 1 << 17

# The four bytes that a transfer in text mode would have changed.
LINE_ENDS: Final = b"\n \r\n"

DEFLATE: Final = 1
AT_END: Final = 0xFFFF_FFFF_FFFF_FFFF

# A stream ends with a footer marker, the footer (a header that knows the grain directory) and a last marker.
_FOOTER_FROM_END: Final = 2 * SECTOR

# Fixed by the specification; fewer are read too.
_MAX_PER_TABLE: Final = 512

# VMware writes grains of 64 KiB. A compressed one is unpacked in memory, so at most a span.
_MAX_GRAIN: Final = 1 * GiB
_MAX_PACKED_GRAIN: Final = SPAN

# Sector 0 is the header, and sector 1 is never data because an entry of 1 means zeros.
_FIRST_DATA: Final = 2


@dataclass(frozen=True)
class SparseHeader:
    """Facts of a hosted sparse header. Bytes, but for `per_table`."""

    flags: int
    capacity: int
    grain: int
    per_table: int
    descriptor_offset: int
    descriptor_length: int
    directory: int
    redundant_directory: int
    overhead: int
    directory_at_end: bool
    unclean_shutdown: bool

    @property
    def packed(self) -> bool:
        return bool(self.flags & COMPRESSED)

    @property
    def has_markers(self) -> bool:
        return bool(self.flags & MARKERS)


def parse_header(content: bytes, file: str) -> SparseHeader:
    """Parse and check the first sector of a hosted sparse file. Raises SourceError."""
    fields = HEADER.unpack_from(content)
    magic, version, flags, capacity, grain, text, text_size = fields[:7]
    per_table, redundant, directory, overhead, unclean, line_ends, algorithm = fields[7:]
    if magic != MAGIC:
        raise damaged(file, f"a sparse header begins with {MAGIC!r}, this one with {magic!r}")
    if version not in (1, 2, 3):
        raise _unknown(file, f"has version {version} of the sparse format; 1 to 3 are known")
    if flags & CHECKS_LINE_ENDS and line_ends != LINE_ENDS:
        raise damaged(file, "a transfer in text mode changed its line ends")
    if flags & COMPRESSED and algorithm != DEFLATE:
        raise _unknown(file, f"is compressed by algorithm {algorithm}; only 1, deflate, is known")
    largest = (_MAX_PACKED_GRAIN if flags & COMPRESSED else _MAX_GRAIN) // SECTOR
    if grain & (grain - 1) or not 1 <= grain <= largest:
        raise damaged(file, f"a grain has {grain} sectors, not a power of two up to {largest}")
    if not 1 <= per_table <= _MAX_PER_TABLE:
        raise damaged(file, f"a grain table has {per_table} entries, not 1 to {_MAX_PER_TABLE}")
    if capacity > MAX_CAPACITY // SECTOR:
        raise damaged(file, f"it claims {capacity} sectors; no disk is that large")
    return SparseHeader(
        flags=flags,
        capacity=capacity * SECTOR,
        grain=grain * SECTOR,
        per_table=per_table,
        descriptor_offset=text * SECTOR,
        descriptor_length=text_size * SECTOR,
        directory=directory * SECTOR,
        redundant_directory=redundant * SECTOR if flags & REDUNDANT else 0,
        overhead=overhead * SECTOR,
        directory_at_end=directory == AT_END,
        unclean_shutdown=bool(unclean),
    )


def _unknown(file: str, problem: str) -> SourceError:
    remedy = "Convert the disk with the product that made it."
    return SourceError(f"{file} {problem}.", remedy=remedy, file=file)


def read_header(file: RandomAccess) -> SparseHeader:
    """The header of a file; its footer, where the header says that only the footer is complete."""
    header = parse_header(file.read(0, SECTOR, "sparse header"), file.name)
    if not header.directory_at_end:
        return header
    footer = parse_header(file.read(file.size - _FOOTER_FROM_END, SECTOR, "footer"), file.name)
    if footer.directory_at_end or footer.capacity != header.capacity or footer.grain != header.grain:
        raise damaged(file.name, "its footer contradicts its header")
    return footer


def embedded_descriptor(header: SparseHeader, file: RandomAccess) -> bytes | None:
    """The text of the descriptor inside the file, padded with NULs; None if it has none.

    The header alone decides where a descriptor lies, whatever its first line is. One file of a split disk may
    reserve room for a descriptor and leave it empty.
    """
    if not header.descriptor_offset or not header.descriptor_length:
        return None
    text = file.read(header.descriptor_offset, min(header.descriptor_length, MAX_DESCRIPTOR), "descriptor")
    return text if text.split(b"\0", 1)[0].strip() else None


def grain_tables(header: SparseHeader, file: RandomAccess) -> GrainTables:
    """The index of the file; the redundant directory serves where the first one is not in the file."""
    if header.overhead > file.size:
        raise cut_off(file.name, file.size, 0, header.overhead, "metadata")
    tables = -(-header.capacity // (header.grain * header.per_table))
    inside = SECTOR <= header.directory <= file.size - tables * SectorEntries.dtype.itemsize
    return GrainTables(
        file=file,
        format=SectorEntries(_FIRST_DATA, zeroed=bool(header.flags & _ZEROED_GRAINS)),
        capacity=header.capacity,
        grain=header.grain,
        per_table=header.per_table,
        directory=header.directory if inside else header.redundant_directory or header.directory,
        packed=header.packed,
    )


@dataclass(frozen=True)
class Deflated:
    """Reads the compressed grains of a file."""

    file: RandomAccess
    grain: int
    has_markers: bool

    def unpack(self, place: int) -> bytes:
        """The bytes of the grain at `place`: a whole grain, or less at the end of the disk."""
        # What deflate makes of incompressible bytes: zlib's own bound, 5 bytes per 16 KiB and the wrapping.
        bound = self.grain + self.grain // 1000 + 64
        if self.has_markers:
            _, size = GRAIN_MARKER.unpack(self.file.read(place, MARKER, "grain marker"))
            if size > bound:
                raise damaged(self.file.name, f"the grain at {place} claims {size} bytes compressed")
            packed = self.file.read(place + MARKER, size, "compressed grain")
        else:
            packed = self.file.read(place, min(bound, self.file.size - place), "compressed grain")
        stream = zlib.decompressobj()
        try:
            content = stream.decompress(packed, self.grain + 1)
        except zlib.error as error:
            raise damaged(self.file.name, f"the compressed grain at {place}: {error}") from error
        if not stream.eof or len(content) > self.grain:
            raise damaged(self.file.name, f"the compressed grain at {place} does not end with its grain")
        return content
