"""Runs pipelines: the one nursery, every channel, and the rule that makes crashes visible.

The ends of a stage are closed only after its `run` returned normally. A stage that fails leaves them open; its
failure cancels the others, so nobody downstream ever takes the end of a broken stream for the end of the
disk. All channels have buffer 0: what a pipeline holds is what its stages hold.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio
from trio.abc import ReceiveChannel, SendChannel

from .contracts import (
    Flow,
    Pipeline,
    Sink,
    Source,
    Stage,
)
from .errors import ContractError, TransferFailed, leaves
from .lift import fused, stage_name
from .meters import (
    MeteredReceive,
    MeteredSend,
    PipelineReport,
    StageMeter,
    set_current_meter,
)
from .units import format_size

T = TypeVar("T")
R = TypeVar("R")


async def run_pipeline(
    pipeline: Pipeline[R], watch: Callable[[PipelineReport[R]], None] | None = None
) -> PipelineReport[R]:
    """Run to the end. Raises TransferFailed with every failure, or what cancelled it."""
    stages = fused(pipeline.flow.stages)
    meters = [StageMeter(stage_name(part)) for part in (pipeline.flow.source, *stages, pipeline.sink)]
    report = PipelineReport[R](meters)
    begun = trio.current_time()
    if watch is not None:
        watch(report)
    try:
        async with trio.open_nursery() as nursery:
            inbox = _start(nursery, pipeline.flow.source, stages, meters)
            nursery.start_soon(_run_sink, pipeline.sink, inbox, meters[-1], report._receipt)
    except BaseExceptionGroup as group:
        raise _failure(group) from None
    finally:
        report.wall_s = trio.current_time() - begun
    return report


@asynccontextmanager
async def open_flow(flow: Flow[T]) -> AsyncIterator[ReceiveChannel[T]]:
    """The items of a flow, for the block of a host program. See Flow.open."""
    stages = fused(flow.stages)
    meters = [StageMeter(stage_name(part)) for part in (flow.source, *stages)]
    host_error: Exception | None = None
    stage_error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            items: ReceiveChannel[T] = _start(nursery, flow.source, stages, meters)
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


def _start(
    nursery: trio.Nursery,
    source: Source[Any],
    stages: Sequence[Stage[Any, Any]],
    meters: Sequence[StageMeter],
) -> ReceiveChannel[Any]:
    """Start everything but a sink; returns the end where its items come out."""
    send, receive = trio.open_memory_channel[Any](0)
    nursery.start_soon(_run_source, source, send, meters[0])
    for stage, meter in zip(stages, meters[1:], strict=False):
        inbox, (send, receive) = receive, trio.open_memory_channel[Any](0)
        nursery.start_soon(_run_stage, stage, inbox, send, meter)
    return receive


async def _run_source(source: Source[Any], outbox: SendChannel[Any], meter: StageMeter) -> None:
    with _Annotated(meter):
        await source.run(MeteredSend(outbox, meter))
    await outbox.aclose()


async def _run_stage(
    stage: Stage[Any, Any], inbox: ReceiveChannel[Any], outbox: SendChannel[Any], meter: StageMeter
) -> None:
    with _Annotated(meter):
        metered = MeteredReceive(inbox, meter)
        await stage.run(metered, MeteredSend(outbox, meter))
        _expect_end(metered, meter)
    await outbox.aclose()
    await inbox.aclose()


async def _run_sink(
    sink: Sink[Any, object], inbox: ReceiveChannel[Any], meter: StageMeter, receipts: list[object]
) -> None:
    with _Annotated(meter):
        metered = MeteredReceive(inbox, meter, counts=True)
        receipt = await sink.run(metered)
        _expect_end(metered, meter)
    receipts.append(receipt)


def _expect_end(inbox: MeteredReceive[Any], meter: StageMeter) -> None:
    if not inbox.ended:
        raise ContractError(
            f"Stage {meter.name} returned before its input ended.",
            remedy="A stage reads its inbox to the end; limits belong to sources.",
        )


class _Annotated:
    """Notes on an error where it happened, and times the stage. The type of the error stays."""

    def __init__(self, meter: StageMeter) -> None:
        self._meter = meter

    def __enter__(self) -> None:
        set_current_meter(self._meter)
        self._begun = trio.current_time()

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        self._meter.wall_s = trio.current_time() - self._begun
        for leaf in leaves(exc) if exc is not None else ():
            if isinstance(leaf, Exception):
                leaf.add_note(f"in stage {self._meter.name}, after {format_size(self._meter.bytes)}")


def _failure(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One flat TransferFailed; together with what cancelled the run where there is such a thing."""
    failures = [leaf for leaf in leaves(group) if isinstance(leaf, Exception)]
    others = [leaf for leaf in leaves(group) if not isinstance(leaf, Exception)]
    if not failures:
        return others[0] if len(others) == 1 else group
    failed = TransferFailed("The transfer failed; nothing was published.", failures)
    return BaseExceptionGroup("The transfer was ended.", [failed, *others]) if others else failed
