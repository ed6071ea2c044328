"""Refined points: what they hold, what they cost, and what happens when the previous point is damaged."""

import logging
import struct

import numpy as np
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import CLUSTER, NO_FRAME, SPAN, BufferPool, Extents, Job, KiB, MiB
from pipeline.testing.fakes import FakeMachine
from tests.vadpipe.repository.repository_kit import (
    MemoryDisk,
    backup,
    fixed_origin,
    full_path,
    incremental_path,
    mixed_content,
    random_bytes,
    restore,
)
from vadpipe.repository import Repository, open_repository, verify
from vadpipe.repository.format.frames import Kind
from vadpipe.repository.index.lookup import RunIndex

SECTOR = 512
TRACKED = 64 * KiB  # what change tracking of ESXi tells apart


class TrackedDisk(MemoryDisk):
    """Change tracking tells of 64 KiB where less was written; what reads as zero may be a hole."""

    def write(self, offset, data):
        super().write(offset, data)
        low, high = offset // TRACKED * TRACKED, -(-(offset + len(data)) // TRACKED) * TRACKED
        self.written[-1] = (low, min(high, self.capacity) - low)

    def punch(self, offset, length):
        self.write(offset, np.zeros(length, np.uint8))
        self.holes |= Extents.whole(length, offset)


