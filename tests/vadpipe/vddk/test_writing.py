"""Writing: what qemu-img reads back, whatever happens to the library and its process on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trio

from pipeline.buffers import BufferPool
from pipeline.extents import Extents
from pipeline.units import SPAN, KiB, MiB
from tests.vadpipe.vddk.conftest import CAPACITY, qemu, quick
from vadpipe.vddk import DiskAccess, WritableVddkDisk

RAW = np.random.default_rng(7).integers(1, 256, CAPACITY, np.uint8)
RAW[5 * MiB : 9 * MiB] = 0


def empty(place: Path, subformat: str = "monolithicSparse") -> Path:
    disk = place / f"{subformat}.vmdk"
    qemu("qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", disk, CAPACITY)
    return disk


def content(disk: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The disk as qemu-img sees it."""
    raw = disk.with_suffix(".raw")
    qemu("qemu-img", "convert", "-f", "vmdk", "-O", "raw", disk, raw)
    return np.fromfile(raw, dtype=np.uint8)


async def write_span(disk: WritableVddkDisk, pool: BufferPool, offset: int) -> None:
    buffer = await pool.acquire()
    try:
        part = RAW[offset : offset + SPAN]
        buffer.array[: len(part)] = part
        await disk.write(buffer, offset, Extents.whole(len(part), offset))
        buffer.array.fill(255)  # it is ours again
    finally:
        buffer.release()


async def write_all(disk: WritableVddkDisk, pool: BufferPool, at_once: int = 3) -> None:
    limit = trio.CapacityLimiter(at_once)

    async def one(offset: int) -> None:
        async with limit:
            await write_span(disk, pool, offset)

    async with trio.open_nursery() as nursery:
        for offset in range(0, CAPACITY, SPAN):
            nursery.start_soon(one, offset)


@pytest.mark.slow
@pytest.mark.parametrize("subformat", ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse"])
@pytest.mark.parametrize("unbuffered", [False, True])
async def test_a_written_disk_is_what_qemu_reads(libdir, tmp_path, pool, subformat, unbuffered):
    leaf = empty(tmp_path, subformat)
    settings = quick(libdir, request=512 * KiB, unbuffered=unbuffered)
    async with settings.open(DiskAccess.local(leaf), pool, write=True) as disk:
        await write_all(disk, pool)
        await disk.flush()
    assert np.array_equal(content(leaf), RAW)
    statistics = disk.statistics()
    assert (statistics.bytes_written, statistics.restarts, statistics.unclean) == (CAPACITY, 0, 0)
