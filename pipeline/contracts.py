"""Source, Stage and Sink, their composition with `|`, and running the result.

    Source[A] | Stage[A, B] | Sink[B, R]   is a   Pipeline[R]

Inputs are contravariant and outputs covariant, so a type checker flags a wrong order at the very joint, and a sink
that takes anything fits everywhere. `|` checks the same again at run time. Composing does no
I/O: stages are settings, `run` is the work.

The rules of `run` (the engine enforces the first two):
* A stage reads its inbox to the end.
* A stage never closes a channel. The engine closes a stage's ends after its `run` returned normally; a stage that
  fails leaves them open, and its failure cancels the others. So the end of the input proves that everything
  upstream finished, and a sink may publish on it.
* State lives in locals: one object can run twice.
* A stage that takes a span and does not pass it on releases its buffer.

All channels have buffer 0: a pipeline holds what its stages hold. What an item may be: see pipeline.values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, overload

import trio
from trio.abc import ReceiveChannel, SendChannel

from .composition import check_agreement, check_joint, type_arguments, wrong_part
from .errors import ContractError, TransferFailed, leaves
from .meters import MeteredReceive, MeteredSend, PipelineReport, StageMeter, set_current_meter
from .units import format_size

T = TypeVar("T")
A_contra = TypeVar("A_contra", contravariant=True)
B_co = TypeVar("B_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)
C = TypeVar("C")
R = TypeVar("R")


class Source(ABC, Generic[B_co]):
    """Where items begin."""

    @abstractmethod
    async def run(self, outbox: SendChannel[B_co]) -> object:
        """Send every item, then return. Do not close the outbox.

        Returns:
            The source's receipt: a SourceReceipt where a disk was read, or None.
        """

    @overload
    def __or__(self, other: Stage[B_co, C]) -> Flow[C]: ...
    @overload
    def __or__(self, other: Sink[B_co, R]) -> Pipeline[R]: ...
    def __or__(self, other: Stage[B_co, C] | Sink[B_co, R]) -> Flow[C] | Pipeline[R]:
        flow: Flow[B_co] = Flow(self)
        return flow | other


class _Part:
    """A part of a path that something stands before."""

    if not TYPE_CHECKING:  # a type checker must not take it for a way to compose

        def __ror__(self, other: object) -> NoReturn:
            """Reached only when what stands left of `|` is no source and no flow."""
            raise wrong_part(other, "a source")


class Stage(_Part, ABC, Generic[A_contra, B_co]):
    """Items in, items out, in order."""

    @abstractmethod
    async def run(self, inbox: ReceiveChannel[A_contra], outbox: SendChannel[B_co]) -> None:
        """Read the inbox to its end, send what becomes of it, then return. Do not close the outbox."""

    def fused_with(self, following: Stage[Any, Any]) -> Stage[Any, Any] | None:
        """One stage that does the work of this and of the next one; None where they stay apart."""
        return None


class Sink(_Part, ABC, Generic[A_contra, R_co]):
    """Where items end. What it returns is the receipt.

    One that stores chunks may have `identity`, what has to name them, and `index`, what has to find them: the parts
    before it are held against that when they are composed.
    """

    @abstractmethod
    async def run(self, inbox: ReceiveChannel[A_contra]) -> R_co:
        """Read the inbox to its end; publish only then."""


class Flow(Source[B_co]):
    """A source followed by stages: itself a source, and the read side for an embedding program."""

    def __init__(self, source: Source[Any], *stages: Stage[Any, Any]) -> None:
        self.source: Source[Any] = source.source if isinstance(source, Flow) else source
        before: tuple[Stage[Any, Any], ...] = source.stages if isinstance(source, Flow) else ()
        self.stages: tuple[Stage[Any, Any], ...] = (*before, *stages)
        _check(self.parts)

    @property
    def parts(self) -> Sequence[Source[Any] | Stage[Any, Any]]:
        """The source and the stages."""
        return [self.source, *self.stages]

    async def run(self, outbox: SendChannel[B_co]) -> object:
        async with self.open() as items:
            async for item in items:
                await outbox.send(item)
        return None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[ReceiveChannel[B_co]]:
        """Run the flow in the background of a block; its items come from the channel.

        A crash of a stage is raised from the block as TransferFailed, never shown as the end of the items.
        Leaving the block early stops the stages; the block's own exception comes out bare.
        """
        expect_trio()
        stages = _fused(self.stages)
        report = PipelineReport[object]([StageMeter(_stage_name(part)) for part in (self.source, *stages)])
        host_error: Exception | None = None
        stage_error: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                items: ReceiveChannel[B_co] = _start(nursery, self.source, stages, report)
                try:
                    yield items
                except Exception as exc:  # kept aside, so that the nursery does not wrap it
                    host_error = exc
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            stage_error = _failure(group)
        if host_error is not None:
            raise host_error from (host_error.__cause__ or stage_error)
        if stage_error is not None:
            raise stage_error from None

    @overload
    def __or__(self, other: Stage[B_co, C]) -> Flow[C]: ...
    @overload
    def __or__(self, other: Sink[B_co, R]) -> Pipeline[R]: ...
    def __or__(self, other: Stage[B_co, C] | Sink[B_co, R]) -> Flow[C] | Pipeline[R]:
        if isinstance(other, Stage):
            return Flow(self, other)
        if isinstance(other, Sink):
            return Pipeline(self, other)
        raise wrong_part(other, "a stage or a sink")

    def __repr__(self) -> str:
        return " | ".join(repr(part) for part in (self.source, *self.stages))


class Pipeline(Generic[R_co]):
    """The way of one disk from its source to its sink. Strictly linear; branching is Python around it."""

    def __init__(self, flow: Flow[Any], sink: Sink[Any, R_co]) -> None:
        self.flow = flow
        self.sink = sink
        _check(self.parts)

    @property
    def parts(self) -> Sequence[Source[Any] | Stage[Any, Any] | Sink[Any, Any]]:
        """The source, the stages and the sink."""
        return [*self.flow.parts, self.sink]

    async def run(self) -> R_co:
        """Run to the end and return the sink's receipt. Raises TransferFailed."""
        return (await self.measure()).receipt

    async def measure(
        self, watch: Callable[[PipelineReport[R_co]], None] | None = None
    ) -> PipelineReport[R_co]:
        """Run like `run`, and account: items, bytes, busy, starved and blocked seconds per stage.

        `watch` is called once at the start with the report, whose counts grow while the pipeline runs.
        Raises TransferFailed with every failure, or what cancelled it.
        """
        expect_trio()
        stages = _fused(self.flow.stages)
        meters = [StageMeter(_stage_name(part)) for part in (self.flow.source, *stages, self.sink)]
        report = PipelineReport[R_co](meters)
        begun = trio.current_time()
        if watch is not None:
            watch(report)
        try:
            async with trio.open_nursery() as nursery:
                inbox = _start(nursery, self.flow.source, stages, report)
                nursery.start_soon(_run_sink, self.sink, inbox, report)
        except BaseExceptionGroup as group:
            raise _failure(group) from None
        finally:
            report.wall_s = trio.current_time() - begun
        return report

    if not TYPE_CHECKING:

        def __or__(self, other: object) -> NoReturn:
            raise wrong_part(other, f"nothing, behind the sink {type(self.sink).__name__},")

    def __repr__(self) -> str:
        return f"{self.flow!r} | {self.sink!r}"


