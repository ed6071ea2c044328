"""How a point ends: what is removed, closed and told, whether it was published, failed or was cancelled."""

import os
from pathlib import Path

import pytest
import trio

from pipeline import ConfigError, MiB, SinkError, observed
from pipeline.testing.fakes import FakeCapture
from tests.vadpipe.repository.repository_kit import (
    MACHINE,
    MemoryDisk,
    Watched,
    backup,
    content_of,
    files_of,
    full_path,
    names,
    random_bytes,
)
from vadpipe.repository import Repository
from vadpipe.repository.format.objects import run_name


def open_files(path: Path) -> list[str]:
    """The files that this process has open below a directory, and those without a name."""
    links = (os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
    return sorted(name for name in links if name.startswith((str(path), "/tmp/#", "/var/tmp/#")))


def working(repository) -> list[str]:
    """What only a run that lives may have there."""
    return [name for name in content_of(repository) if name.startswith(("tmp/", "runs/"))]


async def write(store, disk, *, publish: bool) -> None:
    async with store.begin(MACHINE) as point:
        receipt = await full_path(disk, point).run()
        if publish:
            await point.publish(FakeCapture(MACHINE, [disk]), [receipt], None)


@pytest.mark.parametrize("publish", [True, False])
async def test_nothing_of_a_run_that_ended_stays_open_or_in_the_way(repository, publish):
    disk = MemoryDisk(random_bytes(1, MiB))
    await backup(repository, [disk])
    before = open_files(repository.path)
    async with repository.open() as store:
        await write(store, disk, publish=publish)
    assert working(repository) == []
    assert open_files(repository.path) == before


@pytest.mark.parametrize("ending", ["published", "left", "failed"])
async def test_temporary_files_of_a_run_are_closed_with_it_however_it_ended(repository, ending):
    disk = MemoryDisk(random_bytes(1, MiB))
    await backup(repository, [disk])
    before = open_files(repository.path)
    async with repository.open() as store:
        with pytest.raises(KeyError) if ending == "failed" else trio.CancelScope():
            async with store.begin(MACHINE) as point:
                kept = point._run.index, point._run.packs  # else the collector closes them
                receipt = await full_path(MemoryDisk(random_bytes(2, MiB)), point).run()
                assert open_files(repository.path) != before
                if ending == "published":
                    await point.publish(FakeCapture(MACHINE, [disk]), [receipt], None)
                if ending == "failed":
                    raise KeyError
    assert kept
    assert open_files(repository.path) == before


async def test_a_cancelled_run_is_cleaned_up_although_it_is_cancelled(anywhere):
    before = content_of(anywhere)
    with trio.CancelScope() as scope:
        async with anywhere.open() as store, store.begin(MACHINE) as point:
            await full_path(MemoryDisk(random_bytes(1, MiB)), point).run()
            assert working(anywhere) != []
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert content_of(anywhere) == before


async def test_a_failure_and_a_failed_clean_up_are_both_told(in_memory):
    broken = []

    def watch(what, name):
        if what == "delete" and broken:
            raise SinkError("The store is gone.", remedy="Wait.")

    watched = Repository(Watched(in_memory.place, watch))
    with pytest.raises(BaseExceptionGroup) as caught:
        async with watched.open() as store, store.begin(MACHINE) as point:
            run_id = point._run.run.id
            broken.append(True)
            raise KeyError("the run")
    failed, clean_up = caught.value.exceptions
    assert isinstance(failed, KeyError)
    assert isinstance(clean_up, SinkError)
    assert names(in_memory, "runs/") == [run_name(run_id)]
    broken.clear()
    await backup(in_memory, [])  # the next run ends it
    assert names(in_memory, "runs/") == []


async def test_a_published_point_does_not_fail_because_its_run_cannot_be_ended(in_memory):
    disk = MemoryDisk(random_bytes(1, MiB))

    def watch(what, name):
        if what == "delete":
            raise SinkError("The store is gone.", remedy="Wait.")

    point = await backup(Repository(Watched(in_memory.place, watch)), [disk])
    assert names(in_memory, "runs/") == [run_name(point)]
    await backup(in_memory, [disk])
    assert names(in_memory, "runs/") == []
    async with in_memory.read() as reader:
        assert len(reader.points) == 2


async def test_a_run_ends_what_is_dead_and_tells_whose_it_was(anywhere):
    async with anywhere.open() as store:
        with pytest.raises(KeyError):
            async with store.begin(MACHINE) as dead:
                dead._run.run.roll_back = dead._run.run.abandon  # it dies
                raise KeyError
        events = []
        with observed(events.append):
            async with store.begin(MACHINE):
                pass
    [swept] = [event for event in events if event.kind == "swept"]
    assert swept.facts["runs"] == [dead._run.run.id]
    assert swept.facts["repository"] == anywhere.backend().place()
    assert working(anywhere) == []


async def test_a_run_removes_temporary_files_of_dead_writers(repository):
    await backup(repository, [])
    (repository.path / "tmp" / ("ab" * 16)).touch()
    await backup(repository, [])
    assert working(repository) == []


def test_what_is_missing_is_told_without_changing_anything(repository, tmp_path):
    before = files_of(repository.path)
    assert repository.missing() == []
    assert repository.unreadable() == []
    assert files_of(repository.path) == before
    for problems in (Repository(tmp_path / "absent").missing(), Repository(tmp_path / "absent").unreadable()):
        [problem] = problems
        assert str(tmp_path / "absent") in problem
        assert not (tmp_path / "absent").exists()
    (repository.path / "tmp").rmdir()
    (repository.path / "tmp").touch()
    [problem] = repository.missing()
    assert f"Could not write to {repository.path}" in problem
    assert repository.unreadable() == []


def test_a_plan_says_what_a_run_changes(anywhere):
    adds, removes = anywhere.effects()
    assert adds.startswith("Adds packs")
    assert removes.startswith("Removes")
    assert anywhere.name in adds
    assert anywhere.name in removes
    assert repr(anywhere) == f"Repository({anywhere.name!r})"


@pytest.mark.parametrize("tags", ["monthly", ["", "a"], [" "], [7]])
def test_tags_that_are_no_texts_are_refused(tags):
    with pytest.raises(ConfigError, match="Tags are texts that are not empty"):
        Repository("somewhere", tags=tags)


async def test_each_new_point_gets_the_tags_of_its_repository(anywhere):
    tagged = Repository(anywhere.place, tags=["b", " a ", "b"])
    await backup(tagged, [])
    await backup(anywhere, [])
    async with anywhere.read() as reader:
        assert [point.tags for point in reader.points] == [("a", "b"), ()]
