"""Source, Stage and Sink, and their composition with `|`.

    Source[A] | Stage[A, B] | Sink[B, R]   is a   Pipeline[R]

Inputs are contravariant and outputs covariant, so a type checker flags a wrong order at the very joint, and
a sink that takes anything fits everywhere. Composing does no I/O: stages are settings, `run` is the work.

The rules of `run` (the runner enforces the first two):
* A stage reads its inbox to the end, and never closes a channel: the runner closes a stage's ends only after
  its `run` returned normally. So the end of the input proves that everything upstream finished, and a sink
  may publish on it.
* State lives in locals: one object can run twice.
* A stage that takes a span and does not pass it on releases its buffer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from trio.abc import ReceiveChannel, SendChannel

if TYPE_CHECKING:
    from .meters import PipelineReport

A_contra = TypeVar("A_contra", contravariant=True)
B_co = TypeVar("B_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)
C = TypeVar("C")
R = TypeVar("R")


class Source(ABC, Generic[B_co]):
    """Where items begin."""

    @abstractmethod
    async def run(self, outbox: SendChannel[B_co]) -> None:
        """Send every item, then return. Do not close the outbox."""

    @overload
    def __or__(self, other: Stage[B_co, C]) -> Flow[C]: ...
    @overload
    def __or__(self, other: Sink[B_co, R]) -> Pipeline[R]: ...
    def __or__(self, other: Stage[B_co, C] | Sink[B_co, R]) -> Flow[C] | Pipeline[R]:
        flow: Flow[B_co] = Flow(self)
        return flow | other


class Stage(ABC, Generic[A_contra, B_co]):
    """Items in, items out, in order."""

    @abstractmethod
    async def run(self, inbox: ReceiveChannel[A_contra], outbox: SendChannel[B_co]) -> None:
        """Read the inbox to its end, send what becomes of it, then return. Do not close the outbox."""


class Sink(ABC, Generic[A_contra, R_co]):
    """Where items end. What it returns is the receipt."""

    @abstractmethod
    async def run(self, inbox: ReceiveChannel[A_contra]) -> R_co:
        """Read the inbox to its end; publish only then."""


class Flow(Source[B_co]):
    """A source followed by stages: itself a source, and the read side for an embedding program."""

    def __init__(self, source: Source[Any], *stages: Stage[Any, Any]) -> None:
        self.source: Source[Any] = source.source if isinstance(source, Flow) else source
        before: tuple[Stage[Any, Any], ...] = source.stages if isinstance(source, Flow) else ()
        self.stages: tuple[Stage[Any, Any], ...] = (*before, *stages)

    async def run(self, outbox: SendChannel[B_co]) -> None:
        async with self.open() as items:
            async for item in items:
                await outbox.send(item)

    def open(self) -> AbstractAsyncContextManager[ReceiveChannel[B_co]]:
        """Run the flow in the background of a block; its items come from the channel.

        A crash of a stage is raised from the block as TransferFailed, never shown as the end of the items.
        Leaving the block early stops the stages; the block's own exception comes out bare.
        """
        from .runner import open_flow

        return open_flow(self)

    @overload
    def __or__(self, other: Stage[B_co, C]) -> Flow[C]: ...
    @overload
    def __or__(self, other: Sink[B_co, R]) -> Pipeline[R]: ...
    def __or__(self, other: Stage[B_co, C] | Sink[B_co, R]) -> Flow[C] | Pipeline[R]:
        if isinstance(other, Stage):
            return Flow(self, other)
        if isinstance(other, Sink):
            return Pipeline(self, other)
        return NotImplemented

    def __repr__(self) -> str:
        return " | ".join(repr(part) for part in (self.source, *self.stages))


class Pipeline(Generic[R_co]):
    """One disk's way from its source to its sink. Strictly linear; branching is Python around it."""

    def __init__(self, flow: Flow[Any], sink: Sink[Any, R_co]) -> None:
        self.flow = flow
        self.sink = sink

    async def run(self) -> R_co:
        """Run to the end and return the sink's receipt. Raises TransferFailed."""
        return (await self.measure()).receipt

    async def measure(
        self, watch: Callable[[PipelineReport[R_co]], None] | None = None
    ) -> PipelineReport[R_co]:
        """Run like `run`, and account: items, bytes, busy, starved and blocked seconds per stage.

        `watch` is called once at the start with the report, whose counts grow while the pipeline runs.
        """
        from .runner import run_pipeline

        return await run_pipeline(self, watch)

    def __repr__(self) -> str:
        return f"{self.flow!r} | {self.sink!r}"
