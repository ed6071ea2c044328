"""MarkZeros, CutChunks, Digest: the kernels that share one thread trip."""

from dataclasses import replace

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import CLUSTER, SPAN, BufferPool, Extents, Span, Zeros
from pipeline.testing.checks import check_stage
from pipeline.testing.views import all_free, covers, plain
from stages import Blake3, CutChunks, Digest, MarkZeros
from vadpipe.kernels import cut, cut_span, mark_zeros
from vadpipe.kernels.chunks import LARGEST, SMALLEST


def span_of(data: bytes, extents: Extents | None = None) -> Span:
    pool = BufferPool(SPAN)
    pool.acquire_nowait().array[:] = 255  # what lies behind the span is undefined
    span = Span.of(data, 8 * SPAN, pool=pool)
    return span if extents is None else replace(span, data=extents)


@pytest.mark.slow
async def test_mark_zeros_moves_zero_runs(disk, spans):
    views = await check_stage(MarkZeros, spans, view=plain)
    assert covers(views, disk.capacity)
    for kind, facts in views:
        if kind == "Span":
            for offset, length in facts["zeros"]:
                assert not disk.bytes_at(offset, length).any()
            assert facts["zero_read"] == facts["zeros"].total  # all of it was in `data` before
    assert all_free(disk.pool)


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=12),
    st.sampled_from([0, 512, 1024]),
)
def test_zero_runs_of_four_clusters_are_found(runs, tail):
    data = b"".join((b"\0" if zero else b"x") * CLUSTER * count for zero, count in runs) + bytes(tail)
    marked = mark_zeros(span_of(data))
    if isinstance(marked, Zeros):
        assert not any(data)
        assert marked == Zeros(8 * SPAN, len(data), read=len(data))
        return
    assert marked.data | marked.zeros == Extents.whole(len(data), 8 * SPAN)
    assert len(marked.data & marked.zeros) == 0
    for offset, length in marked.zeros:
        start = offset - 8 * SPAN
        assert not any(data[start : start + length])
        assert length >= 4 * CLUSTER - tail or start + length == len(data)


def test_a_changed_cluster_that_became_zero_is_zero_even_alone():
    extents = Extents.of([(8 * SPAN + 2 * CLUSTER, CLUSTER), (8 * SPAN + 5 * CLUSTER, CLUSTER)])
    data = bytes(5 * CLUSTER) + b"x" * CLUSTER
    marked = mark_zeros(span_of(data, extents))
    assert marked.zeros == Extents.of([(8 * SPAN + 2 * CLUSTER, CLUSTER)])
    assert marked.data == Extents.of([(8 * SPAN + 5 * CLUSTER, CLUSTER)])


@pytest.mark.slow
async def test_chunks_cover_the_data_within_their_limits(disk, spans):
    views = await check_stage(CutChunks, lambda: spans(mark_zeros), view=plain)
    for kind, facts in views:
        if kind == "CutSpan":
            chunks = list(zip(facts["chunk_offset"], facts["chunk_length"], strict=True))
            assert Extents.of(chunks) == facts["data"]
            assert sum(length for _, length in chunks) == facts["data"].total
            ends = set(facts["data"].end.tolist())
            assert all(SMALLEST <= length <= LARGEST or offset + length in ends for offset, length in chunks)


@settings(max_examples=25)
@given(st.integers(0, 1 << 30), st.integers(1, 40))
def test_content_decides_where_chunks_end_not_its_place(seed, shift):
    """Behind the same content moved by whole clusters, cuts fall at the same places again."""
    data = np.random.default_rng(seed).bytes(1 << 20)
    plain_ends = cut(memoryview(data))
    prefix = np.random.default_rng(seed + 1).bytes(shift * CLUSTER)
    moved_ends = [end - len(prefix) for end in cut(memoryview(prefix + data))]
    assert len(set(plain_ends[-8:]) & set(moved_ends)) >= 4


def test_chunks_have_the_promised_mean():
    data = np.random.default_rng(5).bytes(SPAN)
    assert 45 * 1024 < len(data) / len(cut(memoryview(data))) < 90 * 1024


@pytest.mark.slow
async def test_digests_are_keyed_blake3(disk, spans):
    key = bytes(range(32))
    views = await check_stage(
        lambda: Digest(Blake3(key)), lambda: spans(lambda span: cut_span(span)), view=plain
    )
    for kind, facts in views:
        if kind == "DigestedSpan":
            for offset, length, digest in zip(
                facts["chunk_offset"], facts["chunk_length"], facts["digest"], strict=True
            ):
                assert bytes(digest) == blake3(disk.bytes_at(offset, length).tobytes(), key=key).digest()


def test_the_key_is_in_no_repr():
    assert "313" not in repr(Digest(Blake3(b"1" * 32)))
    assert repr(Blake3(b"1" * 32)) == "Blake3(key=...)"
    assert repr(Blake3()) == "Blake3()"
