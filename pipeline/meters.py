"""Where the time of a pipeline goes, measured at the channel ends so that no stage has to account.

A stage is *starved* while it waits for input, *blocked* while it waits for its output to be taken or for a
free buffer, and *busy* otherwise. A stage that works on several items at once is busy by the share of those
that are being worked on. The stage with the largest busy share limits the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio
from trio.abc import ReceiveChannel, SendChannel

from .errors import ContractError

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


@dataclass
class StageMeter:
    """Counts of one stage. `items` and `bytes` are what it sent, for a sink what it received; `bytes` counts
    data only. `position` is the disk offset reached. `kernel_s` is thread time by kernel."""

    name: str
    items: int = 0
    bytes: int = 0
    position: int = 0
    starved_s: float = 0.0
    blocked_s: float = 0.0
    kernel_s: dict[str, float] = field(default_factory=dict)
    concurrency: int = 0
    work_s: float = 0.0
    wall_s: float = 0.0

    @property
    def busy_s(self) -> float:
        if self.concurrency:
            return self.work_s / self.concurrency
        return max(0.0, self.wall_s - self.starved_s - self.blocked_s)

    def as_dict(self) -> dict[str, object]:
        seconds = {name: round(getattr(self, name), 3) for name in ("busy_s", "starved_s", "blocked_s")}
        return {"name": self.name, "items": self.items, "bytes": self.bytes, **seconds}

    def count(self, item: object) -> None:
        self.items += 1
        data = getattr(item, "data", None)
        if data is not None:
            self.bytes += getattr(data, "total", 0)
        offset = getattr(item, "offset", None)
        if offset is not None:
            self.position = offset + getattr(item, "length", 0)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Time the work on one item."""
        begun = trio.current_time()
        try:
            yield
        finally:
            self.work_s += trio.current_time() - begun

    @contextmanager
    def blocked(self) -> Iterator[None]:
        begun = trio.current_time()
        try:
            yield
        finally:
            self.blocked_s += trio.current_time() - begun


_current: ContextVar[StageMeter | None] = ContextVar("stage meter", default=None)


def current_meter() -> StageMeter:
    """The meter of the stage that this task belongs to; a throw-away one outside of a pipeline."""
    return _current.get() or StageMeter("outside")


def set_current_meter(meter: StageMeter) -> None:
    _current.set(meter)


@dataclass
class PipelineReport(Generic[R_co]):
    """What a run of a pipeline did, growing while it runs. `source_receipt` is what the source returned."""

    stages: Sequence[StageMeter]
    wall_s: float = 0.0
    source_receipt: object = None

    def finish(self, receipt: R_co) -> None:  # type: ignore[misc]  # called by the engine alone
        """Note the sink's receipt: the pipeline ended well."""
        self._receipt = receipt

    @property
    def receipt(self) -> R_co:
        """What the sink returned. Raises ContractError until the pipeline has ended well."""
        try:
            return self._receipt
        except AttributeError:
            raise ContractError("The pipeline has not ended, or it failed: there is no receipt.") from None

    @property
    def bottleneck(self) -> StageMeter:
        """The stage that was busy for the largest share of the time."""
        return max(self.stages, key=lambda stage: stage.busy_s)

    @property
    def limited_by(self) -> str:
        """The name of that stage; of kernels that were fused, the one that took most."""
        kernels = self.bottleneck.kernel_s
        return max(kernels, key=kernels.__getitem__) if kernels else self.bottleneck.name

    @property
    def position(self) -> int:
        """The disk offset up to which the sink took everything."""
        return self.stages[-1].position


class MeteredReceive(ReceiveChannel[T]):
    """A stage's inbox. Closing it is the runner's business, so a stage's `aclose` does nothing."""

    def __init__(self, channel: ReceiveChannel[T], meter: StageMeter, *, counts: bool = False) -> None:
        self._channel = channel
        self._meter = meter
        self._counts = counts
        self.ended = False

    async def receive(self) -> T:
        begun = trio.current_time()
        try:
            item = await self._channel.receive()
        except trio.EndOfChannel:
            self.ended = True
            raise
        finally:
            self._meter.starved_s += trio.current_time() - begun
        if self._counts:
            self._meter.count(item)
        return item

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class MeteredSend(SendChannel[T]):
    """A stage's outbox. Closing it is the runner's business, so a stage's `aclose` does nothing: a stage
    that crashes inside `async with outbox` must not look like one that finished."""

    def __init__(self, channel: SendChannel[T], meter: StageMeter) -> None:
        self._channel = channel
        self._meter = meter

    async def send(self, value: T) -> None:
        with self._meter.blocked():
            await self._channel.send(value)
        self._meter.count(value)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
