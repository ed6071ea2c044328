"""A disk against a point: exactly the clusters that differ, whatever the point was made from."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import (
    CLUSTER,
    SPAN,
    BufferPool,
    ConfigError,
    ContractError,
    Extents,
    IntegrityError,
    MiB,
    Span,
    TransferFailed,
    Unchanged,
    Zeros,
)
from pipeline.errors import leaves
from pipeline.testing.checks import check_sink, check_source
from pipeline.testing.fakes import Items
from sinks.in_place import OverDisk
from stages.differences import Differences
from tests.stages.differences_kit import WritableMemoryDisk, clusters_that_differ, rolled_back
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, incremental_path, random_bytes
from vadpipe.repository.format.frames import decode
from vadpipe.repository.reader import open_repository
from vadpipe.repository.store import Repository

CAPACITY = 9 * MiB + 3 * 512  # two spans and a part, and a tail that is no whole cluster


def sample(seed=1, capacity=CAPACITY):
    content = random_bytes(seed, capacity)
    content[MiB : 3 * MiB] = 0
    content[5 * MiB : 5 * MiB + CLUSTER] = 0  # a short run inside data, which is stored as data
    return content


def stored(repository, content):
    trio.run(backup, repository, [MemoryDisk(content.copy())])


def test_an_equal_disk_has_no_difference_and_is_not_written(repository):
    content = sample()
    stored(repository, content)
    disk = WritableMemoryDisk(content.copy())
    receipt = rolled_back(repository, disk)
    assert (receipt.data, receipt.zeros, receipt.spans) == (0, 0, 0)
    assert disk.done == []
    assert disk.flushes == 0


def test_only_the_clusters_that_differ_are_written(repository):
    content = sample()
    stored(repository, content)
    changed = content.copy()
    changed[100 * CLUSTER + 7] ^= 1  # one bit
    changed[2 * MiB : 2 * MiB + 10] = 9  # where the point has zeros
    changed[5 * MiB : 5 * MiB + 3] = 9  # where the point has a zero cluster inside data
    changed[-1] ^= 1
    disk = WritableMemoryDisk(changed.copy())
    receipt = rolled_back(repository, disk)
    assert np.array_equal(disk.content, content)
    assert disk.written_extents == clusters_that_differ(changed, content)
    assert receipt.zeros == CLUSTER
    assert receipt.data == 2 * CLUSTER + CAPACITY % CLUSTER
    assert disk.flushes == 1


def test_the_bytes_of_the_point_are_read_only_for_chunks_that_differ(repository, monkeypatch):
    content = sample()
    stored(repository, content)
    decoded = []
    monkeypatch.setattr("vadpipe.repository.format.packs.frames.decode", _counting(decoded))
    rolled_back(repository, WritableMemoryDisk(content.copy()))
    pages = len(decoded)
    decoded.clear()
    changed = content.copy()
    changed[4 * MiB] ^= 1
    rolled_back(repository, WritableMemoryDisk(changed))
    assert len(decoded) == pages + 1


def _counting(decoded):
    def counting(frame, keys):
        decoded.append(frame.id)
        return decode(frame, keys)

    return counting


def test_what_is_not_allocated_is_neither_read_nor_written_where_the_point_has_zeros(repository):
    content = sample()
    stored(repository, content)
    holes = Extents.of([(MiB, 2 * MiB)])
    disk = WritableMemoryDisk(content.copy(), holes=holes)
    disk.content[MiB : 3 * MiB] = 7  # if it were read, it would be found to differ
    rolled_back(repository, disk)
    assert disk.done == []
    assert len(Extents.of(disk.seen) & holes) == 0


def test_a_hole_where_the_point_has_data_is_filled(repository):
    content = sample()
    stored(repository, content)
    disk = WritableMemoryDisk(np.zeros_like(content), holes=Extents.whole(CAPACITY))
    receipt = rolled_back(repository, disk)
    assert np.array_equal(disk.content, content)
    assert disk.seen == []
    assert disk.written_extents == clusters_that_differ(np.zeros_like(content), content)
    assert receipt.zeros == 0


def test_only_what_lies_within_is_compared(repository):
    content = sample()
    stored(repository, content)
    disk = WritableMemoryDisk(random_bytes(2, CAPACITY))
    rolled_back(repository, disk, within=Extents.of([(5 * MiB, 1)]))
    assert disk.written_extents == Extents.whole(4 * MiB, 4 * MiB)
    assert np.array_equal(disk.content[4 * MiB : 8 * MiB], content[4 * MiB : 8 * MiB])


piece = st.tuples(
    st.integers(0, CAPACITY // 512 - 1), st.integers(1, 700), st.sampled_from(["zero", "random", "copy"])
)


def altered(content, pieces, seed):
    content = content.copy()
    for number, (sector, sectors, kind) in enumerate(pieces):
        part = content[sector * 512 : (sector + sectors) * 512]
        if kind == "zero":
            part[:] = 0
        elif kind == "random":
            part[:] = random_bytes(seed * 100 + number, len(part))
        else:
            part[:] = content[: len(part)].copy()
    return content


@pytest.mark.slow
@given(
    base=st.lists(piece, max_size=4),
    later=st.lists(st.lists(piece, max_size=3), max_size=2),
    now=st.lists(piece, max_size=5),
    target=st.integers(0, 2),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_disk_becomes_any_point_by_writing_exactly_what_differs(
    tmp_path_factory, base, later, now, target
):
    repository = Repository(tmp_path_factory.mktemp("repository") / "r")
    repository.init()
    live = MemoryDisk(altered(sample(), base, 1))
    points = [(trio.run(backup, repository, [live]), live.content.copy())]
    for number, pieces in enumerate(later, 2):
        for sector, sectors, kind in pieces:
            after = altered(live.content, [(sector, sectors, kind)], number)
            live.write(sector * 512, after[sector * 512 : (sector + sectors) * 512])
        points.append((trio.run(backup, repository, [live], incremental_path), live.content.copy()))
    point, wanted = points[min(target, len(points) - 1)]
    disk = WritableMemoryDisk(altered(live.content, now, 9))
    before = disk.content.copy()
    rolled_back(repository, disk, point)
    assert np.array_equal(disk.content, wanted)
    assert disk.written_extents == clusters_that_differ(before, wanted)


def test_a_disk_of_another_size_is_refused(repository):
    stored(repository, sample())
    with pytest.raises(TransferFailed) as failed:
        rolled_back(repository, WritableMemoryDisk(np.zeros(MiB, np.uint8)))
    [error] = leaves(failed.value)
    assert isinstance(error, ConfigError)
    assert "Compare disks of one size" in str(error)


def test_a_disk_that_the_point_does_not_have_is_refused(repository):
    stored(repository, sample())
    with pytest.raises(TransferFailed) as failed:
        rolled_back(repository, WritableMemoryDisk(sample()), key="scsi9:9")
    assert "has no disk 'scsi9:9'" in str(leaves(failed.value)[0])


def test_a_damaged_frame_is_named_and_gives_its_buffers_back(repository):
    content = sample()
    stored(repository, content)
    for pack in repository.path.glob("packs/*/*.pack"):
        damaged = bytearray(pack.read_bytes())
        damaged[2 * MiB : 2 * MiB + 64] = bytes(64)
        pack.write_bytes(damaged)
    disk = WritableMemoryDisk(np.zeros_like(content))
    with pytest.raises(TransferFailed) as failed:
        rolled_back(repository, disk)
    assert any(isinstance(error, IntegrityError) for error in leaves(failed.value))
    counted = disk.pool.statistics()  # while the error is held
    assert counted.free == counted.buffers
    del failed
    gc.collect()


@pytest.mark.parametrize("fails", ["write", "begin"])
def test_a_disk_that_cannot_be_written_gives_its_buffers_back(repository, fails):
    content = sample()
    stored(repository, content)
    disk = WritableMemoryDisk(random_bytes(5, CAPACITY), fail_after=0)

    async def begin():
        await trio.lowlevel.checkpoint()
        if fails == "begin":
            raise OSError("Injected: nothing can be noted.")

    async def work():
        async with open_repository(repository.path) as reader:
            differences = Differences(reader, reader.points[-1], "scsi0:0", disk)
            await (differences | OverDisk(disk, begin, ahead=1)).run()

    with pytest.raises(TransferFailed) as failed:
        trio.run(work)
    counted = disk.pool.statistics()  # while the error is held
    assert counted.free == counted.buffers
    assert "Injected" in str(leaves(failed.value)[0])


def test_one_buffer_is_enough(repository):
    content = sample()
    stored(repository, content)
    disk = WritableMemoryDisk(random_bytes(5, CAPACITY), pool=BufferPool(SPAN))
    rolled_back(repository, disk)
    assert np.array_equal(disk.content, content)


async def test_differences_and_their_sink_keep_the_contracts(repository):
    content = sample()
    await backup(repository, [MemoryDisk(content.copy(), pool=BufferPool(16 << 20))])
    now = WritableMemoryDisk(
        altered(content, [(10, 3, "random"), (9000, 40, "zero"), (3000, 9, "random")], 4)
    )
    async with open_repository(repository.path) as reader:
        point = reader.points[-1]
        views = await check_source(lambda: Differences(reader, point, "scsi0:0", now), least=2)
        assert len(views) == 3  # two spans and the tail

        def items():
            """Spans of their own: each run releases them."""
            data = Extents.of([(CLUSTER, CLUSTER)])
            zeros = Extents.of([(5 * CLUSTER, CLUSTER)])
            span = Span.of(random_bytes(3, SPAN).tobytes())
            first = replace(span, data=data, zeros=zeros)
            return [first, Unchanged(SPAN, CAPACITY - SPAN)]

        target = WritableMemoryDisk(np.ones(CAPACITY, np.uint8))
        await check_sink(lambda: OverDisk(target), items)
        assert target.written_extents == Extents.of([(CLUSTER, CLUSTER), (5 * CLUSTER, CLUSTER)])
        assert not target.content[5 * CLUSTER : 6 * CLUSTER].any()


@pytest.mark.parametrize("items", [[Unchanged(0, SPAN)], [Unchanged(SPAN, SPAN)], [Zeros(0, CAPACITY)]])
async def test_the_sink_refuses_what_is_no_whole_disk_of_differences(items):
    disk = WritableMemoryDisk(np.ones(CAPACITY, np.uint8))
    with pytest.raises(TransferFailed) as failed:
        await (Items(items) | OverDisk(disk)).run()
    assert any(isinstance(error, ContractError | ConfigError) for error in leaves(failed.value))
    assert disk.done == []


async def test_nothing_counts_as_written_before_it_is_flushed():
    disk = WritableMemoryDisk(np.ones(2 * SPAN, np.uint8))
    told = []

    async def begin():
        told.append(("begin", disk.written_bytes, disk.flushes))

    async def reached(position):
        told.append((position, disk.written_bytes, disk.flushes))

    spans = [replace(Span.of(bytes(SPAN), at), data=Extents.whole(CLUSTER, at)) for at in (0, SPAN)]
    await (Items(spans) | OverDisk(disk, begin, reached)).run()
    assert told == [("begin", 0, 0), (2 * SPAN, 2 * CLUSTER, 1)]
