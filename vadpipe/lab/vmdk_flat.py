"""Flat disks: a descriptor file and `<name>-flat.vmdk`, sparse on the machine's file system."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.extents import Extents

from .sparse_vmdk import Below
from .vmdk_files import data_extents, opened, read_at, replace_text, write_at


def flat_path(path: Path) -> Path:
    """The file that holds the bytes of the flat disk with this descriptor."""
    return path.with_name(f"{path.stem}-flat.vmdk")


def create_flat(path: Path, capacity: int, descriptor: str) -> None:
    """Create a flat disk without data. `capacity` in bytes; raises FileExistsError."""
    with opened(flat_path(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
        os.truncate(fd, capacity)
    replace_text(path, descriptor)


class FlatExtent:
    """An open flat disk; the same interface as SparseExtent. Offsets and lengths in bytes."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        self._fd = os.open(flat_path(path), os.O_RDWR if writable else os.O_RDONLY)
        self.capacity = os.fstat(self._fd).st_size

    def close(self) -> None:
        os.close(self._fd)

    @property
    def descriptor(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @descriptor.setter
    def descriptor(self, text: str) -> None:
        replace_text(self.path, text)

    def allocated(self, offset: int, length: int) -> Extents:
        """What the machine's file system holds data for inside [offset, offset + length)."""
        return data_extents(self._fd, offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer from `offset`."""
        read_at(self._fd, offset, buffer)

    def write(self, offset: int, data: memoryview, below: Below) -> None:
        """Write; a flat disk is never partly allocated, so `below` is not asked."""
        write_at(self._fd, offset, data)
