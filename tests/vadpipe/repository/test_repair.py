"""Repair: what is damaged goes, what is sound of it stays, and the index is whole again."""

import numpy as np
import pytest

from pipeline import KiB, MachineId, MiB
from tests.vadpipe.repository.repository_kit import (
    MemoryDisk,
    backup,
    incremental_path,
    random_bytes,
    restore,
)
from vadpipe.repository import verify
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.format.config import Origin
from vadpipe.repository.maintenance.prune import prune
from vadpipe.repository.maintenance.repair import ASIDE, repair
from vadpipe.repository.store import Repository


@pytest.fixture
def store():
    return MemoryBackend()


@pytest.fixture
async def filled(store):
    """A repository with three points of two disks; and the contents of the disks at each."""
    repository = Repository(store)
    repository.init()
    first, second = MemoryDisk(random_bytes(1, 4 * MiB)), MemoryDisk(random_bytes(2, MiB), key="scsi0:1")
    contents = []
    for number in range(3):
        if number:
            first.write(number * MiB, random_bytes(10 + number, 512 * KiB))
        await backup(repository, [first, second], incremental_path)
        contents.append({"scsi0:0": first.content.copy(), "scsi0:1": second.content.copy()})
    return repository, contents


def named(store, prefix):
    return [found.name for found in store.list(prefix)]


def largest(store, prefix):
    return max(store.list(prefix), key=lambda found: found.size).name


def flip(store, name, at):
    content = bytearray(store.read(name))
    content[at] ^= 1
    store.replace(name, [bytes(content)])


def repaired(repository, **options):
    with repository.open_for_maintenance() as (objects, config):
        return repair(objects, config, Origin(), **options)


def pruned(repository):
    with repository.open_for_maintenance() as (objects, config):
        return prune(objects, config, Origin())


async def damages(repository):
    async with repository.read() as reader:
        return (await verify(reader)).damages


async def expect_all(repository, contents):
    async with repository.read() as reader:
        for point, disks in zip(reader.points, contents, strict=True):
            for key, content in disks.items():
                assert np.array_equal(await restore(reader, point, key), content)


async def test_a_sound_repository_is_left_alone(filled, store):
    before = {name: store.read(name) for name in named(store, "")}
    assert repaired(filled[0]).lines() == ["Nothing is damaged."]
    assert {name: store.read(name) for name in named(store, "")} == before


async def test_a_lost_index_is_made_again_from_the_packs(filled, store):
    repository, contents = filled
    store.delete(named(store, "index/"))
    report = repaired(repository)
    assert len(report.indexed) == len(named(store, "packs/"))
    await expect_all(repository, contents)
    assert await damages(repository) == ()


async def test_a_damaged_segment_goes_and_its_packs_are_indexed_again(filled, store):
    repository, contents = filled
    name = largest(store, "index/")
    flip(store, name, 300)
    report = repaired(repository)
    assert [f"index/{segment}.idx" for segment in report.segments] == [name]
    assert len(report.indexed) == 1
    await expect_all(repository, contents)
    assert await damages(repository) == ()
    pruned(repository)
    assert name not in named(store, "index/")


@pytest.mark.parametrize("damage", ["table", "header", "one frame"])
async def test_of_a_damaged_pack_every_sound_frame_stays(filled, store, damage):
    repository, contents = filled
    name = largest(store, "packs/")
    content = store.read(name)
    if damage == "table":
        store.replace(name, [content[:-40]])
    else:
        flip(store, name, 4 if damage == "header" else len(content) // 2)
    report = repaired(repository)
    assert [f"{pack}.pack" for pack in report.packs] == [name.rpartition("/")[2]]
    assert len(report.lost) == (damage == "one frame")
    assert report.saved > 3
    found = await damages(repository)
    if damage == "one frame":
        hit = {hit.what for damaged in found for hit in damaged.hits}
        assert hit == {"scsi0:0"}
        async with repository.read() as reader:
            for point, disks in zip(reader.points, contents, strict=True):
                assert np.array_equal(await restore(reader, point, "scsi0:1"), disks["scsi0:1"])
    else:
        assert found == ()
        await expect_all(repository, contents)
    assert repaired(repository).lines() == ["Nothing is damaged."]
    pruned(repository)
    assert name not in named(store, "packs/")


async def test_a_pack_that_is_gone_is_forgotten_by_the_index_and_stored_again_by_the_next_run(filled, store):
    repository, contents = filled
    name = largest(store, "packs/")
    store.delete([name])
    assert repaired(repository).packs == [name.rpartition("/")[2].removesuffix(".pack")]
    disk = MemoryDisk(contents[0]["scsi0:0"].copy(), key="scsi0:7")
    await backup(repository, [disk])
    async with repository.read() as reader:
        newest = reader.points[-1]
        assert np.array_equal(await restore(reader, newest, "scsi0:7"), disk.content)


async def test_a_damaged_point_is_put_aside(filled, store):
    repository, contents = filled
    async with repository.read() as reader:
        first = reader.points[0].id
    (name,) = (name for name in named(store, "points/") if first in name)
    flip(store, name, 40)
    damaged = store.read(name)
    assert repaired(repository).points == [name]
    assert name not in named(store, "points/")
    assert store.read(f"{ASIDE}{name}") == damaged
    await expect_all(repository, contents[1:])


async def test_a_dry_run_says_the_same_and_changes_nothing(filled, store):
    repository, _ = filled
    flip(store, largest(store, "packs/"), 5000)
    flip(store, largest(store, "index/"), 300)
    before = {name: store.read(name) for name in named(store, "")}
    told = repaired(repository, dry_run=True)
    assert {name: store.read(name) for name in named(store, "")} == before
    done = repaired(repository)
    assert (told.packs, told.segments, told.indexed) == (done.packs, done.segments, done.indexed)
    assert told.saved == done.saved


async def test_a_run_that_writes_meanwhile_is_left_alone(filled, store):
    repository, _ = filled
    busy = MachineId("00000000-0000-0000-0000-000000000009", "busy")
    async with repository.open() as target, target.begin(busy) as point:
        running = point._run.run.id
        store.put(f"packs/{running[:2]}/{running}00000000.pack", [b"half a pack"])
        assert repaired(repository).lines() == ["Nothing is damaged."]
