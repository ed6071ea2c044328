"""Runs that die, run at once, or find no space: nothing half-made is ever visible, and nothing alive is swept."""

import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trio

from pipeline import CLUSTER, MiB, SinkError, TransferFailed, observed
from pipeline.testing.fakes import FakeCapture
from tests.vadpipe.repository.repository_kit import (
    MACHINE,
    MemoryDisk,
    backup,
    files_of,
    full_path,
    random_bytes,
    restore,
)
from vadpipe.files import create, flush_directory
from vadpipe.repository import runs as runs_module
from vadpipe.repository import verify
from vadpipe.repository.files import Layout
from vadpipe.repository.reader import open_repository
from vadpipe.repository.runs import RunLock, sweep


def leftovers(repository) -> list[str]:
    """Files that no point needs and no published segment names."""
    return [name for name in files_of(repository.path) if name.startswith(("tmp/", "runs/"))]


async def test_a_run_that_is_left_unpublished_leaves_nothing(repository):
    disk = MemoryDisk(random_bytes(1, 3 * MiB))
    before = files_of(repository.path)
    async with repository.open() as store, store.begin(MACHINE) as point:
        await full_path(disk, point).run()
        assert files_of(repository.path) != before
    assert files_of(repository.path) == before
    with pytest.raises(KeyError):
        async with repository.open() as store, store.begin(MACHINE) as point:
            await full_path(disk, point).run()
            raise KeyError
    assert files_of(repository.path) == before
    with trio.CancelScope() as scope:
        async with repository.open() as store, store.begin(MACHINE) as point:
            await full_path(disk, point).run()
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert files_of(repository.path) == before


async def test_a_published_run_leaves_only_what_it_published(repository):
    await backup(repository, [MemoryDisk(random_bytes(1, MiB))])
    assert leftovers(repository) == []


# --- several at once ---


async def test_two_runs_at_once_publish_two_points(repository):
    """Each finds its own chunks and what was published before it, and neither sweeps the other."""
    disks = [MemoryDisk(random_bytes(1, 2 * MiB)), MemoryDisk(random_bytes(1, 2 * MiB))]
    async with repository.open() as store, store.begin(MACHINE) as one:
        first = await full_path(disks[0], one).run()
        async with store.begin(MACHINE) as two:
            second = await full_path(disks[1], two).run()
            await one.publish(FakeCapture(MACHINE, disks), [first], None)
            await two.publish(FakeCapture(MACHINE, disks), [second], None)
    assert leftovers(repository) == []
    async with open_repository(repository.path) as reader:
        assert len(reader.points) == 2
        for point in reader.points:
            assert np.array_equal(await restore(reader, point), disks[0].content)
        assert (await verify(reader)).damages == ()


async def test_a_living_run_is_never_swept(repository):
    disk = MemoryDisk(random_bytes(1, MiB))
    async with repository.open() as store, store.begin(MACHINE) as living:
        receipt = await full_path(disk, living).run()
        held = files_of(repository.path)
        layout = Layout(repository.path)
        assert sweep(layout, bytes(16)) == []
        assert files_of(repository.path) == held
        async with store.begin(MACHINE):
            pass
        assert files_of(repository.path) == held
        await living.publish(FakeCapture(MACHINE, [disk]), [receipt], None)
    async with open_repository(repository.path) as reader:
        assert np.array_equal(await restore(reader, reader.points[0]), disk.content)


def test_a_lock_that_is_swept_before_it_is_locked_is_made_again(repository, monkeypatch):
    """Another run's sweep looks between the creation of a lock file and its locking."""
    layout = Layout(repository.path)
    swept = []

    def create_and_be_swept(path: Path) -> int:
        file = create(path)
        if not swept:
            swept.extend(sweep(layout, bytes(16)))
        return file

    monkeypatch.setattr(runs_module, "create", create_and_be_swept)
    lock = RunLock(layout, "00" * 8)
    assert swept == ["00" * 8]
    assert sweep(layout, bytes(16)) == []
    lock.release()
    assert leftovers(repository) == []


