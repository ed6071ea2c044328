"""Splitting reads and queueing requests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.extents import Extents
from pipeline.units import CLUSTER, SPAN, KiB
from vadpipe.vddk import wire
from vadpipe.vddk.requests import Batch, RequestQueue, split

RANGES = st.lists(st.tuples(st.integers(0, SPAN - 1), st.integers(1, 700 * KiB)), max_size=12)


@given(RANGES, st.sampled_from([CLUSTER, 64 * KiB, 1024 * KiB]), st.integers(1, SPAN // 512))
def test_requests_cover_what_is_wanted_and_stay_inside(ranges, size, sectors):
    offset, capacity, position = SPAN, SPAN + sectors * 512, 3 * SPAN
    wanted = Extents.of((offset + start, length) for start, length in ranges).within(offset, sectors * 512)
    batch = Batch()
    requests = split(batch, position, offset, wanted, size, capacity)
    assert batch.unfinished == len(requests)
    covered = Extents.of((request.offset, request.length) for request in requests)
    assert covered == wanted.aligned(CLUSTER, capacity)
    assert covered.total == sum(request.length for request in requests)
    for request in requests:
        assert 0 < request.length <= size
        assert request.position - position == request.offset - offset
        assert request.position % CLUSTER == 0
        assert request.offset + request.length <= capacity


def ids(records: list[bytes]) -> list[int]:
    return [wire.REQUEST.unpack(record)[3] for record in records]


def filled(depth: int, batches: int = 1) -> tuple[RequestQueue, list[Batch]]:
    queue = RequestQueue(depth)
    made = [Batch() for _ in range(batches)]
    for batch in made:
        queue.add(split(batch, 0, 0, Extents.whole(6 * CLUSTER), CLUSTER, SPAN))
    return queue, made


def test_no_more_than_the_depth_is_in_flight():
    queue, (batch,) = filled(depth=4)
    first = ids(queue.take())
    assert (len(first), queue.take(), len(queue)) == (4, [], 2)
    landed = queue.landed(first[2])
    assert landed is not None
    assert landed.offset == 2 * CLUSTER
    assert queue.landed(first[2]) is None
    assert len(queue.take()) == 1
    assert not batch.finished.is_set()


def test_lost_requests_are_read_anew_first_and_in_order():
    queue, _ = filled(depth=3)
    queue.take()
    assert [request.offset for request in queue.recover()] == [0, CLUSTER, 2 * CLUSTER]
    again = [wire.REQUEST.unpack(record)[1] * 512 for record in queue.take()]
    assert again == [0, CLUSTER, 2 * CLUSTER]


def test_an_abandoned_batch_is_finished_by_its_last_request_in_flight():
    queue, (batch, other) = filled(depth=2, batches=2)
    first, second = ids(queue.take())
    queue.abandon(batch)
    assert len(queue) == other.unfinished == 6
    assert not batch.finished.is_set()
    landed = queue.landed(first)
    assert landed is not None
    landed.batch.finish_one()
    assert not batch.finished.is_set()
    queue.recover()  # the child died with the second
    assert batch.finished.is_set()
    assert queue.landed(second) is None
    assert len(queue) == 6


def test_abandoning_all_finishes_every_batch():
    queue, batches = filled(depth=2, batches=3)
    queue.abandon_all()
    assert all(batch.finished.is_set() for batch in batches)
    assert len(queue) == 0


def test_a_buffer_that_was_released_is_refused():
    with pytest.raises(ValueError, match="held"):
        split(Batch(), -SPAN, 0, Extents.whole(CLUSTER), CLUSTER, SPAN)


def test_request_ids_are_unique_while_in_flight():
    queue, _ = filled(depth=6)
    assert len(np.unique(ids(queue.take()))) == 6
