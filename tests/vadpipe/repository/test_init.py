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
    Watched,
    backup,
    names,
    random_bytes,
)
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.format.ways import KeyFile, make_key_file
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
    assert 5 < step < 29


def test_init_takes_nothing_that_is_not_its_own(tmp_path):
    place = tmp_path / "full" / "packs"
    place.mkdir(parents=True)
    (place / "file").touch()
    with pytest.raises(SinkError, match=r"is not empty.*Name an empty directory"):
        Repository(place.parent).init()
    assert list(tmp_path.rglob("*")) == [place.parent, place, place / "file"]


async def test_files_in_a_directory_tmp_that_was_there_stay(tmp_path):
    (tmp_path / "repository" / "tmp").mkdir(parents=True)
    (tmp_path / "repository" / "tmp" / "file").write_bytes(b"mine")
    repository = Repository(tmp_path / "repository")
    repository.init()
    await backup(repository, [MemoryDisk(random_bytes(1, CLUSTER))])
    assert (tmp_path / "repository" / "tmp" / "file").read_bytes() == b"mine"


async def test_of_two_inits_at_once_one_makes_the_repository():
    """The other one looks just before the config of the first has its name."""
    place, refused = MemoryBackend(), []

    def watch(what, name):
        if what == "put" and name == "config.json" and not refused:
            refused.append(True)
            Repository(place).init()

    with pytest.raises(SinkError, match="Somebody made a repository"):
        Repository(Watched(place, watch)).init()
    await backup(Repository(place), [MemoryDisk(random_bytes(1, CLUSTER))])


@pytest.mark.parametrize("step", range(4))
def test_an_init_of_a_sealed_repository_that_was_broken_off_can_be_repeated(step, tmp_path):
    key = KeyFile(tmp_path / "key")
    make_key_file(key.path)
    place, calls = MemoryBackend(), 0

    def watch(what, name):
        nonlocal calls
        calls += what == "put"
        if what == "put" and calls > step:
            raise SinkError("The store is gone.", remedy="Wait.")

    try:
        Repository(Watched(place, watch)).init(key)
        done = True
    except SinkError:
        done = False
    assert done == (step == 3)
    if not done:
        Repository(place).init(key)
    repository = Repository(place, unlock=[key])
    trio.run(backup, repository, [MemoryDisk(random_bytes(1, CLUSTER))])
    assert len(names(repository, "keys/")) == 2
    with pytest.raises(SinkError, match="There is a repository"):
        repository.init()


def test_init_refuses_what_is_there(tmp_path, repository):
    with pytest.raises(SinkError, match="There is a repository"):
        repository.init()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(SinkError, match=r"is not empty.*Name an empty directory"):
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
    config.write_text(text.replace('"version": 2', '"version": 3'))
    with pytest.raises(SinkError, match=r"format version 3, known are 1 and 2.*newer"):
        async with open_repository(repository.path):
            pass
    config.write_text('{"format": "other"}')
    with pytest.raises(SinkError, match="another program"):
        async with open_repository(repository.path):
            pass
