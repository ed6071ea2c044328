"""How a point ends: what is removed, closed and told, whether it was published, failed or was cancelled."""

import json
import logging
import os
from pathlib import Path

import pytest
import trio

from pipeline import MiB, SinkError, observed
from pipeline.testing.fakes import FakeCapture
from tests.vadpipe.repository.repository_kit import (
    MACHINE,
    MemoryDisk,
    backup,
    files_of,
    full_path,
    random_bytes,
)
from vadpipe.repository import store as store_module
from vadpipe.repository.files import Layout
from vadpipe.repository.runs import FOREIGN_AGE_S
from vadpipe.repository.store import Repository

RUN = "00" * 8


@pytest.fixture
def layout(repository) -> Layout:
    return Layout(repository.path)


def open_below(path: Path) -> list[str]:
    """The files below a directory that this process has open."""
    names = (os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
    return sorted(name for name in names if name.startswith(str(path)))


def working(path: Path) -> list[str]:
    """What only a run that lives may have there."""
    return [name for name in files_of(path) if name.startswith(("tmp/", "runs/"))]


async def write(store, disk, *, publish: bool) -> None:
    async with store.begin(MACHINE) as point:
        receipt = await full_path(disk, point).run()
        if publish:
            await point.publish(FakeCapture(MACHINE, [disk]), [receipt], None)


@pytest.mark.parametrize("publish", [True, False])
async def test_nothing_of_a_run_that_ended_stays_open_or_in_the_way(repository, publish):
    disk = MemoryDisk(random_bytes(1, MiB))
    await backup(repository, [disk])
    before = open_below(repository.path)
    async with repository.open() as store:
        await write(store, disk, publish=publish)
    assert working(repository.path) == []
    assert open_below(repository.path) == before
    assert len(list(repository.path.glob("points/*/*.json"))) == 1 + publish


async def test_the_segments_of_a_run_are_closed_with_it_however_it_ended(repository, layout):
    disk = MemoryDisk(random_bytes(1, MiB))
    await backup(repository, [disk])
    for ending in ("published", "left", "failed"):
        async with repository.open() as store:
            with pytest.raises(KeyError) if ending == "failed" else trio.CancelScope():
                async with store.begin(MACHINE) as point:
                    kept = point._run.index.cells  # else the collector closes them
                    receipt = await full_path(disk, point).run()
                    assert open_below(layout.index) != []
                    if ending == "published":
                        await point.publish(FakeCapture(MACHINE, [disk]), [receipt], None)
                    if ending == "failed":
                        raise KeyError
        assert kept is not None
        assert open_below(layout.index) == []


async def test_a_cancelled_run_is_cleaned_up_although_it_is_cancelled(repository):
    before = files_of(repository.path)
    with trio.CancelScope() as scope:
        async with repository.open() as store, store.begin(MACHINE) as point:
            await full_path(MemoryDisk(random_bytes(1, MiB)), point).run()
            assert working(repository.path) != []
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert files_of(repository.path) == before


async def test_a_failure_and_a_failed_clean_up_are_both_told(repository, layout):
    with pytest.raises(BaseExceptionGroup) as caught:
        async with repository.open() as store, store.begin(MACHINE) as point:
            (layout.tmp / f"{point._run.id}x").mkdir()  # cannot be removed as a file
            raise KeyError("the run")
    failed, clean_up = caught.value.exceptions
    assert isinstance(failed, KeyError)
    assert isinstance(clean_up, SinkError)
    assert open_below(repository.path) == []


async def test_a_published_point_does_not_fail_because_its_lock_cannot_be_removed(repository, layout):
    disk = MemoryDisk(random_bytes(1, MiB))
    async with repository.open() as store, store.begin(MACHINE) as point:
        receipt = await full_path(disk, point).run()
        await point.publish(FakeCapture(MACHINE, [disk]), [receipt], None)
        [lock] = layout.runs.iterdir()
        lock.unlink()
        lock.mkdir()
    assert open_below(repository.path) == []
    assert lock.is_dir()


async def test_a_run_sweeps_what_is_dead_and_tells_whose_it_was(repository, layout):
    layout.lock(RUN).touch()
    (layout.tmp / f"{RUN}x").touch()
    events = []
    async with repository.open() as store:
        with observed(events.append):
            async with store.begin(MACHINE):
                assert [path.name for path in layout.runs.iterdir()] != [layout.lock(RUN).name]
    [swept] = [event for event in events if event.kind == "swept"]
    assert swept.facts["runs"] == [RUN]
    assert swept.facts["repository"] == str(repository.path)
    assert working(repository.path) == []


@pytest.mark.parametrize("older_s", [-60, 60])
async def test_a_run_sweeps_that_of_another_host_by_the_clock_of_the_file_system(repository, layout, older_s):
    lock = layout.lock(RUN)
    lock.write_text(json.dumps({"host": "x", "name": "other01"}))
    made = lock.stat().st_mtime
    os.utime(lock, (made, made - FOREIGN_AGE_S - older_s))
    async with repository.open() as store, store.begin(MACHINE):
        pass
    assert lock.exists() == (older_s < 0)


def test_what_is_missing_is_told_without_changing_anything(repository, tmp_path):
    before = files_of(repository.path)
    assert repository.missing() == []
    assert files_of(repository.path) == before
    [problem] = Repository(tmp_path / "absent").missing()
    assert str(tmp_path / "absent") in problem
    (repository.path / "runs").rmdir()
    [problem] = repository.missing()
    assert f"{repository.path / 'runs'} is missing or cannot be written" in problem


def test_a_plan_says_what_a_run_changes(repository):
    adds, removes = repository.effects()
    assert adds.startswith("Adds packs")
    assert removes.startswith("Removes")
    assert str(repository.path) in adds
    assert str(repository.path) in removes
    assert repr(repository) == f"Repository({str(repository.path)!r})"


async def test_private_locks_are_a_warning_when_a_repository_is_opened(repository, monkeypatch, caplog):
    monkeypatch.setattr(store_module, "local_locks", lambda root: "nolock")
    with caplog.at_level(logging.WARNING, "vadpipe.repository"):
        async with repository.open():
            pass
    assert f"{repository.path} is mounted with nolock" in caplog.text
