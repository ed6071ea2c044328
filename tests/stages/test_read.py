import pytest

from pipeline import SPAN, BufferPool, Extents, GiB, SourceError, TransferFailed, Unchanged, Window, Zeros
from pipeline.testing.checks import check_stage
from pipeline.testing.fakes import FaultyDisk, Items, PatternDisk
from pipeline.testing.views import all_free, covers, plain
from sinks import NullSink
from stages import AllocatedExtents, ReadSpans
from stages.read import pieces


@pytest.mark.slow
async def test_spans_hold_the_bytes_of_the_disk():
    disk = PatternDisk(5 * SPAN + 512, hole_ratio=0.4)
    window = Window(
        0, disk.capacity, Extents.of([(4096, SPAN), (3 * SPAN, 8192)]), Extents.of([(2 * SPAN, SPAN)])
    )
    views = await check_stage(lambda: ReadSpans(disk), lambda: [window], view=plain)
    assert covers(views, disk.capacity)
    assert [kind for kind, _ in views] == ["Span", "Span", "Zeros", "Span", "Unchanged"]
    for kind, facts in views:
        if kind == "Span":
            for (offset, length), data in zip(facts["data"], facts["bytes"], strict=True):
                assert data == disk.bytes_at(offset, length).tobytes()
    assert all_free(disk.pool)


def test_a_window_without_data_is_only_gaps():
    window = Window(0, 1000 * GiB, Extents.empty(), Extents.of([(GiB, GiB)]))
    assert list(pieces(window)) == [Unchanged(0, GiB), Zeros(GiB, GiB), Unchanged(2 * GiB, 998 * GiB)]


def test_pieces_lie_on_fixed_borders_whatever_the_extents():
    data = Extents.of([(SPAN - 4096, 8192), (5 * SPAN + 4096, 4096)])
    cut = [piece for piece in pieces(Window(0, 8 * SPAN, data, Extents.empty())) if isinstance(piece, Window)]
    assert [(piece.offset, piece.length) for piece in cut] == [(0, SPAN), (SPAN, SPAN), (5 * SPAN, SPAN)]


async def test_one_buffer_is_enough():
    disk = PatternDisk(6 * SPAN, pool=BufferPool(SPAN))
    receipt = await (AllocatedExtents(disk) | ReadSpans(disk, ahead=3) | NullSink()).run()
    assert receipt.capacity == 6 * SPAN


@pytest.mark.parametrize("nth", range(1, 7))
async def test_a_failing_read_fails_the_pipeline(nth):
    disk = FaultyDisk(PatternDisk(6 * SPAN, hole_ratio=0), "read", nth)
    with pytest.raises(TransferFailed) as failed:
        await (AllocatedExtents(disk) | ReadSpans(disk) | NullSink()).run()
    assert failed.group_contains(SourceError, match="Injected")


async def test_windows_are_read_one_after_the_other():
    disk = PatternDisk(4 * SPAN, hole_ratio=0)
    half = [
        Window(place, 2 * SPAN, Extents.whole(2 * SPAN, place), Extents.empty()) for place in (0, 2 * SPAN)
    ]
    assert (await (Items(half) | ReadSpans(disk) | NullSink()).run()).new == 4 * SPAN
