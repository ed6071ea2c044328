"""The repository as its users see it: back up, read back, find points, and be told what is wrong."""

from dataclasses import replace

import numpy as np
import pytest
import trio

from pipeline import (
    CLUSTER,
    ChangedAreas,
    DiskReceipt,
    Extents,
    Job,
    KiB,
    MiB,
    TiB,
)
from pipeline.testing.fakes import FakeMachine
from tests.vadpipe.repository.repository_kit import (
    POOL,
    MemoryDisk,
    backup,
    full_path,
    incremental_path,
    mixed_content,
    names,
    random_bytes,
    restore,
)
from vadpipe.repository import verify
from vadpipe.repository.format.disk_map import PAGE
from vadpipe.repository.reader import open_repository


@pytest.mark.parametrize("tail", [0, 512, 3 * 512, CLUSTER - 512])
async def test_what_was_stored_is_read_back(anywhere, tail):
    disk = MemoryDisk(mixed_content(5 * MiB + tail))
    await backup(anywhere, [disk])
    async with anywhere.read() as reader:
        assert np.array_equal(await restore(reader, reader.points[0]), disk.content)


async def test_a_tail_shared_by_two_disks_is_stored_once(anywhere):
    content = random_bytes(1, 64 * KiB + 512)
    disks = [MemoryDisk(content.copy(), key=key) for key in ("a", "b")]
    await backup(anywhere, disks)
    async with anywhere.read() as reader:
        (point,) = reader.points
        assert point.disks[0].receipt.root == point.disks[1].receipt.root
        assert sorted(disk.receipt.new for disk in point.disks) == [0, len(content)]
        for key in ("a", "b"):
            assert np.array_equal(await restore(reader, point, key), content)


async def test_an_empty_disk_and_a_disk_of_zeros_are_read_back(anywhere):
    disks = [MemoryDisk(np.zeros(size, np.uint8), key=str(size)) for size in (0, 512, 9 * MiB)]
    await backup(anywhere, disks)
    async with anywhere.read() as reader:
        for disk in disks:
            assert np.array_equal(await restore(reader, reader.points[0], disk.key), disk.content)
        assert (await verify(reader)).damages == ()


async def test_the_same_data_again_costs_nothing_but_the_point(anywhere):
    disk = MemoryDisk(mixed_content(3 * MiB))
    await backup(anywhere, [disk])
    await backup(anywhere, [disk])
    async with anywhere.read() as reader:
        first, second = (point.disks[0].receipt for point in reader.points)
    assert (second.new, second.stored, second.root) == (0, 0, first.root)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_incremental_points_equal_a_model(repository, seed):
    random = np.random.default_rng(seed)
    disk = MemoryDisk(mixed_content(6 * MiB + 1024, seed))
    states = []
    for _ in range(5):
        await backup(repository, [disk], incremental_path)
        states.append(disk.content.copy())
        for _ in range(int(random.integers(6))):
            offset = int(random.integers(disk.capacity))
            length = min(int(random.integers(1, 300 * KiB)), disk.capacity - offset)
            kind = random.integers(3)
            source = int(random.integers(disk.capacity - length + 1))
            data = {
                0: np.zeros(length, np.uint8),
                1: disk.content[source : source + length].copy(),
                2: random_bytes(int(random.integers(1 << 30)), length),
            }[int(kind)]
            disk.write(offset, data)
    async with open_repository(repository.path) as reader:
        assert [point.previous for point in reader.points[1:]] == [point.id for point in reader.points[:-1]]
        for point, state in zip(reader.points, states, strict=True):
            assert np.array_equal(await restore(reader, point), state)
        assert (await verify(reader)).damages == ()


async def test_a_changed_range_that_became_zero_overwrites(anywhere):
    disk = MemoryDisk(random_bytes(1, MiB))
    await backup(anywhere, [disk], incremental_path)
    disk.write(128 * KiB, np.zeros(64 * KiB, np.uint8))
    await backup(anywhere, [disk], incremental_path)
    async with anywhere.read() as reader:
        assert np.array_equal(await restore(reader, reader.points[1]), disk.content)
        assert reader.points[1].disks[0].receipt.new == 0


