"""The conformance suite of sources, stages and sinks.

    await check_stage(MarkZeros, items, compare)

`make` builds a fresh object with the same settings; inputs and results are compared by `view`, a function from
an item to something with `==`, because spans hold buffers. Items are made anew by a function for every pass, since
a stage may give their buffers back.

What is asserted: the output is that of the plain run; empty input; a slow reader; cancellation at every
checkpoint; a crash upstream is no end of input; a second run equals the first; a foreign BrokenResourceError
comes out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import trio
from trio.abc import ReceiveChannel, SendChannel

from ..contracts import (
    Flow,
    Pipeline,
    Sink,
    Source,
    Stage,
)
from ..errors import leaves
from .fakes import Items

A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R")

# Cancellation is tried at this many checkpoints from the start; a pass with few items has fewer.
CHECKPOINTS = 40


class _Crash(Exception):
    """What a broken neighbour raises."""


class _Collect(Sink[Any, list[Any]]):
    """Views of what arrives, optionally slowly."""

    def __init__(self, view: Callable[[Any], object], *, pause: bool = False) -> None:
        self._view = view
        self._pause = pause
        self.ended = False

    async def run(self, inbox: ReceiveChannel[Any]) -> list[Any]:
        seen: list[Any] = []
        async for item in inbox:
            seen.append(self._view(item))
            _release(item)
            if self._pause:
                for _ in range(3):
                    await trio.lowlevel.checkpoint()
        self.ended = True
        return seen


class _Broken(SendChannel[Any]):
    """The end of a host program's channel whose reader has gone."""

    async def send(self, value: object) -> None:
        _release(value)
        raise trio.BrokenResourceError("a foreign resource")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class _Stalling(Source[Any]):
    """Sends some items, cancels the run, and never ends."""

    def __init__(self, items: Sequence[object], scope: trio.CancelScope) -> None:
        self._items = items
        self._scope = scope

    async def run(self, outbox: SendChannel[Any]) -> None:
        for item in self._items:
            await outbox.send(item)
        self._scope.cancel()
        await trio.sleep_forever()


class _Crashing(Source[Any]):
    """Sends some items, then fails."""

    def __init__(self, items: Sequence[object]) -> None:
        self._items = items

    async def run(self, outbox: SendChannel[Any]) -> None:
        for item in self._items:
            await outbox.send(item)
        raise _Crash


async def check_source(
    make: Callable[[], Source[B]], *, view: Callable[[B], object] = repr, least: int = 1
) -> list[object]:
    """The rules of a source. Returns the views of its items, for assertions of your own."""
    source = make()
    expected = await _run(source | _Collect(view))
    assert len(expected) >= least, f"{source!r} sent {len(expected)} items"
    assert await _run(source | _Collect(view)) == expected, "a second run of the same object differs"
    assert await _run(make() | _Collect(view, pause=True)) == expected, "a slow reader changes the output"
    await _check_cancel(lambda: _run(make() | _Collect(view)))
    await _check_broken(lambda: make().run(_Broken()))
    flow: Flow[B] = Flow(make())
    async with flow.open() as items:  # leaving early is clean
        _release(await items.receive())
    return expected


async def check_stage(
    make: Callable[[], Stage[A, B]],
    items: Callable[[], Sequence[A]],
    *,
    view: Callable[[B], object] = repr,
) -> list[object]:
    """The rules of a stage. Returns the views of what comes out for `items`."""
    stage = make()
    expected = await _run(Items(items()) | stage | _Collect(view))
    assert await _run(Items(items()) | stage | _Collect(view)) == expected, "a second run differs"
    assert await _run(Items(items()) | make() | _Collect(view, pause=True)) == expected, "slow reader"
    assert await _run(Items[A]([]) | make() | _Collect(view)) == [], "items out of nothing"
    await _check_cancel(lambda: _run(Items(items()) | make() | _Collect(view)))
    await _check_broken(lambda: _into_broken(Items(items()), make()))
    sink = _Collect(view)
    await _check_crash(_Crashing(items()) | make() | sink)
    assert not sink.ended, "a crash upstream looked like the end of the input"
    return expected


async def check_sink(
    make: Callable[[], Sink[A, R]],
    items: Callable[[], Sequence[A]],
    *,
    published: Callable[[], object] = lambda: None,
    view: Callable[[R], object] = repr,
) -> object:
    """The rules of a sink. `published` tells what is visible of its work; a crash upstream or a cancellation
    must not change it. Returns the view of the receipt."""
    before = published()
    await _check_crash(_Crashing(items()) | make())
    assert published() == before, "a crash upstream was published"
    for count in range(len(items()) + 1):
        with trio.CancelScope() as scope:
            await _run(_Stalling(items()[:count], scope) | make())
        assert published() == before, f"cancelled after {count} items, and something was published"
    receipt = view(await (Items(items()) | make()).run())
    assert view(await (Items(items()) | make()).run()) == receipt, "a second run differs"
    return receipt


async def _run(pipeline: Pipeline[R]) -> R:
    return await pipeline.run()


async def _check_cancel(run: Callable[[], Awaitable[object]]) -> None:
    """Cancel at each of the first checkpoints: the run must end, with nothing but the cancellation."""
    for patience in range(CHECKPOINTS):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_after, patience, scope)
                await run()
                return  # the run was over before its turn came


async def _cancel_after(patience: int, scope: trio.CancelScope) -> None:
    for _ in range(patience):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def _check_broken(run: Callable[[], Awaitable[object]]) -> None:
    """A reader that went away must not look like an end of the work."""
    await _expect(run, trio.BrokenResourceError)


async def _into_broken(source: Source[A], stage: Stage[A, Any]) -> None:
    flow: Flow[A] = Flow(source)
    async with flow.open() as inbox:
        await stage.run(inbox, _Broken())


async def _check_crash(pipeline: Pipeline[Any]) -> None:
    await _expect(pipeline.run, _Crash)


async def _expect(run: Callable[[], Awaitable[object]], kind: type[Exception]) -> None:
    raised: list[BaseException] = []
    try:
        await run()
    except Exception as exc:
        raised = leaves(exc)
    assert any(isinstance(leaf, kind) for leaf in raised), f"{kind.__name__} was swallowed: {raised!r}"


def _release(item: object) -> None:
    release = getattr(item, "release", None)
    if release is not None:
        release()
