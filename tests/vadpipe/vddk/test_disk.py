"""Reading: the bytes and the allocation are those that qemu-img sees, through every library generation."""

from __future__ import annotations

import numpy as np
import pytest
import trio

from pipeline.errors import ConfigError
from pipeline.extents import Extents
from pipeline.units import SPAN, GiB, KiB, MiB
from tests.vadpipe.reading_kit import whole_disk
from tests.vadpipe.vddk.conftest import CAPACITY, known, qemu, quick, write
from vadpipe.vddk.access import DiskAccess
from vadpipe.vddk.disk import CHUNK

CHAINS = ["flat", "sparse", "child", "grandchild"]


@pytest.mark.parametrize("chain", CHAINS)
async def test_local_disk_equals_what_qemu_reads(any_libdir, made_lab, pool, chain):
    expected = made_lab.chains[chain]
    async with quick(any_libdir).open(DiskAccess.local(expected.leaf), pool) as disk:
        assert (disk.capacity, disk.transport) == (CAPACITY, "file")
        image = await whole_disk(disk, pool)
        assert np.array_equal(image, expected.raw)
        assert disk.statistics().restarts == 0
    assert disk.statistics().unclean == 0


@pytest.mark.parametrize("depth", [1, 4, 64])
async def test_a_remote_disk_is_read_with_completions_out_of_order(
    libdir, lab, pool, monkeypatch, counters, depth
):
    monkeypatch.setenv("VADPIPE_VDDK_LATENCY_MS", "1")
    settings = quick(libdir, transports="nbdssl", compression="fastlz", depth=depth, request=256 * KiB)
    async with settings.open(lab.access(), pool) as disk:
        assert disk.transport == "nbdssl"
        assert np.array_equal(await whole_disk(disk, pool), lab.chains["grandchild"].raw)
    (left,) = counters()
    assert left["live"] == dict.fromkeys(left["live"], 0)  # type: ignore[call-overload]
    statistics = disk.statistics()
    assert statistics.calls["ReadAsync"][0] == statistics.requests > 0
    assert statistics.calls["Cleanup"][0] == 1


