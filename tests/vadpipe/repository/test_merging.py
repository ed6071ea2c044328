"""Merging index segments: nothing is lost wherever it is cut off, and a repository survives any number of runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trio

from pipeline import KiB, MiB
from tests.vadpipe.repository.repository_kit import (
    MemoryDisk,
    backup,
    files_of,
    incremental_path,
    random_bytes,
    restore,
)
from vadpipe.repository import Repository, merging, open_repository, verify
from vadpipe.repository.config import read_config
from vadpipe.repository.files import Layout
from vadpipe.repository.merging import merge_segments
from vadpipe.repository.runs import RunLock, sweep
from vadpipe.repository.segments import Segment

RUNS = 12


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A repository of RUNS points, each with a segment, and what the disk was in each."""
    repository = Repository(tmp_path_factory.mktemp("merging") / "repository")
    repository.init()
    disk = MemoryDisk(random_bytes(1, MiB))
    states = []
    for run in range(RUNS):
        trio.run(backup, repository, [disk], incremental_path)
        states.append(disk.content.copy())
        disk.write(64 * KiB * (run % 15), random_bytes(run + 2, 100 * KiB)[: 64 * KiB])
    return repository.path, states


@pytest.fixture
def repository(pristine, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "MOST", 4)
    monkeypatch.setattr(merging, "FEWEST", 2)
    monkeypatch.setattr(merging, "ROWS", 30)  # several ranges of digests
    shutil.copytree(pristine[0], tmp_path / "repository")
    return Repository(tmp_path / "repository")


async def assert_all_is_there(repository, states):
    async with open_repository(repository.path) as reader:
        assert reader.damaged == ()
        for point, state in zip(reader.points, states, strict=True):
            assert np.array_equal(await restore(reader, point), state)
        assert (await verify(reader)).damages == ()


def segments(repository):
    return sorted(repository.path.glob("index/*.idx"))


def rows_of(repository):
    config = read_config(Layout(repository.path))
    return sum(Segment(path, config.id).chunks for path in segments(repository))


@pytest.mark.slow
async def test_a_run_merges_segments_and_finds_everything(pristine, repository):
    _, states = pristine
    before, rows = len(segments(repository)), rows_of(repository)
    assert before == RUNS
    disk = MemoryDisk(states[-1].copy())
    await backup(repository, [disk], incremental_path)
    assert len(segments(repository)) <= 5
    assert rows_of(repository) == rows
    await assert_all_is_there(repository, [*states, states[-1]])
    async with open_repository(repository.path) as reader:
        assert reader.points[-1].disks[0].receipt.new == 0


async def test_a_reader_that_began_before_a_merge_goes_on(pristine, repository):
    _, states = pristine
    async with open_repository(repository.path) as reader:
        await backup(repository, [MemoryDisk(states[-1].copy())], incremental_path)
        assert not {segment.path for segment in reader.index.segments} <= set(segments(repository))
        for point, state in zip(reader.points, states, strict=True):
            assert np.array_equal(await restore(reader, point), state)


async def test_merged_segments_are_removed_a_week_later(repository, pristine):
    layout, config = Layout(repository.path), read_config(Layout(repository.path))
    aside = layout.index / "merged"
    lock = RunLock(layout, "00" * 8)
    merge_segments(layout, config.id, lock.run_id, lock.time())
    merged = len(list(aside.iterdir()))
    assert merged >= RUNS - 4
    merging._remove_old(layout, lock.time() + merging.MERGED_AGE_S - 3600)
    assert len(list(aside.iterdir())) == merged
    merging._remove_old(layout, lock.time() + merging.MERGED_AGE_S + 3600)
    assert list(aside.iterdir()) == []
    lock.release()
    await assert_all_is_there(repository, pristine[1])


async def test_segments_of_a_run_that_has_a_lock_are_left_alone(repository):
    """A sweep asks them which packs of the run are in use."""
    layout, config = Layout(repository.path), read_config(Layout(repository.path))
    for path in segments(repository):
        layout.lock(path.name[:16]).touch()
    before = segments(repository)
    assert merge_segments(layout, config.id, "00" * 8, 0) == 0
    assert segments(repository) == before


