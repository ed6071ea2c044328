"""prune, repair and copy as users call them; sealed repositories on the command line."""

import json

import pytest
import trio
from click.testing import CliRunner

from pipeline.errors import ConfigError
from tests.vadpipe.repository import repository_kit as kit
from vadpipe.cli.commands import vadpipe
from vadpipe.repository.store import Repository


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("REPOSITORY", "KEY_FILE", "PASSPHRASE_FILE", "AGE_IDENTITY"):
        monkeypatch.delenv(f"VADPIPE_{name}", raising=False)


@pytest.fixture
def place(tmp_path):
    """A repository with three points of a VM, each of which rewrote the disk."""
    repository = Repository(tmp_path / "repository", tags=["nightly"])
    repository.init()

    async def fill():
        disk = kit.MemoryDisk(kit.random_bytes(0, 2 << 20))
        for number in range(3):
            await kit.backup(repository, [disk], kit.incremental_path)
            disk.write(0, kit.random_bytes(number + 1, 2 << 20))

    trio.run(fill)
    return tmp_path / "repository"


def invoke(*arguments):
    return CliRunner().invoke(vadpipe, [str(argument) for argument in arguments], standalone_mode=False)


def call(*arguments):
    done = invoke(*arguments)
    if done.exception is not None:
        raise done.exception
    return done.output


def size_of(place):
    return sum(path.stat().st_size for path in (place / "packs").rglob("*.pack"))


def test_space_comes_back_with_the_second_prune(place):
    whole = size_of(place)
    call("forget", place, "--keep-last", "1")
    told = json.loads(call("prune", place, "--dry-run", "--json"))
    assert told["named_packs"] == 2
    assert size_of(place) == whole
    done = json.loads(call("prune", place, "--json"))
    assert (done["named_packs"], done["deleted_packs"]) == (2, 0)
    done = json.loads(call("prune", place, "--json"))
    assert (done["named_packs"], done["deleted_packs"]) == (0, 2)
    assert size_of(place) < whole // 2
    assert "all sound" in call("verify", place)


def test_a_repaired_repository_is_sound_again(place):
    pack = max((place / "packs").rglob("*.pack"))
    pack.write_bytes(pack.read_bytes()[:-20])
    assert invoke("verify", place).return_value == 1
    assert "1 damaged pack" in call("repair", place, "--dry-run")
    assert "1 damaged pack" in call("repair", place)
    assert "all sound" in call("verify", place)


def test_points_are_copied_once_with_their_ids_and_tags(place, tmp_path):
    target = tmp_path / "target"
    call("init", target)
    assert call("copy", place, target).startswith("3 points copied, 0 points there already;")
    assert call("copy", place, target).startswith("0 points copied, 3 points there already;")
    points = [json.loads(call("points", each, "--json"))["points"] for each in (place, target)]
    for name in ("id", "created", "vm", "uuid"):
        assert [point[name] for point in points[0]] == [point[name] for point in points[1]]
    assert "all sound" in call("verify", target)


def test_only_points_with_a_tag_are_copied(place, tmp_path):
    target = tmp_path / "target"
    call("init", target)
    assert call("copy", place, target, "--tag", "monthly").startswith("0 points copied, 0 points")
    assert call("copy", place, target, "--tag", "nightly").startswith("3 points copied")


def test_a_sealed_repository_is_made_copied_into_and_opened_by_its_key(place, tmp_path):
    key, target = tmp_path / "key", tmp_path / "sealed"
    call("key", "file", key)
    assert "It is sealed" in call("init", target, "--new-key-file", key)
    with pytest.raises(ConfigError, match="is sealed"):
        call("points", target)
    call("copy", place, target, "--key-file", key)
    assert "all sound" in call("verify", target, "--key-file", key)
    assert call("verify", target, "--without-key").endswith("all checksums are right.\n")
    assert not any(b"fake" in path.read_bytes() for path in target.rglob("*") if path.is_file())


def test_the_environment_opens_a_sealed_repository(tmp_path, monkeypatch):
    key, target = tmp_path / "key", tmp_path / "sealed"
    call("key", "file", key)
    call("init", target, "--new-key-file", key)
    monkeypatch.setenv("VADPIPE_KEY_FILE", str(key))
    assert "no restore points" in call("points", target)


def test_a_damaged_sealed_object_is_found_without_the_key(place, tmp_path):
    key, target = tmp_path / "key", tmp_path / "sealed"
    call("key", "file", key)
    call("init", target, "--new-key-file", key)
    call("copy", place, target, "--key-file", key)
    pack = max((target / "packs").rglob("*.pack"))
    content = bytearray(pack.read_bytes())
    content[500] ^= 1
    pack.write_bytes(content)
    done = invoke("verify", target, "--without-key")
    assert done.return_value == 1
    assert f"{pack}: the frame at byte 48: its checksum is wrong." in done.output


def test_checking_without_a_key_takes_no_part_of_a_repository(place):
    with pytest.raises(ConfigError, match="checks everything"):
        call("verify", place, "--without-key", "--budget", "10%")
