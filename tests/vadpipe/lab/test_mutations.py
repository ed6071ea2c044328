"""Altered repositories: forged checksums, and a short version of the campaign."""

import pytest
import trio

from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, incremental_path, random_bytes
from vadpipe.lab.faults.forging import with_right_checksums
from vadpipe.lab.faults.history import HISTORIES, make, repository, write_keys
from vadpipe.lab.faults.mutations import campaign
from vadpipe.repository import verify
from vadpipe.repository.format import packs
from vadpipe.repository.format.packs import sound_frames


@pytest.fixture(params=HISTORIES)
def small(request, tmp_path):
    root = tmp_path / "root"
    write_keys(tmp_path / "keys", seed=1)
    make(root, request.param)
    made = repository(root, request.param)
    trio.run(backup, made, [MemoryDisk(random_bytes(1, 300_000))], incremental_path)
    return made


def test_the_checksums_of_an_object_are_right_as_they_are(small):
    files = [path for path in small.path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".pack", ".idx"}
    for path in files:
        content = bytearray(path.read_bytes())
        with_right_checksums(path.name, content)
        assert content == path.read_bytes(), path


def test_a_forged_pack_has_right_checksums_and_wrong_content(small):
    (path,) = small.path.rglob("*.pack")
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    with_right_checksums(path.name, content)
    path.write_bytes(content)

    async def found():
        async with small.read() as reader:
            frames = list(sound_frames(reader.objects, path.stem))
            return len(frames), (await verify(reader)).damages

    count, damages = trio.run(found)
    assert count == 3, "of data, of the map, of the list of pages"
    assert {each.file for each in damages} == {str(path)}


@pytest.mark.slow
def test_300_mutations_are_noticed_or_harmless():
    size = packs.PACK_SIZE
    counts, wrong = campaign(300, seed=1, workers=2)
    assert wrong == []
    assert size == packs.PACK_SIZE, "the campaign's small packs are its workers' alone"
    assert counts.total() == 300


@pytest.mark.campaign
def test_100000_mutations_are_noticed_or_harmless():
    counts, wrong = campaign(100_000, seed=2, workers=2)
    assert wrong == []
    assert counts.total() == 100_000
