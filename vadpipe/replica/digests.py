"""The digests of a replica's blocks: what it holds, as far as we wrote it.

One digest per block of 64 KiB. A block of zeros has a digest of zeros, so the file is sparse where the disk is. It
is 16 bytes per 64 KiB of data: 256 MiB per TiB.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pipeline.errors import ContractError
from pipeline.extents import Extents
from pipeline.units import KiB
from pipeline.values import Span
from vadpipe.files import FILE_MODE, write_at

# The unit in which change tracking of vSphere reports small disks, of QEMU's dirty bitmaps and of qcow2's clusters.
BLOCK: Final = 64 * KiB

# Bytes of BLAKE3 that are kept. The digest is keyed with a secret of the migration, so a guest cannot look for two
# blocks with one digest; that two of 2^40 differing blocks have one by chance is less likely than 2^-48.
SIZE: Final = 16

Digests = NDArray[np.uint8]  # shape (n, SIZE)


def digests_size(capacity: int) -> int:
    """The bytes of the digests of a disk."""
    return -(-capacity // BLOCK) * SIZE


class DigestFile:
    """The digests of a disk of `capacity` bytes, in an open file. Its methods may wait for the file."""

    def __init__(self, descriptor: int, capacity: int) -> None:
        self._descriptor = descriptor
        self.capacity = capacity

    @classmethod
    @contextmanager
    def open(cls, path: Path, capacity: int) -> Iterator[DigestFile]:
        """Open the file; one that is not there is made, and says that the disk is zero. Raises OSError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
        try:
            os.truncate(descriptor, digests_size(capacity))
            yield cls(descriptor, capacity)
        finally:
            os.close(descriptor)

    def read(self, first: int, count: int) -> Digests:
        """The digests of `count` blocks from number `first` on. Raises OSError."""
        wanted, place, parts = count * SIZE, first * SIZE, []
        while wanted:
            part = os.pread(self._descriptor, wanted, place)
            if not part:
                raise OSError(f"the file of digests ends at {place}")
            parts.append(part)
            wanted, place = wanted - len(part), place + len(part)
        return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, SIZE)

    def write(self, first: int, digests: Digests) -> None:
        """Replace the digests from block number `first` on. Raises OSError."""
        write_at(self._descriptor, np.ascontiguousarray(digests).data, first * SIZE)

    def flush(self) -> None:
        """Make everything durable that was written. Raises OSError."""
        os.fsync(self._descriptor)


def digest_blocks(span: Span, key: bytes, capacity: int) -> tuple[NDArray[np.int64], Digests]:
    """The blocks of a span that are known, data or zeros: their numbers, ascending, and their digests.

    The buffer is filled with zeros where the span reads as zero.

    Args:
        span: Its data and zeros together are whole blocks.
        key: 32 bytes.
        capacity: Bytes of the disk, whose last block may be short.

    Raises:
        ContractError: They are not.
    """
    known = span.data | span.zeros
    if known != known.aligned(BLOCK, capacity):
        raise ContractError(
            f"The span at {span.offset} has parts of blocks of {BLOCK} bytes.",
            remedy="Let the path begin with ChangedExtents(disk, replica.previous(disk)).",
        )
    memory = span.buffer.memory
    for offset, length in span.zeros:
        span.bytes_of(offset, length)[:] = 0
    numbers = np.concatenate(
        [np.empty(0, np.int64)]
        + [np.arange(offset // BLOCK, -(-(offset + length) // BLOCK)) for offset, length in known]
    )
    end = span.offset + span.length
    found = np.zeros((len(numbers), SIZE), np.uint8)
    for row, number in enumerate(numbers.tolist()):
        low = number * BLOCK - span.offset
        high = min((number + 1) * BLOCK, end) - span.offset
        if span.buffer.array[low:high].any():
            found[row] = np.frombuffer(blake3(memory[low:high], key=key).digest(SIZE), np.uint8)
    return numbers, found


def extents_of(numbers: NDArray[np.int64], capacity: int) -> Extents:
    """The ranges of blocks. `numbers` ascend."""
    start = numbers * BLOCK
    return Extents.from_columns(start, np.minimum(start + BLOCK, capacity) - start)


def inside(numbers: NDArray[np.int64], extents: Extents) -> NDArray[np.bool_]:
    """Which of the blocks begin inside of the extents."""
    if not len(extents):
        return np.zeros(len(numbers), np.bool_)
    place = np.searchsorted(extents.start, numbers * BLOCK, side="right") - 1
    covered: NDArray[np.bool_] = (place >= 0) & (numbers * BLOCK < extents.end[np.maximum(place, 0)])
    return covered


def joined(parts: Sequence[Extents]) -> Extents:
    """The union of many extents."""
    if not parts:
        return Extents.empty()
    return Extents.from_columns(
        np.concatenate([part.start for part in parts]), np.concatenate([part.length for part in parts])
    )
