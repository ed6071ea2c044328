"""Making a repository, and directories that are none."""

import os

import pytest
import trio

from pipeline import (
    CLUSTER,
    SinkError,
)
from tests.vadpipe.repository.repository_kit import (
    MemoryDisk,
    backup,
    random_bytes,
)
from vadpipe.repository.reader import open_repository
from vadpipe.repository.store import Repository


def test_an_init_that_was_broken_off_can_be_repeated(tmp_path, monkeypatch):
    """At every step: the disk is full, the process is killed, and so on."""
    for step in range(30):
        repository = Repository(tmp_path / f"{step}")
        done = 0

        def counted(call, step=step):
            def fails(*arguments, **named):
                nonlocal done
                done += 1
                if done > step:
                    raise OSError(28, "No space left on device")
                return call(*arguments, **named)

            return fails

        with monkeypatch.context() as patched:
            for name in ("mkdir", "fsync", "writev", "link", "unlink"):
                patched.setattr(os, name, counted(getattr(os, name)))
            try:
                repository.init()
                break
            except (SinkError, OSError):
                pass
        if not (repository.path / "config.json").exists():
            repository.init()
        trio.run(backup, repository, [MemoryDisk(random_bytes(1, CLUSTER))])
    assert 10 < step < 29


def test_init_takes_nothing_that_is_not_its_own(tmp_path):
    for name in ("packs", "tmp"):
        place = tmp_path / name / name
        place.mkdir(parents=True)
        (place / "file").touch()
        with pytest.raises(SinkError, match="not an empty directory"):
            Repository(place.parent).init()
        assert (place / "file").exists()


def test_init_refuses_what_is_there(tmp_path, repository):
    with pytest.raises(SinkError, match="is a repository"):
        repository.init()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(SinkError, match="not an empty directory"):
        Repository(tmp_path / "full").init()
    (tmp_path / "plain").touch()
    with pytest.raises(SinkError):
        Repository(tmp_path / "plain" / "below").init()
    assert (repository.path / "config.json").stat().st_mode & 0o777 == 0o600


async def test_a_directory_that_is_no_repository_is_refused(tmp_path, repository):
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(SinkError, match=r"not a repository.*vadpipe init"):
            async with Repository(place).open():
                pass
        with pytest.raises(SinkError, match="not a repository"):
            async with open_repository(place):
                pass
    config = repository.path / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(SinkError, match=r"format version 2.*newer"):
        async with open_repository(repository.path):
            pass
    config.write_text('{"format": "other"}')
    with pytest.raises(SinkError, match="another program"):
        async with open_repository(repository.path):
            pass
