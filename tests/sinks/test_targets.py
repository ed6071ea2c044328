"""Every target that makes images: fresh, there already, forced, full, cancelled, damaged, two at once, killed."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
import trio
import trio.lowlevel

from pipeline import BufferPool, MiB, SinkError
from sinks.restoring import Contents, restore
from tests.sinks.target_kit import TARGETS, ImageTarget, files, restored
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, random_bytes
from vadpipe.cli.output import error_lines
from vadpipe.repository import open_repository

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("target", TARGETS, ids=str)]

SIZE = 12 * MiB + 512


def disk_of(seed: int, key: str = "scsi0:0", size: int = SIZE) -> MemoryDisk:
    content = random_bytes(seed, size)
    content[MiB + 4096 : 5 * MiB] = 0
    return MemoryDisk(content, key=key, pool=BufferPool())


@pytest.fixture
def disks(repository):
    disks = [disk_of(1), disk_of(2, "web 1")]
    trio.run(backup, repository, disks)
    return disks


def test_the_images_are_the_disks(target: ImageTarget, repository, disks, tmp_path):
    receipt = restored(repository, target.make(tmp_path / "new" / "out"))
    assert [line for failed in receipt.failures for line in error_lines(failed)] == []
    for disk, done in zip(disks, receipt.disks, strict=True):
        assert np.array_equal(target.content(done.place, tmp_path / "scratch"), disk.content)
        assert os.stat(done.place).st_mode & 0o777 == 0o600
    assert not [name for name in files(tmp_path / "new") if "partial" in name]


def test_nothing_is_replaced_unless_forced(target: ImageTarget, repository, disks, tmp_path):
    first = restored(repository, target.make(tmp_path / "out"))
    before = files(tmp_path / "out")
    with pytest.raises(SinkError, match=r"already.*--force; nothing was written"):
        restored(repository, target.make(tmp_path / "out"))
    assert files(tmp_path / "out") == before
    again = restored(repository, target.make(tmp_path / "out"), force=True)
    assert [disk.place for disk in again.disks] == [disk.place for disk in first.disks]
    assert files(tmp_path / "out").keys() == before.keys()
    assert np.array_equal(target.content(again.disks[0].place, tmp_path / "scratch"), disks[0].content)


def test_one_file_of_an_image_in_the_way_keeps_all_from_being_written(
    target: ImageTarget, repository, disks, tmp_path
):
    first = restored(repository, target.make(tmp_path / "out"), keys=("web 1",))
    images = list(files(tmp_path / "out"))
    assert len(first.disks) == 1
    for kept in images:
        for name in images:
            (tmp_path / "out" / name).unlink(missing_ok=True)
        (tmp_path / "out" / kept).write_bytes(b"dear")
        with pytest.raises(SinkError, match="already"):
            restored(repository, target.make(tmp_path / "out"))
        assert files(tmp_path / "out") == {kept: b"dear"}


def test_a_damaged_point_leaves_nothing_under_the_name_of_an_image(target: ImageTarget, repository, tmp_path):
    trio.run(backup, repository, [disk_of(3)])
    for pack in sorted((repository.path).rglob("*.pack"))[-1:]:
        content = bytearray(pack.read_bytes())
        content[len(content) // 2] ^= 0xFF
        pack.chmod(0o600)
        pack.write_bytes(content)
    receipt = restored(repository, target.make(tmp_path / "out"))
    assert len(receipt.failures) == 1
    assert not (tmp_path / "out").exists()


def test_a_forced_restore_that_fails_leaves_the_old_image(target: ImageTarget, repository, tmp_path):
    disk = disk_of(4)
    trio.run(backup, repository, [disk])
    restored(repository, target.make(tmp_path / "out"))
    before = files(tmp_path / "out")
    for pack in repository.path.rglob("*.pack"):
        pack.chmod(0o600)
        pack.write_bytes(b"gone")
    assert len(restored(repository, target.make(tmp_path / "out"), force=True).failures) == 1
    assert files(tmp_path / "out") == before


async def test_a_cancelled_restore_leaves_nothing(target: ImageTarget, repository, tmp_path):
    await backup(repository, [disk_of(5)])
    async with open_repository(repository.path) as reader:
        point = reader.points[-1]
        for allowed in (1, 3, 5):
            scope = trio.CancelScope()

            def stop_soon(disk, report, scope=scope, allowed=allowed):
                async def watch():
                    while report.stages[0].items < allowed:
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                nursery.start_soon(watch)

            async with trio.open_nursery() as nursery:
                with scope:
                    await restore(reader, point, target.make(tmp_path / "out"), watch=stop_soon)
                nursery.cancel_scope.cancel()
            if scope.cancelled_caught:
                assert not (tmp_path / "out").exists()


def test_a_limit_of_file_sizes_is_named_and_nothing_remains(target: ImageTarget, repository, tmp_path):
    trio.run(backup, repository, [disk_of(6)])
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 * MiB, limit[1]))
    try:
        receipt = restored(repository, target.make(tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handled)
    [failed] = receipt.failures
    assert re.search(target.too_large, error_lines(failed)[0])
    assert not (tmp_path / "out").exists()


async def test_a_second_restore_of_the_point_is_refused_meanwhile(target: ImageTarget, repository, tmp_path):
    disk = disk_of(7)
    await backup(repository, [disk])
    async with open_repository(repository.path) as reader:
        point = reader.points[-1]
        async with target.make(tmp_path / "out").open(Contents(reader, point, point.disks)):
            with pytest.raises(SinkError, match="Another restore is writing into"):
                await restore(reader, point, target.make(tmp_path / "out"))
        receipt = await restore(reader, point, target.make(tmp_path / "out"))
    content = await trio.to_thread.run_sync(target.content, receipt.disks[0].place, tmp_path / "scratch")
    assert np.array_equal(content, disk.content)


KILLED = """
import sys, trio
from pathlib import Path
from tests.sinks.target_kit import TARGETS, restored
from vadpipe.repository import Repository

target = next(target for target in TARGETS if target.name == sys.argv[1])
restored(Repository(Path(sys.argv[2])), target.make(Path(sys.argv[3])))
"""


def test_a_killed_restore_leaves_no_image_under_its_name(target: ImageTarget, repository, tmp_path):
    trio.run(backup, repository, [disk_of(8, size=40 * MiB)])
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, target.name, repository.path, out]
    program = subprocess.Popen(
        command, start_new_session=True
    )  # its tools end with it, as in a unit of systemd
    deadline = time.monotonic() + 30
    while not list(out.rglob(".*.partial")) and time.monotonic() < deadline and program.poll() is None:
        time.sleep(0.002)
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
    program.wait()
    finished = program.returncode == 0
    assert finished or not [name for name in files(out) if ".partial" not in name]
    receipt = restored(repository, target.make(out), force=finished)
    assert len(receipt.disks) == 1
    assert not list(out.rglob(".*"))  # what the killed one left is gone