def compressible(seed, length):
    """Half noise and half the same byte, cluster by cluster."""
    content = random_bytes(seed, -(-length // CLUSTER) * CLUSTER).reshape(-1, CLUSTER)
    content[:, CLUSTER // 2 :] = seed % 251
    return content.reshape(-1)[:length]


async def grown(repository, disk, path):
    """Back up, and by how many bytes that makes the repository grow."""
    before = size_of(repository)
    await backup(repository, [disk], path)
    return size_of(repository) - before


def size_of(repository):
    return sum(path.stat().st_size for path in repository.path.rglob("*") if path.is_file())


async def last_receipt(repository):
    async with open_repository(repository.path) as reader:
        return reader.points[-1].disks[0].receipt


def check_sums(receipt):
    assert receipt.read == receipt.zero_read + receipt.known + receipt.new
    assert receipt.capacity == receipt.read + receipt.zero_unread + receipt.unchanged


write = st.tuples(
    st.sampled_from(["noise", "zeros", "hole", "copy", "again"]),
    st.integers(0, 1 << 20),  # place
    st.integers(1, 400),  # sectors
    st.integers(0, 1 << 20),
)
generation = st.tuples(st.sampled_from(["tracked", "full"]), st.lists(write, max_size=8))


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 3 * SPAN // SECTOR),
    st.lists(generation, min_size=1, max_size=5),
    st.integers(0, 1000),
)
def test_every_generation_of_a_history_comes_back(tmp_path_factory, sectors, history, seed):
    trio.run(play, tmp_path_factory.mktemp("history") / "repository", sectors * SECTOR, history, seed)


async def play(place, capacity, history, seed):
    repository = Repository(place, origin=fixed_origin())
    repository.init()
    content = random_bytes(seed, capacity)
    content[capacity // 3 : capacity // 2] = 0
    disk = TrackedDisk(content, pool=BufferPool())
    await backup(repository, [disk], incremental_path)
    states = [disk.content.copy()]
    for way, writes in history:
        for kind, at, count, value in writes:
            offset = at % (capacity // SECTOR) * SECTOR
            length = min(count * SECTOR, capacity - offset)
            if kind == "noise":
                disk.write(offset, random_bytes(value, length))
            elif kind == "zeros":
                disk.write(offset, np.zeros(length, np.uint8))
            elif kind == "hole":
                low, high = -(-offset // CLUSTER) * CLUSTER, (offset + length) // CLUSTER * CLUSTER
                if high > low:
                    disk.punch(low, high - low)
            elif kind == "copy":
                begin = value % (capacity - length + 1)
                disk.write(offset, disk.content[begin : begin + length].copy())
            else:
                disk.write(offset, disk.content[offset : offset + length].copy())
            if kind != "hole":
                disk.holes -= Extents.whole(length, offset).aligned(CLUSTER, capacity)
        await backup(repository, [disk], incremental_path if way == "tracked" else full_path)
        states.append(disk.content.copy())
    async with open_repository(repository.path) as reader:
        for point, state in zip(reader.points, states, strict=True):
            assert np.array_equal(await restore(reader, point), state)
            check_sums(point.disks[0].receipt)
        report = await verify(reader)
        assert report.damages == ()


@pytest.mark.parametrize("path", [incremental_path, full_path])
async def test_writes_of_a_cluster_cost_little_more_than_their_bytes(repository, path):
    """The bound of the issue, 1.25 times the compressed changed clusters, with 16 writes per span."""
    disk = TrackedDisk(compressible(1, 16 * MiB))
    await backup(repository, [disk])
    chance = np.random.default_rng(2)
    places = chance.choice(disk.capacity // CLUSTER, 64, replace=False)
    for number, place in enumerate(places.tolist()):
        disk.write(place * CLUSTER, compressible(100 + number, CLUSTER))
    growth = await grown(repository, disk, path)
    floor = len(places) * CLUSTER // 2
    fixed = 2600  # the point, the page list, ends of pack and segment
    assert growth < 1.25 * floor + fixed
    receipt = await last_receipt(repository)
    assert receipt.new == len(places) * CLUSTER
    check_sums(receipt)


@pytest.mark.parametrize("path", [incremental_path, full_path])
async def test_rewritten_blocks_cost_little_more_than_their_bytes(repository, path):
    disk = TrackedDisk(compressible(1, 16 * MiB))
    await backup(repository, [disk])
    places = np.random.default_rng(2).choice(disk.capacity // TRACKED, 20, replace=False)
    for number, place in enumerate(places.tolist()):
        disk.write(place * TRACKED, compressible(100 + number, TRACKED))
    growth = await grown(repository, disk, path)
    assert growth < 1.10 * len(places) * TRACKED // 2 + 2600
    check_sums(await last_receipt(repository))


async def test_what_was_written_again_with_the_same_bytes_costs_nothing(repository):
    disk = TrackedDisk(mixed_content(3 * SPAN + SECTOR))
    await backup(repository, [disk], incremental_path)
    disk.write(CLUSTER, disk.content[CLUSTER : 2 * MiB].copy())
    disk.write(disk.capacity - SECTOR, disk.content[-SECTOR:].copy())
    await backup(repository, [disk], incremental_path)
    async with open_repository(repository.path) as reader:
        first, second = (point.disks[0] for point in reader.points)
        assert first.pages == second.pages
        assert first.receipt.root == second.receipt.root
    receipt = second.receipt
    assert (receipt.new, receipt.stored) == (0, 0)
    assert receipt.known + receipt.zero_read == 2 * MiB + SECTOR
    assert receipt.unchanged == disk.capacity - 2 * MiB - SECTOR
    check_sums(receipt)


async def test_the_tail_of_a_disk_is_compared_too(repository):
    disk = TrackedDisk(random_bytes(1, SPAN + 3 * CLUSTER + SECTOR))
    await backup(repository, [disk], incremental_path)
    disk.write(disk.capacity - SECTOR, random_bytes(2, 10))
    await backup(repository, [disk], incremental_path)
    receipt = await last_receipt(repository)
    assert receipt.new == SECTOR
    disk.write(SPAN, random_bytes(3, 10))
    await backup(repository, [disk], incremental_path)
    receipt = await last_receipt(repository)
    assert receipt.new == CLUSTER
    async with open_repository(repository.path) as reader:
        assert np.array_equal(await restore(reader, reader.points[-1]), disk.content)


async def test_a_grown_disk_is_compared_with_nothing(repository):
    disk = TrackedDisk(random_bytes(1, 4 * MiB))
    await backup(repository, [disk], incremental_path)
    disk = TrackedDisk(np.concatenate((disk.content, random_bytes(2, MiB))))
    disk.content[::TRACKED] ^= 1
    await backup(repository, [disk], incremental_path)
    assert (await last_receipt(repository)).new > 4 * MiB
    async with open_repository(repository.path) as reader:
        assert np.array_equal(await restore(reader, reader.points[-1]), disk.content)


@pytest.mark.slow
async def test_a_chain_of_refined_points_stays_readable_and_small(repository):
    disk = TrackedDisk(compressible(1, 8 * MiB))
    await backup(repository, [disk], incremental_path)
    chance, states, growth = np.random.default_rng(4), [disk.content.copy()], []
    for number in range(60):
        for place in chance.integers(0, disk.capacity // CLUSTER, 10).tolist():
            disk.write(place * CLUSTER, compressible(1000 + number, CLUSTER))
        growth.append(await grown(repository, disk, incremental_path if number % 3 else full_path))
        states.append(disk.content.copy())
    assert max(growth) < 10 * CLUSTER // 2 + 40 * KiB  # segments are merged on the way: some runs write more
    assert np.median(growth) < 10 * CLUSTER // 2 + 16 * KiB
    async with open_repository(repository.path) as reader:
        assert (await verify(reader)).damages == ()
        for point, state in list(zip(reader.points, states, strict=True))[::7]:
            assert np.array_equal(await restore(reader, point), state)


def frames_of(repository, kind):
    """Path, offset and size of every stored frame of a kind, as docs/repository.md describes packs."""
    for pack in sorted(repository.path.glob("packs/*/*.pack")):
        content, offset = pack.read_bytes(), 48
        while content[offset : offset + 4] == b"VFRM":
            stored, chunks = struct.unpack_from("<II", content, offset + 12)
            size = 64 + 36 * chunks + stored
            if content[offset + 4] == kind:
                yield pack, offset, size
            offset += size


def flip_frames(repository, kind):
    for pack, offset, size in frames_of(repository, kind):
        content = bytearray(pack.read_bytes())
        content[offset + size - 1] ^= 1
        pack.write_bytes(content)


def lose_packs(repository):
    for pack in repository.path.glob("packs/*/*.pack"):
        pack.unlink()


def warned(caplog):
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [message for message in told if "stored in whole chunks" in message]


@pytest.fixture
async def damaged(repository):
    """A disk whose point is there, and who changed a cluster in each MiB since."""
    disk = TrackedDisk(random_bytes(1, 12 * MiB))
    await backup(repository, [disk], full_path)
    for place in range(0, disk.capacity, MiB):
        disk.write(place, random_bytes(place, CLUSTER))
    return disk


@pytest.mark.slow
@pytest.mark.parametrize("path", [incremental_path, full_path])
async def test_damaged_frames_are_one_warning_and_chunks_are_stored_whole(repository, damaged, path, caplog):
    flip_frames(repository, Kind.DATA)
    with caplog.at_level(logging.WARNING):
        receipt = await Job(FakeMachine([damaged]), path, repository).run()
    [told] = warned(caplog)
    assert "Disk scsi0:0 of the previous point, bytes 0 to " in told
    assert "its checksum is wrong" in told
    assert told in receipt.remarks
    stored = (await last_receipt(repository)).new
    assert 12 * 16 * KiB <= stored <= 12 * 256 * KiB
    async with open_repository(repository.path) as reader:
        assert (await verify(reader)).damages


async def test_one_damaged_frame_costs_its_own_chunks_only(repository, damaged, caplog):
    pack, offset, size = next(frames_of(repository, Kind.DATA))
    content = bytearray(pack.read_bytes())
    content[offset + size - 1] ^= 1
    pack.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        await backup(repository, [damaged], incremental_path)
    assert len(warned(caplog)) == 1
    assert 11 * CLUSTER < (await last_receipt(repository)).new < 11 * CLUSTER + 256 * KiB


async def test_missing_packs_are_one_warning(repository, damaged, caplog):
    """Map pages lie in them too; a full read needs neither."""
    lose_packs(repository)
    damaged.content[:] = random_bytes(9, damaged.capacity)  # nothing of it is stored already
    with caplog.at_level(logging.WARNING):
        await backup(repository, [damaged], full_path)
    assert len(warned(caplog)) == 1
    async with open_repository(repository.path) as reader:
        assert np.array_equal(await restore(reader, reader.points[-1]), damaged.content)


async def test_a_damaged_map_is_one_warning_of_a_full_read(repository, damaged, caplog):
    flip_frames(repository, Kind.MAP)
    with caplog.at_level(logging.WARNING):
        await backup(repository, [damaged], full_path)
    [told] = warned(caplog)
    assert "page" in told or "previous point" in told
    async with open_repository(repository.path) as reader:
        assert np.array_equal(await restore(reader, reader.points[-1]), damaged.content)


async def test_frames_that_the_index_does_not_know_are_one_warning(repository, damaged, caplog, monkeypatch):
    monkeypatch.setattr(RunIndex, "find_frames", lambda self, identity: np.full(len(identity), NO_FRAME))
    with caplog.at_level(logging.WARNING):
        await backup(repository, [damaged], incremental_path)
    [told] = warned(caplog)
    assert "is not in the index. Run `vadpipe verify`." in told
    async with open_repository(repository.path) as reader:
        assert np.array_equal(await restore(reader, reader.points[-1]), damaged.content)
