"""Kernels on threads: order, turns, fusing, cancellation."""

import threading
import time
from dataclasses import dataclass, field

import pytest
import trio
import trio.lowlevel

from pipeline import KernelStage, Sink, Stage, TransferFailed, Zeros, run_ordered
from pipeline.contracts import _fused
from pipeline.lift import FusedKernels
from pipeline.testing.checks import check_stage
from pipeline.testing.fakes import Items


class Collect(Sink[object, list[object]]):
    async def run(self, inbox):
        return [item async for item in inbox]


@dataclass(frozen=True)
class Slow(KernelStage[int, int]):
    """Takes longer for even numbers, so that odd ones are done first."""

    workers: int = 3

    def kernel(self):
        return self.work

    def work(self, item):
        time.sleep(0.002 if item % 2 == 0 else 0)
        return item + 1


@dataclass(frozen=True)
class Serial(KernelStage[int, int]):
    """Remembers what it saw, and whether it was alone."""

    workers: int = 3
    serial = True
    seen: list[int] = field(default_factory=list)
    alone: threading.Lock = field(default_factory=threading.Lock)
    fails_at: int = -1

    def kernel(self):
        return self.work

    def work(self, item):
        assert self.alone.acquire(blocking=False), "two at a time"
        try:
            time.sleep(0.001)
            self.seen.append(item)
            if item == self.fails_at:
                raise ValueError(f"cannot take {item}")
            return item
        finally:
            self.alone.release()


async def test_items_leave_in_the_order_in_which_they_came():
    assert await (Items(range(50)) | Slow() | Slow() | Collect()).run() == list(range(2, 52))


async def test_a_serial_kernel_sees_items_one_at_a_time_and_in_order():
    serial = Serial()
    result = await (Items(range(40)) | Slow() | serial | Slow() | Collect()).run()
    assert result == list(range(2, 42))
    assert serial.seen == list(range(1, 41))


async def test_gaps_pass_in_order_and_make_no_trip():
    items = [1, Zeros(0, 4096), 3, Zeros(4096, 4096), 5]
    assert await (Items(items) | Slow() | Collect()).run() == [2, items[1], 4, items[3], 6]


@dataclass(frozen=True)
class ToGap(KernelStage[int, int | Zeros]):
    """Finds nothing in every third item."""

    workers: int = 3

    def kernel(self):
        return lambda item: Zeros(item, 1) if item % 3 == 0 else item


async def test_an_item_that_became_a_gap_keeps_nobody_waiting():
    serial = Serial()
    result = await (Items(range(30)) | ToGap() | serial | Collect()).run()
    assert [item.offset if isinstance(item, Zeros) else item for item in result] == list(range(30))
    assert serial.seen == [item for item in range(30) if item % 3]


@pytest.mark.parametrize("at", [0, 1, 7])
async def test_a_failing_kernel_keeps_nobody_waiting(at):
    with trio.fail_after(10), pytest.raises(TransferFailed) as failed:
        await (Items(range(30)) | Slow() | Serial(fails_at=at + 1) | Collect()).run()
    assert failed.group_contains(ValueError, match=f"cannot take {at + 1}")


async def test_cancelling_leaves_no_thread_waiting_for_a_turn():
    for patience in range(0, 40, 3):
        with trio.move_on_after(patience / 1000):
            await (Items(range(100)) | Slow() | Serial() | Slow() | Collect()).run()
    with trio.fail_after(5):  # the threads are free again
        assert await (Items(range(3)) | Serial() | Collect()).run() == [0, 1, 2]


def test_adjacent_kernels_are_fused_and_others_are_not():
    parts = _fused([Slow(), Serial(), Other(), Slow()])
    assert [type(part) for part in parts] == [FusedKernels, Other, Slow]
    assert parts[0].fused_name == "Slow+Serial"  # type: ignore[attr-defined]


class Other(Stage[int, int]):
    async def run(self, inbox, outbox):
        async for item in inbox:
            await outbox.send(item)


async def test_kernels_pass_the_shipped_checks():
    await check_stage(Slow, lambda: list(range(12)))
    await check_stage(Serial, lambda: list(range(12)))


async def test_no_more_items_are_worked_on_than_allowed():
    sent, taken = trio.open_memory_channel(0)
    out, result = trio.open_memory_channel(0)
    in_hand = 0
    most = 0

    async def work(item):
        nonlocal in_hand, most
        in_hand += 1
        most = max(most, in_hand)
        await trio.lowlevel.checkpoint()
        return item

    async def drain():
        nonlocal in_hand
        async for _ in result:
            await trio.sleep(0.001)
            in_hand -= 1

    async def feed():
        async with sent:
            for item in range(40):
                await sent.send(item)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        nursery.start_soon(drain)
        await run_ordered(taken, out, work, concurrency=3)
        await out.aclose()
    assert most <= 4  # three, and the one that the reader holds


async def test_the_first_of_simultaneous_failures_is_raised():
    meet = trio.Event()

    async def work(item):
        if item == 1:
            meet.set()
        await meet.wait()
        raise ValueError(f"item {item}")

    sent, taken = trio.open_memory_channel(2)
    for item in range(2):
        sent.send_nowait(item)
    with pytest.raises(ExceptionGroup) as failed:
        await run_ordered(taken, trio.open_memory_channel(0)[0], work, concurrency=2)
    assert len(failed.value.exceptions) == 1
