"""The shipped checks find what they are there for."""

import numpy as np
import pytest
import trio

from pipeline import SPAN, Extents, Sink, Source, Stage
from pipeline.testing import (
    FakeTarget,
    MemoryDisk,
    PatternDisk,
    check_codec,
    check_reader,
    check_sink,
    check_source,
    check_stage,
    check_store,
)
from sinks import IntoRepository, NullSink, Repository
from stages import AllocatedExtents, Compress, CutChunks, Dedupe, Digest, ReadSpans, Uncompressed, Zstd


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


@pytest.mark.parametrize("codec", [Zstd(1), Zstd(-7), Uncompressed()])
def test_the_codecs_keep_the_rules_of_codecs(codec):
    check_codec(codec, b"abc" * 1000)


class Forgetful(Uncompressed):
    def decode(self, payload, length):
        return bytes(payload)[:length]


def test_a_codec_that_decodes_to_another_length_is_found():
    with pytest.raises(AssertionError, match="which it is not"):
        check_codec(Forgetful())


async def test_the_fakes_keep_the_rules_of_disks():
    disk = PatternDisk(3 * SPAN + 512)
    await check_reader(disk, lambda offset, length: disk.bytes_at(offset, length).tobytes())
    await check_reader(MemoryDisk(np.arange(SPAN + 512, dtype=np.uint8)))


class Half(PatternDisk):
    """Says of the first half that nothing is there."""

    async def allocated(self, offset, length):
        found = await super().allocated(offset, length)
        return found - Extents.whole(self.capacity // 2)


async def test_a_disk_that_hides_data_is_found():
    with pytest.raises(AssertionError, match="not allocated at 0"):
        await check_reader(Half(SPAN, hole_ratio=0, zero_ratio=0))


async def test_a_disk_whose_bytes_change_is_found():
    disk = PatternDisk(SPAN)
    with pytest.raises(AssertionError, match="other bytes"):
        await check_reader(disk, lambda offset, length: bytes(length))


async def test_a_target_keeps_the_rules_of_targets():
    target = FakeTarget()
    await check_store(
        target,
        lambda disk, point: AllocatedExtents(disk) | ReadSpans(disk) | NullSink(),
        lambda: target.published,
    )


async def test_a_repository_keeps_the_rules_of_targets(tmp_path):
    repository = Repository(tmp_path / "repository")
    repository.init()

    def path(disk, point):
        cut = AllocatedExtents(disk) | ReadSpans(disk) | CutChunks()
        return cut | Digest(point) | Dedupe(point) | Compress() | IntoRepository(point, disk)

    await check_store(repository, path, lambda: list(repository.path.glob("points/*/*")))


class Hasty(FakeTarget):
    """Publishes when a point begins."""

    def begin(self, machine):
        self.published.append([])
        return super().begin(machine)


async def test_a_target_that_publishes_too_early_is_found():
    target = Hasty()
    with pytest.raises(AssertionError, match="a crash of a path published a point"):
        await check_store(
            target, lambda disk, point: AllocatedExtents(disk) | NullSink(), lambda: target.published
        )
