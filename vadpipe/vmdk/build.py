"""Building hosted sparse files: whole grains from spans, headers and grain tables. Kernels.

    header | descriptor | redundant directory and tables | directory and tables | grains ...

All tables of a file have their place from the beginning, and a table is complete when the disk has passed it: so a
file is written in one pass and one table is in memory. Tables without grains are holes of the file.

Source: VMware technical note "Virtual Disk Format 5.0", section "Hosted Sparse Extents".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.units import KiB
from pipeline.values import Span

from .descriptor import SECTOR
from .sparse import AT_END, CHECKS_LINE_ENDS, HEADER, LINE_ENDS, MAGIC, REDUNDANT

GRAIN: Final = 64 * KiB  # what VMware's products write
PER_TABLE: Final = 512  # fixed by the specification
TABLE: Final = PER_TABLE * 4  # bytes
DESCRIPTOR_ROOM: Final = 20 * SECTOR  # what VMware's products reserve

# An entry counts sectors with 32 bits: no grain lies at or behind this byte of its file.
LAST_PLACE: Final = (1 << 32) * SECTOR

Bytes = NDArray[np.uint8]


class GrainCutter:
    """Whole grains from the data of spans, which come in order; bytes without data inside a grain are zero.

    Data is a view of a span's buffer, except for grains at the borders of extents, which are copies.
    """

    def __init__(self, capacity: int, grain: int = GRAIN) -> None:
        self._capacity, self._grain = capacity, grain
        self._number = -1  # the grain that is being put together
        self._open = np.zeros(grain, dtype=np.uint8)

    def cut(self, span: Span) -> Iterator[tuple[int, Bytes]]:
        """(number of the first grain, bytes of one or more whole grains), ascending."""
        for offset, length in span.data:
            yield from self._extent(offset, span.bytes_of(offset, length))

    def end(self) -> Iterator[tuple[int, Bytes]]:
        """The grain that is left."""
        if self._number >= 0:
            yield self._number, self._open
        self._number = -1
        self._open = np.zeros(self._grain, dtype=np.uint8)

    def _extent(self, offset: int, content: Bytes) -> Iterator[tuple[int, Bytes]]:
        grain = self._grain
        number, skip = divmod(offset, grain)
        if self._number not in (-1, number):
            yield from self.end()
        if skip or self._number == number:
            head = min(grain - skip, len(content))
            self._number = number
            self._open[skip : skip + head] = content[:head]
            if skip + head == grain:
                yield from self.end()
            content, number = content[head:], number + 1
        whole = len(content) // grain
        if whole:
            yield number, content[: whole * grain]
            content, number = content[whole * grain :], number + whole
        if len(content):
            self._number = number
            self._open[: len(content)] = content


def held_grains(first: int, content: Bytes, grain: int = GRAIN) -> Iterator[tuple[int, Bytes]]:
    """The runs of grains that are not all zero, as (number of the first, bytes)."""
    held = content.view(np.uint64).reshape(-1, grain // 8).any(axis=1)
    if held.all():
        yield first, content
        return
    edges = np.flatnonzero(np.diff(np.concatenate(([False], held, [False]))))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        yield first + start, content[start * grain : stop * grain]


def sparse_header(
    capacity: int,
    *,
    version: int = 1,
    flags: int = CHECKS_LINE_ENDS | REDUNDANT,
    descriptor: bool,
    redundant: int,
    directory: int | None,
    overhead: int,
    algorithm: int = 0,
) -> bytes:
    """The first sector of a file; places in bytes. A `directory` of None is told by the footer."""
    return HEADER.pack(
        MAGIC,
        version,
        flags,
        capacity // SECTOR,
        GRAIN // SECTOR,
        1 if descriptor else 0,
        DESCRIPTOR_ROOM // SECTOR if descriptor else 0,
        PER_TABLE,
        redundant // SECTOR,
        AT_END if directory is None else directory // SECTOR,
        overhead // SECTOR,
        0,
        LINE_ENDS,
        algorithm,
    ).ljust(SECTOR, b"\0")


def padded_descriptor(text: bytes) -> bytes:
    """A descriptor in the room that a file has for it."""
    if len(text) > DESCRIPTOR_ROOM:
        raise ConfigError(
            f"The descriptor has {len(text)} bytes; a sparse file has room for {DESCRIPTOR_ROOM}."
        )
    return text.ljust(DESCRIPTOR_ROOM, b"\0")


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


@dataclass(frozen=True)
class Write:
    """Bytes and their place in the file."""

    place: int
    content: bytes | memoryview


class SparseExtent:
    """A new sparse file of `capacity` bytes: what to write where. Grains come in ascending order.

    `descriptor` is the text inside the file; None: another file has it.
    """

    def __init__(self, capacity: int, descriptor: bytes | None) -> None:
        self.capacity = capacity
        self.tables = -(-capacity // (GRAIN * PER_TABLE))
        directory = _up(self.tables * 4, SECTOR)
        front = SECTOR + (DESCRIPTOR_ROOM if descriptor is not None else 0)
        self._redundant_directory = front
        self._redundant_tables = front + directory
        self._directory = self._redundant_tables + self.tables * TABLE
        self._tables = self._directory + directory
        self.overhead = _up(self._tables + self.tables * TABLE, GRAIN)
        self._descriptor = descriptor
        self._table = np.zeros(PER_TABLE, dtype="<u4")
        self._number = 0  # of the table in memory
        self.size = self.overhead  # bytes of the file so far

    def front(self) -> Iterator[Write]:
        """The header, the descriptor and both directories."""
        header = sparse_header(
            self.capacity,
            descriptor=self._descriptor is not None,
            redundant=self._redundant_directory,
            directory=self._directory,
            overhead=self.overhead,
        )
        text = b"" if self._descriptor is None else padded_descriptor(self._descriptor)
        yield Write(0, header + text)
        for directory, tables in (
            (self._redundant_directory, self._redundant_tables),
            (self._directory, self._tables),
        ):
            places = np.arange(self.tables, dtype=np.int64) * TABLE + tables
            yield Write(directory, (places // SECTOR).astype("<u4").tobytes())

    def grains(self, first: int, content: Bytes) -> Iterator[Write]:
        """Take grains from number `first` on; what to write now."""
        count = len(content) // GRAIN
        if self.size + len(content) > LAST_PLACE:
            raise ConfigError(
                f"A sparse VMDK holds at most {LAST_PLACE} bytes of data.",
                remedy="Take the format monolithicFlat or twoGbMaxExtentSparse, or another target.",
            )
        yield Write(self.size, content.data)
        for number in range(first, first + count):
            table, entry = divmod(number, PER_TABLE)
            if table != self._number:
                yield from self._complete(table)
            self._table[entry] = self.size // SECTOR
            self.size += GRAIN

    def end(self) -> Iterator[Write]:
        """What is left to write."""
        yield from self._complete(self.tables)

    def _complete(self, following: int) -> Iterator[Write]:
        if self._table.any():
            content = self._table.tobytes()
            yield Write(self._redundant_tables + self._number * TABLE, content)
            yield Write(self._tables + self._number * TABLE, content)
            self._table[:] = 0
        self._number = following
