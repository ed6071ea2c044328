"""The command as users start it: a process, its output, its exit code."""

import json
import signal
import subprocess

import pytest

from pipeline import DiskReceipt
from pipeline.errors import ConfigError, SinkError, TransferFailed
from pipeline.job import DiskRun
from pipeline.meters import PipelineReport, StageMeter
from tests.conftest import command, vadpipe
from vadpipe.cli.main import main
from vadpipe.cli.output import error_lines, exit_code
from vadpipe.cli.run import disk_lines
from vadpipe.vsphere.api.faults import SnapshotLeaked

CONFIG = """
import trio
from pipeline import DiskReceipt, Job, Sink
from pipeline.testing import FakeMachine, FakeTarget, PatternDisk
from stages import AllocatedExtents, ReadSpans

class Count(Sink):
    def __init__(self, disk):
        self.disk = disk
    async def run(self, inbox):
        async for item in inbox:
            if hasattr(item, "release"):
                item.release()
        if HANG:
            print("hanging", flush=True)
            await trio.sleep_forever()
        return DiskReceipt(self.disk.key, "a disk", self.disk.capacity, "", 5, 0, 0, 0, 2, 3, 1)

def path(disk, point):
    return AllocatedExtents(disk) | ReadSpans(disk) | Count(disk)

job = Job(FakeMachine([PatternDisk(5 << 20)]), path, into=FakeTarget(), name="nightly")
HANG = False
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return path


@pytest.mark.slow
def test_run_tells_people_in_plain_lines(config):
    done = vadpipe("run", config)
    assert done.returncode == 0
    assert done.stdout.startswith("nightly: point point 1, ")
    assert "disk scsi0:0 (pattern scsi0:0)" not in done.stdout
    assert "logical 5.0 MiB, allocated" in done.stdout
    assert "limited by" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr == ""


@pytest.mark.slow
def test_a_verbose_run_shows_where_the_time_of_each_stage_went(config):
    assert "STARVED" not in vadpipe("run", config).stdout
    shown = vadpipe("run", "-v", config).stdout.splitlines()
    header = next(at for at, line in enumerate(shown) if "STAGE" in line)
    assert shown[header].split() == ["STAGE", "BUSY", "STARVED", "BLOCKED", "DATA", "CPU-S"]
    stages = [line.split() for line in shown[header + 1 : header + 4]]
    assert [name for name, *_ in stages] == ["AllocatedExtents", "ReadSpans", "Count"]
    assert all(share.endswith("%") for _, *shares, _, _ in stages for share in shares)


def test_figures_of_a_large_disk_fit_80_columns():
    receipt = DiskReceipt("scsi0:0", "a disk", 16 << 40, "", *[999 << 30] * 7)
    run = DiskRun(
        receipt, PipelineReport([StageMeter("ReadSpans")], 3600.0), "full", "", 999 << 30, 999 << 30
    )
    assert max(map(len, disk_lines(run))) <= 80


@pytest.mark.slow
def test_run_gives_machines_one_document_and_events_as_lines(config, tmp_path):
    events = tmp_path / "events.jsonl"
    done = vadpipe("run", config, "--json", "--events", events)
    document = json.loads(done.stdout)
    assert document["ok"] is True
    assert document["jobs"][0]["disks"][0]["new"] == 3
    told = [json.loads(line) for line in events.read_text().splitlines()]
    assert [event["event"] for event in told] == [
        "run started",
        "job started",
        "disk started",
        "disk finished",
        "published",
        "job finished",
        "run finished",
    ]
    assert {event["run"] for event in told} == {document["run"]}
    assert {event.get("job") for event in told[1:-1]} == {"nightly"}
    assert [event.get("disk") for event in told[2:4]] == ["scsi0:0"] * 2
    assert events.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_plan_touches_nothing(config):
    done = vadpipe("plan", config, "--json")
    assert done.returncode == 0
    [planned] = json.loads(done.stdout)["jobs"]
    assert planned["stages"][1] == "ReadSpans(disk=disk, ahead=2)"


@pytest.mark.slow
def test_a_syntax_error_is_one_message_and_exit_code_2(config):
    config.write_text(CONFIG + "\njob = (")
    done = vadpipe("run", config)
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert f"{config}, line {len(CONFIG.splitlines()) + 2}: '(' was never closed" in line


@pytest.mark.slow
def test_an_error_in_json_is_a_document_too(config):
    config.write_text("job = 1")
    done = vadpipe("run", config, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["errors"]


def test_a_failed_job_tells_its_errors_and_what_was_found_before(config, capsys):
    telling = """
class Telling(FakeMachine):
    @asynccontextmanager
    async def capture(self):
        async with super().capture() as capture:
            yield replace(capture, remarks=["A disk is excluded."], attention=["No lock."])
"""
    config.write_text(
        "from contextlib import asynccontextmanager\nfrom dataclasses import replace\n"
        + CONFIG.replace("import DiskReceipt", "import SinkError, DiskReceipt")
        .replace("def path", f"{telling}\ndef path")
        .replace("Job(FakeMachine", "Job(Telling")
        .replace("        async for", "        raise SinkError('The disk is full.')\n        async for")
    )
    with pytest.raises(SystemExit) as ended:
        main(["run", str(config), "--json"])
    [failed] = json.loads(capsys.readouterr().out)["jobs"]
    assert (ended.value.code, failed["exit_code"]) == (1, 1)
    [error] = failed["errors"]
    assert error["text"] == "The disk is full."
    assert error["notes"] == ["in stage Count, after 0 B", "disk pattern scsi0:0 (scsi0:0)"]
    assert (failed["attention"], failed["remarks"]) == (["No lock."], ["A disk is excluded."])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_in_order(config, number):
    config.write_text(CONFIG.replace("HANG = False", "HANG = True"))
    with subprocess.Popen(
        command("run", config), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "hanging\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"Stopping on {number.name}. nightly: what was stored for it is discarded" in errors
    assert "nightly: Ended by a signal; nothing was published." in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_usage_errors_have_exit_code_2():
    assert vadpipe("run").returncode == 2
    assert vadpipe("no-such-command").returncode == 2


def test_the_worst_failure_decides_the_exit_code():
    leaked = SnapshotLeaked("left")
    assert exit_code(leaked) == 3
    assert exit_code(ConfigError("typo")) == 2
    assert exit_code(TransferFailed("", [leaked, SinkError("full")])) == 1


def test_notes_are_told_with_their_error():
    error = SinkError("The disk is full.", remedy="Free some space.")
    error.add_note("in stage IntoRepository")
    assert error_lines(TransferFailed("", [error])) == [
        "The disk is full. Free some space. (in stage IntoRepository)"
    ]
