"""Checking a repository without its keys."""

import pytest
import trio

from pipeline import KiB, MiB, SinkError
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, incremental_path, random_bytes
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.format.ways import KeyFile, make_key_file
from vadpipe.repository.maintenance.checksums import check_without_key
from vadpipe.repository.store import Repository


@pytest.fixture(params=["plain", "sealed"])
def store(request, tmp_path):
    """A repository with two points."""
    backend, opens = MemoryBackend(), None
    if request.param == "sealed":
        make_key_file(tmp_path / "key")
        opens = KeyFile(tmp_path / "key")
    repository = Repository(backend, unlock=[opens] if opens else ())
    repository.init(opens)

    async def fill():
        disk = MemoryDisk(random_bytes(1, 2 * MiB))
        await backup(repository, [disk], incremental_path)
        disk.write(MiB, random_bytes(2, 64 * KiB))
        await backup(repository, [disk], incremental_path)

    trio.run(fill)
    return backend


def test_a_sound_repository_has_right_checksums(store):
    report = check_without_key(store)
    assert (report.packs, report.segments, report.documents) == (2, 2, 2)
    assert report.damages == []
    assert report.lines()[0].endswith("all checksums are right.")


@pytest.mark.parametrize("kind", ["packs/", "index/", "points/"])
def test_every_flipped_byte_is_noticed_and_named(store, kind):
    name = min(store.list(kind), key=lambda found: found.size).name
    content = store.read(name)
    places = [*range(0, len(content), max(1, len(content) // 40)), len(content) - 1]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        store.replace(name, [bytes(damaged)])
        found = {damage[0] for damage in check_without_key(store).damages}
        if kind == "points/" and store.read("config.json").count(b'"none"'):
            assert found <= {store.place(name)}  # text without a checksum: its seal needs the key
        else:
            assert store.place(name) in found, place
    store.replace(name, [content])
    assert check_without_key(store).damages == []


@pytest.mark.parametrize("kind", ["packs/", "index/", "points/"])
def test_what_is_cut_off_is_noticed(store, kind):
    name = next(store.list(kind)).name
    store.replace(name, [store.read(name)[:-9]])
    assert [damage[0] for damage in check_without_key(store).damages] == [store.place(name)]


def test_what_is_no_repository_is_refused():
    with pytest.raises(SinkError, match="cannot be read: it is missing"):
        check_without_key(MemoryBackend())
