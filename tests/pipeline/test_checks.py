"""The shipped checks find what they are there for."""

import pytest
import trio

from pipeline import Sink, Source, Stage
from pipeline.testing.checks import check_sink, check_source, check_stage


class BreaksQuietly(Source[int]):
    """Takes a broken neighbour for the end."""

    async def run(self, outbox):
        try:
            await outbox.send(1)
            await outbox.send(2)
        except trio.BrokenResourceError:
            pass


class Remembers(Stage[int, int]):
    def __init__(self):
        self.total = 0

    async def run(self, inbox, outbox):
        async for item in inbox:
            self.total += item
            await outbox.send(self.total)


class PublishesAlways(Sink[int, None]):
    def __init__(self, published):
        self.published = published

    async def run(self, inbox):
        try:
            async for _ in inbox:
                pass
        finally:
            self.published.append(1)


class Forgets(Source[int]):
    def __init__(self):
        self.items = [1, 2]

    async def run(self, outbox):
        while self.items:
            await outbox.send(self.items.pop())


async def test_state_in_the_stage_is_found():
    with pytest.raises(AssertionError, match="second run differs"):
        await check_stage(Remembers, lambda: [1, 2])


async def test_a_swallowed_foreign_error_is_found():
    with pytest.raises(AssertionError, match="BrokenResourceError was swallowed"):
        await check_source(BreaksQuietly)


async def test_state_in_the_source_is_found():
    with pytest.raises(AssertionError, match="second run of the same object differs"):
        await check_source(Forgets)


async def test_publishing_after_a_crash_is_found():
    published = []
    with pytest.raises(AssertionError, match="published"):
        await check_sink(lambda: PublishesAlways(published), lambda: [1], published=lambda: len(published))
