"""Hooks of a job: called after its end, and harmless to it."""

from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
import trio
import trio.lowlevel

from pipeline import Evidence, Job, MoverError, Source, SourceError, TransferFailed
from pipeline.errors import leaves
from pipeline.events import observed
from pipeline.testing import FakeMachine, FakeTarget, PatternDisk
from sinks import NullSink


class Broken(Source):
    async def run(self, outbox):
        raise SourceError("The disk is gone.")


def failing_path(disk, point):
    return Broken() | NullSink()


def job(disks=(), **settings):
    return Job(FakeMachine(list(disks)), failing_path, into=FakeTarget(), name="nightly", **settings)


async def test_a_success_calls_functions_and_coroutine_functions_with_the_receipt():
    told = []

    async def later(receipt):
        await trio.lowlevel.checkpoint()
        told.append(receipt.point)

    receipt = await job(on_success=[lambda receipt: told.append(receipt.job), later]).run()
    assert told == ["nightly", receipt.point]
    assert list(receipt.attention) == []


async def test_a_failure_calls_its_hooks_with_the_errors():
    told = []
    with pytest.raises(BaseException) as failed:
        await job([PatternDisk(1 << 20)], on_failure=[told.append], on_success=[told.append]).run()
    assert any(isinstance(leaf, MoverError) for leaf in leaves(failed.value))
    [failure] = told
    assert (failure.job, failure.machine) == ("nightly", "fake")
    assert [str(error) for error in failure.errors] == ["The disk is gone."]


async def test_a_cancelled_job_calls_its_hooks():
    told = []

    class Hanging(FakeMachine):
        def capture(self):
            return _hanging()

    with trio.move_on_after(0.05):
        await Job(Hanging([]), failing_path, FakeTarget(), on_failure=[told.append]).run()
    assert [failure.job for failure in told] == ["fake"]


class _hanging:  # noqa: N801
    async def __aenter__(self):
        await trio.sleep_forever()

    async def __aexit__(self, *exc_info):
        pass


async def test_a_hook_that_fails_after_a_success_needs_attention_and_changes_nothing_else():
    def mail(receipt):
        raise ConnectionRefusedError("no mail server")

    receipt = await job(on_success=[mail]).run()
    assert receipt.point
    assert list(receipt.attention) == ["The hook mail failed: ConnectionRefusedError: no mail server."]


async def test_a_hook_that_fails_after_a_failure_is_a_note_on_the_error():
    def mail(failure):
        raise ConnectionRefusedError("no mail server")

    with pytest.raises(BaseException) as failed:
        await job([PatternDisk(1 << 20)], on_failure=[mail]).run()
    [leaf] = leaves(failed.value)
    assert "The hook mail failed: ConnectionRefusedError: no mail server." in leaf.__notes__


async def test_a_hook_that_hangs_is_left_after_a_minute(autojump_clock):
    async def hang(receipt):
        await trio.sleep_forever()

    receipt = await job(on_success=[hang]).run()
    assert list(receipt.attention) == ["The hook hang was not done after 60 s."]


async def test_events_say_run_and_job_and_how_the_job_ended():
    told = []
    with observed(told.append):
        await job().run()
        with pytest.raises(TransferFailed):
            await job([PatternDisk(1 << 20, key="scsi0:0")]).run()
    kinds = [event.kind for event in told]
    assert kinds == ["job started", "published", "job finished", "job started", "disk started", "job failed"]
    assert {event.facts["job"] for event in told} == {"nightly"}
    first, second = told[0].facts["run"], told[-1].facts["run"]
    assert first != second
    assert told[4].facts["disk"] == "scsi0:0"
    [error] = told[-1].facts["errors"]
    assert error["text"] == "The disk is gone."
    assert error["notes"] == ["in stage Broken, after 0 B", "disk pattern scsi0:0 (scsi0:0)"]


async def test_a_failure_tells_what_was_found_before_it():
    told = []

    @dataclass(frozen=True)
    class Telling(FakeMachine):
        @asynccontextmanager
        async def capture(self):
            async with super().capture() as capture:
                yield replace(capture, remarks=["A disk is excluded."], attention=["No lock.", "Noted."])

    class Noting(Source):
        async def run(self, outbox):
            error = SourceError("The disk is gone.")
            error.add_note("Noted.")
            raise error

    class Crash:
        async def examine(self, capture, attempt):
            return Evidence("crash", satisfied=False, reasons=[], shortfalls=["Application was required."])

        async def finish(self, capture):
            raise AssertionError("asked twice")

    failing = Job(
        Telling([PatternDisk(1 << 20)]),
        lambda disk, point: Noting() | NullSink(),
        into=FakeTarget(),
        finish=[Crash()],
        on_failure=[told.append],
    )
    with observed(told.append), pytest.raises(TransferFailed):
        await failing.run()
    event, failure = told[-2:]
    assert (event.kind, event.facts["job"]) == ("job failed", "fake")
    assert event.facts["remarks"] == failure.remarks == ["A disk is excluded."]
    assert event.facts["attention"] == failure.attention == ["No lock.", "Application was required."]
    assert (failure.point, failure.as_dict()["errors"][0]["text"]) == ("", "The disk is gone.")