@pytest.mark.parametrize("chain", ["sparse", "child", "grandchild"])
async def test_allocated_extents_equal_those_of_the_chain(libdir, made_lab, pool, chain):
    expected = made_lab.chains[chain]
    tail = Extents.of([(CAPACITY // CHUNK * CHUNK, CAPACITY % CHUNK)])
    true = expected.mapped.aligned(CHUNK, CAPACITY) | tail
    async with quick(libdir).open(DiskAccess.local(expected.leaf), pool) as disk:
        assert await disk.allocated(0, CAPACITY) == true
        for offset, length in ((0, 1), (5000, 9 * MiB), (CAPACITY - 512, 512), (CAPACITY - MiB, 9 * MiB)):
            assert await disk.allocated(offset, length) == true.within(offset, min(length, CAPACITY - offset))
        assert (disk.allocation, disk.allocation_reason) == ("queried", "")


async def test_allocation_is_read_beyond_one_query(libdir, tmp_path, pool):
    leaf = tmp_path / "large.vmdk"
    qemu("qemu-img", "create", "-f", "vmdk", leaf, 70 * GiB)
    write(leaf, (32 * GiB - 64 * KiB, 128 * KiB, 1), (64 * GiB, 64 * KiB, 2))
    async with quick(libdir).open(DiskAccess.local(leaf), pool) as disk:
        allocated = await disk.allocated(0, 70 * GiB)
    assert allocated == Extents.of([(32 * GiB - 64 * KiB, 128 * KiB), (64 * GiB, 64 * KiB)])
    assert disk.statistics().calls["QueryAllocatedBlocks"][0] == 4  # the probe, and three parts


async def test_a_disk_smaller_than_a_chunk_is_all_tail(libdir, tmp_path, pool):
    leaf = tmp_path / "small.vmdk"
    qemu("qemu-img", "create", "-f", "vmdk", leaf, 5 * 512)
    async with quick(libdir).open(DiskAccess.local(leaf), pool) as disk:
        assert await disk.allocated(0, 4096) == Extents.whole(5 * 512)
        assert np.array_equal(await whole_disk(disk, pool), known(leaf).raw)


@pytest.mark.parametrize(
    ("knob", "allocation", "reason"), [("all", "queried", ""), ("unsupported", "unavailable", "code 6")]
)
async def test_the_whole_disk_counts_as_allocated_when_queries_are_useless(
    libdir, lab, pool, monkeypatch, knob, allocation, reason
):
    monkeypatch.setenv("VADPIPE_VDDK_QAB", knob)
    async with quick(libdir).open(lab.access(), pool) as disk:
        assert disk.allocation == allocation
        assert reason in disk.allocation_reason
        assert await disk.allocated(MiB, CAPACITY) == Extents.whole(CAPACITY - MiB, MiB)
        assert np.array_equal(await whole_disk(disk, pool), lab.chains["grandchild"].raw)


async def test_only_what_is_wanted_is_read(libdir, made_lab, pool):
    expected = made_lab.chains["flat"]
    wanted = Extents.of([(4 * MiB, 4096), (5 * MiB + 512, 512), (7 * MiB, MiB + 4096)])
    async with quick(libdir).open(DiskAccess.local(expected.leaf), pool) as disk:
        buffer = await pool.acquire()
        buffer.array[:] = 0xEE
        await disk.read(buffer, 4 * MiB, wanted.within(4 * MiB, SPAN))
        read = wanted.within(4 * MiB, SPAN).aligned(4096, CAPACITY)
        for offset, length in read:
            there = slice(offset - 4 * MiB, offset - 4 * MiB + length)
            assert np.array_equal(buffer.array[there], expected.raw[offset : offset + length])
        for offset, length in read.inverted(4 * MiB, SPAN):
            assert (buffer.array[offset - 4 * MiB : offset - 4 * MiB + length] == 0xEE).all()
        await disk.read(buffer, 8 * MiB, Extents.empty())
        assert disk.statistics().bytes_read == read.total
        buffer.release()


async def test_a_read_that_does_not_fit_is_refused(libdir, made_lab, pool):
    async with quick(libdir).open(DiskAccess.local(made_lab.chains["flat"].leaf), pool) as disk:
        buffer = await pool.acquire()
        for offset, wanted in ((512, (512, 512)), (0, (SPAN, 512)), (20 * MiB, (CAPACITY - 512, 1024))):
            with pytest.raises(ValueError, match=r"offset|inside"):
                await disk.read(buffer, offset, Extents.of([wanted]))
        buffer.release()
        with pytest.raises(ValueError, match="held"):
            await disk.read(buffer, 0, Extents.whole(512))


async def test_older_library_serves_when_newer_ones_are_absent(libdir, made_lab, tmp_path, pool):
    for generation in (6, 7):
        root = tmp_path / str(generation)
        (root / "lib64").mkdir(parents=True)
        (root / "lib64" / f"libvixDiskLib.so.{generation}").symlink_to(
            libdir / "lib64" / f"libvixDiskLib.so.{generation}"
        )
        expected = made_lab.chains["child"]
        async with quick(root).open(DiskAccess.local(expected.leaf), pool) as disk:
            assert np.array_equal(await whole_disk(disk, pool), expected.raw)


async def test_two_disks_are_open_at_once(libdir, lab, pool):
    images = {}

    async def read(chain: str) -> None:
        async with quick(libdir).open(lab.access(chain), pool) as disk:
            images[chain] = await whole_disk(disk, pool)

    async with trio.open_nursery() as nursery:
        for chain in ("child", "grandchild"):
            nursery.start_soon(read, chain)
    assert all(np.array_equal(image, lab.chains[chain].raw) for chain, image in images.items())
    assert len(images) == 2


async def test_a_read_after_closing_raises_closed_resource_error(libdir, made_lab, pool):
    async with quick(libdir).open(DiskAccess.local(made_lab.chains["flat"].leaf), pool) as disk:
        buffer = await pool.acquire()
    with pytest.raises(trio.ClosedResourceError):
        await disk.read(buffer, 0, Extents.whole(512))
    buffer.release()


def test_settings_out_of_range_are_refused():
    for settings in ({"depth": 0}, {"request": 1000}, {"request": 8 * MiB}, {"config": {"a": "b\nc=d"}}):
        with pytest.raises(ConfigError):
            quick("/opt/vddk", **settings)
