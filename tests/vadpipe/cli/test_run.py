"""Several jobs: their order, the limits, and failures that stay with their own job."""

import json
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import trio
from click.testing import CliRunner

from pipeline import Evidence, Job, SourceError
from pipeline.job import JobReceipt
from pipeline.testing import FakeMachine, FakeTarget
from sinks import NullSink
from stages import AllocatedExtents, ReadSpans
from vadpipe.cli.findings import quiescing_lines
from vadpipe.cli.run import code_of_all, receipt_lines, run, summary

at_work: Counter = Counter()
most: Counter = Counter()
order: list[str] = []


def path(disk, point):
    return AllocatedExtents(disk) | ReadSpans(disk) | NullSink()


class Machine(FakeMachine):
    """A VM on a server, which counts the captures that are open at a time."""

    def on(self, server, failure=None):
        self.vcenter = SimpleNamespace(server=server)
        self.failure = failure
        return self

    @asynccontextmanager
    async def capture(self):
        order.append(self.name)
        for key in ("all", self.vcenter.server):
            at_work[key] += 1
            most[key] = max(most[key], at_work[key])
        await trio.sleep(0.05)
        for key in ("all", self.vcenter.server):
            at_work[key] -= 1
        if self.failure:
            raise self.failure
        async with FakeMachine.capture(self) as capture:
            yield capture


@pytest.fixture(autouse=True)
def _fresh():
    for counts in (at_work, most):
        counts.clear()
    order.clear()


@pytest.fixture
def call(tmp_path, monkeypatch):
    def call(machines, *options):
        jobs = [Job(machine, path, into=FakeTarget()) for machine in machines]
        monkeypatch.setattr("vadpipe.cli.run.read_config", lambda path: jobs)
        done = CliRunner().invoke(run, ["x.py", "--json", *options], standalone_mode=False)
        assert done.exception is None, done.exception
        return done.return_value, json.loads(done.stdout), done.stderr

    return call


def machines(*servers):
    return [Machine([], name=f"vm{number}").on(server) for number, server in enumerate(servers)]


def test_jobs_run_one_after_the_other_in_their_order(call):
    code, document, _ = call(machines("a", "a", "b"))
    assert (code, document["ok"]) == (0, True)
    assert most["all"] == 1
    assert order == [job["job"] for job in document["jobs"]] == ["vm0", "vm1", "vm2"]


def test_several_jobs_run_at_once_within_the_limit(call):
    call(machines("a", "a", "a", "a", "a"), "--jobs", "3")
    assert most["all"] == 3
    assert len(order) == 5


def test_a_server_has_no_more_jobs_than_its_limit(call):
    call(machines("a", "a", "a", "b", "b"), "--jobs", "4", "--per-server", "1")
    assert (most["all"], most["a"], most["b"]) == (2, 1, 1)
    assert len(order) == 5


def test_a_job_that_fails_stops_no_other(call):
    failing = Machine([], name="bad").on("a", SourceError("The host is gone."))
    code, document, errors = call([failing, *machines("a", "b")], "--jobs", "2")
    assert code == 1
    assert {job["job"]: job["exit_code"] for job in document["jobs"]} == {"bad": 1, "vm0": 0, "vm1": 0}
    assert errors == "vadpipe: bad: The host is gone.\n"


def test_a_defect_has_its_traceback_and_stops_no_other_job(call):
    failing = Machine([], name="bad").on("a", ZeroDivisionError("oops"))
    code, document, errors = call([failing, *machines("a")])
    assert code == 1
    assert [job["exit_code"] for job in document["jobs"]] == [1, 0]
    assert "Traceback" in errors
    assert errors.endswith("vadpipe: bad: ZeroDivisionError: oops\n")


@pytest.mark.parametrize(
    ("codes", "code"), [([0, 0], 0), ([0, 3], 3), ([0, 1, 3], 1), ([2, 2], 2), ([0, 2], 1), ([1, 130], 130)]
)
def test_the_exit_code_of_several_jobs(codes, code):
    assert code_of_all(codes) == code


def test_the_summary_counts_each_kind():
    assert (
        summary([0, 0, 3, 1, 130], 2)
        == "7 jobs: 2 done, 1 needs attention, 1 failed, 1 interrupted, 2 not run"
    )


def test_the_report_of_a_job_renders_the_verdict_as_show_does():
    verdict = {"applications": [{"name": "SQL Server", "level": "application-partial", "uncovered": ["x"]}]}
    evidence = Evidence("application-partial", False, ["component-failed: x failed"], verdict)
    receipt = JobReceipt("web01", "web01", "p1", [], "application", evidence, 0, [], [], 1.0, 1.0)
    lines = receipt_lines(receipt)
    assert lines[1:-1] == quiescing_lines(
        "application", "application-partial", evidence.reasons, evidence.verdict
    )
    assert lines[3] == "  application SQL Server: application-partial; not covered: x"
    assert receipt_lines(replace(receipt, evidence=None))[1] == "  quiescing: asked application, not verified"
