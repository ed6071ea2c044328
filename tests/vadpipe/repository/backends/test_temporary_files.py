"""What a sweep of temporary files leaves alone, beside test_local.py."""

import fcntl

import pytest

from pipeline import SinkError
from vadpipe.repository.backends.local import LocalBackend


@pytest.fixture
def backend(tmp_path):
    made = LocalBackend(tmp_path / "repository")
    made.put("config.json", [b"{}"])
    return made


DEAD = "ab" * 16  # a name as writers give


def temporary(backend):
    return sorted(path.name for path in (backend.root / "tmp").iterdir())


def test_a_file_that_no_writer_made_is_left_alone(backend):
    (backend.root / "tmp" / "notes.txt").write_bytes(b"mine")
    assert backend.sweep() == []
    assert temporary(backend) == ["notes.txt"]


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


def test_a_sweep_that_cannot_list_is_an_error_that_names_the_place(backend):
    (backend.root / "tmp").rmdir()
    (backend.root / "tmp").touch()
    with pytest.raises(SinkError, match="Could not sweep") as caught:
        backend.sweep()
    assert caught.value.facts["path"] == str(backend.root / "tmp")
