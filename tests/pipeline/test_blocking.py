"""Pipelines driven by ordinary code."""

import asyncio
import threading

import pytest
import trio

from pipeline import SPAN, Job, SourceError, TransferFailed, blocking
from pipeline.blocking import Loop
from pipeline.testing import FakeMachine, FaultyDisk, PatternDisk, all_free
from sinks import Nowhere, NullSink
from stages import AllocatedExtents, ReadSpans

# Ordinary tests: they have no event loop of their own.


def reading(disk):
    return AllocatedExtents(disk) | ReadSpans(disk)


def test_a_job_runs_from_ordinary_code():
    job = Job(
        FakeMachine([PatternDisk(SPAN)]), lambda disk, point: reading(disk) | NullSink(), into=Nowhere()
    )
    assert blocking.run(job).disks[0].receipt.capacity == SPAN


def test_a_job_runs_in_a_thread_of_an_asyncio_program():
    job = Job(
        FakeMachine([PatternDisk(SPAN)]), lambda disk, point: reading(disk) | NullSink(), into=Nowhere()
    )
    receipt = asyncio.run(asyncio.to_thread(blocking.run, job))
    assert receipt.disks[0].receipt.capacity == SPAN


def test_a_failure_comes_out_as_it_does_with_trio():
    disk = FaultyDisk(PatternDisk(SPAN, hole_ratio=0), "read", 1)
    with pytest.raises(TransferFailed):
        blocking.run(reading(disk) | NullSink())


def test_the_items_of_a_flow_come_to_a_for_loop():
    disk = PatternDisk(5 * SPAN, hole_ratio=0)
    with Loop() as loop, loop.items(reading(disk)) as items:
        seen = 0
        for item in items:
            assert item.bytes_of(item.offset, 4096).tobytes() == disk.bytes_at(item.offset, 4096).tobytes()
            seen += item.length
            item.release()
    assert seen == disk.capacity
    assert all_free(disk.pool)


def test_a_crash_of_the_flow_is_raised_and_never_looks_like_its_end():
    disk = FaultyDisk(PatternDisk(5 * SPAN, hole_ratio=0), "read", 3)
    with Loop() as loop, loop.items(reading(disk)) as items, pytest.raises(TransferFailed) as failed:
        for item in items:
            item.release()
    assert failed.group_contains(SourceError)


def test_leaving_a_flow_early_stops_it():
    disk = PatternDisk(5 * SPAN, hole_ratio=0)
    with Loop() as loop:
        with loop.items(reading(disk)) as items:
            next(items).release()
        assert all_free(disk.pool)


def test_a_resource_is_held_for_the_block_and_released_when_the_block_fails():
    machine = FakeMachine([PatternDisk(SPAN)])
    with Loop() as loop:
        with loop.entered(machine.capture()) as capture:
            assert capture.machine.name == "fake"
            assert machine.released == []
        assert machine.released == ["released"]
        with pytest.raises(KeyError, match="mine"), loop.entered(machine.capture()):
            raise KeyError("mine")
        assert machine.released == ["released", "released"]


def test_a_resource_that_cannot_be_opened_raises_its_error():
    class Locked(FakeMachine):
        def capture(self):
            raise SourceError("locked")

    with Loop() as loop, pytest.raises(SourceError, match="locked"), loop.entered(Locked([]).capture()):
        raise AssertionError("it is locked")


def test_a_loop_leaves_no_thread_behind():
    before = threading.active_count()
    with Loop() as loop:
        assert loop.run(trio.lowlevel.checkpoint) is None
        loop._start(trio.sleep_forever)
    assert threading.active_count() == before
