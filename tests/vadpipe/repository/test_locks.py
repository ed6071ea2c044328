"""The lock of a run as a file: what it says, when it is touched, what it leaves open, how failures are told."""

import fcntl
import json
import logging
import os
import socket
from pathlib import Path

import pytest

from pipeline import MiB, SinkError
from tests.vadpipe.repository.repository_kit import MACHINE, MemoryDisk, backup, files_of, random_bytes
from vadpipe.repository import runs
from vadpipe.repository.files import Layout
from vadpipe.repository.runs import RunLock, local_locks, sweep

RUN = "00" * 8


@pytest.fixture
def layout(repository) -> Layout:
    return Layout(repository.path)


def open_files() -> list[str]:
    """What this process has open of files that have a name or had one."""
    names = (os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
    return sorted(name for name in names if name.startswith("/tmp"))


def test_a_lock_says_which_process_of_which_host_and_boot_wrote_it(layout):
    lock = RunLock(layout, RUN)
    said = json.loads(layout.lock(RUN).read_bytes())
    assert said == {
        "host": Path("/etc/machine-id").read_text().strip()
        if Path("/etc/machine-id").exists()
        else socket.gethostname(),
        "name": socket.gethostname(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pid": os.getpid(),
    }
    lock.release()


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b'["host"]', b"7", b"{", b"\xff", b" " * 5000])
def test_a_lock_that_says_nothing_is_of_a_dead_run(layout, content):
    """Those of earlier versions are empty."""
    layout.lock(RUN).write_bytes(content)
    assert sweep(layout, bytes(16)) == [RUN]
    assert not layout.lock(RUN).exists()


def test_only_a_lock_with_another_host_or_another_name_is_foreign(layout):
    here = runs._this_host()
    for name in ("host", "name"):
        layout.lock(RUN).write_text(json.dumps({**here, name: "elsewhere"}))
        assert sweep(layout, bytes(16)) == []
    layout.lock(RUN).write_text(json.dumps({**here, "pid": 1, "boot": "an older one"}))
    assert sweep(layout, bytes(16)) == [RUN]


def test_a_lock_that_is_left_alone_is_logged_with_its_host(layout, caplog):
    layout.lock(RUN).write_text(json.dumps({"host": "x", "name": "other01"}))
    with caplog.at_level(logging.INFO, "vadpipe.repository"):
        assert sweep(layout, bytes(16)) == []
    assert f"{layout.lock(RUN)} belongs to host other01" in caplog.text
    assert "silent for 7 days" in caplog.text


def test_a_living_run_touches_its_lock_once_a_minute(layout, monkeypatch):
    lock = RunLock(layout, RUN)
    os.utime(layout.lock(RUN), (0, 0))
    lock.touch()
    assert lock.time() == 0  # it is younger than a minute
    monkeypatch.setattr(runs, "TOUCH_S", -1.0)
    lock.touch()
    touched = lock.time()
    assert touched > 1_000_000_000
    monkeypatch.setattr(runs, "TOUCH_S", 60.0)
    os.utime(layout.lock(RUN), (0, 0))
    lock.touch()
    assert lock.time() == 0
    lock.release()


def test_a_lock_that_cannot_be_touched_is_an_error_that_names_it(layout, monkeypatch):
    lock = RunLock(layout, RUN)
    monkeypatch.setattr(runs, "TOUCH_S", -1.0)
    lock.abandon()
    with pytest.raises(SinkError, match="Could not touch") as caught:
        lock.touch()
    assert caught.value.facts["path"] == str(layout.lock(RUN))


def test_neither_a_lock_nor_a_sweep_leaves_a_file_open(layout):
    before = open_files()
    for end in (RunLock.release, RunLock.abandon, lambda lock: lock.roll_back(bytes(16))):
        lock = RunLock(layout, RUN)
        assert len(open_files()) == len(before) + 1
        end(lock)
        assert open_files() == before
        lock.abandon()  # twice is harmless
        layout.lock(RUN).unlink(missing_ok=True)
    layout.lock(RUN).touch()
    assert sweep(layout, bytes(16)) == [RUN]
    assert open_files() == before


def test_a_refused_lock_leaves_neither_a_file_nor_a_descriptor(layout, monkeypatch):
    before, names = open_files(), files_of(layout.root)
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: None)
    with pytest.raises(SinkError, match="Locks have no effect"):
        RunLock(layout, RUN)
    assert (open_files(), files_of(layout.root)) == (before, names)


def test_a_run_whose_directory_cannot_take_its_lock_is_refused_with_the_path(layout):
    layout.lock(RUN).mkdir()
    before = open_files()
    with pytest.raises(SinkError, match="Could not create and lock") as caught:
        RunLock(layout, RUN)
    assert caught.value.facts["path"] == str(layout.lock(RUN))
    assert (open_files(), list(layout.tmp.iterdir())) == (before, [])


