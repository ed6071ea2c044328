"""Composing with `|`, and what a run says of itself: names, notes, receipts, times, causes."""

import pytest
import trio
from trio.testing import MockClock

from pipeline import ConfigError, ContractError, Flow, Pipeline, Sink, Source, Stage, TransferFailed
from pipeline.contracts import expect_trio
from pipeline.testing.fakes import Items


class Add(Stage[int, int]):
    async def run(self, inbox, outbox):
        async for item in inbox:
            await outbox.send(item + 1)


class Collect(Sink[int, list[int]]):
    async def run(self, inbox):
        return [item async for item in inbox]


class Fails(Stage[int, int]):
    async def run(self, inbox, outbox):
        async for item in inbox:
            await outbox.send(item)
        raise ValueError("at the end")


class Counted(Source[int]):
    """Returns a receipt of its own."""

    async def run(self, outbox):
        for item in range(3):
            await outbox.send(item)
        return "three were sent"


@pytest.mark.parametrize("wrong", [3, None, Add, "Items"])
def test_what_is_no_source_is_refused_before_a_stage_and_before_a_sink(wrong):
    for part in (Add(), Collect()):
        with pytest.raises(ConfigError, match=r"a source belongs|is a class"):
            wrong | part


@pytest.mark.parametrize("wrong", [3, None, Collect])
def test_what_is_no_stage_is_refused_behind_a_source(wrong):
    with pytest.raises(ConfigError, match=r"a stage or a sink belongs|is a class"):
        Items([1]) | wrong


def test_nothing_follows_a_sink():
    with pytest.raises(ConfigError, match="behind the sink Collect"):
        Items([1]) | Collect() | Add()


def test_composing_keeps_the_parts_in_their_order():
    source, first, second, sink = Items([1]), Add(), Add(), Collect()
    flow = source | first | second
    assert isinstance(flow, Flow)
    assert list(flow.parts) == [source, first, second]
    longer = Flow(flow, Add())
    assert longer.source is source
    assert longer.stages[:2] == (first, second)
    pipeline = flow | sink
    assert isinstance(pipeline, Pipeline)
    assert list(pipeline.parts) == [source, first, second, sink]
    assert repr(pipeline) == " | ".join(map(repr, pipeline.parts))
    assert repr(flow) == " | ".join(map(repr, flow.parts))


async def test_a_flow_can_be_run_as_the_source_that_it_is():
    send, receive = trio.open_memory_channel[int](10)
    assert await (Items([1, 2]) | Add()).run(send) is None
    assert [receive.receive_nowait(), receive.receive_nowait()] == [2, 3]


async def test_a_failure_in_an_open_flow_names_its_stage_and_what_it_had_done():
    with pytest.raises(TransferFailed) as failed:
        async with (Items([1, 2]) | Fails() | Add()).open() as items:
            async for _ in items:
                pass
    [error] = failed.value.exceptions
    assert error.__notes__ == ["in stage Fails, after 0 B"]
    assert failed.value.__cause__ is None


async def test_the_hosts_exception_keeps_its_own_cause_and_else_gets_that_of_the_flow():
    with pytest.raises(LookupError) as caught:
        async with (Items([]) | Fails()).open():
            try:
                await trio.sleep_forever()
            finally:
                raise LookupError("host")
    assert isinstance(caught.value.__cause__, TransferFailed)
    cause = KeyError("own")
    with pytest.raises(LookupError) as caught:
        async with (Items([1]) | Add()).open():
            raise LookupError("host") from cause
    assert caught.value.__cause__ is cause


def test_the_report_has_each_part_its_time_and_the_receipts():
    async def main():
        return await (Counted() | Add() | Collect()).measure()

    report = trio.run(main)
    assert [meter.name for meter in report.stages] == ["Counted", "Add", "Collect"]
    assert report.source_receipt == "three were sent"
    assert report.receipt == [1, 2, 3]
    assert [meter.items for meter in report.stages] == [3, 3, 3]


def test_time_is_counted_for_the_run_and_for_each_stage_also_when_it_fails():
    class Slow(Source[int]):
        async def run(self, outbox):
            await trio.sleep(2)
            await outbox.send(1)

    class SlowFails(Sink[int, None]):
        async def run(self, inbox):
            async for _ in inbox:
                await trio.sleep(3)
            raise ValueError("late")

    seen = []

    async def main():
        await trio.sleep(1)
        with pytest.raises(TransferFailed):
            await (Slow() | SlowFails()).measure(seen.append)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    [report] = seen
    assert report.wall_s == pytest.approx(5)
    assert [meter.wall_s for meter in report.stages] == pytest.approx([2, 5])


async def test_a_cancelled_run_with_a_failure_is_both():
    class FailsWhenCancelled(Sink[int, None]):
        async def run(self, inbox):
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("in the end")

    with trio.move_on_after(0.01) as scope:
        with pytest.raises(BaseExceptionGroup) as caught:
            await (Items([1]) | FailsWhenCancelled()).run()
        failed, *others = caught.value.exceptions
        assert isinstance(failed, TransferFailed)
        assert all(isinstance(one, trio.Cancelled) for one in others)
    assert not scope.cancelled_caught


def test_another_event_loop_is_told_what_to_call_instead():
    import asyncio

    async def main():
        await (Items([1]) | Collect()).run()

    with pytest.raises(ContractError, match="event loop of trio") as caught:
        asyncio.run(main())
    assert "pipeline.blocking" in caught.value.remedy
    with pytest.raises(ContractError):
        expect_trio()


class Text(Stage[int, str]):
    async def run(self, inbox, outbox):
        async for item in inbox:
            await outbox.send(str(item))


def test_a_stage_right_behind_itself_is_called_one_that_stands_twice():
    with pytest.raises(ConfigError, match="Text stands twice in the path"):
        Items([1]) | Text() | Text()


async def test_a_sink_that_returns_early_breaks_the_contract():
    class TakesOne(Sink[int, int]):
        async def run(self, inbox):
            return await inbox.receive()

    with pytest.raises(TransferFailed) as failed:
        await (Items([1, 2]) | TakesOne()).run()
    assert failed.group_contains(ContractError, match="TakesOne returned before its input ended")
