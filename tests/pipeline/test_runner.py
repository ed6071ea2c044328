"""The rules of the runner: crashes are visible, ends are proofs, time is accounted."""

import pytest
import trio
from trio.testing import MockClock

from pipeline import ContractError, Sink, Source, Stage, TransferFailed
from pipeline.meters import current_meter
from pipeline.testing.checks import check_sink, check_source, check_stage
from pipeline.testing.fakes import Items


class Add(Stage[int, int]):
    async def run(self, inbox, outbox):
        async for item in inbox:
            await outbox.send(item + 1)


class Collect(Sink[int, list[int]]):
    def __init__(self):
        self.published = []

    async def run(self, inbox):
        items = [item async for item in inbox]
        self.published.append(items)
        return items


class CrashAfter(Source[int]):
    def __init__(self, count, error):
        self.count, self.error = count, error

    async def run(self, outbox):
        async with outbox:  # a stage may do this; it must not end the stream
            for item in range(self.count):
                await outbox.send(item)
            raise self.error


class TakeOne(Stage[int, int]):
    async def run(self, inbox, outbox):
        await outbox.send(await inbox.receive())


async def test_a_pipeline_returns_the_receipt_of_its_sink():
    assert await (Items([1, 2, 3]) | Add() | Add() | Collect()).run() == [3, 4, 5]


async def test_a_crashed_source_is_never_the_end_of_the_disk():
    for count in range(20):
        sink = Collect()
        with pytest.raises(TransferFailed) as failed:
            await (CrashAfter(count, ValueError("lost")) | Add() | sink).run()
        assert sink.published == []
        [error] = failed.value.exceptions
        assert isinstance(error, ValueError)
        assert error.__notes__ == ["in stage CrashAfter, after 0 B"]


async def test_returning_early_breaks_the_contract():
    with pytest.raises(TransferFailed) as failed:
        await (Items([1, 2, 3]) | TakeOne() | Collect()).run()
    assert failed.group_contains(ContractError, match="TakeOne returned before its input ended")


async def test_every_failure_is_kept():
    class FailAtEnd(Sink[int, None]):
        async def run(self, inbox):
            try:
                async for _ in inbox:
                    pass
            finally:
                raise KeyError("sink")

    with pytest.raises(TransferFailed) as failed:
        await (CrashAfter(2, ValueError("source")) | FailAtEnd()).run()
    assert failed.group_contains(ValueError, match="source")
    assert failed.group_contains(KeyError, match="sink")


async def test_cancellation_is_no_failure():
    with trio.move_on_after(0.01) as scope:
        await (Items([1]) | Stuck() | Collect()).run()
    assert scope.cancelled_caught


class Stuck(Stage[int, int]):
    async def run(self, inbox, outbox):
        await trio.sleep_forever()


async def test_open_flow_gives_items_to_the_host():
    async with (Items([1, 2, 3]) | Add()).open() as items:
        assert [item async for item in items] == [2, 3, 4]


async def test_open_flow_raises_a_crash_instead_of_ending():
    with pytest.raises(TransferFailed) as failed:
        async with (CrashAfter(2, ValueError("lost")) | Add()).open() as items:
            async for _ in items:
                pass
            pytest.fail("a crash looked like the end")
    assert failed.group_contains(ValueError, match="lost")


async def test_open_flow_leaves_the_hosts_own_exception_bare():
    with pytest.raises(LookupError, match="the host's"):
        async with (Items([1, 2, 3]) | Add()).open() as items:
            await items.receive()
            raise LookupError("the host's")


async def test_open_flow_can_be_left_early():
    async with (Items(range(1000)) | Add()).open() as items:
        assert await items.receive() == 1


class Slow(Stage[int, int]):
    async def run(self, inbox, outbox):
        async for item in inbox:
            await trio.sleep(3)
            await outbox.send(item)


def test_meters_name_the_slow_stage():
    async def main():
        return await (Items(range(10)) | Add() | Slow() | Add() | Collect()).measure()

    report = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert report.bottleneck.name == "Slow"
    source, first, slow, last, sink = report.stages
    assert slow.busy_s == pytest.approx(30)
    assert source.blocked_s == pytest.approx(24)  # it is two items ahead
    assert first.busy_s == last.busy_s == pytest.approx(0)
    assert last.starved_s == pytest.approx(30)
    assert sink.items == 10


async def test_stages_outside_of_a_pipeline_have_a_meter_to_throw_away():
    assert current_meter().name == "outside"


async def test_plain_parts_pass_the_shipped_checks():
    await check_source(lambda: Items([1, 2, 3]))
    assert await check_stage(Add, lambda: [1, 2, 3], view=repr) == ["2", "3", "4"]
    sink = Collect()
    await check_sink(lambda: sink, lambda: [1, 2, 3], published=lambda: len(sink.published))
