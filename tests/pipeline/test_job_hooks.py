"""Hooks of a job: called after its end, and harmless to it."""

import pytest
import trio
import trio.lowlevel

from pipeline import Job, MoverError, SourceError, TransferFailed
from pipeline.errors import leaves
from pipeline.events import observed
from pipeline.testing import FakeMachine, FakeTarget, FaultyDisk, PatternDisk
from sinks import NullSink
from stages import AllocatedExtents, ReadSpans


def path(disk, point):
    return AllocatedExtents(disk) | ReadSpans(disk) | NullSink()


def broken_disk():
    return FaultyDisk(PatternDisk(1 << 20), "allocated", 1, SourceError("The disk is gone."))


def job(disks=(), **settings):
    return Job(FakeMachine(list(disks)), path, into=FakeTarget(), name="nightly", **settings)


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
        await job([broken_disk()], on_failure=[told.append], on_success=[told.append]).run()
    assert any(isinstance(leaf, MoverError) for leaf in leaves(failed.value))
    [failure] = told
    assert (failure.job, failure.machine) == ("nightly", "fake")
    assert failure.errors == ["The disk is gone."]


async def test_a_cancelled_job_calls_its_hooks():
    told = []

    class Hanging(FakeMachine):
        def capture(self):
            return _hanging()

    with trio.move_on_after(0.05):
        await Job(Hanging([]), path, FakeTarget(), on_failure=[told.append]).run()
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
        await job([broken_disk()], on_failure=[mail]).run()
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
    assert told[-1].facts["errors"] == ["The disk is gone."]
