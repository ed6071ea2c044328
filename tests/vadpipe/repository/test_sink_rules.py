"""The rules of IntoRepository and of a point: what is not covered, promised or whole is never published."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline import (
    NO_FRAME,
    SPAN,
    ConfigError,
    ContractError,
    Extents,
    MachineId,
    MiB,
    TransferFailed,
    Unchanged,
    Zeros,
)
from pipeline.testing.checks import check_sink, check_source
from pipeline.testing.fakes import FakeCapture, Items
from sinks import NullSink
from tests.vadpipe.repository.repository_kit import (
    MACHINE,
    MemoryDisk,
    backup,
    disk_of,
    framed,
    mixed_content,
    random_bytes,
)
from vadpipe.repository.into_repository import IntoRepository
from vadpipe.repository.reader import ReadPoint, open_repository
from vadpipe.repository.store import RepositoryStore


@pytest.fixture
async def point(repository):
    async with repository.open() as store, store.begin(MACHINE) as point:
        yield point


@pytest.mark.slow
async def test_the_sink_keeps_the_rules(repository, point):
    seeds = iter(range(0, 10**9, 10**4))

    def items():
        return [framed(point, 0, random_bytes(next(seeds), MiB)), Zeros(MiB, 3 * MiB)]

    def published():
        return sorted(repository.path.glob("points/*/*"))

    disk = disk_of(4 * MiB)
    await check_sink(
        lambda: IntoRepository(point, disk), items, published=published, view=lambda r: replace(r, root="")
    )


@pytest.mark.slow
async def test_the_source_keeps_the_rules(repository):
    disk = MemoryDisk(mixed_content(3 * SPAN + 512))
    await backup(repository, [disk])
    async with open_repository(repository.path) as reader:

        def view(item):
            if isinstance(item, Zeros):
                return item
            return item.offset, item.data, item.bytes_of(*next(iter(item.data))).tobytes()

        await check_source(lambda: ReadPoint(reader, reader.points[0], disk.key), view=view, least=4)
        with pytest.raises(TransferFailed) as failed:
            await (ReadPoint(reader, reader.points[0], "other") | NullSink()).run()
    assert failed.group_contains(ConfigError, match="has no disk 'other'")


def moved(span, **changes):
    return replace(span, **changes)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda p: [Zeros(0, 4096)], "the input ends at 4096"),
        (lambda p: [Zeros(4096, MiB - 4096)], "came where 0 was due"),
        (lambda p: [Zeros(0, 8192), Zeros(4096, MiB - 4096)], "came where 8192 was due"),
        (lambda p: [Zeros(0, MiB + 4096)], "came where 0 was due"),
        (lambda p: [Zeros(0, 512), Zeros(512, MiB - 512)], "no whole number of clusters"),
        (lambda p: [Unchanged(0, MiB)], "no previous point"),
        (lambda p: [moved(framed(p, 0, random_bytes(1, MiB)), data=Extents.empty())], "no previous point"),
        (
            lambda p: [moved(framed(p, 0, random_bytes(1, MiB)), zeros=Extents.whole(4096))],
            "overlap",
        ),
        (
            lambda p: [moved(framed(p, 0, random_bytes(1, MiB)), data=Extents.whole(2 * MiB))],
            "over its own borders",
        ),
        (
            lambda p: [moved(framed(p, 0, random_bytes(1, MiB)), chunk_offset=np.arange(16) * 65536 + 4096)],
            "not exactly the data",
        ),
        (
            lambda p: [moved(framed(p, 0, random_bytes(1, MiB)), chunk_place=np.arange(16) * 65536 + 512)],
            "no whole clusters",
        ),
        (
            lambda p: [moved(framed(p, 0, random_bytes(1, MiB)), chunk_frame=np.full(16, NO_FRAME))],
            "have no frame",
        ),
        (
            lambda p: [moved(framed(p, 0, random_bytes(1, MiB)), chunk_frame=np.full(16, 5, np.uint64))],
            "no frame with the number",
        ),
    ],
)
async def test_a_disk_that_is_not_covered_exactly_once_is_refused(point, make, problem):
    with pytest.raises(TransferFailed) as failed:
        await (Items(make(point)) | IntoRepository(point, disk_of(MiB))).run()
    assert failed.group_contains(ContractError, match=problem)


def altered_frame(point, **changes):
    span = framed(point, 0, random_bytes(1, MiB))
    return replace(span, frames=[replace(span.frames[0], **changes)])


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda p: altered_frame(p, number=77), "was not promised"),
        (lambda p: altered_frame(p, length=MiB - 1), "does not decode what it encoded"),
        (
            lambda p: altered_frame(p, digest=random_bytes(9, 512).reshape(16, 32)),
            "digests of its chunks are not",
        ),
        (lambda p: altered_frame(p, codec="lzma"), "does not know the codec 'lzma'"),
        (
            lambda p: (lambda span: replace(span, frames=span.frames * 2))(
                framed(p, 0, random_bytes(1, MiB))
            ),
            "came twice",
        ),
    ],
)
async def test_a_frame_that_was_not_promised_is_refused(point, make, problem):
    with pytest.raises(TransferFailed) as failed:
        await (Items([make(point)]) | IntoRepository(point, disk_of(MiB))).run()
    assert failed.group_contains(ContractError, match=problem)


async def test_an_incomplete_point_is_not_published(point):
    disk = disk_of(MiB)
    receipt = await (Items([Zeros(0, MiB)]) | IntoRepository(point, disk)).run()
    capture = FakeCapture(MACHINE, [disk])
    with pytest.raises(ContractError, match="other was not written"):
        await point.publish(capture, [receipt, replace(receipt, key="other")], None)
    with pytest.raises(ContractError, match="was not written to this point"):
        await point.publish(capture, [replace(receipt, zero_read=1)], None)
    with pytest.raises(ContractError, match="same key"):
        await point.publish(capture, [receipt, receipt], None)
    framed(point, 0, random_bytes(1, MiB))
    with pytest.raises(ContractError, match="Promised and not stored: 1 frame;"):
        await point.publish(capture, [receipt], None)


async def test_a_configuration_that_is_not_json_is_refused(point):
    with pytest.raises(ContractError, match="not JSON"):
        await point.publish(FakeCapture(MACHINE, [], "none", {"x": object()}), [], None)


async def test_a_published_point_cannot_be_written(point):
    await point.publish(FakeCapture(MACHINE, []), [], None)
    with pytest.raises(ContractError, match="was published"):
        framed(point, 0, random_bytes(1, MiB))


async def test_previous_is_the_same_disk_of_the_newest_point(repository):
    disk, other = disk_of(8192), MemoryDisk(np.zeros(4096, np.uint8), key="other")
    identity = await backup(repository, [disk])
    async with repository.open() as store:
        assert isinstance(store, RepositoryStore)
        async with store.begin(MACHINE) as point:
            previous = point.previous(disk)
            assert previous is not None
            assert (previous.point, previous.capacity, previous.change_id) == (identity, 8192, "0")
            assert point.previous(other) is None
        async with store.begin(MachineId("another", "vm")) as point:
            assert point.previous(disk) is None
