"""Whole-disk digests by an independent reader: what a restored disk is compared with.

qemu-img reads the VMDK chain; nothing of the product takes part. Where qemu-img is missing, the lab's own reader
of its chains stands in, and `WITNESS` says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3

from pipeline.units import MiB

from .vmdk_chain import opened_chain

QEMU_IMG = shutil.which("qemu-img")
WITNESS = "qemu-img" if QEMU_IMG else "the lab's own VMDK reader (qemu-img is missing)"

_PIECE = 16 * MiB  # large enough for BLAKE3 to use every core


def image_digest(raw: Path) -> str:
    """BLAKE3 of every byte of a raw image. Holes count as the zeros they read as, without being read."""
    digest = blake3(max_threads=blake3.AUTO)
    zeros = bytes(_PIECE)
    descriptor = os.open(raw, os.O_RDONLY)
    try:
        size, offset = os.fstat(descriptor).st_size, 0
        while offset < size:
            data = _next_data(descriptor, offset, size)
            while offset < data:
                count = min(_PIECE, data - offset)
                digest.update(zeros[:count])
                offset += count
            piece = os.pread(descriptor, min(_PIECE, size - offset), offset)
            digest.update(piece)
            offset += len(piece)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _next_data(descriptor: int, offset: int, size: int) -> int:
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError:  # nothing but a hole up to the end
        return size


def chain_digest(chain: Sequence[Path], capacity: int) -> str:
    """BLAKE3 of the disk that a VMDK chain shows; `chain` is leaf first, `capacity` its bytes."""
    with tempfile.TemporaryDirectory(dir=chain[0].parent, prefix=".witness-") as scratch:
        raw = Path(scratch, "disk.raw")
        raw_copy(chain, capacity, raw)
        return image_digest(raw)


def raw_copy(chain: Sequence[Path], capacity: int, raw: Path) -> None:
    """The disk that a VMDK chain shows as a raw image; arguments as of `chain_digest`."""
    if QEMU_IMG:
        subprocess.run([QEMU_IMG, "convert", "-O", "raw", chain[0], raw], check=True)
    else:
        _copy(chain, capacity, raw)


def _copy(chain: Sequence[Path], capacity: int, raw: Path) -> None:
    with opened_chain(chain) as disk, raw.open("wb") as image:
        image.truncate(capacity)
        for start, length in disk.allocated(0, capacity):
            for offset in range(start, start + length, _PIECE):
                image.seek(offset)
                image.write(disk.read(offset, min(_PIECE, start + length - offset)))