@pytest.mark.slow
async def test_unchanged_pages_are_shared_without_being_loaded(repository):
    """A thin disk of 4 TiB with a write in three pages; then one page changes, and one changes back."""
    wide = _Wide(4 * TiB, [0, 7 * PAGE, 900 * PAGE])
    for place in wide.places:
        wide.fill(place, seed=place)
    await backup(repository, [wide], incremental_path)
    wide.fill(7 * PAGE, seed=1)
    await backup(repository, [wide], incremental_path)
    wide.fill(7 * PAGE, seed=7 * PAGE)
    await backup(repository, [wide], incremental_path)
    async with open_repository(repository.path) as reader:
        pages = [reader.page_digests(point, point.disks[0]) for point in reader.points]
        receipts = [point.disks[0].receipt for point in reader.points]
    used = np.flatnonzero(pages[0].any(axis=1)).tolist()
    assert used == [0, 7, 900]
    assert np.flatnonzero((pages[0] != pages[1]).any(axis=1)).tolist() == [7]
    assert receipts[1].unchanged == wide.capacity - 64 * KiB
    assert receipts[2].root == receipts[0].root
    assert receipts[2].stored == 0


class _Wide:
    """A disk of any size that holds 64 KiB at each of a few places."""

    def __init__(self, capacity, places):
        self.key, self.label, self.capacity, self.pool = "wide", "wide", capacity, POOL
        self.places = places
        self._at = {}
        self._changed = []

    @property
    def change_id(self):
        return str(len(self._changed))

    def fill(self, place, seed):
        self._at[place] = random_bytes(seed, 64 * KiB)
        self._changed.append((place, 64 * KiB))

    async def allocated(self, offset, length):
        await trio.lowlevel.checkpoint()
        return Extents.of((place, 64 * KiB) for place in self._at).within(offset, length)

    async def changed(self, since, offset):
        await trio.lowlevel.checkpoint()
        found = Extents.of(self._changed[int(since) :])
        return ChangedAreas(offset, self.capacity - offset, found.within(offset, self.capacity - offset))

    async def read(self, buffer, offset, wanted):
        await trio.lowlevel.checkpoint()
        for start, length in wanted:
            buffer.array[start - offset : start - offset + length] = self._at[start][:length]


@pytest.mark.slow
async def test_a_run_may_have_more_chunks_than_a_draft_holds(anywhere, monkeypatch):
    monkeypatch.setattr("vadpipe.repository.index.lookup.DRAFT_ROWS", 40)
    monkeypatch.setattr("vadpipe.repository.format.packs.PACK_SIZE", MiB)
    disk = MemoryDisk(random_bytes(1, 14 * MiB))
    disk.content[12 * MiB :] = disk.content[: 2 * MiB]  # found in what was written as a segment long before
    await backup(anywhere, [disk])
    assert len(names(anywhere, "index/")) > 3
    assert len(names(anywhere, "packs/")) > 3
    disk.write(MiB, random_bytes(2, 5 * MiB))
    await backup(anywhere, [disk], incremental_path)
    async with anywhere.read() as reader:
        assert reader.points[0].disks[0].receipt.known >= MiB
        assert np.array_equal(await restore(reader, reader.points[1]), disk.content)
        assert (await verify(reader)).damages == ()


async def test_disks_of_one_point_are_written_at_once(repository):
    disks = [MemoryDisk(mixed_content(4 * MiB, seed % 2), key=str(seed)) for seed in range(4)]
    job = replace(Job(FakeMachine(disks), full_path, repository), disks_at_once=4)
    await job.run()
    async with open_repository(repository.path) as reader:
        for disk in disks:
            assert np.array_equal(await restore(reader, reader.points[0], disk.key), disk.content)
        receipts = [disk.receipt for disk in reader.points[0].disks]
    assert isinstance(receipts[0], DiskReceipt)
    assert sum(receipt.known for receipt in receipts) >= sum(receipt.new for receipt in receipts)
