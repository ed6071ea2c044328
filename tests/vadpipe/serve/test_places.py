"""Points served out of other places: sealed, in a bucket, from a store that fails, and while others prune."""

from contextlib import asynccontextmanager

import pytest
import trio

from pipeline import KiB, MiB
from tests.vadpipe.nbd.server_kit import client_of
from tests.vadpipe.repository.prune_kit import Machine, empty_repository, forget, pruned
from tests.vadpipe.repository.repository_kit import (
    MemoryDisk,
    Watched,
    backup,
    incremental_path,
    random_bytes,
)
from vadpipe.lab.object_stores import ObjectStoreMissing, moto_server
from vadpipe.nbd.protocol import Command
from vadpipe.repository.backends.wrappers import Fault, Faulty
from vadpipe.repository.reader import RepositoryReader, open_repository
from vadpipe.repository.store import Repository
from vadpipe.serve import frames as frames_of_serving
from vadpipe.serve import serve_point

SIZE = 12 * MiB


@pytest.fixture
def place(tmp_path):
    return tmp_path / "nbd.sock"


@asynccontextmanager
async def asked(reader, place, name):
    async with serve_point(reader, reader.points[-1], listen=place) as server, client_of(server) as client:
        await client.go(name)
        yield client


@pytest.mark.parametrize("sealed", [False, True])
async def test_a_point_that_is_served_reads_on_while_packs_are_rewritten_and_removed(place, sealed):
    vm = Machine(empty_repository(sealed=sealed))
    first = await vm.back_up()
    vm.change(7)
    await vm.back_up()
    async with vm.repository.read() as reader, asked(reader, place, "small") as client:
        # the map page is loaded, and with it where its frames lie
        assert (await client.run(Command.BLOCK_STATUS, 0, 4 * KiB)).extents == [(4 * KiB, 0)]
        forget(vm.repository, first)
        pruned(vm.repository)
        pruned(vm.repository)
        reply = await client.run(Command.READ, 0, vm.small.capacity)
        assert reply.data == vm.small.content.tobytes()
    async with vm.repository.read() as reader, asked(reader, place, "large") as client:
        reply = await client.run(Command.READ, 0, vm.large.capacity)
        assert reply.data == vm.large.content.tobytes()


@pytest.fixture
def backed_up(in_memory):
    disk = MemoryDisk(random_bytes(5, SIZE))
    trio.run(backup, in_memory, [disk], incremental_path)
    return in_memory, disk


@pytest.fixture
def in_memory():
    return empty_repository()


async def test_frames_that_lie_side_by_side_are_read_with_few_requests(backed_up, place, monkeypatch):
    repository, disk = backed_up
    monkeypatch.setattr(frames_of_serving, "_PROCESSORS", 2)  # frames are spread over them
    calls = []
    watched = Watched(repository.place, lambda what, name: calls.append((what, name.partition("/")[0])))
    async with open_repository(watched) as reader, asked(reader, place, "scsi0:0") as client:
        calls.clear()
        await client.run(Command.CACHE, 0, SIZE)
        for offset in range(0, SIZE, MiB):
            reply = await client.run(Command.READ, offset, MiB)
            assert reply.data == disk.content[offset : offset + MiB].tobytes()
    frames = SIZE // MiB
    assert calls.count(("read", "packs")) <= frames * 2 // 3


async def test_a_store_that_fails_once_is_an_error_for_one_request(backed_up, place, caplog):
    repository, disk = backed_up
    faulty = Faulty(repository.place)
    async with open_repository(faulty) as reader, asked(reader, place, "scsi0:0") as client:
        assert not (await client.run(Command.READ, 0, 512)).error
        next_read = faulty.calls["read"] + 1
        faulty._plan[("read", next_read)] = Fault("read", next_read)
        assert (await client.run(Command.READ, 10 * MiB, 512)).error == 5
        assert "Disk scsi0:0 of point" in caplog.text
        reply = await client.run(Command.READ, 10 * MiB, 512)
        assert reply.data == disk.content[10 * MiB : 10 * MiB + 512].tobytes()


@pytest.mark.slow
async def test_a_point_in_a_bucket_is_served_by_range_reads(tmp_path, place, monkeypatch):
    try:
        with moto_server(tmp_path) as server:
            for name, value in server.environment.items():
                monkeypatch.setenv(name, value)
            repository = Repository(server.make_bucket("served"))
            await trio.to_thread.run_sync(repository.init)
            disk = MemoryDisk(random_bytes(5, 5 * MiB))
            await backup(repository, [disk], incremental_path)
            reader = await trio.to_thread.run_sync(RepositoryReader.of, repository.backend())
            async with asked(reader, place, "scsi0:0") as client:
                reply = await client.run(Command.READ, 0, disk.capacity)
                assert reply.data == disk.content.tobytes()
    except ObjectStoreMissing as exc:
        pytest.skip(str(exc))