async def test_a_damaged_segment_is_not_merged_and_nothing_is_lost(repository, caplog):
    layout, config = Layout(repository.path), read_config(Layout(repository.path))
    path = min(segments(repository), key=lambda each: each.stat().st_size)
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    before = files_of(repository.path)
    merge_segments(layout, config.id, "00" * 8, 0)
    assert files_of(repository.path) == before
    assert "could not be merged" in caplog.text


class Killed(BaseException):
    """The process is gone: nothing is cleaned up."""


@pytest.mark.slow
async def test_a_merge_killed_at_any_step_loses_nothing(pristine, repository, monkeypatch, tmp_path):
    """Cut off before each change of the file system in turn; then all is read, and the next run goes on."""
    _, states = pristine
    config = read_config(Layout(repository.path))
    for step in range(200):
        root = tmp_path / f"cut{step}"
        shutil.copytree(repository.path, root)
        layout = Layout(root)
        lock = RunLock(layout, "00" * 8)
        done = 0

        def counted(call, step=step):
            def cut_off(*arguments, **named):
                nonlocal done
                if done == step:
                    raise Killed
                done += 1
                return call(*arguments, **named)

            return cut_off

        with monkeypatch.context() as patched:
            for name in ("rename", "replace", "fsync", "pwrite", "mkdir", "unlink"):
                patched.setattr(os, name, counted(getattr(os, name)))
            try:
                merge_segments(layout, config.id, lock.run_id, lock.time())
                finished = True
            except Killed:
                finished = False
        lock.abandon()
        cut = Repository(root)
        await assert_all_is_there_but_leftovers(cut, states)
        assert sweep(layout, config.id) == ["00" * 8]
        await assert_all_is_there(cut, states)
        await backup(cut, [MemoryDisk(states[-1].copy())], incremental_path)
        await assert_all_is_there(cut, [*states, states[-1]])
        assert len(segments(cut)) <= 8
        shutil.rmtree(root)
        if finished:
            break
    assert finished
    assert step > 10


async def assert_all_is_there_but_leftovers(repository, states):
    async with open_repository(repository.path) as reader:
        for point, state in zip(reader.points, states, strict=True):
            assert np.array_equal(await restore(reader, point), state)


async def test_no_descriptor_stays_open(repository):
    def open_files():
        links = (Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
        return sum("/repository/" in os.readlink(link) for link in links if os.path.lexists(link))

    await backup(repository, [MemoryDisk(random_bytes(1, MiB))], incremental_path)
    assert open_files() == 0
    async with open_repository(repository.path) as reader:
        await verify(reader)
        assert open_files() > 0
    assert open_files() == 0


MANY = """
import resource, sys, time, trio
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[3]),) * 2)
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, incremental_path, random_bytes, restore
from vadpipe.repository import Repository, open_repository, verify
import numpy as np

async def main():
    repository = Repository(sys.argv[1])
    disk = MemoryDisk(random_bytes(0, 1 << 18))
    for run in range(int(sys.argv[2])):
        disk.write(4096 * (run % 64), random_bytes(run, 4096))
        await backup(repository, [disk], incremental_path)
        await backup(repository, [disk], incremental_path)  # nothing new
    async with open_repository(repository.path) as reader:
        assert len(reader.points) == 2 * int(sys.argv[2])
        assert np.array_equal(await restore(reader, reader.points[-1]), disk.content)
        print(len(reader.index.segments), (await verify(reader)).damages)

trio.run(main)
"""


@pytest.mark.parametrize(
    ("runs", "limit"),
    [
        pytest.param(60, 40, marks=pytest.mark.slow),
        pytest.param(550, 256, marks=pytest.mark.campaign),
    ],
)
def test_a_repository_survives_many_runs_with_few_descriptors(tmp_path, runs, limit):
    repository = Repository(tmp_path / "repository")
    repository.init()
    root = Path(__file__).parents[3]
    arguments = [sys.executable, "-c", MANY, str(repository.path), str(runs), str(limit)]
    done = subprocess.run(arguments, cwd=root, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    count, _, damages = done.stdout.partition(" ")
    assert damages == "()\n"
    assert int(count) <= merging.MOST + 1
