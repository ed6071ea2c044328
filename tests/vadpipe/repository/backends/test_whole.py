"""A repository over each backend: two backups, a restore of both points, and verification."""

import numpy as np
import pytest

from pipeline import KiB, MiB
from tests.vadpipe.repository.backends.s3_kit import planned_store
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, mixed_content, random_bytes, restore
from vadpipe.repository import verify
from vadpipe.repository.backends.cached import Cached
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.backends.wrappers import Fault, Faulty, Retrying
from vadpipe.repository.store import Repository

pytestmark = pytest.mark.slow


async def written_and_read(repository):
    repository.init()
    disk = MemoryDisk(mixed_content(5 * MiB + 512))
    first = disk.content.copy()
    await backup(repository, [disk])
    disk.content[MiB : MiB + 64 * KiB] = random_bytes(7, 64 * KiB)
    await backup(repository, [disk])
    async with repository.read() as reader:
        for point, content in zip(reader.points, (first, disk.content), strict=True):
            assert np.array_equal(await restore(reader, point), content)
        assert (await verify(reader)).damages == ()


async def test_in_memory():
    await written_and_read(Repository(MemoryBackend()))


async def test_in_memory_where_every_fifth_call_fails():
    methods = ("put", "begin", "finish", "replace", "read", "size", "list", "delete")
    plan = [Fault(name, call, after=call % 2 == 0) for name in methods for call in range(2, 10_000, 5)]
    faulty = Faulty(MemoryBackend(), plan)
    await written_and_read(Repository(Retrying(faulty, sleep=lambda seconds: None)))
    assert sum(faulty.calls.values()) > 50


async def test_in_memory_with_copies_of_the_index(tmp_path):
    await written_and_read(Repository(Cached(MemoryBackend(), tmp_path / "copies")))
    assert list((tmp_path / "copies").iterdir())


@pytest.mark.parametrize("name", ["moto", "ceph"])
async def test_in_s3(request, bucket, name):
    url = bucket(request.getfixturevalue(name))
    await written_and_read(Repository(url.replace("?", "/deep/prefix?")))


@pytest.mark.parametrize("conditions", ["ignored", "unknown"])
async def test_in_s3_without_conditional_writes(monkeypatch, conditions):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-nobody")
    with planned_store(conditions=conditions) as store:
        option = "&conditional=no" if conditions == "unknown" else ""
        await written_and_read(Repository(f"s3://bucket/x?endpoint={store.endpoint}{option}"))
