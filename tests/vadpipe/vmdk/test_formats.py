"""Every subformat that qemu-img writes, read back; and the disk's holes against qemu-img's map."""

import struct

import numpy as np
import pytest

from pipeline.extents import Extents
from pipeline.testing import check_reader
from pipeline.units import GiB, KiB, MiB
from stages import LocalVm

SUBFORMATS = (
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
)


@pytest.mark.parametrize("capacity", [9 * MiB, 8 * MiB + 333 * KiB + 512], ids=["whole", "odd"])
@pytest.mark.parametrize("subformat", SUBFORMATS)
async def test_every_subformat_reads_as_qemu_reads_it(qemu, content, tmp_path, subformat, capacity):
    image = content(capacity, seed=capacity)
    source, target = tmp_path / "source.bin", tmp_path / "a.vmdk"
    image.tofile(source)
    qemu.img("convert", "-S", "4k", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", source, target)
    async with LocalVm(tmp_path).capture() as capture:
        (disk,) = capture.disks
        assert (disk.key, disk.capacity) == ("a", capacity)
        await check_reader(disk, lambda offset, length: image[offset : offset + length].tobytes())
        allocated = await disk.allocated(0, capacity)
        if "Flat" not in subformat:
            assert allocated == qemu.allocated(target).aligned(64 * KiB, capacity)
        else:
            assert allocated.total < capacity
        low, high = 3 * MiB + 512, 5 * MiB + 100 * KiB
        assert await disk.allocated(low, high - low) == allocated.within(low, high - low)


def _outside(allocated: Extents, capacity: int) -> np.ndarray:
    mask = np.ones(capacity, dtype=np.bool_)
    for offset, length in allocated:
        mask[offset : offset + length] = False
    return mask


@pytest.mark.parametrize("subformat", ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
async def test_a_disk_of_several_files_reads_as_qemu_reads_it(qemu, tmp_path, subformat):
    capacity, path = 4 * GiB + 64 * MiB + 512, tmp_path / "a.vmdk"
    qemu.img("create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", path, capacity)
    edges = [0, 2 * GiB - 96 * KiB, 4 * GiB - 32 * KiB, capacity - 100 * KiB]
    qemu.io(path, *(f"write -P {value} {offset} 100k" for value, offset in enumerate(edges, 1)))
    async with LocalVm(tmp_path).capture() as capture:
        (disk,) = capture.disks
        assert len(disk.layout.links[0].parts) == 3
        allocated = await disk.allocated(0, capacity)
        assert allocated.total < 4 * MiB
        for value, offset in enumerate(edges, 1):
            start = offset // MiB * MiB
            length = min(2 * MiB, capacity - start)
            buffer = await disk.pool.acquire()
            await disk.read(buffer, start, Extents.whole(length, start))
            expected = np.zeros(length, dtype=np.uint8)
            expected[offset - start :][: 100 * KiB] = value
            assert np.array_equal(buffer.array[:length], expected)
            assert (allocated & Extents.whole(100 * KiB, offset)).total == 100 * KiB


async def test_only_what_is_wanted_is_touched(qemu, content, tmp_path):
    for subformat in ("monolithicSparse", "streamOptimized"):
        image = content(4 * MiB, seed=5)
        source, target = tmp_path / "source.bin", tmp_path / subformat / "a.vmdk"
        target.parent.mkdir()
        image.tofile(source)
        qemu.img("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", source, target)
        wanted = Extents.of(
            (offset, 4096) for offset in range(0, 4 * MiB, 12 * KiB) if offset + 4096 <= 4 * MiB
        )
        async with LocalVm(target.parent).capture() as capture:
            (disk,) = capture.disks
            buffer = await disk.pool.acquire()
            buffer.array.fill(0xEE)
            await disk.read(buffer, 0, wanted)
            outside = _outside(wanted, 4 * MiB)
            assert np.array_equal(buffer.array[~outside], image[~outside])
            assert (buffer.array[outside] == 0xEE).all()


async def test_a_stream_with_its_directory_in_the_footer_is_read(qemu, content, read_all, tmp_path):
    """What VMware's own tools write; qemu-img reads it, but writes the directory in front."""
    image = content(5 * MiB, seed=3)
    source, path = tmp_path / "source.bin", tmp_path / "a.vmdk"
    image.tofile(source)
    qemu.img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", source, path)
    stream = bytearray(path.read_bytes())
    stream += bytes(-len(stream) % 512)
    (directory,) = struct.unpack_from("<Q", stream, 56)
    moved = len(stream) // 512
    stream += stream[directory * 512 :][:512]
    footer = bytearray(stream[:512])
    struct.pack_into("<Q", footer, 56, moved)
    struct.pack_into("<Q", stream, 56, 0xFFFFFFFFFFFFFFFF)
    marker = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0")
    path.write_bytes(bytes(stream) + marker + footer + bytes(512))
    assert np.array_equal(qemu.raw(path), image)
    async with LocalVm(tmp_path).capture() as capture:
        (disk,) = capture.disks
        assert np.array_equal(await read_all(disk), image)
