"""Kernels on threads, several at once, in order.

`run_ordered` keeps up to `places + 2` items in its hands: one being received, `places` at work, one waiting to
be sent. Order out is order in: a finished item waits for its elders.

Kernels of adjacent stages are fused into one thread trip (a trip costs 0.2 ms of CPU, see units.SPAN); gaps
of the disk (zero, unchanged) have no bytes to work on and make no trip at all.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import trio
from trio.abc import ReceiveChannel, SendChannel

from .contracts import Stage
from .meters import current_meter
from .values import Unchanged, Zeros

A = TypeVar("A")
B = TypeVar("B")
A_contra = TypeVar("A_contra", contravariant=True)
B_co = TypeVar("B_co", covariant=True)


class _Promise(Generic[B]):
    """The place of a result in the order of the output."""

    __slots__ = ("kept", "result")

    def __init__(self) -> None:
        self.kept = trio.Event()
        self.result: list[B] = []


async def run_ordered(
    inbox: ReceiveChannel[A],
    outbox: SendChannel[B],
    work: Callable[[A], Awaitable[B]],
    *,
    places: int,
) -> None:
    """Send `await work(item)` for every item, with up to `places` of them at work, in order."""
    tokens = trio.Semaphore(places + 2)
    at_work = trio.CapacityLimiter(places)
    meter = current_meter()
    meter.places = places

    async def keep(promise: _Promise[B], item: A) -> None:
        async with at_work:
            with meter.working():
                promise.result.append(await work(item))
        promise.kept.set()

    async def deliver(promises: ReceiveChannel[_Promise[B]]) -> None:
        async for promise in promises:
            await promise.kept.wait()
            await outbox.send(promise.result.pop())
            tokens.release()

    async with trio.open_nursery() as nursery:
        # Never more than the tokens allow; the channel itself needs no bound.
        ordered, promises = trio.open_memory_channel[_Promise[B]](places + 2)
        nursery.start_soon(deliver, promises)
        with ordered:
            while True:
                await tokens.acquire()
                try:
                    item = await inbox.receive()
                except trio.EndOfChannel:
                    return
                promise = _Promise[B]()
                await ordered.send(promise)
                nursery.start_soon(keep, promise, item)
                del item


class KernelStage(Stage[A_contra, B_co]):
    """A stage that is a kernel: a function from item to item, run on `workers` threads.

    A subclass gives `kernel`; its items may also be gaps of the disk, which pass untouched.
    """

    workers: int = 1
    releases = False  # its results no longer hold the buffers of its items; for the memory bound of a plan

    @abstractmethod
    def kernel(self) -> Callable[[Any], Any]:
        """The function, made once per run. It must be safe to call from several threads at once."""

    async def run(self, inbox: ReceiveChannel[A_contra], outbox: SendChannel[B_co]) -> None:
        await FusedKernels([self]).run(inbox, outbox)


class FusedKernels(Stage[Any, Any]):
    """Adjacent kernel stages in one thread trip."""

    def __init__(self, stages: Sequence[KernelStage[Any, Any]]) -> None:
        self.stages = stages

    @property
    def name(self) -> str:
        return "+".join(type(stage).__name__ for stage in self.stages)

    async def run(self, inbox: ReceiveChannel[Any], outbox: SendChannel[Any]) -> None:
        meter = current_meter()
        places = max(stage.workers for stage in self.stages)
        threads = trio.CapacityLimiter(places)
        kernels = [stage.kernel() for stage in self.stages]

        async def work(item: object) -> object:
            if isinstance(item, Zeros | Unchanged):
                return item
            result, cpu_s = await trio.to_thread.run_sync(_trip, kernels, item, limiter=threads)
            meter.cpu_s += cpu_s
            return result

        await run_ordered(inbox, outbox, work, places=places)


def _trip(kernels: Sequence[Callable[[Any], Any]], item: object) -> tuple[object, float]:
    begun = time.thread_time()
    for kernel in kernels:
        if isinstance(item, Zeros | Unchanged):
            break  # an earlier kernel found that there is nothing in it
        item = kernel(item)
    return item, time.thread_time() - begun


def fused(stages: Sequence[Stage[Any, Any]]) -> list[Stage[Any, Any]]:
    """The same stages with every run of adjacent kernel stages made one."""
    result: list[Stage[Any, Any]] = []
    for stage in stages:
        if isinstance(stage, KernelStage):
            if result and isinstance(result[-1], FusedKernels):
                result[-1] = FusedKernels([*result[-1].stages, stage])
            else:
                result.append(FusedKernels([stage]))
        else:
            result.append(stage)
    return result


def stage_name(stage: object) -> str:
    return stage.name if isinstance(stage, FusedKernels) else type(stage).__name__
