from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
import trio

from pipeline import (
    ConfigError,
    ContractError,
    Disk,
    DiskReceipt,
    Evidence,
    Job,
    LeftBehind,
    MiB,
    PipelineReport,
    Sink,
    SinkError,
    Source,
    SourceError,
    TransferFailed,
    Window,
)
from pipeline.plan import plan
from pipeline.testing.fakes import FakeMachine, FakeTarget, FaultyDisk, PatternDisk
from stages import AllocatedExtents, MarkZeros, ReadSpans

SIZE = 9 * MiB


@dataclass(frozen=True)
class Count(Sink[object, DiskReceipt]):
    disk: Disk

    async def run(self, inbox):
        read = 0
        async for item in inbox:
            if hasattr(item, "release"):
                read += item.data.total
                item.release()
        disk = self.disk
        return DiskReceipt(disk.key, disk.label, disk.capacity, "", read, 0, 0, 0, 0, read, 0)


def path(disk, point):
    return AllocatedExtents(disk) | ReadSpans(disk) | MarkZeros() | Count(disk)


def disks():
    return [PatternDisk(SIZE, key="scsi0:0", seed=1), PatternDisk(SIZE, key="scsi0:1", seed=2)]


async def test_a_job_publishes_one_point_of_all_disks():
    machine, target = FakeMachine(disks()), FakeTarget()
    watched = []
    receipt = await Job(machine, path, into=target).run(lambda disk, report: watched.append(disk.key))
    assert receipt.point == "point 1"
    assert [run.receipt.key for run in receipt.disks] == ["scsi0:0", "scsi0:1"]
    assert sorted(watched) == ["scsi0:0", "scsi0:1"]
    assert receipt.disks[0].mode == "full"
    assert receipt.disks[0].allocated == receipt.disks[0].receipt.read + zeros(machine.disks[0])
    assert receipt.attention == []
    assert machine.released == ["released"]
    assert receipt.as_dict()["quiescing"] == {"asked": "none", "reached": None, "reasons": []}


def zeros(disk):
    return int((disk._kind == 1).sum()) * 65536


@pytest.mark.parametrize("method", ["allocated", "read"])
async def test_a_failing_disk_publishes_nothing_and_is_named(method):
    good, bad = disks()
    machine, target = FakeMachine([good, FaultyDisk(bad, method, 1)]), FakeTarget()
    with pytest.raises(TransferFailed) as failed:
        await Job(machine, path, into=target).run()
    [error] = failed.value.exceptions
    assert isinstance(error, SourceError)
    assert "disk pattern scsi0:1 (scsi0:1)" in error.__notes__
    assert target.published == []
    assert machine.released == ["released"]


async def test_failures_of_several_disks_are_all_reported():
    class Both(FaultyDisk):
        async def read(self, buffer, offset, wanted):
            await meet.wait()
            raise SourceError(f"{self.key} is gone.")

    meet = trio.Event()
    faulty = [Both(disk, "", 0) for disk in disks()]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(set_soon, meet)
        with pytest.raises(TransferFailed) as failed:
            await Job(FakeMachine(faulty), path, into=FakeTarget()).run()
    assert {str(error) for error in failed.value.exceptions} == {"scsi0:0 is gone.", "scsi0:1 is gone."}


async def set_soon(event):
    await trio.sleep(0.05)
    event.set()


@dataclass(frozen=True)
class Leaking(FakeMachine):
    """Cannot release what it captured."""

    fails: bool = True

    @asynccontextmanager
    async def capture(self):
        async with super().capture() as capture:
            yield replace(capture, snapshots_left=1)
        raise LeftBehind("snapshot-7 stays behind.")


async def test_a_snapshot_left_behind_does_not_cost_the_published_point():
    target = FakeTarget()
    receipt = await Job(Leaking(disks()), path, into=target).run()
    assert receipt.point == "point 1"
    assert receipt.attention == ["snapshot-7 stays behind."]
    assert receipt.snapshots_left == 1