def test_a_sweep_that_locked_a_file_of_the_past_leaves_the_run_alone(repository, monkeypatch):
    """Two sweepers and a starting run: one removed the lock file, and the run made it anew."""
    layout = Layout(repository.path)
    path = layout.tmp / f"{'00' * 8}.lock"
    path.touch()
    (layout.tmp / f"{'00' * 8}.pack").touch()
    flock = fcntl.flock

    def swapped(file, operation):
        if operation & fcntl.LOCK_NB:
            path.unlink()
            path.touch()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", swapped)
    assert sweep(layout, bytes(16)) == []
    assert sorted(path.name for path in layout.tmp.iterdir()) == ["00" * 8 + ".lock", "00" * 8 + ".pack"]


def foreign(layout, **fields):
    path = layout.lock("00" * 8)
    path.write_text(json.dumps({"host": "x", "name": "elsewhere", "boot": "y", "pid": 1, **fields}))
    return path


def test_a_run_of_another_host_is_swept_only_when_it_was_silent_for_long(repository):
    layout = Layout(repository.path)
    path = foreign(layout)
    now = path.stat().st_mtime
    assert sweep(layout, bytes(16), now + runs_module.FOREIGN_AGE_S - 10) == []
    assert sweep(layout, bytes(16)) == []
    assert path.exists()
    assert sweep(layout, bytes(16), now + runs_module.FOREIGN_AGE_S + 10) == ["00" * 8]
    assert not path.exists()


def test_a_run_of_this_host_before_its_last_boot_is_swept(repository):
    layout = Layout(repository.path)
    foreign(layout, **{**runs_module._this_host(), "boot": "an older one"})
    assert sweep(layout, bytes(16)) == ["00" * 8]


async def test_a_run_whose_lock_was_removed_publishes_nothing(repository):
    """What another host does where locks are not shared."""
    disk = MemoryDisk(random_bytes(1, MiB))
    async with repository.open() as store, store.begin(MACHINE) as point:
        receipt = await full_path(disk, point).run()
        next(Layout(repository.path).runs.iterdir()).unlink()
        with pytest.raises(SinkError, match=r"lock .* was removed while it was writing.*Another host"):
            await point.publish(FakeCapture(MACHINE, [disk]), [receipt], None)
    assert list(repository.path.glob("points/*/*")) == []


@pytest.mark.parametrize("which", ["its own", "an older one"])
async def test_a_run_whose_pack_was_removed_publishes_nothing(repository, which):
    disk = MemoryDisk(random_bytes(1, MiB))
    if which == "an older one":
        await backup(repository, [disk])
    points = list(repository.path.glob("points/*/*"))
    async with repository.open() as store, store.begin(MACHINE) as point:
        receipt = await full_path(disk, point).run()
        if which == "its own":
            await trio.to_thread.run_sync(point._run.packs.finish)
        next(repository.path.glob("packs/*/*.pack")).unlink()
        with pytest.raises(SinkError, match=r"Missing, though this point needs them: 1 pack,"):
            await point.publish(FakeCapture(MACHINE, [disk]), [receipt], None)
    assert list(repository.path.glob("points/*/*")) == points


async def test_where_locks_have_no_effect_a_run_is_refused(repository, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: None)
    with pytest.raises(SinkError, match=r"Locks have no effect.*NFS 4"):
        await backup(repository, [MemoryDisk(random_bytes(1, MiB))])
    assert leftovers(repository) == []


@pytest.mark.parametrize(
    ("mount", "option"),
    [
        ("srv:/x /srv/with\\040space nfs4 rw,local_lock=none 0 0", None),
        ("srv:/x /srv/with\\040space nfs rw,nolock 0 0", "nolock"),
        ("srv:/x /srv/with\\040space nfs rw,local_lock=all 0 0", "local_lock=all"),
        ("srv:/x /srv/with\\040space nfs rw,nolock 0 0\nx /srv/with\\040space/below ext4 rw 0 0", None),
    ],
)
def test_mounts_whose_locks_are_private_are_reported(tmp_path, mount, option):
    (tmp_path / "mounts").write_text(f"none / ext4 rw 0 0\n{mount}\n")
    root = Path("/srv/with space/below/repository")
    assert runs_module.local_locks(root, tmp_path / "mounts") == option


