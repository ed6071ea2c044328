"""What is printed: no control characters, no secrets, tables, and output that cannot be written."""

import json
import os
import subprocess

import pytest
from click.testing import CliRunner

from pipeline.secrets import Secret
from tests.conftest import command
from vadpipe.cli.output import echo, table
from vadpipe.words import counted

TWO = """
from pipeline import Job
from pipeline.testing import FakeMachine, FakeTarget, PatternDisk
from sinks import NullSink
from stages import AllocatedExtents, ReadSpans

def path(disk, point):
    return AllocatedExtents(disk) | ReadSpans(disk) | NullSink()

jobs = [Job(FakeMachine([PatternDisk(1 << 20)]), path, into=FakeTarget(), name=name) for name in ("a", "b")]
"""


def test_a_line_has_no_control_characters(capsys):
    echo("web\x1b[2J\x07\n\u202e01")
    assert capsys.readouterr().out == "web�[2J���01\n"


def test_a_line_has_no_secret(capsys):
    Secret.from_text("hunter\"2 'x").reveal()
    echo("""Login failed with hunter"2 'x.""", err=True)
    echo('{"password": "hunter\\"2 \'x"}', err=True)
    assert capsys.readouterr().err == 'Login failed with ***.\n{"password": "***"}\n'


def test_counts_have_the_right_number():
    assert [counted(number, "point") for number in (0, 1, 2)] == ["0 points", "1 point", "2 points"]


def test_a_table_is_aligned_and_numbers_stand_to_the_right():
    assert table(("VM", "SIZE"), [("web\x1b01", "1 B"), ("db", "10 GiB")], right=["SIZE"]) == [
        "VM        SIZE",
        "web�01     1 B",
        "db      10 GiB",
    ]
    assert table(("VM",), []) == []


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "two.py"
    path.write_text(TWO)
    return path


def kinds(events):
    return [json.loads(line)["event"] for line in events.read_text().splitlines()]


@pytest.mark.slow
def test_a_full_standard_output_stops_no_job_and_is_reported(config, tmp_path):
    events = tmp_path / "events.jsonl"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("run", config, "--events", events), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert kinds(events).count("published") == 2
    assert done.returncode == 3
    assert done.stderr == (
        "vadpipe: Standard output cannot be written: No space left on device. What follows is not shown.\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_closed_pipe_stops_no_job_and_changes_no_exit_code(config, tmp_path, options):
    events = tmp_path / "events.jsonl"
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command("run", config, "--events", events, *options),
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writing)
    assert kinds(events).count("published") == 2
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_full_disk_under_the_events_stops_no_job(config):
    done = subprocess.run(command("run", config, "--events", "/dev/full"), capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.endswith("2 jobs: 2 done\n")
    assert done.stderr.count("Events can no longer be written to /dev/full: No space left on device.") == 1


@pytest.mark.slow
def test_several_jobs_at_once_mark_their_lines(config):
    done = subprocess.run(command("run", config, "--jobs", "2"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "2 jobs: 2 done"
    assert {line.partition(":")[0] for line in lines} == {"a", "b"}
    assert len(lines) > 2


def test_limits_of_jobs_are_checked(config):
    from vadpipe.cli.run import run

    done = CliRunner().invoke(run, [str(config), "--jobs", "0"])
    assert done.exit_code == 2
    assert "0 is not in the range x>=1" in done.output
