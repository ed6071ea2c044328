"""Kernels on threads, several at once, in order.

`run_ordered` runs a fixed number of tasks that take turns at the inbox and at the outbox: each takes an item, works
on it, and sends the result when the result before it was sent. So order out is order in, and what is in the stage's
hands is one item per task.

Kernels of adjacent stages are fused into one thread trip. A trip costs 0.15 ms of CPU and a channel hop 0.01 ms by
themselves, but several times that beside busy threads, because each wakes the event loop, and each waking has to
win the interpreter lock. So a kernel that must see the items one at a time and in order (`serial`) is fused as
well: its thread waits for its turn. Gaps of the disk (zero, unchanged) have no bytes to work on and make no trip.

Kernels that make many small calls (cutting, digests) are `serial` too, though they need not be: two threads of them
hand the interpreter lock to and fro (bench path, image to repository, 4 GiB: 389,000 futex calls, 304,000 with one
thread at a time). While one thread is at them, the others compress, which takes longer.

No more threads are at work in a process than it has processors: more of them only fight for the interpreter lock.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import trio
from trio.abc import ReceiveChannel, SendChannel

from .composition import at_least
from .contracts import Stage
from .meters import current_meter
from .values import Unchanged, Zeros

A = TypeVar("A")
B = TypeVar("B")
A_contra = TypeVar("A_contra", contravariant=True)
B_co = TypeVar("B_co", covariant=True)


async def run_ordered(
    inbox: ReceiveChannel[A],
    outbox: SendChannel[B],
    work: Callable[[A], Awaitable[B]],
    *,
    concurrency: int,
) -> None:
    """Send `await work(item)` for every item, in order, with up to `concurrency` items in hand.

    The first failure is the one that is raised: what fails beside it fails most often for the same reason.
    """
    meter = current_meter()
    meter.concurrency = concurrency
    intake = trio.Lock()
    sent = trio.Event()  # what was taken last has been sent
    sent.set()
    ended = failed = False

    async def serve() -> None:
        nonlocal sent, ended, failed
        while True:
            async with intake:
                if ended:
                    return
                try:
                    item = await inbox.receive()
                except trio.EndOfChannel:
                    ended = True
                    return
                previous_sent, sent = sent, trio.Event()
                own_sent = sent
            try:
                with meter.working():
                    result = await work(item)
            except Exception:
                if failed:
                    return
                failed = True
                raise
            del item
            if not previous_sent.is_set():
                await previous_sent.wait()
            await outbox.send(result)
            own_sent.set()
            del result

    async with trio.open_nursery() as nursery:
        for _ in range(concurrency):
            nursery.start_soon(serve)


_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("kernel threads")


def _kernel_threads() -> trio.CapacityLimiter:
    """What limits the threads of all kernels of this run of trio, first come, first served."""
    try:
        return _limiter.get()
    except LookupError:
        _limiter.set(trio.CapacityLimiter(len(os.sched_getaffinity(0))))
        return _limiter.get()


class KernelStage(Stage[A_contra, B_co]):
    """A stage that is a kernel: a function from item to item, run on up to `workers` threads.

    A subclass gives `kernel`; its items may also be gaps of the disk, which pass untouched.
    """

    workers: int = 1
    serial = False  # the kernel sees the items one at a time and in order
    releases = False  # its results no longer hold the buffers of its items; for the memory bound of a plan

    @abstractmethod
    def kernel(self) -> Callable[[Any], Any]:
        """The function, made once per run. Unless `serial`, several threads call it at once."""

    def __post_init__(self) -> None:  # of every kernel stage that is a dataclass
        at_least(1, self, "workers")

    async def run(self, inbox: ReceiveChannel[A_contra], outbox: SendChannel[B_co]) -> None:
        await FusedKernels([self]).run(inbox, outbox)

    def fused_with(self, following: Stage[Any, Any]) -> Stage[Any, Any] | None:
        return FusedKernels([self]).fused_with(following)


class FusedKernels(Stage[Any, Any]):
    """Adjacent kernel stages in one thread trip."""

    def __init__(self, stages: Sequence[KernelStage[Any, Any]]) -> None:
        self.stages = stages

    @property
    def fused_name(self) -> str:
        return "+".join(type(stage).__name__ for stage in self.stages)

    def fused_with(self, following: Stage[Any, Any]) -> Stage[Any, Any] | None:
        return FusedKernels([*self.stages, following]) if isinstance(following, KernelStage) else None

    async def run(self, inbox: ReceiveChannel[Any], outbox: SendChannel[Any]) -> None:
        meter = current_meter()
        threads = _kernel_threads()
        steps = [
            _Step(
                [(type(stage).__name__, stage.kernel()) for stage in stages],
                _Turns() if serial else None,
            )
            for serial, stages in itertools.groupby(self.stages, lambda stage: stage.serial)
        ]
        numbers = itertools.count()

        async def work(item: object) -> object:
            if isinstance(item, Zeros | Unchanged):
                return item
            trip = _Trip(steps, next(numbers), item)
            try:
                result = await trio.to_thread.run_sync(trip.run, limiter=threads)
            finally:
                trip.finish_if_not_begun()
            for name, spent_s in trip.cpu_s.items():
                meter.kernel_s[name] = meter.kernel_s.get(name, 0.0) + spent_s
            return result

        # One more than the threads: a result that waits to be sent must not keep a thread idle.
        await run_ordered(inbox, outbox, work, concurrency=max(stage.workers for stage in self.stages) + 1)


@dataclass(frozen=True)
class _Step:
    """Adjacent kernels with their names; `turns` when they are serial."""

    kernels: Sequence[tuple[str, Callable[[Any], Any]]]
    turns: _Turns | None


class _Turns:
    """Lets threads through one at a time, in the order of their items' numbers 0, 1, 2, ..."""

    def __init__(self) -> None:
        self._next = 0
        self._done: set[int] = set()
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """On a worker thread: wait until all items before this one are done; it is done at the end of the block."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == number)
        try:
            yield
        finally:
            self.finish(number)

    def finish(self, number: int) -> None:
        """The item is done, or will not come: let the next one through."""
        with self._changed:
            self._done.add(number)
            while self._next in self._done:
                self._done.remove(self._next)
                self._next += 1
            self._changed.notify_all()


class _Trip:
    """One item on its way through the kernels, on a worker thread. It finishes every turn in the end."""

    def __init__(self, steps: Sequence[_Step], number: int, item: object) -> None:
        self.cpu_s: dict[str, float] = {}
        self._steps = steps
        self._number = number
        self._item = item
        self._begun = False

    def run(self) -> object:
        self._begun = True
        item, self._item = self._item, None
        turns_left = {step.turns for step in self._steps if step.turns}
        try:
            for step in self._steps:
                if step.turns is None:
                    item = self._through(step.kernels, item)
                elif not isinstance(item, Zeros | Unchanged):
                    with step.turns.turn(self._number):
                        turns_left.remove(step.turns)
                        item = self._through(step.kernels, item)
            return item
        finally:
            for turns in turns_left:
                turns.finish(self._number)

    def _through(self, kernels: Sequence[tuple[str, Callable[[Any], Any]]], item: object) -> object:
        for name, kernel in kernels:
            if isinstance(item, Zeros | Unchanged):
                break  # an earlier kernel found that there is nothing in it
            begun = time.thread_time()
            item = kernel(item)
            self.cpu_s[name] = self.cpu_s.get(name, 0.0) + time.thread_time() - begun
        return item

    def finish_if_not_begun(self) -> None:
        """A cancelled trip that never reached its thread must not keep later ones waiting."""
        if not self._begun:
            for step in self._steps:
                if step.turns:
                    step.turns.finish(self._number)
