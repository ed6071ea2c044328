"""Runs that die, run at once, or find no space: nothing half-made is ever visible, and nothing alive is ended."""

import errno
import json
import logging
import os
import random
import resource
import signal
import socket
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
    Watched,
    backup,
    content_of,
    files_of,
    full_path,
    incremental_path,
    names,
    opened,
    random_bytes,
    restore,
)
from vadpipe.repository import Repository, runs, verify
from vadpipe.repository.format.config import Origin
from vadpipe.repository.format.objects import ENDED, pack_id, point_name, run_name, segment_name
from vadpipe.repository.maintenance.prune import prune
from vadpipe.repository.runs import SILENT_S, Run, end_dead_runs, has_ended, unended_runs

RUN = "ab" * 8
SEGMENT, POINT = segment_name(RUN, 0), point_name(MACHINE.uuid, RUN)


def leftovers(repository) -> list[str]:
    """What only a run that has not ended may have."""
    return [name for name in content_of(repository) if name.startswith(("tmp/", "runs/"))]


def a_run(repository, machine=MACHINE.uuid, run_id=None):
    """A run of this process that has begun."""
    return Run(*opened(repository), repository.origin, machine, run_id)


def forge_run(repository, run_id=RUN, **fields):
    """The object of a run of another process; by default one that lives."""
    said = {"version": 2, "kind": "backup", "machine": MACHINE.uuid, **runs._this_process(), "beat": 3}
    content = json.dumps({**said, **fields}).encode()
    repository.backend().put(run_name(run_id), [content])


def end_dead(repository):
    """What each run does at its begin; the ids of the runs that were ended."""
    own = a_run(repository)
    try:
        return end_dead_runs(*opened(repository), own)
    finally:
        own.end()


def age(repository, name, seconds):
    """Say that an object was written so long ago, by the clock of its store."""
    if isinstance(repository.place, str):
        path = repository.path / name
        written = path.stat().st_mtime - seconds
        os.utime(path, (written, written))
    else:
        content, written = repository.place._content[name]
        repository.place._content[name] = content, written - seconds


