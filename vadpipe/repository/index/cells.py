"""Objects that consist of columns and are read in cells of 64 KiB, each proved when it is read.

A damaged row of an index could name a wrong frame, so no cell is believed before its xxh3 is right, and before
it was opened where the repository is sealed. All objects of an index share one bounded cache of cells: neither
memory nor descriptors grow with the repository.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline import IntegrityError, KiB, MiB

from ..format.objects import Damage

CELL: Final = 64 * KiB
ALIGNMENT: Final = 64

# Cells that are read for their neighbours, too: one call to the store for so many, and none of them is kept.
_AT_ONCE: Final = 64
_LOOSE: Final = 8

Rows = NDArray[np.int64]
Opener = Callable[[int, bytes], bytes]  # number of a cell, its stored bytes; raises Damage


class Readable(Protocol):
    """What columns are read from: `Objects`, or a temporary file that has no name yet."""

    def read(self, name: str, offset: int, length: int) -> bytes: ...

    def size(self, name: str) -> int: ...

    def place(self, name: str = "") -> str: ...


class Cells:
    """The last proved cells, up to `size` bytes. For several threads at once."""

    def __init__(self, size: int = 32 * MiB) -> None:
        self.size = size
        self._most = max(1, size // CELL)
        self._resident = size // 2
        self._cell: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._turn = threading.Lock()

    def get(self, columns: Columns, number: int) -> bytes:
        """Raises Damage, SinkError."""
        key = id(columns), number
        with self._turn:
            if key in self._cell:
                self._cell.move_to_end(key)
                return self._cell[key]
        content = columns.read_cells(number, number + 1)
        with self._turn:
            self._cell[key] = content
            if len(self._cell) > self._most:
                self._cell.popitem(last=False)
        return content

    def reserve(self, size: int) -> bool:
        """Whether a column of `size` bytes may stay in memory as a whole."""
        with self._turn:
            if size > min(self._resident, 2 * MiB):
                return False
            self._resident -= size
            return True

    def clear(self) -> None:
        """Forget all cells."""
        with self._turn:
            self._cell.clear()


class Columns:
    """The columns of one object. Its methods raise IntegrityError for what is damaged, SinkError for the store."""

    def __init__(self, objects: Readable, name: str, cells: Cells, dtypes: Sequence[np.dtype[Any]]) -> None:
        self.objects = objects
        self.name = name
        self._cells = cells
        self._dtypes = dtypes
        self._begin = 0
        self._count: Sequence[int] = ()
        self._start: Sequence[int] = ()
        self._checks: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._opener: Opener | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.place!r})"

    @property
    def place(self) -> str:
        """What a person calls the object."""
        return self.objects.place(self.name)

    def lay_out(
        self,
        counts: Sequence[int],
        starts: Sequence[int],
        checks: NDArray[np.uint64],
        opener: Opener | None = None,
    ) -> None:
        """Say where the columns lie.

        Args:
            counts: Rows of each column.
            starts: Where each column begins, and where the last one ends. Cells are counted from the first.
            checks: The xxh3 of each cell.
            opener: Opens a cell in a sealed repository.
        """
        self._count, self._start, self._checks, self._opener = counts, starts, checks, opener
        self._begin = starts[0]

    def count(self, section: int) -> int:
        """How many rows a column has."""
        return self._count[section]

    def column(self, section: int, first: int, last: int) -> NDArray[Any]:
        """Rows [first, last) of a column."""
        dtype = self._dtypes[section]
        last = min(last, self._count[section])
        if last <= first:
            return np.zeros(0, dtype)
        low = self._start[section] - self._begin + first * dtype.itemsize
        high = low + (last - first) * dtype.itemsize
        number, end = low // CELL, -(-high // CELL)
        if end == number + 1:
            content = self.cell(number)
        elif end - number <= _LOOSE:
            content = b"".join([self.cell(each) for each in range(number, end)])
        elif end - number <= _AT_ONCE:
            content = self._proved(number, end)
        else:
            content = b"".join(
                [self._proved(each, min(each + _AT_ONCE, end)) for each in range(number, end, _AT_ONCE)]
            )
        return np.frombuffer(content, dtype, last - first, low - number * CELL)

    def is_scattered(self, section: int) -> bool:
        """Whether few rows of a column are better read by themselves: hardly a cell of it is met again while it is
        in the cache. Never in a sealed repository, where a cell is opened as a whole."""
        size = self._count[section] * self._dtypes[section].itemsize
        return self._opener is None and size > 4 * self._cells.size

    def unproved(self, section: int, first: Rows, last: Rows) -> NDArray[Any]:
        """Rows [first, last) of a column, range after range, as they are stored: nothing else is read or proved."""
        size = self._dtypes[section].itemsize
        begin, length = self._start[section] + first * size, (last - first) * size
        read, name = self.objects.read, self.name
        try:
            pieces = [read(name, *each) for each in zip(begin.tolist(), length.tolist(), strict=True)]
        except Damage as damage:
            raise self.damaged(str(damage)) from damage
        return np.frombuffer(b"".join(pieces), self._dtypes[section])

    def take(self, section: int, row: Rows) -> NDArray[Any]:
        """Rows of a column, in the order of `row`."""
        dtype = self._dtypes[section]
        if not len(row):
            return np.zeros(0, dtype)
        if int(row.max()) >= self._count[section] or int(row.min()) < 0:
            raise self.damaged("a row of it names what it does not have")
        size = dtype.itemsize
        low = self._start[section] - self._begin + row * size
        if len(row) == 1:
            first = int(row[0])
            return self.column(section, first, first + 1)
        result = np.empty((len(row), size), dtype=np.uint8)
        cell = low // CELL
        whole = cell == (low + size - 1) // CELL
        steps = np.arange(size)
        for number in np.unique(cell[whole]).tolist():
            at = np.flatnonzero(whole & (cell == number))
            content = np.frombuffer(self.cell(number), np.uint8)
            result[at] = content[(low[at] - number * CELL)[:, None] + steps]
        for astride in np.flatnonzero(~whole).tolist():
            first = int(row[astride])
            result[astride] = self.column(section, first, first + 1).view(np.uint8)
        return result.reshape(-1).view(dtype)

    def prove_cells(self) -> None:
        """Read every cell."""
        for number in range(0, len(self._checks), _AT_ONCE):
            self._proved(number, min(number + _AT_ONCE, len(self._checks)))

    def cell(self, number: int) -> bytes:
        """A proved cell, from the cache where it is there."""
        try:
            return self._cells.get(self, number)
        except Damage as damage:
            raise self.damaged(str(damage)) from damage

    def read_cells(self, first: int, last: int) -> bytes:
        """Cells [first, last) from the store, proved and opened. Raises Damage, SinkError."""
        begin = self._begin + first * CELL
        end = min(self._begin + last * CELL, self._start[-1])
        content = self.objects.read(self.name, begin, end - begin)
        cells = memoryview(content)
        opened: list[bytes] = []
        for number in range(first, last):
            low = (number - first) * CELL
            stored = cells[low : low + CELL]
            if xxhash.xxh3_64_intdigest(stored) != self._checks[number]:
                raise Damage(f"the checksum of bytes {begin + low} to {begin + low + len(stored)} is wrong")
            if self._opener:
                opened.append(self._opener(number, bytes(stored)))
        return b"".join(opened) if self._opener else content

    def _proved(self, first: int, last: int) -> bytes:
        try:
            return self.read_cells(first, last)
        except Damage as damage:
            raise self.damaged(str(damage)) from damage

    def damaged(self, problem: str) -> IntegrityError:
        """What is wrong with the object."""
        return IntegrityError(
            f"Index segment {self.place} is damaged: {problem}.",
            remedy="Put this object back from a copy of the repository; the packs that it describes are not hit.",
            segment=self.place,
        )


def aligned(size: int) -> int:
    """Where the next column begins."""
    return -(-size // ALIGNMENT) * ALIGNMENT
