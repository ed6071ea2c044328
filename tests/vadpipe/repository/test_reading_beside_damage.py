"""Damage in what only writers need: readers go on, and name it. Found by the programs of vadpipe/lab/faults."""

import logging
from functools import partial

import pytest
import trio

from pipeline import IntegrityError
from pipeline.errors import leaves
from tests.vadpipe.repository.repository_kit import (
    MemoryDisk,
    backup,
    incremental_path,
    random_bytes,
    restore,
)
from vadpipe.lab.faults.forging import with_right_checksums
from vadpipe.repository import Repository, RepositoryReader, open_repository, verify
from vadpipe.repository.format.config import Origin
from vadpipe.repository.index.merging import MOST
from vadpipe.repository.index.segments import HEADER_SIZE
from vadpipe.repository.maintenance.forgetting import forget
from vadpipe.repository.maintenance.prune import prune
from vadpipe.repository.removal import read_removed, readable_removed

SIZE = 300_000


@pytest.fixture
async def repository(tmp_path):
    """Two points, and a removal of a pack of a third one."""
    made = Repository(tmp_path / "repository")
    made.init()
    disk = MemoryDisk(random_bytes(1, SIZE))
    for number in range(3):
        disk.write(0, random_bytes(number, SIZE))
        await backup(made, [disk], incremental_path)
    reader = RepositoryReader.of(made.backend())
    forget(reader.objects, reader.config, Origin(), reader.points[:1])
    prune(reader.objects, reader.config, Origin())
    return made


def removals(repository, waiting=False):
    return [
        path
        for path in (repository.path / "removals").iterdir()
        if path.name.endswith("-waiting.json") == waiting
    ]


async def test_the_point_that_was_made_from_a_forgotten_one_is_sound(repository):
    async with repository.read() as reader:
        assert reader.points[0].previous is not None
        assert reader.points[0].previous not in {point.id for point in reader.points}
        assert (await verify(reader)).damages == ()


async def test_a_damaged_list_of_forgotten_points_is_named_by_verify(repository):
    (path,) = (repository.path / "forgotten").iterdir()
    path.write_bytes(b"{}\n")
    async with repository.read() as reader:
        report = await verify(reader)
    assert [found.file for found in report.damages] == [str(path)]


@pytest.mark.parametrize("waiting", [False, True])
async def test_a_damaged_removal_is_named_and_all_points_are_restored(repository, waiting):
    (path,) = removals(repository, waiting)
    path.write_bytes(b"{}\n")
    async with repository.read() as reader:
        for point in reader.points:
            assert len(await restore(reader, point)) == SIZE
        report = await verify(reader)
    assert str(path) in {found.file for found in report.damages}


async def test_a_damaged_removal_keeps_prune_from_removing(repository):
    (path,) = removals(repository)
    path.write_bytes(b"{}\n")
    with repository.open_for_maintenance() as (objects, config):
        with pytest.raises(IntegrityError, match=path.name):
            prune(objects, config, Origin())
        with pytest.raises(IntegrityError):
            read_removed(objects, config)


async def test_what_the_other_removals_name_is_read_beside_a_damaged_one(repository):
    with repository.open_for_maintenance() as (objects, config):
        whole = read_removed(objects, config)
        objects.backend.put(f"removals/{'0' * 24}.json", [b"{}\n"])
        removed, damaged = readable_removed(objects, config)
    assert whole.packs == removed.packs != frozenset()
    assert ["0" * 24 in str(error) for error in damaged] == [True]


@pytest.fixture
async def twice(tmp_path):
    """Two VMs with equal disks, backed up at the same time: every frame lies in two packs and two segments."""
    made = Repository(tmp_path / "repository")
    made.init()
    begun = set[int]()
    both = trio.Event()

    class Waiting(MemoryDisk):
        async def read(self, buffer, offset, wanted):
            begun.add(id(self))
            if len(begun) == 2:
                both.set()
            await both.wait()
            await super().read(buffer, offset, wanted)

    async with trio.open_nursery() as nursery:
        for number in range(2):
            disk = Waiting(random_bytes(1, SIZE))
            nursery.start_soon(partial(backup, made, [disk], uuid=f"vm-{number}"))
    return made


def objects_of(repository, kind):
    return sorted(path for path in (repository.path / kind).rglob("*") if path.is_file())


async def restored(repository):
    """How many points have the disk, whole."""
    async with open_repository(repository.path) as reader:
        contents = [await restore(reader, point) for point in reader.points]
    return sum((content == random_bytes(1, SIZE)).all() for content in contents)


@pytest.mark.parametrize("kind", ["index", "packs"])
@pytest.mark.parametrize("number", [0, 1])
async def test_what_is_damaged_in_one_place_is_read_in_another(twice, kind, number, caplog):
    damaged = objects_of(twice, kind)[number]
    content = bytearray(damaged.read_bytes())
    content[300] ^= 1  # of a chunk row, and of the first frame
    damaged.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert await restored(twice) == 2
    async with open_repository(twice.path) as reader:
        assert str(damaged) in {found.file for found in (await verify(reader)).damages}


async def test_what_is_damaged_in_every_place_is_named(twice):
    for path in objects_of(twice, "packs"):
        content = bytearray(path.read_bytes())
        content[300] ^= 1
        path.write_bytes(content)
    with pytest.raises(ExceptionGroup) as caught:
        await restored(twice)
    assert [type(leaf) for leaf in leaves(caught.value)] == [IntegrityError]


def prune_once(repository):
    with repository.open_for_maintenance() as (objects, config):
        return prune(objects, config, Origin())


async def test_prune_copies_what_is_sound_only_in_what_it_removes(twice):
    assert prune_once(twice).named_packs == 1
    (removal,) = removals(twice)
    (kept,) = [path for path in objects_of(twice, "packs") if path.stem not in removal.read_text()]
    content = bytearray(kept.read_bytes())
    content[300] ^= 1
    kept.write_bytes(content)
    assert prune_once(twice).rescued_packs == 1
    prune_once(twice)
    assert await restored(twice) == 2


async def test_prune_copies_what_the_segment_of_the_other_copy_does_not_find(twice):
    assert prune_once(twice).named_packs == 1
    (removal,) = removals(twice)
    (path,) = [path for path in objects_of(twice, "index") if path.stem not in removal.read_text()]
    content = bytearray(path.read_bytes())
    content[HEADER_SIZE] ^= 1  # the digest of a chunk
    with_right_checksums(path.name, content)
    path.write_bytes(content)
    assert prune_once(twice).rescued_packs == 1
    prune_once(twice)
    assert await restored(twice) == 2


async def test_prune_removes_no_segment_before_it_proves_the_merged_one(tmp_path):
    made = Repository(tmp_path / "repository")
    made.init()
    for number in range(MOST + 2):
        await backup(made, [MemoryDisk(random_bytes(number, SIZE))])
    (removal,) = removals(made)
    (merged,) = [path for path in objects_of(made, "index") if path.stem[:16] == removal.stem[:16]][:1]
    content = bytearray(merged.read_bytes())
    content[HEADER_SIZE] ^= 1
    with_right_checksums(merged.name, content)
    merged.write_bytes(content)
    before = objects_of(made, "index")
    with pytest.raises(IntegrityError, match=merged.name):
        prune_once(made)
    assert objects_of(made, "index") == before
