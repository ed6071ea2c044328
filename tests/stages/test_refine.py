"""Refine on spans, against plain arrays."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import CLUSTER, SPAN, BufferPool, DigestedSpan, Extents, KiB, Span, Unchanged
from pipeline.testing import check_stage
from pipeline.testing.views import all_free, covers, plain
from stages import Blake3, MemoryIndex, Refine
from vadpipe.kernels import cut_span, digest_span, mark_zeros
from vadpipe.kernels.refine import WORTH, Refiner, equal_clusters

PLACE = 8 * SPAN
IDENTITY = Blake3(b"k" * 32)


@dataclass
class Previous:
    """The previous point as an array: `content` lies at PLACE, `unreadable` clusters of it cannot be read."""

    content: np.ndarray
    known: set[bytes] = field(default_factory=set)
    unreadable: set[int] = field(default_factory=set)
    asked: list[Extents] = field(default_factory=list)

    def stored(self, digest):
        return np.array([row.tobytes() in self.known for row in digest], dtype=np.bool_)

    def read(self, into, offset, wanted):
        self.asked.append(wanted)
        into[:] = 77  # what was there before
        filled = np.zeros(len(into) // CLUSTER, np.bool_)
        for start, length in wanted:
            for low in range(start - PLACE, start - PLACE + length, CLUSTER):
                if low // CLUSTER not in self.unreadable:
                    piece = self.content[low : min(low + CLUSTER, len(self.content))]
                    at = low + PLACE - offset
                    into[at : at + len(piece)] = piece
                    filled[at // CLUSTER] = True
        return filled


def digested(content, data=None, zeros=False):
    pool = BufferPool(SPAN)
    pool.acquire_nowait().array[:] = 255  # what lies behind the span is undefined
    span = Span.of(content.tobytes(), PLACE, pool=pool)
    if data is not None:
        span = replace(span, data=data)
    marked = mark_zeros(span) if zeros else span
    return digest_span(cut_span(marked), IDENTITY) if isinstance(marked, Span) else None


def noise(clusters, seed=1):
    return np.random.default_rng(seed).integers(1, 256, clusters * CLUSTER, dtype=np.uint8)


def chunks_of(span):
    return list(zip(span.cut.chunk_offset.tolist(), span.cut.chunk_length.tolist(), strict=True))


def check_sound(before, after, now, then):
    """What is left over the previous bytes is the disk, named and cut as promised; sums agree."""
    made = then.copy()
    data = Extents.empty()
    read = after.read if isinstance(after, Unchanged) else after.span.unchanged_read
    if isinstance(after, DigestedSpan):
        data = after.data
        for (offset, length), name in zip(chunks_of(after), after.digest, strict=True):
            piece = after.span.bytes_of(offset, length)
            assert IDENTITY.digest(piece.data) == name.tobytes()
            made[offset - PLACE : offset - PLACE + length] = piece
            assert offset % CLUSTER == 0
        assert Extents.of(chunks_of(after)) == data
        assert sum(length for _, length in chunks_of(after)) == data.total
        assert sorted(chunks_of(after)) == chunks_of(after)
        assert after.span.zeros == before.span.zeros
        for offset, length in after.span.zeros:
            made[offset - PLACE : offset - PLACE + length] = 0
    assert data.total + read == before.data.total
    assert data | before.data == before.data
    for offset, length in before.data:
        low = offset - PLACE
        assert np.array_equal(made[low : low + length], now[low : low + length])


kinds = st.lists(
    st.tuples(
        st.sampled_from(["equal", "changed", "to zero", "from zero", "both zero", "outside"]),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=14,
)


@pytest.mark.slow
@settings(max_examples=150)
@given(
    kinds,
    st.integers(0, 1 << 30),
    st.sampled_from([0, 512, 4095]),
    st.booleans(),
    st.sets(st.integers(0, 300), max_size=3),
)
def test_what_stays_is_what_differs(runs, seed, short, zeros, unreadable):
    chance = np.random.default_rng(seed)
    now_parts, then_parts, outside = [], [], []
    reached = 0
    for kind, clusters in runs:
        size = clusters * CLUSTER
        one, two = (chance.integers(1, 256, size, dtype=np.uint8) for _ in range(2))
        if kind == "changed" and clusters % 2:  # in one byte of each cluster only
            two = one.copy()
            two[chance.integers(0, CLUSTER) :: CLUSTER] ^= 1
        zero = np.zeros(size, np.uint8)
        now_parts.append({"to zero": zero, "both zero": zero}.get(kind, one))
        then_parts.append({"equal": one, "from zero": zero, "both zero": zero}.get(kind, two))
        if kind == "outside":
            outside.append((PLACE + reached, size))
        reached += size
    now, then = np.concatenate(now_parts), np.concatenate(then_parts)
    now, then = now[: len(now) - short], then[: len(then) - short]
    data = Extents.whole(len(now), PLACE) - Extents.of(outside)
    before = digested(now, data, zeros) if len(data) else None
    if before is None:  # nothing but zeros
        return
    known = {name.tobytes() for name in before.digest[:: 2 + seed % 5]}
    previous = Previous(then, known, unreadable)
    after = Refiner(previous)(before)
    check_sound(before, after, now, then)
    differs = [
        not np.array_equal(now[low : low + CLUSTER], then[low : low + CLUSTER])
        for low in range(0, len(now), CLUSTER)
    ]
    if isinstance(after, Unchanged):
        return
    whole = dict(chunks_of(before))
    names = {name.tobytes() for name in before.digest}
    for (offset, length), name in zip(chunks_of(after), after.digest, strict=True):
        first, last = (offset - PLACE) // CLUSTER, -(-(offset - PLACE + length) // CLUSTER)
        if name.tobytes() in names and whole.get(offset) == length:
            continue  # as it was
        assert all(differs[first:last])
        assert not unreadable & set(range(first, last))
    for (offset, length), name in zip(chunks_of(before), before.digest, strict=True):
        first, last = (offset - PLACE) // CLUSTER, -(-(offset - PLACE + length) // CLUSTER)
        if name.tobytes() in known or unreadable & set(range(first, last)):
            assert Extents.whole(length, offset) & after.data == Extents.whole(length, offset)


def test_one_changed_cluster_is_all_that_stays():
    then, now = noise(64), noise(64)
    now[20 * CLUSTER + 100] ^= 1
    after = Refiner(Previous(then))(digested(now))
    assert chunks_of(after) == [(PLACE + 20 * CLUSTER, CLUSTER)]
    assert after.span.unchanged_read == 63 * CLUSTER


def test_an_equal_span_is_unchanged_and_its_buffer_free():
    pool = BufferPool(SPAN)
    content = noise(64)
    span = Span.of(content.tobytes(), PLACE, pool=pool)
    after = Refiner(Previous(content))(digest_span(cut_span(span), IDENTITY))
    assert after == Unchanged(PLACE, 64 * CLUSTER, read=64 * CLUSTER)
    assert all_free(pool)


def test_a_span_that_is_equal_or_zero_stays_for_its_zeros():
    then, now = noise(64), noise(64)
    now[32 * CLUSTER :] = 0
    after = Refiner(Previous(then))(digested(now, zeros=True))
    assert chunks_of(after) == []
    assert after.span.zeros == Extents.whole(32 * CLUSTER, PLACE + 32 * CLUSTER)
    assert (after.span.zero_read, after.span.unchanged_read) == (32 * CLUSTER, 32 * CLUSTER)


def test_a_chunk_that_changed_nearly_everywhere_stays_whole():
    now = noise(256)
    before = digested(now)
    offset, length = max(chunks_of(before), key=lambda chunk: chunk[1])
    first, count = (offset - PLACE) // CLUSTER, length // CLUSTER
    for equal in (count // WORTH - 1, count // WORTH + 1):
        then = noise(256, seed=2)
        then[first * CLUSTER : (first + equal) * CLUSTER] = now[first * CLUSTER : (first + equal) * CLUSTER]
        after = Refiner(Previous(then))(digested(now))
        assert ((offset, length) in chunks_of(after)) == (equal * WORTH < count)
        check_sound(before, after, now, then)


def test_equal_zeros_inside_a_chunk_do_not_split_it():
    then, now = noise(64, seed=2), noise(64)
    for low in range(4, 60, 6):
        now[low * CLUSTER : (low + 3) * CLUSTER] = then[low * CLUSTER : (low + 3) * CLUSTER] = 0
    before = digested(now, zeros=True)
    after = Refiner(Previous(then))(before)
    assert chunks_of(after) == chunks_of(before)
    assert after.span.unchanged_read == 0


def test_what_is_stored_or_cannot_be_read_stays_whole():
    then, now = noise(64), noise(64)
    now[:: 8 * CLUSTER] ^= 1
    before = digested(now)
    known = {name.tobytes() for name in before.digest}
    assert Refiner(Previous(then, known))(before) is before
    previous = Previous(then, unreadable=set(range(64)))
    assert Refiner(previous)(before) is before
    assert previous.asked == [before.data]


def test_long_runs_of_changed_clusters_are_cut_by_content():
    then = noise(256, seed=2)
    now = noise(256)
    now[::CLUSTER][::2] = 1  # nothing special: content decides
    then[: 8 * CLUSTER] = now[: 8 * CLUSTER]
    after = Refiner(Previous(then))(digested(now))
    assert len(chunks_of(after)) > 4
    assert all(length <= 256 * KiB for _, length in chunks_of(after))


def test_only_what_is_wanted_is_compared():
    now, then = noise(8), noise(8)
    compared = np.array([True, True, False, False, True, False, True, True])
    then[CLUSTER] ^= 1
    assert equal_clusters(now, then, compared).tolist() == [1, 0, 0, 0, 1, 0, 1, 1]


@dataclass(frozen=True)
class Holding:
    """An index that has a previous point."""

    disk: object
    identity = IDENTITY

    def previous_content(self, disk):
        previous = Previous(disk.bytes_at(PLACE, disk.capacity - PLACE).copy())
        previous.content[:: 11 * CLUSTER] ^= 1
        return previous


@pytest.mark.slow
async def test_the_stage_keeps_the_rules(spans, disk):
    def items():
        return spans(lambda span: digest_span(cut_span(span), IDENTITY))

    class Held(Holding):
        def previous_content(self, disk):
            before = np.array(disk.bytes_at(0, disk.capacity))
            before[:: 11 * CLUSTER] ^= 1

            class Whole(Previous):
                def read(self, into, offset, wanted):
                    filled = np.zeros(len(into) // CLUSTER, np.bool_)
                    for start, length in wanted:
                        into[start - offset : start - offset + length] = before[start : start + length]
                        filled[(start - offset) // CLUSTER : -(-(start - offset + length) // CLUSTER)] = True
                    return filled

            return Whole(before)

    views = await check_stage(lambda: Refine(Held(disk), disk), items, view=plain)
    assert covers(views, disk.capacity)
    assert sum(facts.get("unchanged_read", 0) for _, facts in views) > 0
    assert all_free(disk.pool)


async def test_without_a_previous_point_everything_passes(spans, disk):
    index = MemoryIndex(IDENTITY)
    kernel = Refine(index, disk).kernel()
    for item in spans(lambda span: digest_span(cut_span(span), IDENTITY)):
        assert kernel(item) is item
        if hasattr(item, "release"):
            item.release()