@pytest.fixture
def dead_pid():
    """The pid of a process that ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


async def test_a_run_that_is_left_unpublished_leaves_nothing(anywhere):
    disk = MemoryDisk(random_bytes(1, 3 * MiB))
    before = content_of(anywhere)
    async with anywhere.open() as store, store.begin(MACHINE) as point:
        await full_path(disk, point).run()
        assert content_of(anywhere) != before
    assert content_of(anywhere) == before
    with pytest.raises(KeyError):
        async with anywhere.open() as store, store.begin(MACHINE) as point:
            await full_path(disk, point).run()
            raise KeyError
    assert content_of(anywhere) == before
    with trio.CancelScope() as scope:
        async with anywhere.open() as store, store.begin(MACHINE) as point:
            await full_path(disk, point).run()
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert content_of(anywhere) == before


async def test_a_published_run_leaves_only_what_it_published(anywhere):
    await backup(anywhere, [MemoryDisk(random_bytes(1, MiB))])
    assert leftovers(anywhere) == []
    assert {name.partition("/")[0] for name in names(anywhere)} == {
        "config.json",
        "index",
        "packs",
        "points",
    }


# --- several at once ---


async def test_two_runs_at_once_publish_two_points(anywhere):
    """Each finds its own chunks and what was published before it, and neither ends the other."""
    disks = [MemoryDisk(random_bytes(1, 2 * MiB)), MemoryDisk(random_bytes(1, 2 * MiB))]
    async with anywhere.open() as store, store.begin(MACHINE) as one:
        first = await full_path(disks[0], one).run()
        async with store.begin(MACHINE) as two:
            second = await full_path(disks[1], two).run()
            await one.publish(FakeCapture(MACHINE, disks), [first], None)
            await two.publish(FakeCapture(MACHINE, disks), [second], None)
    assert leftovers(anywhere) == []
    async with anywhere.read() as reader:
        assert [point.number for point in reader.points] == [1, 1]
        for point in reader.points:
            assert np.array_equal(await restore(reader, point), disks[0].content)
        assert (await verify(reader)).damages == ()


async def test_a_living_run_is_never_ended(anywhere):
    disk = MemoryDisk(random_bytes(1, MiB))
    async with anywhere.open() as store, store.begin(MACHINE) as living:
        receipt = await full_path(disk, living).run()
        held = content_of(anywhere)
        assert end_dead(anywhere) == []
        assert content_of(anywhere) == held
        async with store.begin(MACHINE):
            pass
        assert content_of(anywhere) == held
        await living.publish(FakeCapture(MACHINE, [disk]), [receipt], None)
    async with anywhere.read() as reader:
        assert np.array_equal(await restore(reader, reader.points[0]), disk.content)


async def test_a_store_that_does_not_keep_writers_apart_takes_one_at_a_time(in_memory):
    in_memory.place.probe_conditional = lambda: False
    in_memory.place.delete(["config.json"])
    in_memory.init()
    async with in_memory.open() as store, store.begin(MACHINE) as first:
        with pytest.raises(SinkError, match=f"does not keep two writers apart.*{first._run.run.id}"):
            async with store.begin(MACHINE):
                pass
        assert names(in_memory, "runs/") == [run_name(first._run.run.id)]
    assert names(in_memory, "runs/") == []


# --- what a run says of itself ---


def test_a_run_says_which_process_of_which_host_and_boot_it_is(anywhere):
    run = a_run(anywhere)
    stat = Path(f"/proc/{os.getpid()}/stat").read_text()
    machine_id = Path("/etc/machine-id")
    [(name, content)] = [item for item in content_of(anywhere).items() if item[0].startswith("runs/")]
    assert name == run_name(run.id)
    assert json.loads(content) == {
        "version": 2,
        "kind": "backup",
        "machine": MACHINE.uuid,
        "host": (machine_id.read_text().strip() if machine_id.exists() else "") or socket.gethostname(),
        "name": socket.gethostname(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pid_namespace": os.readlink("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "started": stat.rpartition(")")[2].split()[19],
        "beat": 0,
    }
    run.end()
    maintenance = a_run(anywhere, None)
    said = json.loads(content_of(anywhere)[run_name(maintenance.id)])
    assert (said["kind"], said["machine"]) == ("maintenance", None)
    maintenance.end()
    assert leftovers(anywhere) == []


def test_a_living_run_says_so_once_a_minute(anywhere, monkeypatch):
    run = a_run(anywhere)

    def beats():
        run.beat()
        return json.loads(content_of(anywhere)[run_name(run.id)])["beat"]

    assert beats() == 0  # it is younger than a minute
    run._beaten -= runs.BEAT_S + 1
    assert beats() == 1
    assert beats() == 1
    run.end()


def test_a_run_that_was_given_up_stays_given_up(anywhere):
    run = a_run(anywhere)
    anywhere.backend().delete([run_name(run.id)])
    run._beaten -= runs.BEAT_S + 1
    run.beat()
    assert names(anywhere, "runs/") == []
    run.abandon()


# --- who is dead ---


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "another", "pid": 1, "boot": "another"},
        {"name": "another", "pid": 1, "boot": "another"},
        {"pid_namespace": "pid:[1]", "pid": 1},
        {"pid": os.getppid(), "started": runs._started(os.getppid())},
        {"pid": None},
        {"pid": "7"},
        {"pid": 1 << 70},
        {"pid": -1},
    ],
    ids=[
        "another host",
        "a copy of this host",
        "another namespace",
        "it lives",
        "no pid",
        "a text as pid",
        "a huge pid",
        "all",
    ],
)
def test_a_run_that_may_live_is_left_alone_until_it_was_silent_for_seven_days(anywhere, fields, caplog):
    forge_run(anywhere, **fields)
    with caplog.at_level(logging.INFO, "vadpipe.repository"):
        assert end_dead(anywhere) == []
    assert f"the run {RUN} of host {fields.get('name', socket.gethostname())} has not ended" in caplog.text
    age(anywhere, run_name(RUN), SILENT_S - 60)
    assert end_dead(anywhere) == []
    assert unended_runs(opened(anywhere)[0]) == [RUN]
    age(anywhere, run_name(RUN), 120)
    assert end_dead(anywhere) == [RUN]
    assert leftovers(anywhere) == []
    assert "was silent for 7 days: it is given up" in caplog.text


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b'["host"]', b"7", b"{", b"\xff", b" " * 100_000])
def test_a_run_that_says_nothing_is_given_up_after_seven_days(anywhere, content):
    anywhere.backend().put(run_name(RUN), [content])
    assert end_dead(anywhere) == []
    age(anywhere, run_name(RUN), SILENT_S + 60)
    assert end_dead(anywhere) == [RUN]
    assert leftovers(anywhere) == []


def test_a_run_of_this_host_before_its_last_boot_is_dead(anywhere):
    forge_run(anywhere, boot="an older one", pid_namespace="pid:[1]")
    assert end_dead(anywhere) == [RUN]
    assert leftovers(anywhere) == []


def test_a_run_whose_process_is_gone_is_dead(anywhere, dead_pid):
    forge_run(anywhere, pid=dead_pid)
    assert end_dead(anywhere) == [RUN]


def test_a_run_whose_pid_belongs_to_another_process_by_now_is_dead(anywhere):
    forge_run(anywhere, pid=os.getppid(), started="7")
    assert end_dead(anywhere) == [RUN]


def test_a_run_of_this_process_that_was_abandoned_is_dead(anywhere):
    run = a_run(anywhere)
    assert end_dead(anywhere) == []
    run.abandon()
    assert end_dead(anywhere) == [run.id]


def test_a_run_that_is_dead_for_certain_has_no_names_taken(anywhere, dead_pid):
    forge_run(anywhere, pid=dead_pid)
    before = set(names(anywhere))
    assert end_dead(anywhere) == [RUN]
    assert set(names(anywhere)) == before - {run_name(RUN)}


def test_objects_that_are_no_runs_are_left_where_they_are(anywhere):
    anywhere.backend().put("runs/notes", [b"mine"])
    assert end_dead(anywhere) == []
    assert content_of(anywhere)["runs/notes"] == b"mine"


def test_a_process_that_cannot_be_signalled_exists(monkeypatch):
    def refuse(pid, signal):
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(os, "kill", refuse)
    assert runs._exists(7)


# --- what a dead run left ---


async def test_packs_of_a_dead_run_that_no_segment_names_are_removed(anywhere, dead_pid):
    """Its segments stay, and what they name: another run may use that already."""
    disk = MemoryDisk(random_bytes(1, MiB))
    point = await backup(anywhere, [disk])
    before = content_of(anywhere)
    forge_run(anywhere, point, pid=dead_pid)
    objects, _ = opened(anywhere)
    objects.backend.put(objects.pack(pack_id(point, 7)), [b"half"])
    objects.backend.put(objects.pack(pack_id("ab" * 8, 0)), [b"of a run that nobody looks for"])
    assert end_dead(anywhere) == [point]
    left = content_of(anywhere)
    assert left.pop(objects.pack(pack_id("ab" * 8, 0)))
    assert left == before


async def test_segments_of_a_dead_run_stay(anywhere, monkeypatch):
    """A run that dies between its segments and its point: another may use its chunks already."""
    disk = MemoryDisk(random_bytes(1, MiB))
    monkeypatch.setattr("vadpipe.repository.point._publish", _publish_but_the_point)
    monkeypatch.setattr(Run, "roll_back", Run.abandon)
    with pytest.raises(SinkError, match="dead"):
        await backup(anywhere, [disk])
    monkeypatch.undo()
    [dead] = names(anywhere, "runs/")
    async with anywhere.read() as reader:
        assert reader.points == ()
        assert len(reader.index.segments) == 1
    await backup(anywhere, [disk])
    assert dead not in names(anywhere)
    async with anywhere.read() as reader:
        (point,) = reader.points
        assert point.disks[0].receipt.new == 0
        assert np.array_equal(await restore(reader, point), disk.content)


def _publish_but_the_point(run, point, content):
    run.packs.finish()
    run.index.publish(0)
    raise SinkError("dead")


async def test_a_roll_back_removes_the_packs_that_no_segment_names(anywhere):
    disk = MemoryDisk(random_bytes(1, MiB))
    await backup(anywhere, [disk])
    before = content_of(anywhere)
    run = a_run(anywhere)
    objects, _ = opened(anywhere)
    objects.backend.put(objects.pack(pack_id(run.id, 0)), [b"half"])
    run.roll_back()
    assert content_of(anywhere) == before


# --- names that were taken ---


async def test_a_run_that_is_given_up_has_its_next_segment_and_its_point_taken(anywhere):
    await backup(anywhere, [MemoryDisk(random_bytes(1, MiB))])
    [published] = names(anywhere, "index/")
    run_id = published.removeprefix("index/")[:16]  # as if it had died before its point
    anywhere.backend().delete(names(anywhere, "points/"))
    forge_run(anywhere, run_id, host="another")
    age(anywhere, run_name(run_id), SILENT_S + 60)
    before = content_of(anywhere)
    by = a_run(anywhere)
    assert end_dead_runs(*opened(anywhere), by) == [run_id]
    taken = content_of(anywhere)
    ended = ENDED + bytes.fromhex(by.id)
    assert taken.pop(segment_name(run_id, 1)) == ended
    assert taken.pop(point_name(MACHINE.uuid, run_id)) == ended
    assert taken.pop(run_name(by.id))
    del before[run_name(run_id)]
    assert taken == before
    by.end()


def test_giving_a_run_up_that_was_interrupted_is_finished_by_the_next(anywhere):
    forge_run(anywhere, host="another")
    age(anywhere, run_name(RUN), SILENT_S + 60)
    anywhere.backend().put(SEGMENT, [ENDED + bytes(8)])
    assert end_dead(anywhere) == [RUN]
    assert names(anywhere, "index/") == [SEGMENT]
    assert names(anywhere, "points/") == [POINT]


async def test_the_names_that_a_run_was_ended_by_are_no_damage(anywhere):
    forge_run(anywhere, host="another")
    age(anywhere, run_name(RUN), SILENT_S + 60)
    disk = MemoryDisk(random_bytes(1, MiB))
    await backup(anywhere, [disk])
    assert {SEGMENT, POINT} <= set(names(anywhere))
    async with anywhere.read() as reader:
        assert reader.damaged == ()
        assert len(reader.points) == 1
        assert (await verify(reader)).damages == ()


@pytest.mark.parametrize("new", [True, False], ids=["segments to publish", "only the point to publish"])
async def test_a_run_that_was_only_slow_publishes_nothing(anywhere, new):
    """It was given up by another host. A wrong guess costs this run and nothing else."""
    old = MemoryDisk(random_bytes(1, MiB))
    await backup(anywhere, [old])
    disk = MemoryDisk(random_bytes(2, MiB)) if new else old
    async with anywhere.open() as store, store.begin(MACHINE) as slow:
        run = slow._run.run
        receipt = await full_path(disk, slow).run()
        before = names(anywhere, "points/"), names(anywhere, "index/")
        run.abandon()  # as another process sees it
        forged = {**json.loads(content_of(anywhere)[run_name(run.id)]), "host": "another"}
        anywhere.backend().replace(run_name(run.id), [json.dumps(forged).encode()])
        age(anywhere, run_name(run.id), SILENT_S + 60)
        assert end_dead(anywhere) == [run.id]
        with pytest.raises(SinkError, match=f"The run {run.id} was given up by another one.*Run again"):
            await slow.publish(FakeCapture(MACHINE, [disk]), [receipt], None)
    assert leftovers(anywhere) == []
    taken = point_name(MACHINE.uuid, run.id), segment_name(run.id, 0)
    after = names(anywhere, "points/"), names(anywhere, "index/")
    assert after == (sorted([*before[0], taken[0]]), sorted([*before[1], taken[1]]))
    with anywhere.open_for_maintenance() as (objects, config):
        prune(objects, config, Origin())  # what it wrote after it was given up
    assert not any(run.id in name for name in names(anywhere, "packs/"))
    await backup(anywhere, [disk])
    async with anywhere.read() as reader:
        assert len(reader.points) == 2
        assert np.array_equal(await restore(reader, reader.points[-1]), disk.content)
        assert (await verify(reader)).damages == ()


async def test_a_run_that_was_given_up_after_its_segments_loses_no_pack_of_them(anywhere, monkeypatch):
    """Others may use its segments by now, so they stay, with their packs."""
    disk = MemoryDisk(random_bytes(2, MiB))
    async with anywhere.open() as store, store.begin(MACHINE) as slow:
        run = slow._run.run
        await full_path(disk, slow).run()
        slow._run.packs.finish()
        run.segments += len(slow._run.index.publish(0))
        anywhere.backend().put(segment_name(run.id, 1), [ENDED + bytes(8)])
        anywhere.backend().put(point_name(MACHINE.uuid, run.id), [ENDED + bytes(8)])
    await backup(anywhere, [disk])
    async with anywhere.read() as reader:
        assert reader.points[0].disks[0].receipt.new == 0
        assert np.array_equal(await restore(reader, reader.points[0]), disk.content)


def test_a_run_has_ended_when_its_object_is_gone_or_its_point_is_there(anywhere):
    objects, _ = opened(anywhere)
    assert has_ended(objects, RUN)
    forge_run(anywhere)
    assert not has_ended(objects, RUN)
    objects.backend.put(point_name(MACHINE.uuid, RUN), [b"a point, or VADENDED"])
    assert has_ended(objects, RUN)
    forge_run(anywhere, "cd" * 8, machine=None, kind="maintenance")
    assert not has_ended(objects, "cd" * 8)


# --- what was removed under a run ---


@pytest.mark.parametrize("which", ["its own", "an older one"])
async def test_a_run_whose_pack_was_removed_publishes_nothing(anywhere, which):
    disk = MemoryDisk(random_bytes(1, MiB))
    if which == "an older one":
        await backup(anywhere, [disk])
    points = names(anywhere, "points/")
    async with anywhere.open() as store, store.begin(MACHINE) as point:
        receipt = await full_path(disk, point).run()
        if which == "its own":
            await trio.to_thread.run_sync(point._run.packs.finish)
        anywhere.backend().delete(names(anywhere, "packs/")[:1])
        with pytest.raises(SinkError, match=r"Missing, though this point needs them: 1 pack,"):
            await point.publish(FakeCapture(MACHINE, [disk]), [receipt], None)
    assert names(anywhere, "points/") == points


async def test_many_packs_of_a_prefix_are_asked_for_by_a_listing(in_memory, monkeypatch):
    monkeypatch.setattr("vadpipe.repository.format.packs.PACK_SIZE", 256 << 10)
    disk = MemoryDisk(random_bytes(1, 24 * MiB))
    await backup(in_memory, [disk])
    count = len(names(in_memory, "packs/"))
    assert count > 4
    asked = []
    watched = Repository(Watched(in_memory.place, lambda what, name: asked.append((what, name))))
    await backup(watched, [disk])
    assert sum(what == "size" and name.startswith("packs/") for what, name in asked) == 0
    in_memory.place.delete(names(in_memory, "packs/")[-1:])
    with pytest.raises(SinkError, match=r"Missing, though this point needs them: 1 pack,"):
        await backup(in_memory, [disk])


async def test_what_has_neither_a_run_nor_a_segment_is_found_by_verify(anywhere):
    await backup(anywhere, [MemoryDisk(random_bytes(1, MiB))])
    objects, _ = opened(anywhere)
    lost = objects.pack(pack_id(RUN, 0))
    objects.backend.put(lost, [])
    async with anywhere.read() as reader:
        [found] = (await verify(reader)).damages
        assert found.file == objects.place(lost)
        assert "vadpipe prune" in found.problem
        forge_run(anywhere)  # one that lives, or that somebody will end
        assert (await verify(reader)).damages == ()


# --- kill -9 ---

WRITER = """
import sys
import trio
from pathlib import Path
from vadpipe.repository import Repository
import vadpipe.repository.format.packs as packs
import vadpipe.repository.index.lookup as index
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
async def test_killed_runs_leave_no_half_point_and_are_ended(repository):
    """Kill a writer at random moments. Then: every listed point is whole, and the next run removes the rest."""
    moments = random.Random(1)
    found_dead, said = [], []
    for turn in range(8):
        writer = start_writer(repository, turn)
        await trio.sleep(moments.uniform(0.02, 0.6))
        said += kill(writer)
        with observed(lambda event: found_dead.append(event.kind)):
            await backup(repository, [MemoryDisk(random_bytes(turn, MiB), key="other")])
        assert leftovers(repository) == []
        async with repository.read() as reader:
            assert reader.damaged == ()
            listed = {point.id for point in reader.points}
            assert set(said) <= listed
            named = {pack for segment in reader.index.segments for pack in segment.packs()}
            assert {path.stem for path in repository.path.glob("packs/*/*.pack")} == named
    assert "swept" in found_dead
    async with repository.read() as reader:
        assert (await verify(reader)).damages == ()
        assert len(reader.points) >= 8


