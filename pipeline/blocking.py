"""The engine for ordinary code: without async, and from programs with another event loop.

`run` runs one job or pipeline to its end. A `Loop` is an event loop on a thread of its own, for more than that: it
keeps resources open and gives the items of a flow to a `for` loop.

    with Loop() as loop, loop.entered(LocalVm("/vms/web01").capture()) as capture:
        for disk in capture.disks:
            with loop.items(AllocatedExtents(disk) | ReadSpans(disk)) as items:
                for item in items:
                    ...

An asyncio program calls `run` in a thread (`asyncio.to_thread`), or runs trio as a guest of its own loop; see
examples/from_asyncio.py.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Protocol, TypeVar

import trio

from .contracts import Flow, Source

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Runnable(Protocol[T_co]):
    """A Job or a Pipeline."""

    def run(self) -> Awaitable[T_co]: ...


def run(work: Runnable[T]) -> T:
    """Run a job or a pipeline to its end and return its receipt; raises what it raises.

    It must not be called on a thread that runs an event loop of trio already.
    """
    return trio.run(_run, work)


async def _run(work: Runnable[T]) -> T:
    return await work.run()


class Loop:
    """An event loop on a thread of its own, as long as the block lasts. What is still running at its end is
    cancelled."""

    def __enter__(self) -> Loop:
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=trio.run, args=(self._main, started), name="vadpipe event loop"
        )
        self._thread.start()
        started.result()
        return self

    def __exit__(self, *failure: object) -> None:
        self._token.run_sync_soon(self._nursery.cancel_scope.cancel)
        self._thread.join()

    def run(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Await `function(*args)` in the loop, e.g. `loop.run(my_pipeline.run)`, and return its result."""
        outcome: Future[T] = Future()

        async def call() -> None:
            with _told(outcome):
                outcome.set_result(await function(*args))

        return self._result(call, outcome)

    @contextmanager
    def entered(self, manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Hold an async context manager, e.g. `machine.capture()`, for the block.

        Its clean-up sees an exception of the block as a cancellation; the block's own exception comes out.
        """
        entered: Future[T] = Future()
        left: Future[None] = Future()
        scope = trio.CancelScope()
        leave = trio.Event()

        async def hold() -> None:
            with _told(entered, left), scope:
                async with manager as value:
                    entered.set_result(value)
                    await leave.wait()

        value = self._result(hold, entered)
        try:
            yield value
        except BaseException as exc:
            self._token.run_sync_soon(scope.cancel)
            if (failure := left.exception()) is not None:
                raise BaseExceptionGroup("The block and its clean-up failed.", [exc, failure]) from None
            raise
        self._token.run_sync_soon(leave.set)
        left.result()

    @contextmanager
    def items(self, flow: Source[T]) -> Iterator[Iterator[T]]:
        """The items of a flow, for the block. Raises what failed in it; leaving the block early stops the flow."""
        send, receive = trio.open_memory_channel[T](0)

        outcome: Future[None] = Future()
        scope = trio.CancelScope()

        async def feed() -> None:
            with _told(outcome), scope:
                async with send, Flow[T](flow).open() as items:
                    async for item in items:
                        await send.send(item)

        def received() -> Iterator[T]:
            while True:
                try:
                    yield self.run(receive.receive)
                except trio.EndOfChannel:
                    outcome.result()
                    return

        self._start(feed)
        try:
            yield received()
        finally:
            self._token.run_sync_soon(scope.cancel)
            outcome.exception()
            self._token.run_sync_soon(receive.close)

    async def _main(self, started: Future[None]) -> None:
        async with trio.open_nursery() as self._nursery:
            self._token = trio.lowlevel.current_trio_token()
            started.set_result(None)
            await trio.sleep_forever()

    def _start(self, function: Callable[[], Awaitable[None]]) -> None:
        self._token.run_sync_soon(self._nursery.start_soon, function)

    def _result(self, function: Callable[[], Awaitable[None]], outcome: Future[T]) -> T:
        self._start(function)
        return outcome.result()


@contextmanager
def _told(*outcomes: Future[T] | Future[None]) -> Iterator[None]:
    """Tell those who wait for these outcomes how the block ended; its failure is theirs to raise."""
    try:
        yield
    except BaseException as exc:
        for outcome in outcomes:
            if not outcome.done():
                outcome.set_exception(exc)
        if not isinstance(exc, Exception):
            raise
    else:
        for outcome in outcomes:
            if not outcome.done():
                outcome.set_result(None)  # type: ignore[arg-type]  # None is what a block without a result gives
