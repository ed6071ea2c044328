"""Change tracking: for every 64 KiB block of a disk the sequence in which it was last written.

The array is a sparse `.npy` file, mapped into memory. Blocks that were never written are holes, so a disk of 4 TiB
takes no space, and a marked block survives a kill. A snapshot has its own copy of the array, made when the disk was
forked, and queries about the snapshot read that copy.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.extents import Extents
from pipeline.units import KiB

from .vmdk_files import copy_sparse, data_extents, joined, opened, units_where

# The block size of change tracking on small disks in the field, and the grain of this lab's sparse files.
BLOCK = 64 * KiB


@dataclass(frozen=True)
class ChangeMap:
    """The tracking array of one disk of `capacity` bytes, in the file `path`."""

    path: Path
    capacity: int

    def create(self) -> None:
        """A new array: no block was written since tracking began."""
        blocks = -(-self.capacity // BLOCK)
        np.lib.format.open_memmap(self.path, mode="w+", dtype=np.uint32, shape=(blocks,))

    def copy_to(self, path: Path) -> None:
        copy_sparse(self.path, path)

    def mark(self, written: Extents, sequence: int) -> None:
        """Enter that the blocks under `written` changed in `sequence` or later."""
        array = self._mapped("r+")
        blocks = written.aligned(BLOCK, self.capacity)
        for first, last in zip(
            (blocks.start // BLOCK).tolist(), (-(-blocks.end // BLOCK)).tolist(), strict=True
        ):
            np.maximum(array[first:last], np.uint32(sequence), out=array[first:last])

    def changed_since(self, sequence: int) -> Extents:
        """The blocks that changed after `sequence`."""
        array = self._mapped("r")
        origin = array.offset
        parts = []
        with opened(self.path) as fd:
            for place, size in data_extents(fd, origin, os.fstat(fd).st_size - origin):
                start, end = (place - origin) // 4, (place + size - origin) // 4
                parts.append(units_where(array[start:end] > sequence, BLOCK, start * BLOCK, self.capacity))
        return joined(parts)

    def _mapped(self, mode: Literal["r", "r+"]) -> np.memmap[tuple[int], np.dtype[np.uint32]]:
        return np.lib.format.open_memmap(self.path, mode=mode)