@pytest.mark.slow
async def test_a_writer_of_another_process_is_left_alone(repository):
    writer = start_writer(repository, 1)
    try:
        for turn in range(6):
            await backup(repository, [MemoryDisk(random_bytes(turn, CLUSTER), key="other")])
        assert writer.poll() is None
    finally:
        said = kill(writer)
    async with repository.read() as reader:
        assert set(said) <= {point.id for point in reader.points}
        assert (await verify(reader)).damages == ()


# --- failures of the store ---


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


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True], ids=["the store fails", "the process dies"])
async def test_whatever_call_of_the_store_fails_leaves_whole_points(in_memory, dies):
    """Every call of a backup is once the one that fails; and, where the process dies, so do all after it."""
    content = dict(in_memory.place._content)
    disk = MemoryDisk(random_bytes(2, MiB))
    after = random_bytes(3, MiB // 2)
    broken = 0
    for moment in range(1, 200):
        in_memory.place._content = dict(content)
        disk = MemoryDisk(random_bytes(2, MiB))
        await backup(in_memory, [disk], incremental_path)
        first = disk.content.copy()
        disk.write(0, after)
        calls = 0

        def watch(what, name, moment=moment):
            nonlocal calls
            calls += 1
            if calls == moment or (dies and calls > moment):
                raise SinkError("The store failed.", remedy="Wait.")

        watched = Repository(Watched(in_memory.place, watch))
        try:
            await backup(watched, [disk], incremental_path)
            succeeded = True
        except (SinkError, TransferFailed, BaseExceptionGroup):
            succeeded = False
            broken += 1
        if dies:
            runs._alive.clear()
        async with in_memory.read() as reader:
            assert len(reader.points) in ((2,) if succeeded else (1, 2))
            assert np.array_equal(await restore(reader, reader.points[0]), first)
            if len(reader.points) == 2:
                assert np.array_equal(await restore(reader, reader.points[1]), disk.content)
        await backup(in_memory, [disk], incremental_path)
        async with in_memory.read() as reader:
            assert np.array_equal(await restore(reader, reader.points[-1]), disk.content)
            assert (await verify(reader)).damages == ()
        assert names(in_memory, "runs/") == []
        if calls < moment:
            break
    assert broken >= 10
    assert succeeded


@pytest.mark.parametrize("step", ["pack", "segment", "point"])
async def test_a_full_file_system_while_publishing_publishes_nothing(repository, monkeypatch, step):
    """The flush of the file that gets this name fails."""
    await backup(repository, [MemoryDisk(random_bytes(2, MiB))])
    real, wanted = os.fsync, {"pack": b"VADPACK", "segment": b"VADINDX", "point": b'"machine": {'}[step]

    def fsync(file):
        target = os.readlink(f"/proc/self/fd/{file}")
        if "/tmp/" in target.removeprefix(str(repository.path)) and wanted in Path(target).read_bytes():
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
    async with repository.read() as reader:
        assert np.array_equal(await restore(reader, reader.points[-1]), disk.content)
        assert (await verify(reader)).damages == ()


async def test_a_run_publishes_in_the_documented_order(in_memory):
    """Its own object first, then packs, segments and the point; the object last."""
    steps = []

    def watch(what, name):
        if what in ("put", "finish", "delete"):
            steps.append((what, name.partition("/")[0]))

    await backup(Repository(Watched(in_memory.place, watch)), [MemoryDisk(random_bytes(1, MiB))])
    assert [step for step in steps if step != ("delete", "packs")] == [
        ("put", "runs"),
        ("finish", "packs"),
        ("put", "index"),
        ("put", "points"),
        ("delete", "runs"),
    ]


async def test_each_object_is_flushed_before_it_has_its_name_and_its_directory_after(repository, monkeypatch):
    steps = []
    fsync, link = os.fsync, os.link

    def flushed(file):
        steps.append(("flush", Path(os.readlink(f"/proc/self/fd/{file}"))))
        fsync(file)

    def named(old, new, **how):
        steps.append(("name", Path(old), Path(new)))
        link(old, new, **how)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "link", named)
    await backup(repository, [MemoryDisk(random_bytes(1, MiB))])
    objects = [step for step in steps if step[0] == "name"]
    assert [step[2].relative_to(repository.path).parts[0] for step in objects] == [
        "runs",
        "packs",
        "index",
        "points",
    ]
    for step, following in zip(objects, [*objects[1:], None], strict=True):
        _, temporary, final = step
        at = steps.index(step)
        assert ("flush", temporary) in steps[:at]
        end = steps.index(following) if following else len(steps)
        assert ("flush", final.parent) in steps[at:end]