def _check(parts: Sequence[Source[Any] | Stage[Any, Any] | Sink[Any, Any]]) -> None:
    """Raise ConfigError unless the last part fits to those before it, which were checked before."""
    last = parts[-1]
    if len(parts) > 1 and not isinstance(last, Source):
        before = parts[-2]
        *_, sent = (Any, *type_arguments(type(before), Source if isinstance(before, Source) else Stage))
        taken, *_ = (*type_arguments(type(last), Sink if isinstance(last, Sink) else Stage), Any)
        check_joint(before, sent, last, taken, parts[:-1])
    check_agreement(parts)


def expect_trio() -> None:
    """Raise ContractError when no event loop of trio runs this task."""
    if not trio.lowlevel.in_trio_run():
        raise ContractError(
            "This runs in the event loop of trio, and another one calls it.",
            remedy="From asyncio: await asyncio.to_thread(pipeline.blocking.run, job); see pipeline.blocking.",
        )


def _start(
    nursery: trio.Nursery,
    source: Source[Any],
    stages: Sequence[Stage[Any, Any]],
    report: PipelineReport[Any],
) -> ReceiveChannel[Any]:
    """Start everything but a sink; returns the end where its items come out."""
    send, receive = trio.open_memory_channel[Any](0)
    nursery.start_soon(_run_source, source, send, report)
    for stage, meter in zip(stages, report.stages[1:], strict=False):
        inbox, (send, receive) = receive, trio.open_memory_channel[Any](0)
        nursery.start_soon(_run_stage, stage, inbox, send, meter)
    return receive