def test_what_a_sweep_removes_is_flushed_before_the_lock_is_removed(repository, monkeypatch):
    layout = Layout(repository.path)
    run_id = "00" * 8
    (layout.packs / "00").mkdir()
    for path in (layout.lock(run_id), layout.tmp / f"{run_id}x", layout.pack(f"{run_id}00000000")):
        path.touch()
    steps = []
    flush, unlink = flush_directory, Path.unlink
    monkeypatch.setattr(
        runs_module, "flush_directory", lambda path: (steps.append(("flush", path)), flush(path))[1]
    )
    monkeypatch.setattr(
        Path, "unlink", lambda path, **how: (steps.append(("remove", path)), unlink(path, **how))[1]
    )
    assert sweep(layout, bytes(16)) == [run_id]
    at = {step: number for number, step in enumerate(steps)}
    lock = at["remove", layout.lock(run_id)]
    assert at["remove", layout.pack(f"{run_id}00000000")] < at["flush", layout.packs / "00"] < lock
    assert at["remove", layout.tmp / f"{run_id}x"] < at["flush", layout.tmp] < lock < at["flush", layout.runs]


async def test_what_has_neither_lock_nor_point_is_found_by_verify(repository):
    await backup(repository, [MemoryDisk(random_bytes(1, MiB))])
    layout = Layout(repository.path)
    lost = [layout.packs / "00" / f"{'00' * 12}.pack", layout.tmp / f"{'00' * 8}00000000.idx"]
    for path in lost:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    async with open_repository(repository.path) as reader:
        report = await verify(reader)
        assert sorted(found.file for found in report.damages) == sorted(map(str, lost))
        layout.lock("00" * 8).touch()  # a run that lives, or that a sweep will find
        assert (await verify(reader)).damages == ()


# --- kill -9 ---

WRITER = """
import sys
import trio
from pathlib import Path
from vadpipe.repository import Repository
import vadpipe.repository.packs as packs
import vadpipe.repository.index as index
sys.path.insert(0, sys.argv[2])
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, incremental_path, random_bytes

packs.PACK_SIZE = 1 << 20
index.DRAFT_ROWS = 100

async def main():
    disk = MemoryDisk(random_bytes(int(sys.argv[3]), 16 << 20))
    print("begin", flush=True)
    while True:
        print(await backup(Repository(sys.argv[1]), [disk], incremental_path), flush=True)
        disk.write(0, random_bytes(len(disk.written) + 100, 8 << 20))

trio.run(main)
"""


def start_writer(repository, seed):
    root = Path(__file__).parents[3]
    arguments = [sys.executable, "-c", WRITER, str(repository.path), str(root), str(seed)]
    writer = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=root)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "begin\n"
    return writer


def kill(writer) -> list[str]:
    """Returns the points that it said it published."""
    writer.send_signal(signal.SIGKILL)
    with writer:
        return writer.stdout.read().split()


@pytest.mark.slow
async def test_killed_runs_leave_no_half_point_and_are_swept(repository):
    """Kill a writer at random moments. Then: every listed point is whole, and the next run sweeps the rest."""
    layout = Layout(repository.path)
    moments = random.Random(1)
    found_dead, said = [], []
    for turn in range(8):
        writer = start_writer(repository, turn)
        await trio.sleep(moments.uniform(0.02, 0.6))
        said += kill(writer)
        with observed(lambda event: found_dead.append(event.kind)):
            await backup(repository, [MemoryDisk(random_bytes(turn, MiB), key="other")])
        assert leftovers(repository) == []
        async with open_repository(repository.path) as reader:
            assert reader.damaged == ()
            listed = {point.id for point in reader.points}
            assert set(said) <= listed
            named = {pack for segment in reader.index.segments for pack in segment.packs()}
            assert {path.stem for path in layout.packs.glob("*/*")} == named
    assert "swept" in found_dead
    async with open_repository(repository.path) as reader:
        assert (await verify(reader)).damages == ()
        assert len(reader.points) >= 8


@pytest.mark.slow
async def test_a_sweep_leaves_a_writer_of_another_process_alone(repository):
    writer = start_writer(repository, 1)
    try:
        for turn in range(6):
            await backup(repository, [MemoryDisk(random_bytes(turn, CLUSTER), key="other")])
        assert writer.poll() is None
    finally:
        said = kill(writer)
    async with open_repository(repository.path) as reader:
        assert set(said) <= {point.id for point in reader.points}
        assert (await verify(reader)).damages == ()