def test_a_lock_that_cannot_be_removed_is_an_error_that_names_it(layout):
    lock = RunLock(layout, RUN)
    layout.lock(RUN).unlink()
    layout.lock(RUN).mkdir()
    with pytest.raises(SinkError, match="Could not remove"):
        lock.release()
    lock.abandon()


def test_a_sweep_that_fails_is_an_error_that_names_the_place(layout):
    layout.lock(RUN).mkdir()
    with pytest.raises(SinkError, match="Could not sweep") as caught:
        sweep(layout, bytes(16))
    assert caught.value.facts["path"] == str(layout.runs)


def test_a_roll_back_that_fails_is_an_error(layout):
    lock = RunLock(layout, RUN)
    (layout.tmp / f"{RUN}x").mkdir()
    with pytest.raises(SinkError, match="Could not clean up"):
        lock.roll_back(bytes(16))
    lock.abandon()


def test_a_roll_back_removes_what_the_run_left_and_its_lock(layout):
    before = files_of(layout.root)
    lock = RunLock(layout, RUN)
    (layout.tmp / f"{RUN}00000000.idx").touch()
    (layout.packs / "00").mkdir(exist_ok=True)
    layout.pack(f"{RUN}00000000").touch()
    lock.roll_back(bytes(16))
    assert files_of(layout.root) == before


def test_a_lock_check_finds_another_file_in_its_place(layout):
    lock = RunLock(layout, RUN)
    lock.check()
    content = layout.lock(RUN).read_bytes()
    layout.lock(RUN).unlink()
    layout.lock(RUN).write_bytes(content)
    with pytest.raises(SinkError, match="was removed while it was writing"):
        lock.check()
    lock.abandon()


def test_a_sweep_removes_what_init_and_a_dead_start_left(layout):
    """config.json that got its name but kept its temporary one too, and a lock that never got its name."""
    (layout.tmp / layout.config.name).write_bytes(b"{}")
    (layout.tmp / f"{RUN}.lock").touch()
    assert sweep(layout, bytes(16)) == [RUN]
    assert list(layout.tmp.iterdir()) == []
    assert layout.config.exists()


async def test_a_sweep_keeps_the_packs_that_a_published_segment_names(repository, layout):
    await backup(repository, [MemoryDisk(random_bytes(1, MiB))])
    before = files_of(repository.path)
    [pack] = repository.path.glob("packs/*/*.pack")
    run = pack.stem[:16]
    layout.lock(run).touch()
    unnamed = layout.pack(f"{run}{7:08x}")
    unnamed.parent.mkdir(exist_ok=True)
    unnamed.touch()
    async with repository.open() as store, store.begin(MACHINE):
        pass
    assert files_of(repository.path) == before


def test_what_has_no_name_of_a_run_is_left_where_it_is(layout):
    (layout.runs / "notes.lock").touch()
    assert sweep(layout, bytes(16)) == []
    assert (layout.runs / "notes.lock").exists()


@pytest.mark.parametrize(
    ("mount", "option"),
    [
        ("//srv/x /srv/r cifs rw,nobrl 0 0", "nobrl"),
        ("//srv/x /srv/r smb3 rw,nobrl 0 0", "nobrl"),
        ("srv:/x /srv/r nfs rw,local_lock=flock", "local_lock=flock"),
        ("/dev/sda /srv/r ext4 rw,nolock 0 0", None),
        ("srv:/x /srv/other nfs rw,nolock 0 0", None),
        ("srv:/x /srv nfs rw,nolock 0 0\nsrv:/y /srv/r nfs rw 0 0", None),
        ("srv:/y /srv/r nfs rw 0 0\nsrv:/x /srv nfs rw,nolock 0 0", None),
        ("broken", None),
    ],
)
def test_the_mount_below_a_repository_decides_whether_locks_are_private(tmp_path, mount, option):
    (tmp_path / "mounts").write_text(f"none / ext4 rw 0 0\n{mount}\n")
    assert local_locks(Path("/srv/r"), tmp_path / "mounts") == option


@pytest.mark.parametrize(
    ("written", "name"),
    [("a\\040b", "a b"), ("a\\011b", "a\tb"), ("a\\012b", "a\nb"), ("a\\134b", "a\\b")],
)
def test_mount_points_with_unusual_characters_are_read(tmp_path, written, name):
    (tmp_path / "mounts").write_text(f"srv:/x /srv/{written} nfs rw,nolock 0 0\n")
    assert local_locks(Path(f"/srv/{name}"), tmp_path / "mounts") == "nolock"


def test_a_system_without_a_table_of_mounts_has_no_private_locks(tmp_path):
    assert local_locks(tmp_path, tmp_path / "absent") is None