async def _run_source(source: Source[Any], outbox: SendChannel[Any], report: PipelineReport[Any]) -> None:
    meter = report.stages[0]
    with _metered(meter):
        report.source_receipt = await source.run(MeteredSend(outbox, meter))
    await outbox.aclose()


async def _run_stage(
    stage: Stage[Any, Any], inbox: ReceiveChannel[Any], outbox: SendChannel[Any], meter: StageMeter
) -> None:
    with _metered(meter):
        metered = MeteredReceive(inbox, meter)
        await stage.run(metered, MeteredSend(outbox, meter))
        _expect_end(metered, meter)
    await outbox.aclose()
    await inbox.aclose()


async def _run_sink(sink: Sink[Any, R], inbox: ReceiveChannel[Any], report: PipelineReport[R]) -> None:
    meter = report.stages[-1]
    with _metered(meter):
        metered = MeteredReceive(inbox, meter, counts=True)
        receipt = await sink.run(metered)
        _expect_end(metered, meter)
    report.finish(receipt)


def _fused(stages: Sequence[Stage[Any, Any]]) -> list[Stage[Any, Any]]:
    """The same work, with adjacent stages made one where they can be (see pipeline.lift)."""
    result: list[Stage[Any, Any]] = []
    for stage in stages:
        together = result[-1].fused_with(stage) if result else None
        if together is not None:
            result[-1] = together
        else:
            result.append(stage)
    return result


def _stage_name(part: object) -> str:
    """The class of a part; stages that were fused give the name of all of them."""
    return getattr(part, "fused_name", type(part).__name__)


def _expect_end(inbox: MeteredReceive[Any], meter: StageMeter) -> None:
    if not inbox.ended:
        raise ContractError(
            f"Stage {meter.name} returned before its input ended.",
            remedy="A stage reads its inbox to the end; limits belong to sources.",
        )


@contextmanager
def _metered(meter: StageMeter) -> Iterator[None]:
    """Time the stage, and note on an error where it happened. The type of the error stays."""
    set_current_meter(meter)
    begun = trio.current_time()
    try:
        yield
    except BaseException as exc:
        for leaf in leaves(exc):
            if isinstance(leaf, Exception):
                leaf.add_note(f"in stage {meter.name}, after {format_size(meter.bytes)}")
        raise
    finally:
        meter.wall_s = trio.current_time() - begun


def _failure(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One flat TransferFailed; together with what cancelled the run where there is such a thing."""
    failures = [leaf for leaf in leaves(group) if isinstance(leaf, Exception)]
    others = [leaf for leaf in leaves(group) if not isinstance(leaf, Exception)]
    if not failures:
        return others[0] if len(others) == 1 else group
    failed = TransferFailed("The transfer failed; nothing was published.", failures)
    return BaseExceptionGroup("The transfer was ended.", [failed, *others]) if others else failed
