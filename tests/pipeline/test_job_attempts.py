"""A job whose finisher looks at the capture first: another capture, no capture, or the evidence known early."""

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio

from pipeline import Evidence, Examiner, Job, LeftBehind, MiB, QuiescingShort, observed
from pipeline.testing.fakes import FakeMachine, FakeTarget, PatternDisk
from stages import AllocatedExtents, MarkZeros, ReadSpans
from tests.pipeline.test_job import Count, Finish

GOOD = Evidence("application", satisfied=True, reasons=[])


def path(disk, point):
    return AllocatedExtents(disk) | ReadSpans(disk) | MarkZeros() | Count(disk)


@dataclass
class Examine:
    """Gives the outcomes one after the other, and notes what it was asked."""

    outcomes: list
    asked: list = field(default_factory=list)

    async def examine(self, capture, attempt):
        self.asked.append(attempt)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def finish(self, capture):
        self.asked.append("finish")
        return GOOD


def again(after_s=5.0):
    return QuiescingShort("It was only half quiesced.", retry_after_s=after_s)


@pytest.fixture
def disk():
    return PatternDisk(2 * MiB, key="scsi0:0", seed=1)


def test_a_finisher_is_an_examiner_by_its_method():
    assert isinstance(Examine([]), Examiner)
    assert not isinstance(Finish(GOOD), Examiner)


async def test_evidence_known_early_is_not_asked_for_again(disk):
    early = Evidence("file-system", satisfied=True, reasons=["early"])
    finisher = Examine([early])
    receipt = await Job(FakeMachine([disk]), path, into=FakeTarget(), finish=[finisher]).run()
    assert (finisher.asked, receipt.evidence) == ([0], early)


async def test_what_is_not_known_early_is_asked_for_at_the_end(disk):
    finisher = Examine([None])
    receipt = await Job(FakeMachine([disk]), path, into=FakeTarget(), finish=[finisher]).run()
    assert (finisher.asked, receipt.evidence) == ([0, "finish"], GOOD)


async def test_another_capture_is_taken_before_anything_is_read(disk, autojump_clock):
    machine, target = FakeMachine([Unread(disk)]), FakeTarget()
    finisher = Examine([again(5), again(7), QuiescingShort("Still not.")])
    events = []
    with pytest.raises(QuiescingShort, match="Still not"), observed(lambda event: events.append(event)):
        await Job(machine, path, into=target, finish=[finisher]).run()
    assert finisher.asked == [0, 1, 2]
    assert machine.released == ["released"] * 3
    assert target.published == []
    assert trio.current_time() >= 12
    told = [event.facts["again_after_s"] for event in events if event.kind == "capture given up"]
    assert told == [5, 7]


class Unread:
    """A disk that nobody may read."""

    def __init__(self, disk):
        self.key, self.label, self.capacity, self.pool = disk.key, disk.label, disk.capacity, disk.pool

    async def allocated(self, offset, length):
        raise AssertionError("nothing is to be read")


async def test_the_capture_that_is_good_enough_is_read_and_the_others_are_told(disk):
    machine, target = FakeMachine([disk]), FakeTarget()
    receipt = await Job(machine, path, into=target, finish=[Examine([again(0), GOOD])]).run()
    assert receipt.point == "point 1"
    assert len(target.published) == 1
    assert receipt.remarks == ["A snapshot was given up for another one. It was only half quiesced."]
    assert receipt.attention == []
    assert machine.released == ["released"] * 2


@dataclass(frozen=True)
class Leaking(FakeMachine):
    @asynccontextmanager
    async def capture(self):
        try:
            async with super().capture() as capture:
                yield replace(capture, snapshots_left=1)
        except BaseException as exc:
            leaked = LeftBehind("snapshot-7 stays behind.")
            raise BaseExceptionGroup("both", [exc, leaked]) from None


async def test_no_other_snapshot_is_put_on_top_of_one_that_cannot_be_removed(disk):
    finisher = Examine([again(0), GOOD])
    with pytest.raises(ExceptionGroup) as failed:
        await Job(Leaking([disk]), path, into=FakeTarget(), finish=[finisher]).run()
    assert {type(one) for one in failed.value.exceptions} == {QuiescingShort, LeftBehind}
    assert finisher.asked == [0]


async def test_the_shortfalls_are_what_needs_attention(disk):
    evidence = Evidence("application-partial", False, ["..."], shortfalls=("sales is not proven.",))
    receipt = await Job(FakeMachine([disk]), path, into=FakeTarget(), finish=[Finish(evidence)]).run()
    assert receipt.attention == ["sales is not proven."]


async def test_a_cancelled_wait_for_another_capture_ends_the_job(disk):
    machine = FakeMachine([disk])
    with trio.move_on_after(0.05) as scope:
        await Job(machine, path, into=FakeTarget(), finish=[Examine([again(1000)])]).run()
    assert scope.cancelled_caught
    assert machine.released == ["released"]
