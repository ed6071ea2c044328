"""Signals against a real process: a run on the lab's vCenter, and the moments before and after its work."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import NIGHTLY, Running, command
from vadpipe.lab.disks import LabDisk

pytestmark = pytest.mark.slow

TWO_JOBS = """
import runpy
from dataclasses import replace

found = runpy.run_path({nightly!r})["job"]
jobs = [found, replace(found, name="second")]
"""

TWO_VMS = """
import runpy
from dataclasses import replace

found = runpy.run_path({nightly!r})["job"]
jobs = [found, replace(found, machine=replace(found.machine, vm="web02", quiesce=found.machine.quiesce.none()))]
jobs[1] = replace(jobs[1], finish=())
"""


@pytest.fixture
def start(small_lab, tmp_path):
    started = []

    def start(*arguments, **options):
        started.append(Running(small_lab, tmp_path, *arguments, **options))
        return started[-1]

    yield start
    for running in started:
        with running.process as process:
            process.kill()


def leftovers(lab):
    """What a run must not leave: snapshots, locks of its run, packs of its unfinished point, intents."""
    repository = lab.repository
    return {
        "snapshots": lab.snapshots,
        "intents": [path.name for path in (lab.root / "state").rglob("*.json")],
        "packs": [path.name for path in repository.rglob("*.pack")],
    }


NOTHING = {"snapshots": 0, "intents": [], "packs": []}


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_reading_removes_the_snapshot_and_the_data(small_lab, start, number):
    running = start()
    running.wait_for("disk started")
    running.process.send_signal(number)
    _, errors = running.end()
    assert running.process.returncode == 130, errors
    assert f"vadpipe: Stopping on {number.name}. web01: " in errors
    [told] = re.findall(
        r"web01: what was stored for it is discarded; its snapshot '(.*)' is removed\.", errors
    )
    begun = [event for event in running.told() if event["event"] == "snapshot begun"]
    assert [event["snapshot"] for event in begun] == [told]
    assert leftovers(small_lab) == NOTHING


def test_further_signals_do_not_break_the_clean_up(small_lab, start):
    small_lab.vcenter._service.tasks._task_s = 1.0  # the removal of the snapshot takes a while
    running = start()
    running.wait_for("disk started")
    for _ in range(4):
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.15)
    _, errors = running.end()
    assert running.process.returncode == 130, errors
    assert "SIGINT: clean-up has been going on for" in errors
    assert leftovers(small_lab) == NOTHING


def test_a_signal_after_publishing_names_the_point_and_starts_no_further_job(small_lab, start, tmp_path):
    config = tmp_path / "two.py"
    config.write_text(TWO_JOBS.format(nightly=str(NIGHTLY)))
    running = start("--json", config=config)
    running.wait_for("disk started")
    small_lab.vcenter._service.tasks._task_s = 1.0
    running.wait_for("published")
    running.process.send_signal(signal.SIGINT)
    output, errors = running.end()
    assert running.process.returncode == 130, errors
    [point] = json.loads(small_lab("points", small_lab.repository, "--json").stdout)["points"]
    assert f"point {point['id']} is published" in errors
    assert "nothing was published" not in errors
    [job, *others] = json.loads(output)["jobs"]
    assert job["point"] == point["id"]
    assert others == []
    assert small_lab.snapshots == 0
    assert "second" not in {event.get("job") for event in running.told()}


def test_a_signal_ends_all_jobs_that_run_at_the_same_time(small_lab, start, tmp_path):
    other = small_lab.vcenter.datastore("datastore1") / "web02"
    disk = LabDisk.create(other, "web02", 8 << 20)
    small_lab.vcenter.register_vm(other, "web02", [disk])
    config = tmp_path / "two.py"
    config.write_text(TWO_VMS.format(nightly=str(NIGHTLY)))
    small_lab.vcenter._service.tasks._task_s = 0.5
    running = start("--json", "--jobs", "2", config=config)
    wait_for_both(running)
    running.process.send_signal(signal.SIGTERM)
    output, errors = running.end()
    assert running.process.returncode == 130, errors
    jobs = json.loads(output)["jobs"]
    assert {job["job"]: job["exit_code"] for job in jobs} == {"web01": 130, "web02": 130}
    assert "web01: " in errors
    assert "web02: " in errors
    assert small_lab.snapshots == 0
    assert small_lab.vcenter.snapshots(small_lab.vcenter.moref("web02")) == {}
    # The small VM may have been published while the other was being quiesced.
    points = json.loads(small_lab("points", small_lab.repository, "--json").stdout)["points"]
    assert {point["id"] for point in points} == {job["point"] for job in jobs if job.get("point")}
    left = leftovers(small_lab)
    assert left == {**NOTHING, "packs": left["packs"] if points else []}


def wait_for_both(running, within_s=30):
    """Until each of the two jobs makes its snapshot."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        begun = running.told() if running.events.exists() else []
        if {event.get("job") for event in begun if event["event"] == "snapshot begun"} == {"web01", "web02"}:
            return
        assert running.process.poll() is None, running.process.communicate()
        time.sleep(0.02)
    pytest.fail("the jobs did not begin together")


def test_a_hang_up_that_is_ignored_at_the_start_does_not_end_the_run(small_lab, tmp_path):
    """As nohup starts a command."""
    ignoring = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    program = f"{ignoring}; os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *command("run", NIGHTLY)],
        env={**os.environ, **small_lab.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        time.sleep(1.0)
        process.send_signal(signal.SIGHUP)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def test_a_signal_while_the_configuration_is_read_ends_the_command_at_once(tmp_path):
    config = tmp_path / "slow.py"
    config.write_text("import time\nprint('reading', flush=True)\ntime.sleep(60)")
    with subprocess.Popen(
        command("run", config), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "vadpipe: Ended by SIGINT; nothing was running.\n"
