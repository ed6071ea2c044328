import pytest

from pipeline import (
    ChangedAreas,
    ChangeTrackingInvalid,
    Extents,
    MiB,
    PreviousDisk,
    SourceError,
    SourceReceipt,
    TransferFailed,
)
from pipeline.testing.checks import check_source
from pipeline.testing.fakes import FaultyDisk, PatternDisk
from pipeline.testing.views import covers, plain
from sinks import NullSink
from stages import AllocatedExtents, ChangedExtents
from stages.extents import changed_since

SIZE = 300 * MiB + 512


async def test_allocated_extents_cover_the_disk():
    disk = PatternDisk(SIZE, hole_ratio=0.5)
    views = await check_source(lambda: AllocatedExtents(disk), view=plain)
    assert covers(views, SIZE)
    [(_, window)] = views
    assert window["data"] == (await disk.allocated(0, SIZE)).aligned(4096, SIZE)
    assert window["data"] | window["zeros"] == Extents.whole(SIZE)


async def test_changed_extents_read_what_changed_and_say_what_became_a_hole():
    disk = PatternDisk(SIZE, hole_ratio=0.5)
    previous = PreviousDisk("p1", SIZE, disk.change_id)
    disk.write(10 * MiB, 65536)
    disk.write(200 * MiB, 3 * MiB)
    changed = await changed_since(disk, previous)
    assert changed == Extents.of([(10 * MiB, 65536), (200 * MiB, 3 * MiB)])
    views = await check_source(lambda: ChangedExtents(disk, previous), view=plain)
    assert covers(views, SIZE)
    assert views[0][1]["data"] | views[0][1]["zeros"] == changed


class Unmapping(PatternDisk):
    """Reports a change where nothing is allocated any more."""

    async def allocated(self, offset, length):
        return Extents.of([(0, 12 * MiB)]).within(offset, length)


async def test_changed_and_not_allocated_is_zero():
    disk = Unmapping(SIZE)
    previous = PreviousDisk("p1", SIZE, disk.change_id)
    disk.write(10 * MiB, 4 * MiB)
    [(_, window)] = await check_source(lambda: ChangedExtents(disk, previous), view=plain)
    assert window["data"] == Extents.of([(10 * MiB, 2 * MiB)])
    assert window["zeros"] == Extents.of([(12 * MiB, 2 * MiB)])


@pytest.mark.parametrize(
    ("previous", "reason"),
    [
        (None, "no previous point"),
        (PreviousDisk("p1", SIZE, None), "without change tracking"),
        (PreviousDisk("p1", SIZE - 512, "pattern/1"), "capacity of the disk changed"),
        (PreviousDisk("p1", SIZE, "other/1"), "was reset"),
    ],
)
async def test_without_a_trustworthy_answer_everything_is_read_and_the_receipt_says_why(previous, reason):
    disk = PatternDisk(SIZE)
    views = await check_source(lambda: ChangedExtents(disk, previous), view=plain)
    assert views == await check_source(lambda: AllocatedExtents(disk), view=plain)
    report = await (ChangedExtents(disk, previous) | NullSink()).measure()
    assert isinstance(report.source_receipt, SourceReceipt)
    assert report.source_receipt.mode == "full"
    assert reason in report.source_receipt.reason


class Lying(PatternDisk):
    """Answers with a page that is not what was asked for."""

    def __init__(self, page):
        super().__init__(SIZE)
        self.page = page

    async def changed(self, since, offset):
        return self.page if offset else await super().changed(since, offset)


@pytest.mark.parametrize(
    "page",
    [
        ChangedAreas(65 * MiB, MiB, Extents.empty()),  # skips a part
        ChangedAreas(64 * MiB, 0, Extents.empty()),  # does not go on
        ChangedAreas(64 * MiB, SIZE, Extents.empty()),  # beyond the disk
        ChangedAreas(64 * MiB, MiB, Extents.of([(70 * MiB, 4096)])),  # areas outside
    ],
)
async def test_a_cover_that_is_not_proved_is_not_trusted(page):
    with pytest.raises(ChangeTrackingInvalid):
        await changed_since(Lying(page), PreviousDisk("p1", SIZE, "pattern/1"))


async def test_a_failing_disk_fails_the_source():
    disk = FaultyDisk(PatternDisk(SIZE), "allocated", 1)
    with pytest.raises(TransferFailed) as failed:
        await (AllocatedExtents(disk) | NullSink()).run()
    assert failed.group_contains(SourceError, match="Injected")
