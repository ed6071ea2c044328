"""The whole path in one process: a disk, the stages, a repository, and back."""

import numpy as np
import pytest

from pipeline import (
    CLUSTER,
    SPAN,
    BufferPool,
    ContractError,
    IntegrityError,
    Job,
    MiB,
    SinkError,
    Span,
    TransferFailed,
)
from pipeline.testing.fakes import FakeMachine, FaultyDisk, Items, PatternDisk
from pipeline.testing.views import all_free
from sinks import IntoRepository, RawFile, ReadPoint, Repository, open_repository
from stages import MemoryIndex, Zstd
from tests.vadpipe.repository.repository_kit import incremental_path
from vadpipe.kernels import cut_span, dedupe_span, digest_span, encode_span

SIZE = 9 * SPAN + 3 * CLUSTER + 512


@pytest.fixture
def disk():
    return PatternDisk(SIZE, seed=5, hole_ratio=0.3, zero_ratio=0.2, duplicate_ratio=0.3)


async def back_up(disk, repository):
    receipt = await Job(FakeMachine([disk]), incremental_path, into=repository).run()
    return receipt.disks[0]


async def restored(repository, tmp_path, point="latest"):
    image = tmp_path / f"{point}.raw"
    async with open_repository(repository.path) as reader:
        found = reader.resolve(point)
        await (ReadPoint(reader, found, "scsi0:0") | RawFile(image, SIZE)).run()
    return np.fromfile(image, np.uint8)


@pytest.mark.slow
async def test_a_full_and_an_incremental_point_hold_what_the_disk_held(disk, repository, tmp_path):
    full = await back_up(disk, repository)
    before = disk.bytes_at(0, SIZE)
    count = full.receipt
    assert count.read == count.zero_read + count.known + count.new == full.allocated
    assert count.zero_read >= int(np.count_nonzero(disk._kind == 1)) * 65536 * 9 // 10
    assert count.read + count.zero_unread + count.unchanged == SIZE
    assert count.unchanged == 0
    assert count.known > 0

    disk.write(3 * MiB, 2 * MiB, seed=9)
    disk.erase(20 * MiB, MiB)  # a changed range that became zero must overwrite what was there
    incremental = await back_up(disk, repository)
    assert incremental.mode == "incremental"
    assert incremental.changed == 3 * MiB
    assert incremental.receipt.read <= 3 * MiB
    assert incremental.receipt.unchanged == SIZE - 3 * MiB
    assert np.array_equal(await restored(repository, tmp_path), disk.bytes_at(0, SIZE))
    async with open_repository(repository.path) as reader:
        first = reader.points[0].id
    assert np.array_equal(await restored(repository, tmp_path, first), before)
    assert all_free(disk.pool)


async def test_what_is_stored_already_is_not_stored_again(disk, repository):
    await back_up(disk, repository)
    disk.sequence, disk._written = 1, []
    other = PatternDisk(SIZE, seed=5, hole_ratio=0.3, zero_ratio=0.2, duplicate_ratio=0.3, key="scsi0:1")
    again = await back_up(other, repository)
    assert again.mode == "full"
    assert again.receipt.new == 0
    assert again.receipt.stored < 4096  # the point refers to map pages that are there, too


@pytest.mark.parametrize(("method", "nth"), [("allocated", 1), ("read", 1), ("read", 4), ("changed", 1)])
async def test_a_failing_disk_leaves_no_point_and_no_litter(disk, repository, method, nth):
    await back_up(disk, repository)
    disk.write(0, 8 * SPAN, seed=3)
    files = sorted(repository.path.rglob("*"))
    with pytest.raises(TransferFailed):
        await back_up(FaultyDisk(disk, method, nth), repository)
    assert sorted(repository.path.rglob("*")) == files


@pytest.mark.slow
async def test_one_pool_buffer_is_enough_for_the_whole_path(repository, tmp_path):
    disk = PatternDisk(SIZE, pool=BufferPool(SPAN))
    await back_up(disk, repository)
    assert np.array_equal(await restored(repository, tmp_path), disk.bytes_at(0, SIZE))


async def test_a_directory_that_is_no_repository_is_refused_before_the_capture(disk, tmp_path):
    machine = FakeMachine([disk])
    with pytest.raises(SinkError, match="vadpipe init"):
        await Job(machine, incremental_path, into=Repository(tmp_path)).run()
    assert machine.released == []


async def test_damage_is_found_while_restoring_and_named(disk, repository, tmp_path):
    await back_up(disk, repository)
    [pack] = repository.path.glob("packs/*/*.pack")
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.write_bytes(content)
    with pytest.raises(TransferFailed) as failed:
        await restored(repository, tmp_path)
    [error] = failed.value.exceptions
    assert isinstance(error, IntegrityError)
    assert error.facts["disk"] == "scsi0:0"
    assert not list(tmp_path.glob("*.raw*"))


async def test_chunks_of_another_identity_are_refused_before_they_are_stored(repository, disk):
    """The check at run time, where the path hides from the one at composition what named the chunks."""

    def hiding(disk, point):
        index = MemoryIndex()
        cut = cut_span(Span.of(disk.bytes_at(0, SPAN).tobytes()))
        framed = encode_span(dedupe_span(digest_span(cut, index.identity), index), Zstd())
        return Items([framed]) | IntoRepository(point, disk)

    with pytest.raises(TransferFailed) as failed:
        await Job(FakeMachine([disk]), hiding, into=repository).run()
    assert failed.group_contains(ContractError, match="were named by")
    async with open_repository(repository.path) as reader:
        assert list(reader.points) == []
    run = await back_up(disk, repository)
    assert (run.mode, run.reason) == ("full", "There is no previous point of this disk.")
