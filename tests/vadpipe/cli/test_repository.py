"""The commands of repositories as users call them: the table of points, `latest`, VADPIPE_REPOSITORY."""

import json
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import NAMESPACE_DNS, uuid5

import pytest
import trio
from click.testing import CliRunner

from pipeline import Job, MachineId
from pipeline.errors import ConfigError
from pipeline.testing.fakes import FakeMachine
from tests.vadpipe.repository import repository_kit as kit
from vadpipe.cli import progress
from vadpipe.cli import repository as repository_commands
from vadpipe.cli.commands import vadpipe
from vadpipe.repository.store import Repository

verification = sys.modules["vadpipe.repository.maintenance.verify"]


class Named(FakeMachine):
    """A VM with an identity of its own."""

    @asynccontextmanager
    async def capture(self):
        async with FakeMachine.capture(self) as capture:
            yield replace(capture, machine=MachineId(str(uuid5(NAMESPACE_DNS, self.name)), self.name))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """One with a point each of the VMs `fake` and `web\\x1b01`."""
    monkeypatch.setenv("TZ", "UTC-2")
    monkeypatch.delenv("VADPIPE_REPOSITORY", raising=False)
    place = Repository(tmp_path / "repository")
    place.init()

    async def fill():
        for number, name in enumerate(("fake", "web\x1b01")):
            disk = kit.MemoryDisk(kit.random_bytes(number, 1 << 20))
            await Job(Named([disk], name), kit.full_path, place).run()

    trio.run(fill)
    return tmp_path / "repository"


def call(*arguments):
    done = CliRunner().invoke(vadpipe, [str(argument) for argument in arguments], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.output


def test_points_are_a_table_with_a_header(repository):
    header, *rows = call("points", repository).splitlines()
    assert header.split() == ["POINT", "CREATED", "VM", "DISKS", "SIZE", "STORED", "QUIESCING"]
    assert len(rows) == 2
    assert "1  1.0 MiB" in rows[0]
    assert "\x1b" not in rows[1]
    assert rows[0].index("1.0 MiB") + len("1.0 MiB") == header.index("SIZE") + len("SIZE")


def test_the_document_has_sizes_and_utc(repository):
    points = json.loads(call("points", repository, "--json"))["points"]
    assert [point["capacity"] for point in points] == [1 << 20, 1 << 20]
    assert all(point["stored"] > 0 for point in points)
    assert all(point["created"].endswith(("+00:00", "Z")) for point in points)


def test_a_vm_without_points_is_an_error_that_names_its_likes(repository):
    with pytest.raises(ConfigError, match=r"no restore points of VM 'fakee'\. It has points of fake\."):
        call("points", repository, "--vm", "fakee")


@pytest.mark.parametrize("command", [["show"], ["restore"]])
def test_latest_needs_a_vm_where_there_are_several(repository, command):
    target = ["null:"] if command == ["restore"] else []
    with pytest.raises(ConfigError, match=r"`latest` is ambiguous: there are points of 2 VMs"):
        call(*command, repository, "latest", *target)
    call(*command, repository, "latest", *target, "--vm", "fake")


def test_the_repository_may_come_from_the_environment(repository, monkeypatch):
    [first, _] = json.loads(call("points", repository, "--json"))["points"]
    monkeypatch.setenv("VADPIPE_REPOSITORY", str(repository))
    assert json.loads(call("points", "--json"))["points"][0] == first
    assert json.loads(call("show", first["id"], "--json"))["id"] == first["id"]
    assert "proved up to root" in call("restore", first["id"], "null:")
    assert "all sound" in call("verify")


def test_an_empty_repository_says_so(tmp_path):
    call("init", tmp_path / "new")
    assert call("points", tmp_path / "new") == "The repository has no restore points.\n"


def packs_of(repository):
    """The pack of `fake`, and that of the other VM, as their runs come in time."""
    return sorted((repository / "packs").rglob("*.pack"), key=lambda path: path.stat().st_mtime_ns)


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_verify_of_a_point_reads_what_the_point_needs(repository):
    mine, other = packs_of(repository)
    damage(other)
    assert call("verify", repository, "--point", "latest", "--vm", "fake").startswith("1 point, 1 pack, ")
    report = json.loads(call("verify", repository, "--vm", "fake", "--json"))
    assert (report["points"], report["damages"]) == (1, [])
    damage(mine)
    (found,) = json.loads(call("verify", repository, "--vm", "fake", "--json"))["damages"]
    assert found["file"] == str(mine)
    assert found["hits"]


def test_verify_with_a_budget_says_what_it_did_not_read(repository):
    line = call("verify", repository, "--budget", "10%", "--seed", "7")
    assert line.startswith("2 points, 1 pack, ")
    assert line.endswith("(seed 7).\n")
    assert "Not read: 1 pack with 1.0 MiB" in line


def test_the_seed_of_a_budget_decides_which_packs_are_read(repository):
    damage(packs_of(repository)[0])
    found = {
        seed: [
            json.loads(call("verify", repository, "--budget", "1B", "--seed", seed, "--json"))["damages"]
            != []
            for _ in range(2)
        ]
        for seed in range(8)
    }
    assert {tuple(each) for each in found.values()} == {(True, True), (False, False)}


def test_a_budget_never_leaves_out_a_missing_pack(repository):
    packs_of(repository)[0].unlink()
    for seed in range(4):
        assert json.loads(call("verify", repository, "--budget", "1B", "--seed", seed, "--json"))["damages"]


@pytest.mark.parametrize("budget", ["", "0%", "101%", "ten", "5 GB", "-1MiB"])
def test_what_is_no_budget_is_refused(repository, budget):
    with pytest.raises(ConfigError, match="is no budget"):
        call("verify", repository, "--budget", budget)


def test_a_seed_without_a_budget_is_refused(repository):
    with pytest.raises(ConfigError, match="means nothing without --budget"):
        call("verify", repository, "--seed", "1")


def test_verify_prints_a_line_per_damaged_file_up_to_a_limit(repository, monkeypatch):
    monkeypatch.setattr(repository_commands, "_DAMAGED", 1)
    for pack in packs_of(repository):
        damage(pack)
    summary, first, rest = call("verify", repository).splitlines()
    assert "2 damaged places" in summary
    assert first.startswith(str(repository / "packs"))
    assert rest == "1 more damaged file; --json lists all."


def test_verify_shows_its_progress(repository, monkeypatch):
    monkeypatch.setattr(progress, "LINE_S", 0.001)
    monkeypatch.setattr(verification, "check_packs", slowly(verification.check_packs))
    assert "packs: " in call("verify", repository)


def slowly(function):
    def call_later(*arguments):
        time.sleep(0.05)
        return function(*arguments)

    return call_later