async def test_segments_of_a_dead_run_stay(repository, monkeypatch):
    """A run that dies between its segments and its point: another may use its chunks already."""
    disk = MemoryDisk(random_bytes(1, MiB))

    def die(*arguments):
        raise SinkError("dead")

    monkeypatch.setattr("vadpipe.repository.point.write_durably", die)
    monkeypatch.setattr(RunLock, "roll_back", lambda lock, identity: None)
    with pytest.raises((SinkError, ExceptionGroup)):
        await backup(repository, [disk])
    monkeypatch.undo()
    (dead,) = Layout(repository.path).runs.iterdir()
    async with open_repository(repository.path) as reader:
        assert reader.points == ()
    await backup(repository, [disk])
    assert not dead.exists()
    async with open_repository(repository.path) as reader:
        (point,) = reader.points
        assert point.disks[0].receipt.new == 0
        assert np.array_equal(await restore(reader, point), disk.content)


# --- no space ---


@pytest.fixture
def small_files():
    """A function that limits the size of files that this process writes; the system then says EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_file_system_is_said_and_nothing_is_published(repository, small_files):
    before = files_of(repository.path)
    small_files(MiB)
    with pytest.raises(TransferFailed) as failed:
        await backup(repository, [MemoryDisk(random_bytes(1, 4 * MiB))])
    assert failed.group_contains(
        SinkError, match=r"Could not write .*\.pack: File too large\. Raise the limit of file sizes"
    )
    assert files_of(repository.path) == before


@pytest.mark.parametrize("step", ["pack", "segment", "point"])
async def test_a_full_file_system_while_publishing_publishes_nothing(repository, monkeypatch, step):
    """Every flush of every file may be the one that fails."""
    await backup(repository, [MemoryDisk(random_bytes(2, MiB))])
    flushed = []
    real = os.fsync

    def fsync(file):
        target = os.readlink(f"/proc/self/fd/{file}")
        flushed.append(target)
        if target.endswith({"pack": ".pack", "segment": ".idx", "point": ".json"}[step]):
            raise OSError(28, "no space")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    disk = MemoryDisk(random_bytes(1, MiB))
    with pytest.raises((SinkError, TransferFailed)) as failed:
        await backup(repository, [disk])
    monkeypatch.undo()
    assert "No space left on device" in repr(failed.value) + str(getattr(failed.value, "exceptions", ""))
    assert len(list(repository.path.glob("points/*/*"))) == 1
    assert leftovers(repository) == []
    await backup(repository, [disk])
    async with open_repository(repository.path) as reader:
        assert np.array_equal(await restore(reader, reader.points[-1]), disk.content)
        assert (await verify(reader)).damages == ()


async def test_a_run_publishes_in_the_documented_order(repository, monkeypatch):
    """Each file is flushed before it is named; its directory is flushed before what refers to the file is named."""
    steps = []
    fsync, replace, link = os.fsync, os.replace, os.link

    def flushed(file):
        steps.append(("flush", Path(os.readlink(f"/proc/self/fd/{file}"))))
        fsync(file)

    def named(call):
        return lambda old, new, **how: (steps.append(("name", Path(new))), call(old, new, **how))[1]

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", named(replace))
    monkeypatch.setattr(os, "link", named(link))
    await backup(repository, [MemoryDisk(random_bytes(1, MiB))])

    def positions(suffix):
        final = next(path for what, path in steps if what == "name" and path.suffix == suffix)
        name = steps.index(("name", final))
        flush = next(at for at, (what, path) in enumerate(steps) if what == "flush" and path.suffix == suffix)
        return flush, name, steps.index(("flush", final.parent), name)

    pack, segment, point = map(positions, (".pack", ".idx", ".json"))
    assert list(pack) == sorted(pack)
    # The segment is flushed as soon as it is written; it is named only when its packs are.
    assert [*pack[1:], *segment[1:], *point] == sorted([*pack[1:], *segment[1:], *point])
    assert segment[0] < segment[1]
    assert steps.index(("flush", repository.path / "runs")) < pack[0]  # the lock


def test_of_two_sweeps_at_once_one_removes(repository, monkeypatch):
    """The lock of a sweep keeps other sweeps away, too."""
    layout = Layout(repository.path)
    run_id = "00" * 8
    layout.lock(run_id).touch()
    remove = runs_module._remove_leftovers
    second = []

    def remove_while_another_sweeps(*arguments):
        if not second:
            second.append(sweep(layout, bytes(16)))
        remove(*arguments)

    monkeypatch.setattr(runs_module, "_remove_leftovers", remove_while_another_sweeps)
    assert sweep(layout, bytes(16)) == [run_id]
    assert second == [[]]
