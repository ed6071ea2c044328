"""Sources of jobs in a configuration, and runs of many jobs: what is told, and with which exit code."""

import json
import signal
import subprocess
import sys

import pytest
import trio
from click.testing import CliRunner

from pipeline import ConfigError, JobSource
from vadpipe.cli.config import load_jobs, read_config, resolve
from vadpipe.cli.run import plan, run

CONFIG = """
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio
from pipeline import Job, SinkError, SourceError
from pipeline.testing import FakeMachine, FakeTarget, PatternDisk
from sinks import NullSink
from stages import AllocatedExtents

def path(disk, point):
    return AllocatedExtents(disk) | NullSink()

class Full(FakeTarget):
    @asynccontextmanager
    async def open(self):
        raise SinkError("The store is full.")
        yield

class Hanging(FakeTarget):
    @asynccontextmanager
    async def open(self):
        print("hanging", flush=True)
        await trio.sleep_forever()
        yield

class Weak(FakeMachine):
    @asynccontextmanager
    async def capture(self):
        async with super().capture() as capture:
            yield replace(capture, attention=["It was not quiesced."])

def job(name, machine=FakeMachine, into=FakeTarget):
    return Job(machine([PatternDisk(1 << 20)]), path, into=into(), name=name)

@dataclass
class Some:
    made: list
    problem: str = ""
    title = "some jobs"
    async def jobs(self):
        await trio.lowlevel.checkpoint()
        if self.problem:
            raise SourceError(self.problem)
        return self.made
    def planned(self):
        return job("each")
    def effects(self):
        return ["Looks them up."]

"""


@pytest.fixture
def write(tmp_path):
    def write(lines):
        path = tmp_path / "config.py"
        path.write_text(CONFIG + lines + "\n")
        return path

    return write


def invoke(command, *arguments):
    result = CliRunner().invoke(command, [*map(str, arguments)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


def test_the_jobs_of_a_source_stand_where_it_does(write):
    path = write('jobs = [job("first"), Some([job("a"), job("b")]), job("last")]')
    assert [one.title for one in load_jobs(path)] == ["first", "a", "b", "last"]
    first, some, _ = read_config(path)
    assert isinstance(some, JobSource)
    assert not isinstance(first, JobSource)
    assert [one.title for one in load_jobs(path, "b")] == ["b"]
    assert [one.title for one in load_jobs(write('job = Some([job("a")])'))] == ["a"]


def test_titles_are_one_over_all_sources(write):
    with pytest.raises(ConfigError, match="two jobs are called a"):
        load_jobs(write('jobs = [job("a"), Some([job("a")])]'))
    with pytest.raises(ConfigError, match="two jobs are called a"):
        read_config(write('jobs = [job("a"), job("a"), Some([])]'))


def test_a_defect_of_a_source_stops_the_run(write):
    path = write(
        'class Bad(Some):\n    async def jobs(self):\n        return 1 / 0\njobs = [Bad([]), job("a")]'
    )
    with pytest.raises(ZeroDivisionError):
        trio.run(resolve, path)


def test_several_sources_that_fail_are_all_reported(write):
    path = write('jobs = [Some([], "no first"), Some([], "no second")]')
    with pytest.raises(ExceptionGroup) as caught:
        load_jobs(path)
    assert [str(exc) for exc in caught.value.exceptions] == ["no first", "no second"]
    result = invoke(run, path)
    assert result.return_value == 1
    assert result.stderr == "vadpipe: some jobs: no first\nvadpipe: some jobs: no second\n"
    assert result.stdout == "2 jobs: 2 failed\n"


@pytest.mark.parametrize(
    ("jobs", "summary", "code"),
    [
        (["job('a')"], None, 0),
        (["job('a')", "job('b')"], "2 jobs: 2 done", 0),
        (["job('a')", "job('b', Weak)"], "2 jobs: 1 done, 1 needs attention", 3),
        (["job('a', Weak)", "job('b', Weak)"], "2 jobs: 2 need attention", 3),
        (
            ["job('a')", "job('b', Weak)", "job('c', into=Full)"],
            "3 jobs: 1 done, 1 needs attention, 1 failed",
            1,
        ),
        (["job('a', into=Full)", "job('b', into=Full)"], "2 jobs: 2 failed", 1),
        (["job('a')", "Some([], 'gone')"], "2 jobs: 1 done, 1 failed", 1),
    ],
)
def test_a_run_of_several_jobs_ends_with_a_summary(write, jobs, summary, code):
    path = write(f"jobs = [{', '.join(jobs)}]")
    result = invoke(run, path)
    assert result.return_value == code
    last = result.stdout.splitlines()[-1]
    assert last == summary if summary else "jobs:" not in result.stdout
    told = json.loads(invoke(run, path, "--json").stdout)
    assert told["ok"] is (code == 0)
    assert len(told["jobs"]) == len(jobs)


def test_a_plan_describes_one_job_for_each_and_runs_no_source(write):
    path = write('jobs = [job("first"), Some([], "nobody may ask")]')
    lines = invoke(plan, path).stdout.splitlines()
    at = lines.index("job some jobs")
    assert lines[0] == "job first"
    assert lines[at + 1 :] == [
        "    AllocatedExtents(disk=disk)",
        "  | NullSink()",
        lines[3],
        "  effect: Looks them up.",
    ]
    assert lines[3].startswith("  holds at most")
    assert invoke(plan, path, "--job", "first").stdout.splitlines() == lines[:at]
    assert invoke(plan, path, "--job", "of the source").stdout.splitlines() == lines[at:]


@pytest.mark.slow
def test_a_signal_ends_the_run_not_only_the_job(write):
    path = write("jobs = [job('a'), job('b', into=Hanging), job('c'), job('d')]")
    with subprocess.Popen(
        [sys.executable, "-m", "vadpipe", "run", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.stdout.readline() != "hanging\n":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert output == "4 jobs: 1 done, 1 interrupted, 2 not run\n"
    stopping, ended = errors.splitlines()
    assert stopping.startswith("vadpipe: Stopping on SIGINT. b: what was stored for it is discarded.")
    assert ended == "vadpipe: b: Ended by a signal; nothing was published."
