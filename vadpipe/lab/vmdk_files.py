"""Reading and writing files by offset, and finding the data in a sparse file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MoverError
from pipeline.extents import Extents
from pipeline.units import MiB

# Large enough that the cost of a system call vanishes beside the copy of the bytes.
PIECE = 4 * MiB


class LabDiskError(MoverError):
    """An operation on a virtual disk of the lab is not possible."""


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A file descriptor for the `with` block."""
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def opened_raw(path: Path, capacity: int) -> Iterator[int]:
    """A raw image of a disk of `capacity` bytes, open for reading. Raises LabDiskError: another size."""
    with opened(path) as image:
        size = os.fstat(image).st_size
        if size != capacity:
            raise LabDiskError(
                f"{path} has {size} bytes, the disk has {capacity}.",
                remedy="Make the image as large as the disk.",
            )
        yield image


def read_at(fd: int, offset: int, buffer: memoryview) -> None:
    """Fill `buffer` from `offset`; what lies past the end of the file is left as it is."""
    while buffer and (count := os.preadv(fd, [buffer], offset)):
        buffer, offset = buffer[count:], offset + count


def write_at(fd: int, offset: int, *pieces: bytes | bytearray | memoryview) -> None:
    """Write the pieces one after the other from `offset` on, with one system call where possible."""
    rest = [memoryview(piece) for piece in pieces if len(piece)]
    while rest:
        count = os.pwritev(fd, rest, offset)
        offset += count
        while rest and count >= len(rest[0]):
            count -= len(rest.pop(0))
        if rest:
            rest[0] = rest[0][count:]


def data_extents(fd: int, offset: int, length: int) -> Extents:
    """What of [offset, offset + length) the file system holds data for; the rest is holes."""
    end = offset + length
    found: list[tuple[int, int]] = []
    while offset < end:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # lseek(2): no data from here to the end of the file
                break
            raise
        if start >= end:
            break
        offset = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        found.append((start, offset - start))
    return Extents.of(found)


def pieces_of(extents: Extents) -> Iterator[tuple[int, int]]:
    """(offset, length) pairs that cover the extents, none longer than PIECE."""
    for offset, length in extents:
        for start in range(offset, offset + length, PIECE):
            yield start, min(PIECE, offset + length - start)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file, its holes as holes."""
    with opened(source) as reader, opened(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as writer:
        size = os.fstat(reader).st_size
        os.truncate(writer, size)
        for offset, length in pieces_of(data_extents(reader, 0, size)):
            write_at(writer, offset, os.pread(reader, length, offset))


def replace_text(path: Path, text: str) -> None:
    """Replace a small file atomically: a reader sees the old text or the new one."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def runs(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the mask is true: the first indices of the runs, and the indices after their last."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return edges[::2], edges[1::2]


def units_where(mask: NDArray[np.bool_], unit: int, offset: int, capacity: int) -> Extents:
    """Extents of the units of `unit` bytes, counted from `offset`, for which the mask is true."""
    first, last = runs(mask)
    start, end = offset + first * unit, np.minimum(offset + last * unit, capacity)
    return Extents.from_columns(start, end - start)


def joined(parts: Sequence[Extents]) -> Extents:
    """The union of extents found piece by piece."""
    if not parts:
        return Extents.empty()
    return Extents.from_columns(
        np.concatenate([part.start for part in parts]), np.concatenate([part.length for part in parts])
    )