async def test_a_failure_and_a_snapshot_left_behind_are_both_reported():
    good, bad = disks()
    with pytest.raises(TransferFailed) as failed:
        await Job(Leaking([good, FaultyDisk(bad, "read", 1)]), path, into=FakeTarget()).run()
    # The clean-up's own error hides nothing: it names the one it happened under.
    [error] = failed.value.exceptions
    assert isinstance(error, SourceError | LeftBehind)


class Finish:
    def __init__(self, evidence):
        self.evidence = evidence

    async def finish(self, capture):
        return self.evidence


async def test_quiescing_below_what_was_asked_needs_attention():
    evidence = Evidence("crash", satisfied=False, reasons=["no manifest"])
    receipt = await Job(FakeMachine(disks()), path, into=FakeTarget(), finish=[Finish(evidence)]).run()
    assert receipt.attention == ["Quiescing reached crash, but none was requested."]
    assert receipt.as_dict()["quiescing"] == {"asked": "none", "reached": "crash", "reasons": ["no manifest"]}


@dataclass(frozen=True)
class Weaker(FakeMachine):
    """Could not hold everything still, nor as it was asked."""

    @asynccontextmanager
    async def capture(self):
        async with super().capture() as capture:
            yield replace(capture, left_out=["One disk is left out."], attention=["It was not quiesced."])


async def test_what_a_capture_could_not_do_needs_attention():
    receipt = await Job(Weaker(disks()), path, into=FakeTarget()).run()
    assert receipt.attention == ["One disk is left out.", "It was not quiesced."]


class BadTarget(FakeTarget):
    @asynccontextmanager
    async def open(self):
        raise SinkError("The store is no store.")
        yield


async def test_a_bad_store_is_found_before_anything_is_captured():
    machine = FakeMachine(disks())
    with pytest.raises(SinkError):
        await Job(machine, path, into=BadTarget()).run()
    assert machine.released == []


async def test_cancelling_a_job_releases_the_capture():
    class Stuck(FaultyDisk):
        async def read(self, buffer, offset, wanted):
            await trio.sleep_forever()

    machine, target = FakeMachine([Stuck(disks()[0], "", 0)]), FakeTarget()
    with trio.move_on_after(0.05) as scope:
        await Job(machine, path, into=target).run()
    assert scope.cancelled_caught
    assert machine.released == ["released"]
    assert target.published == []


def test_plan_describes_without_running():
    machine = replace(FakeMachine(disks()), pool_size=32 * MiB)
    planned = plan(Job(machine, path, into=FakeTarget(), name="nightly"))
    assert planned.stages == [
        "AllocatedExtents(disk=disk)",
        "ReadSpans(disk=disk, ahead=2)",
        "MarkZeros()",
        "Count(disk=disk)",
    ]
    assert planned.memory == 32 * MiB
    assert planned.lines()[0] == "job nightly"
    assert machine.released == []


async def test_a_source_without_a_receipt_is_reported_as_unknown():
    @dataclass(frozen=True)
    class Bare(Source[Window]):
        disk: object

        async def run(self, outbox):
            await AllocatedExtents(self.disk).run(outbox)

    job = Job(FakeMachine(disks()), lambda disk, point: Bare(disk) | Count(disk), into=FakeTarget())
    run = (await job.run()).disks[0]
    assert (run.mode, run.reason) == ("unknown", "The source of the path gave no receipt.")
    assert (run.allocated, run.changed) == (None, None)


async def test_a_path_that_is_wrong_for_one_disk_fails_before_any_disk_is_read():
    good, bad = disks()
    reads = []

    class Watched(PatternDisk):
        async def read(self, buffer, offset, wanted):
            reads.append(offset)

    def choosing(disk, point):
        return path(disk, point) if disk.key in ("each disk", good.key) else AllocatedExtents(disk)

    machine, target = FakeMachine([Watched(SIZE, key=good.key), bad]), FakeTarget()
    with pytest.raises(ConfigError, match="ends with AllocatedExtents, which is no sink"):
        await Job(machine, choosing, into=target).run()
    assert machine.released == ["released"]
    assert (reads, target.published) == ([], [])


def test_a_receipt_that_is_asked_for_too_early_is_an_error():
    with pytest.raises(ContractError, match="has not ended"):
        assert PipelineReport([]).receipt
