"""A disk that was written is compared with the hash tree of its point: every byte, cut chunks included."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import BufferPool, Extents, IntegrityError, KiB, MiB
from sinks import open_repository
from sinks.proving import prove_disk
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, incremental_path, random_bytes
from vadpipe.repository.maintenance.verify import Budget
from vadpipe.repository.store import Repository

CAPACITY = 9 * MiB + 512  # three spans, the last one short


async def proven(repository, content, *, budget=None, holes=None, pool=None):
    """The proof of a disk with that content against the newest point."""
    pool = pool or BufferPool(16 * MiB)
    disk = MemoryDisk(content, pool=pool, holes=holes or Extents.empty())
    async with open_repository(repository.path) as reader:
        point = reader.points[-1]
        return await prove_disk(reader, point, point.disks[0], disk, budget=budget)


async def made(repository, *writes):
    """A point of a disk with a hole in the middle, and one more for each write of (offset, seed, length)."""
    content = np.zeros(CAPACITY, np.uint8)
    content[: 3 * MiB] = random_bytes(1, 3 * MiB)
    content[-700:] = random_bytes(2, 700)
    disk = MemoryDisk(content)
    await backup(repository, [disk], incremental_path)
    for offset, seed, length in writes:
        data = random_bytes(seed, length) if seed else np.zeros(length, np.uint8)
        disk.write(offset, data)
        await backup(repository, [disk], incremental_path)
    return disk.content.copy()


async def test_an_equal_disk_is_proven_and_what_it_takes_is_counted(repository):
    content = await made(repository, (100 * KiB, 3, 12 * KiB), (1 * MiB, 0, 64 * KiB))
    proof = await proven(repository, content)
    assert (proof.read, proof.of, proof.allocated, proof.seed) == (CAPACITY, CAPACITY, CAPACITY, None)
    hole = Extents.whole(4 * MiB, 4 * MiB)
    proof = await proven(repository, content, holes=hole)
    assert proof.read == proof.allocated == CAPACITY - 4 * MiB
    assert str(proof).startswith("all ")


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, CAPACITY - 1), seed=st.integers(1, 1 << 20))
async def test_one_wrong_byte_anywhere_is_found(tmp_path_factory, place, seed):
    repository = Repository(tmp_path_factory.mktemp("repository"))
    repository.init()
    random = np.random.default_rng(seed)
    writes = [
        (int(random.integers(0, 2048)) * 4096, int(random.integers(0, 5)), int(random.integers(1, 40)) * 4096)
        for _ in range(3)
    ]
    content = await made(repository, *writes)
    await proven(repository, content)
    content[place] ^= 1
    with pytest.raises(IntegrityError) as caught:
        await proven(repository, content)
    error = caught.value
    assert error.facts["offset"] <= place < error.facts["offset"] + error.facts["length"]


async def test_a_sample_reads_its_share_and_says_so(repository):
    content = await made(repository)
    proof = await proven(repository, content, budget=Budget("20%", 7))
    assert proof.seed == 7
    assert 0.2 * CAPACITY <= proof.read < CAPACITY
    assert proof.of == CAPACITY
    assert "a sample of" in str(proof)
    again = await proven(repository, content, budget=Budget("20%", 7))
    assert again == proof


async def test_a_sample_draws_spans_that_the_disk_does_not_allocate_although_the_point_has_data(repository):
    content = await made(repository)
    with pytest.raises(IntegrityError, match="the point has other bytes"):
        await proven(repository, content, budget=Budget("1B", 7), holes=Extents.whole(CAPACITY))


async def test_a_sample_of_a_disk_without_data_reads_nothing(repository):
    empty = np.zeros(CAPACITY, np.uint8)
    await backup(repository, [MemoryDisk(empty)])
    proof = await proven(repository, empty, budget=Budget("10%", 7), holes=Extents.whole(CAPACITY))
    assert (proof.read, proof.of, proof.allocated) == (0, 0, 0)


async def test_a_disk_of_another_size_is_refused(repository):
    content = await made(repository)
    with pytest.raises(IntegrityError, match="has 9436672 bytes"):
        await proven(repository, content[: CAPACITY - 1024])


async def test_all_buffers_are_given_back(repository):
    content = await made(repository)
    pool = BufferPool(16 * MiB)
    await proven(repository, content, pool=pool)
    content[5] ^= 1
    with pytest.raises(IntegrityError):
        await proven(repository, content, pool=pool)
    buffers = [pool.acquire_nowait() for _ in range(4)]
    for buffer in buffers:
        buffer.release()
