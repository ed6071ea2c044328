"""Writing: what qemu-img reads back, whatever happens to the library and its process on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trio

from pipeline.buffers import BufferPool
from pipeline.errors import ConfigError
from pipeline.extents import Extents
from pipeline.testing import PatternDisk, check_writer
from pipeline.units import SPAN, KiB, MiB
from sinks import IntoVddkDisk
from stages import AllocatedExtents, MarkZeros, ReadSpans
from tests.vadpipe.vddk.conftest import CAPACITY, qemu, quick
from tests.vadpipe.vddk.conftest import write as write_pieces
from vadpipe.vddk import DiskAccess, WritableVddkDisk
from vadpipe.vddk.errors import VddkError

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


@pytest.mark.slow
async def test_a_writable_disk_passes_the_check(libdir, tmp_path, pool):
    leaf = empty(tmp_path)
    async with quick(libdir, request=512 * KiB).open(DiskAccess.local(leaf), pool, write=True) as disk:
        await check_writer(disk)
    assert (disk.statistics().unclean, disk.statistics().restarts) == (0, 1)  # anew, to see what is allocated


@pytest.mark.slow
async def test_metadata_is_read_and_written(libdir, tmp_path, pool):
    leaf = empty(tmp_path)
    async with quick(libdir).open(DiskAccess.local(leaf), pool, write=True) as disk:
        keys = await disk.metadata_keys()
        assert "adapterType" in keys
        assert await disk.read_metadata("adapterType") == "ide"
        await disk.write_metadata("adapterType", "lsilogic")
        await disk.write_metadata("uuid", "60 00 C2 9a")
        assert await disk.read_metadata("adapterType") == "lsilogic"
        assert set(await disk.metadata_keys()) == {*keys, "uuid"}
        with pytest.raises(VddkError, match="16052") as caught:
            await disk.read_metadata("nothing")
        assert (caught.value.facts["call"], caught.value.transient) == ("ReadMetadata", False)
        with pytest.raises(ConfigError, match="NUL"):
            await disk.write_metadata("adapterType", "a\0b")
        await write_span(disk, pool, 0)
    assert b'adapterType = "lsilogic"' in leaf.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [True, False])
async def test_a_thin_disk_stays_thin(libdir, tmp_path, fresh):
    pool = BufferPool()
    source = PatternDisk(64 * MiB + 512, hole_ratio=0.6, zero_ratio=0.2, pool=pool)
    leaf = tmp_path / "thin.vmdk"
    qemu("qemu-img", "create", "-q", "-f", "vmdk", leaf, source.capacity)
    if not fresh:
        write_pieces(leaf, (3 * MiB, 2 * MiB, 7), (60 * MiB, 64 * KiB, 8))
    async with quick(libdir).open(DiskAccess.local(leaf), pool, write=True) as disk:
        path = AllocatedExtents(source) | ReadSpans(source) | MarkZeros() | IntoVddkDisk(disk, fresh=fresh)
        receipt = await path.run()
    assert np.array_equal(content(leaf), source.bytes_at(0, source.capacity))
    assert receipt.allocated is not None
    if fresh:
        assert receipt.zeros_written == 0
        assert receipt.written <= receipt.allocated <= 1.02 * receipt.written
    else:
        assert 0 < receipt.zeros_written < 4 * MiB
    assert disk.statistics().bytes_written == receipt.written + receipt.zeros_written
