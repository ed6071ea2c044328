"""Damage in what only writers need: readers go on, and name it. Found by the programs of vadpipe/lab/faults."""

import pytest

from pipeline import IntegrityError
from tests.vadpipe.repository.repository_kit import (
    MemoryDisk,
    backup,
    incremental_path,
    random_bytes,
    restore,
)
from vadpipe.repository import Repository, RepositoryReader, verify
from vadpipe.repository.format.config import Origin
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
