from itertools import pairwise

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline import (
    ConfigError,
    MiB,
    Span,
)
from pipeline.testing.checks import check_stage
from pipeline.testing.views import all_free, covers, plain
from stages import (
    Blake3,
    Compress,
    Dedupe,
    Digest,
    MemoryIndex,
    Uncompressed,
    Zstd,
)
from vadpipe.kernels import cut_span, dedupe_span, mark_zeros
from vadpipe.kernels.dedupe import FRAME, frame_borders


def digested(span):
    marked = mark_zeros(span)
    return Digest(Blake3()).kernel()(cut_span(marked)) if hasattr(marked, "buffer") else marked


@pytest.fixture
def digests(spans):
    return lambda: spans(digested)


async def test_every_chunk_gets_a_place_and_new_ones_a_frame(disk, digests):
    views = await check_stage(lambda: FreshDedupe(), digests, view=plain)
    assert covers(views, disk.capacity)
    content = {}
    new = known = 0
    for kind, facts in views:
        if kind != "DedupedSpan":
            continue
        rows = list(
            zip(
                facts["chunk_offset"],
                facts["chunk_length"],
                facts["frame"],
                facts["place"],
                facts["known"],
                strict=True,
            )
        )
        for frame in facts["frames"]:
            low, high = rows[frame["first"]][0], rows[frame["last"] - 1][0] + rows[frame["last"] - 1][1]
            assert high - low <= FRAME
            content[frame["number"]] = disk.bytes_at(low, high - low)
        for offset, length, frame, place, is_known in rows:
            assert np.array_equal(content[frame][place : place + length], disk.bytes_at(offset, length))
            new, known = new + (not is_known), known + is_known
    assert new
    assert known
    assert sum(len(data) for data in content.values()) == sum(
        length
        for kind, facts in views
        if kind == "DedupedSpan"
        for length, is_known in zip(facts["chunk_length"], facts["known"], strict=True)
        if not is_known
    )


class FreshDedupe(Dedupe):
    """An index of its own for every run, so that a second run is equal to the first."""

    def __init__(self):
        super().__init__(MemoryIndex())

    def kernel(self):
        return Dedupe(MemoryIndex()).kernel()


def test_what_an_index_knows_is_not_stored_again(digests):
    index = MemoryIndex()
    first = [dedupe_span(span, index) for span in digests() if hasattr(span, "digest")]
    again = [dedupe_span(span, index) for span in digests_again(digests, first) if hasattr(span, "digest")]
    for one, two in zip(first, again, strict=True):
        assert two.assignment.known.all()
        assert not two.assignment.frames
        assert np.array_equal(one.assignment.frame, two.assignment.frame)
        assert np.array_equal(one.assignment.place, two.assignment.place)


def digests_again(digests, spans):
    for span in spans:
        span.release()
    return digests()


rows = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(4, 64)), max_size=60)


@given(rows)
def test_frames_are_runs_of_new_chunks_side_by_side(chunks):
    """Rows: is new, lies right behind the one before, clusters."""
    offset, length, reached = [], [], 0
    for _, adjacent, clusters in chunks:
        reached += 0 if adjacent else 4096
        offset.append(reached)
        length.append(clusters * 4096)
        reached += clusters * 4096
    new = np.array([row[0] for row in chunks], dtype=np.bool_)
    offset, length = np.array(offset, dtype=np.int64), np.array(length, dtype=np.int64)
    borders = frame_borders(new, offset, length)
    assert [place for low, high in borders for place in range(low, high)] == np.flatnonzero(new).tolist()
    for low, high in borders:
        assert (offset[low + 1 : high] == (offset + length)[low : high - 1]).all()
        assert length[low:high].sum() <= FRAME
    for (_, high), (low, end) in pairwise(borders):
        together = high == low and offset[low] == (offset + length)[low - 1]
        assert not together or length[borders[borders.index((low, end)) - 1][0] : low + 1].sum() > FRAME


@pytest.mark.parametrize("codec", [Zstd(1), Zstd(3), Zstd(-1), Uncompressed()])
async def test_compress_encodes_new_frames_and_gives_buffers_back(disk, digests, codec):
    def deduped():
        index = MemoryIndex()
        return [dedupe_span(span, index) if hasattr(span, "digest") else span for span in digests()]

    views = await check_stage(lambda: Compress(codec), deduped, view=plain)
    assert covers(views, disk.capacity)
    decoded = 0
    for kind, facts in views:
        for frame in facts["frames"] if kind == "FramedSpan" else ():
            data = frame["payload"]
            if frame["codec"] == "zstd":
                data = zstandard.decompress(data)
            assert len(data) == frame["length"] == sum(frame["chunk_length"])
            decoded += len(data)
    assert decoded
    assert all_free(disk.pool)


def test_a_frame_that_does_not_shrink_is_stored_as_it_is(disk):
    noise = np.random.default_rng(1).bytes(MiB)
    span = Span.of(noise, pool=disk.pool)
    framed = Compress(Zstd(1)).kernel()(dedupe_span(digested(span), MemoryIndex()))
    assert [frame.codec for frame in framed.frames] == ["raw"]
    assert framed.frames[0].payload == noise


def test_an_impossible_level_is_a_config_error():
    with pytest.raises(ConfigError, match="no level 23"):
        Zstd(23)


def test_a_memory_index_grows():
    digest = np.random.default_rng(2).integers(0, 256, (150_000, 32), dtype=np.uint8)
    index = MemoryIndex()
    length = np.full(1000, 4096)
    offset = np.cumsum(length) - length
    parts = [index.assign(digest[low : low + 1000], offset, length) for low in range(0, len(digest), 1000)]
    assert not any(part.known.any() for part in parts)
    for low, part in enumerate(parts):
        again = index.assign(digest[low * 1000 :][:1000], offset, length)
        assert again.known.all()
        assert np.array_equal(again.frame, part.frame)
        assert np.array_equal(again.place, part.place)
    assert sum(len(part.frames) for part in parts) == 150 * 4  # 1000 chunks of 4 KiB are 3.9 MiB
