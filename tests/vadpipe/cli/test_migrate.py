"""The command migrate on a disk that is computed from a seed and changes with each capture."""

import json
import os
import signal
import subprocess
import time

import pytest
from click.testing import CliRunner

from tests.conftest import command, vadpipe
from tests.sinks.target_kit import tool
from vadpipe.cli.commands import vadpipe as group

pytestmark = pytest.mark.slow

# Each capture finds less that changed: 4, 2, 1, ... pieces of 64 KiB. FAIL=n,m lets the n-th and m-th capture fail.
CONFIG = """
import os
from pathlib import Path
from pipeline import KiB, MiB, SourceError
from pipeline.testing import FakeMachine, PatternDisk
from sinks import IntoReplica, Migrate, Replica
from stages import ChangedExtents, MarkZeros, ReadSpans, RememberRanges

root = Path({root!r})
count = root / "captures"

class Machine(FakeMachine):
    def capture(self):
        number = int(count.read_text()) if count.exists() else 0
        count.write_text(str(number + 1))
        if str(number) in os.environ.get("FAIL", "").split(","):
            raise SourceError("Injected.")
        disk = self.disks[0]
        disk.sequence, disk._written = 1, []
        for done in range(number):
            disk.write(done * MiB, max(4 >> done, 1) * 64 * KiB, seed=done)
        return super().capture()

def path(disk, replica):
    return (
        ChangedExtents(disk, replica.previous(disk))
        | RememberRanges(replica, disk)
        | ReadSpans(disk)
        | MarkZeros()
        | IntoReplica(replica, disk)
    )

machine = Machine([PatternDisk(12 * MiB, seed=5)], name="web01")
job = Migrate(machine, path, into=Replica(f"qcow2:{{root / 'images'}}", state=root / "state"))
"""


@pytest.fixture
def config(tmp_path):
    tool("qemu-nbd")
    path = tmp_path / "migrate.py"
    path.write_text(CONFIG.format(root=str(tmp_path)))
    return path


def test_increments_repeat_until_one_is_small_and_then_comes_the_cut_over(config):
    done = vadpipe("migrate", config, "--until-below", "128KiB", "--cut-over", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    changed = [increment["disks"][0]["changed"] for increment in found["increments"]]
    assert changed == [None, 256 << 10, 128 << 10, 64 << 10]
    assert found["cut_over"]["increments"] == 5
    assert found["ok"]


def test_a_vm_that_changes_as_fast_as_it_is_copied_ends_the_loop(config):
    done = vadpipe("migrate", config, "--until-below", "1KiB", "--cut-over")
    assert done.returncode == 1
    assert "does not get below 1.0 KiB" in done.stderr


def test_run_makes_one_increment_and_prove_reads_it_back(config):
    done = vadpipe("run", config)
    assert done.returncode == 0, done.stderr
    assert "web01: point increment-1" in done.stdout
    done = vadpipe("migrate", config, "--prove")
    assert done.returncode == 0, done.stderr
    assert "read back and proved" in done.stdout


def test_a_loop_survives_failures_and_ends_when_another_command_cuts_over(config, tmp_path):
    events = tmp_path / "events.jsonl"
    with subprocess.Popen(
        command("migrate", config, "--every", "0.5s", "--events", events),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FAIL": "1,2"},
    ) as loop:
        wait_for(lambda: events.exists() and events.read_text().count('"job finished"') >= 2, loop)
        done = vadpipe("migrate", config, "--cut-over")
        assert done.returncode == 0, done.stderr
        assert "web01: cut over at" in done.stdout
        output, errors = loop.communicate(timeout=30)
    assert loop.returncode == 0, errors
    assert errors.count("Injected.") == 2
    assert "another command has cut over" in output


def test_a_loop_ends_after_three_failures_in_a_row(config, monkeypatch):
    monkeypatch.setenv("FAIL", "0,1,2")
    done = vadpipe("migrate", config, "--every", "0.01s")
    assert done.returncode == 1
    assert done.stderr.count("Injected.") == 3


def test_a_signal_between_increments_ends_a_loop_in_order(config, tmp_path):
    events = tmp_path / "events.jsonl"
    with subprocess.Popen(
        command("migrate", config, "--every", "1h", "--events", events), stderr=subprocess.PIPE, text=True
    ) as loop:
        wait_for(lambda: events.exists() and '"job finished"' in events.read_text(), loop)
        loop.send_signal(signal.SIGTERM)
        _, errors = loop.communicate(timeout=30)
    assert loop.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--every", "10"], "is no time"),
        (["--until-below", "5"], "is no size"),
        (["--prove", "--cut-over"], "stands alone"),
        (["--every", "1m", "--cut-over"], "needs --until-below"),
    ],
)
def test_mistakes_are_named(config, options, text):
    done = CliRunner().invoke(group, ["migrate", str(config), *options])
    assert done.exit_code == 2
    assert text in done.output


def test_a_configuration_without_a_migration_is_refused(tmp_path):
    path = tmp_path / "other.py"
    path.write_text(
        "from pipeline import Job\nfrom pipeline.testing import FakeMachine, PatternDisk\n"
        "from sinks import Nowhere, NullSink\nfrom stages import AllocatedExtents\n"
        "machine = FakeMachine([PatternDisk(4096)])\n"
        "job = Job(machine, lambda disk, point: AllocatedExtents(disk) | NullSink(), into=Nowhere())\n"
    )
    done = vadpipe("migrate", path)
    assert done.returncode == 2
    assert "has no migration" in done.stderr


def wait_for(condition, process, within_s=30):
    deadline = time.monotonic() + within_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
