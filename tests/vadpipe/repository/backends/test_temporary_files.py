"""Temporary files of a directory: those of dead writers are removed, those of living ones are not."""

import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import SinkError
from vadpipe.repository.backends import local
from vadpipe.repository.backends.local import FOREIGN_AGE_S, LocalBackend, local_locks


@pytest.fixture
def backend(tmp_path):
    made = LocalBackend(tmp_path / "repository")
    made.put("config.json", [b"{}"])
    return made


DEAD = "ab" * 16  # a name as writers give


def temporary(backend):
    return sorted(path.name for path in (backend.root / "tmp").iterdir())


def test_the_file_of_a_living_writer_stays(backend):
    upload = backend.begin("packs/00/x.pack")
    upload.write([b"half"])
    assert backend.sweep() == []
    upload.write([b" and half"])
    upload.finish()
    assert backend.read("packs/00/x.pack") == b"half and half"
    assert temporary(backend) == []


def test_the_file_of_a_dead_writer_is_removed(backend):
    (backend.root / "tmp" / DEAD).write_bytes(b"half")
    assert backend.sweep() == [DEAD]
    assert temporary(backend) == []


def test_a_file_that_no_writer_made_is_left_alone(backend):
    (backend.root / "tmp" / "notes.txt").write_bytes(b"mine")
    assert backend.sweep() == []
    assert temporary(backend) == ["notes.txt"]


@pytest.mark.slow
def test_the_file_of_a_writer_that_was_killed_is_removed(backend):
    code = (
        "import sys, time; from vadpipe.repository.backends.local import LocalBackend\n"
        "upload = LocalBackend(sys.argv[1]).begin('packs/00/x.pack'); upload.write([b'half'])\n"
        "print('written', flush=True); time.sleep(60)"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(backend.root)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[4]
    )
    with writer:
        assert writer.stdout.readline() == b"written\n"
        assert backend.sweep() == []
        writer.kill()
    assert len(backend.sweep()) == 1
    assert temporary(backend) == []


def test_a_file_that_was_swept_before_it_was_locked_is_made_again(backend, monkeypatch):
    """Another sweep looks between the creation of a file and its locking."""
    swept = []
    create = local.create

    def create_and_be_swept(path):
        descriptor = create(path)
        if not swept:
            swept.extend(backend.sweep())
        return descriptor

    monkeypatch.setattr(local, "create", create_and_be_swept)
    backend.put("points/a/b.json", [b"a point"])
    assert len(swept) == 1
    assert backend.read("points/a/b.json") == b"a point"
    assert temporary(backend) == []


def test_a_sweep_that_locked_a_file_of_the_past_leaves_the_new_one_alone(backend, monkeypatch):
    path = backend.root / "tmp" / DEAD
    path.touch()
    flock = fcntl.flock

    def swapped(file, operation):
        path.unlink()
        path.touch()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", swapped)
    assert backend.sweep() == []
    assert temporary(backend) == [DEAD]


def test_where_locks_are_private_only_old_files_are_removed(backend, monkeypatch):
    """Another host may write: its lock is not seen here."""
    monkeypatch.setattr(local, "local_locks", lambda root: "nolock")
    path = backend.root / "tmp" / DEAD
    path.touch()
    written = path.stat().st_mtime
    assert backend.sweep() == []
    os.utime(path, (written - FOREIGN_AGE_S + 60,) * 2)
    assert backend.sweep() == []
    os.utime(path, (written - FOREIGN_AGE_S - 60,) * 2)
    assert backend.sweep() == [DEAD]


def test_where_there_are_no_locks_files_stay_and_a_person_is_told(backend, monkeypatch, caplog):
    (backend.root / "tmp" / DEAD).touch()

    def refuse(file, operation):
        raise OSError(37, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING, "vadpipe.repository"):
        assert backend.sweep() == []
    assert (
        f"{backend.root / 'tmp' / DEAD} was left in place: its file system has no locks" in caplog.text
    )


def test_what_is_no_file_is_left_in_place_and_told(backend, caplog):
    (backend.root / "tmp" / DEAD).mkdir()
    with caplog.at_level(logging.WARNING, "vadpipe.repository"):
        assert backend.sweep() == []
    assert f"{DEAD} was left in place" in caplog.text


def test_a_sweep_that_cannot_list_is_an_error_that_names_the_place(backend):
    (backend.root / "tmp").rmdir()
    (backend.root / "tmp").touch()
    with pytest.raises(SinkError, match="Could not sweep") as caught:
        backend.sweep()
    assert caught.value.facts["path"] == str(backend.root / "tmp")


@pytest.mark.parametrize(
    ("mount", "option"),
    [
        ("srv:/x /srv/r nfs4 rw,local_lock=none 0 0", None),
        ("srv:/x /srv/r nfs rw,nolock 0 0", "nolock"),
        ("srv:/x /srv/r nfs rw,local_lock=all 0 0", "local_lock=all"),
        ("srv:/x /srv/r nfs rw,local_lock=flock", "local_lock=flock"),
        ("srv:/x /srv/r nfs rw,nolock 0 0\nx /srv/r/below ext4 rw 0 0", "nolock"),
        ("//srv/x /srv/r cifs rw,nobrl 0 0", "nobrl"),
        ("//srv/x /srv/r smb3 rw,nobrl 0 0", "nobrl"),
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
