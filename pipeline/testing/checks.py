"""The conformance suite: what every source, stage, sink, codec, disk and target has to keep.

    >>> import trio
    >>> from pipeline import Span
    >>> from pipeline.testing import check_stage
    >>> from stages import MarkZeros
    >>> def spans():
    ...     return [Span.of(bytes(8192)), Span.of(b"data" * 1024, offset=8192)]
    >>> [kind for kind, facts in trio.run(check_stage, MarkZeros, spans)]
    ['Zeros', 'Span']

`make` builds a fresh object with the same settings on each call. Items are made anew by a function for every pass,
since a stage may give their buffers back. Results are compared by `view`, a function from an item to something with
`==`; the default is `plain`.

A source, stage or sink is held to: the same output from a second run, with a slow reader and with other timing;
nothing from an empty input; a clean end when it is cancelled at any of its first 40 checkpoints; a crash upstream
is not taken for the end of the input; a BrokenResourceError of another program comes out. A failed check is an
AssertionError.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
import trio
from trio.abc import ReceiveChannel, SendChannel

from ..contracts import Flow, Pipeline, Sink, Source, Stage
from ..errors import ChangeTrackingInvalid, leaves
from ..extents import Extents
from ..job import Job
from ..protocols import Disk, DiskReceipt, Target, WritableDisk
from ..units import SPAN
from .fakes import FakeMachine, Items, PatternDisk
from .views import plain

A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R")

# Cancellation is tried at this many checkpoints from the start; a pass with few items has fewer.
CHECKPOINTS = 40


class _Crash(Exception):
    """Raised by a neighbour that crashes."""


class _Collect(Sink[Any, list[Any]]):
    """Returns the views of its items; with `pause` it reads slowly."""

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
    """A channel of a host program whose reader has gone."""

    async def send(self, value: object) -> None:
        _release(value)
        raise trio.BrokenResourceError("a foreign resource")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class _Followed(Source[Any]):
    """Another source whose run does not end with its items, but with `ending`."""

    def __init__(self, source: Source[Any], ending: Callable[[], Awaitable[None]]) -> None:
        self._source = source
        self._ending = ending

    async def run(self, outbox: SendChannel[Any]) -> None:
        await self._source.run(outbox)
        await self._ending()


async def _crash() -> None:
    raise _Crash


async def check_source(
    make: Callable[[], Source[B]], *, view: Callable[[B], Any] = plain, least: int = 1
) -> list[Any]:
    """Check a source that sends at least `least` items. Returns their views, for assertions of your own."""
    source = make()
    expected = await _run(source | _Collect(view))
    assert len(expected) >= least, f"{source!r} sent {len(expected)} items"
    assert await _run(source | _Collect(view)) == expected, "a second run of the same object differs"
    assert await _run(make() | _Collect(view, pause=True)) == expected, "a slow reader changes the output"
    await _check_cancel(lambda: _run(make() | _Collect(view)))
    await _expect(lambda: make().run(_Broken()), trio.BrokenResourceError)
    flow: Flow[B] = Flow(make())
    async with flow.open() as items:  # leaving early is clean
        _release(await items.receive())
    return expected


async def check_stage(
    make: Callable[[], Stage[A, B]],
    items: Callable[[], Sequence[A]],
    view: Callable[[B], Any] = plain,
) -> list[Any]:
    """Check a stage. Returns the views of what comes out for `items`."""
    stage = make()
    expected = await _run(Items(items()) | stage | _Collect(view))
    assert await _run(Items(items()) | stage | _Collect(view)) == expected, "a second run differs"
    assert await _run(Items(items()) | make() | _Collect(view, pause=True)) == expected, "slow reader"
    assert await _run(Items[A]([]) | make() | _Collect(view)) == [], "items out of nothing"
    await _check_cancel(lambda: _run(Items(items()) | make() | _Collect(view)))
    await _expect(lambda: _into_broken(Items(items()), make()), trio.BrokenResourceError)
    sink = _Collect(view)
    await _expect((_Followed(Items(items()), _crash) | make() | sink).run, _Crash)
    assert not sink.ended, "a crash upstream looked like the end of the input"
    return expected


async def check_sink(
    make: Callable[[], Sink[A, R]],
    items: Callable[[], Sequence[A]],
    *,
    published: Callable[[], object] = lambda: None,
    view: Callable[[R], object] = repr,
) -> object:
    """Check a sink.

    Args:
        published: What is visible of its work; a crash upstream or a cancellation must not change it.
        view: What of the receipt has to be the same in a second run.

    Returns:
        The view of the receipt.
    """
    before = published()
    await _expect((_Followed(Items(items()), _crash) | make()).run, _Crash)
    assert published() == before, "a crash upstream was published"
    for count in range(len(items()) + 1):
        with trio.CancelScope() as scope:

            async def stall(scope: trio.CancelScope = scope) -> None:
                scope.cancel()
                await trio.sleep_forever()

            await _run(_Followed(Items(items()[:count]), stall) | make())
        assert published() == before, f"cancelled after {count} items, and something was published"
    receipt = view(await (Items(items()) | make()).run())
    assert view(await (Items(items()) | make()).run()) == receipt, "a second run differs"
    return receipt


class Codec(Protocol):
    """See vadpipe.kernels.Codec."""

    @property
    def name(self) -> str: ...
    def encode(self, data: memoryview) -> bytes: ...
    def decode(self, payload: bytes | memoryview, length: int) -> bytes | memoryview: ...


def check_codec(codec: Codec, *samples: bytes) -> None:
    """Check that a codec decodes what it encoded, on any thread, and refuses payloads of another length."""
    random = np.random.default_rng(1).bytes(1 << 16)
    assert codec.name, "a codec without a name"
    for sample in (b"x", bytes(1 << 20), random, *samples):
        payload = codec.encode(memoryview(sample))
        assert bytes(codec.decode(memoryview(payload), len(sample))) == sample, "it decodes to other bytes"
        for wrong in (len(sample) - 1, len(sample) + 1):
            _expect_value_error(codec, payload, wrong)
    with ThreadPoolExecutor(4) as threads:
        payloads = list(threads.map(codec.encode, [memoryview(random)] * 16))
        decoded = threads.map(codec.decode, payloads, [len(random)] * 16)
        assert all(bytes(data) == random for data in decoded), "it is not safe to call from several threads"


def _expect_value_error(codec: Codec, payload: bytes, length: int) -> None:
    try:
        codec.decode(payload, length)
    except ValueError:
        return
    raise AssertionError(f"a payload was decoded as {length} bytes, which it is not")


async def check_reader(disk: Disk, content: Callable[[int, int], bytes] | None = None) -> None:
    """Check that the answers of a disk agree with each other, and with `content(offset, length)` if given."""
    assert disk.key, "a disk without a key"
    capacity = disk.capacity
    allocated = await disk.allocated(0, capacity)
    assert allocated.within(0, capacity) == allocated, "allocated names areas outside of the disk"
    for offset in range(0, capacity, SPAN):
        length = min(SPAN, capacity - offset)
        part = await disk.allocated(offset, length)
        assert part == allocated.within(offset, length), f"allocated differs for the range at {offset}"
        whole = await _read(disk, offset, Extents.whole(length, offset))
        assert await _read(disk, offset, Extents.whole(length, offset)) == whole, "a second read differs"
        assert content is None or whole == content(offset, length), f"other bytes than expected at {offset}"
        for start, size in part.inverted(offset, length):
            assert not any(whole[start - offset :][:size]), f"data that is not allocated at {start}"
        inner = Extents.of([(offset + length // 4, length // 4 or 1), (offset + length - 1, 1)])
        apart = await _read(disk, offset, inner)
        for start, size in inner:
            low = start - offset
            assert apart[low : low + size] == whole[low : low + size], f"a smaller read differs at {start}"
    await _check_changes(disk)
    async with trio.open_nursery() as nursery:  # several reads at once
        for offset in range(0, min(capacity, 4 * SPAN), SPAN):
            nursery.start_soon(_read, disk, offset, allocated.within(offset, SPAN))


async def _read(disk: Disk, offset: int, wanted: Extents) -> bytes:
    buffer = await disk.pool.acquire()
    try:
        await disk.read(buffer, offset, wanted)
        return buffer.array[: min(SPAN, disk.capacity - offset)].tobytes()
    finally:
        buffer.release()


async def _check_changes(disk: Disk) -> None:
    """Nothing changed since this very snapshot, in pages that cover the disk. Without an id there is no answer."""
    if disk.change_id is None:
        await _expect(lambda: disk.changed("1", 0), ChangeTrackingInvalid)
        return
    offset = 0
    while offset < disk.capacity:
        try:
            page = await disk.changed(disk.change_id, offset)
        except ChangeTrackingInvalid:
            return
        assert page.offset == offset, f"changed answers from {page.offset} when asked from {offset}"
        assert 0 < page.length <= disk.capacity - offset, "a page of changes that does not fit"
        assert not len(page.extents), "something changed since the snapshot itself"
        offset += page.length


async def check_writer(disk: WritableDisk, content: Callable[[int, int], bytes] | None = None) -> None:
    """Check a disk that can be written, by writing all of it. It reads as what was written.

    Args:
        content: What the disk holds now for whoever looks from outside, by offset and length.
    """
    capacity = disk.capacity
    expected = np.random.default_rng(capacity).integers(0, 256, capacity, np.uint8)
    await disk.flush()  # nothing to do

    async def write(offset: int, wanted: Extents) -> None:
        buffer = await disk.pool.acquire()
        try:
            part = expected[offset : offset + SPAN]
            buffer.array[: len(part)] = part
            await disk.write(buffer, offset, wanted)
            buffer.array.fill(0)  # it is free again
        finally:
            buffer.release()

    async with trio.open_nursery() as nursery:  # several at once, the first in two parts that lie apart
        for offset in range(0, capacity, SPAN):
            whole = Extents.whole(min(SPAN, capacity - offset), offset)
            middle = Extents.whole(SPAN // 4, offset + SPAN // 4) & whole
            nursery.start_soon(write, offset, whole - middle)
            nursery.start_soon(write, offset, middle)
    await write(0, Extents.empty())
    with trio.CancelScope() as scope:
        scope.cancel()
        await write(0, Extents.whole(min(SPAN, capacity)))
    await write(0, Extents.whole(min(SPAN, capacity)))  # what a cancelled write has left
    await disk.flush()
    for offset in range(0, capacity, SPAN):
        whole = Extents.whole(min(SPAN, capacity - offset), offset)
        assert await disk.allocated(offset, whole.total) == whole, f"nothing is allocated at {offset}"
        read = await _read(disk, offset, whole)
        assert read == expected[offset : offset + SPAN].tobytes(), f"other bytes than written at {offset}"
        seen = read if content is None else content(offset, whole.total)
        assert seen == read, f"what was flushed is not there at {offset}"


async def check_store(
    target: Target[Any],
    path: Callable[[Disk, Any], Pipeline[DiskReceipt]],
    points: Callable[[], Sequence[object]],
) -> None:
    """Check a target: a point is visible when it was published, and not otherwise.

    Args:
        path: How a disk gets there, as of a job.
        points: What is published there as of now.
    """
    disk = PatternDisk(2 * SPAN)
    before = list(points())
    target.planned()
    assert list(points()) == before, "planning published a point"
    machine = FakeMachine([disk])

    def crashing(disk: Disk, point: Any) -> Pipeline[DiskReceipt]:  # noqa: ANN401  # of whatever target
        pipeline = path(disk, point)
        return Pipeline(Flow(_Followed(pipeline.flow.source, _crash), *pipeline.flow.stages), pipeline.sink)

    await _expect(Job(machine, crashing, into=target).run, _Crash)
    assert list(points()) == before, "a crash of a path published a point"
    with trio.CancelScope() as scope:
        await Job(machine, path, into=target).run(lambda disk, report: scope.cancel())
    assert list(points()) == before, "a cancelled job published a point"
    receipt = await Job(machine, path, into=target).run()
    assert len(points()) == len(before) + 1, "a job did not publish a point"
    assert receipt.point, "a point without an id"
    again = await Job(machine, path, into=target).run()
    assert len(points()) == len(before) + 2, "a second job did not publish a point"
    assert again.point != receipt.point, "two points have the same id"
    assert again.disks[0].receipt.root == receipt.disks[0].receipt.root, "the same disk got another root"


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


async def _into_broken(source: Source[A], stage: Stage[A, Any]) -> None:
    flow: Flow[A] = Flow(source)
    async with flow.open() as inbox:
        await stage.run(inbox, _Broken())


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
