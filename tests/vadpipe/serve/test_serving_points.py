"""Disks of points as block devices: bytes and maps, many clients, damage, the bounds of the cache."""

import logging
import random
import shutil
from contextlib import asynccontextmanager

import numpy as np
import pytest
import trio

from pipeline import CLUSTER, ConfigError, KiB, MiB
from tests.vadpipe.nbd.server_kit import HOLE, client_of, connect, image_options, qemu_map, said, saved, until
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, incremental_path, random_bytes
from vadpipe.background import in_background
from vadpipe.nbd.protocol import Command
from vadpipe.nbd.server import Limits
from vadpipe.repository.reader import DiskContent, open_repository
from vadpipe.repository.store import Repository
from vadpipe.serve import disk as disk_of_serving
from vadpipe.serve import frames as frames_of_serving
from vadpipe.serve import serve_point
from vadpipe.serve.disk import PointDisk
from vadpipe.serve.frames import decoded_frames

SIZE = 20 * MiB + 3 * 512  # the tail is no whole cluster


def first_disk():
    content = np.zeros(SIZE, np.uint8)
    for number, (start, end) in enumerate(
        ((0, 3 * MiB), (5 * MiB, 5 * MiB + 4096), (8 * MiB, 15 * MiB), (SIZE - 700, SIZE))
    ):
        content[start:end] = random_bytes(number, end - start)
    return MemoryDisk(content)


@pytest.fixture(scope="module")
def backed_up(tmp_path_factory):
    """Two disks, backed up twice; the second point has scattered changes and zeros where data was."""
    repository = Repository(tmp_path_factory.mktemp("serving") / "repository")
    repository.init()
    found = [first_disk(), MemoryDisk(random_bytes(77, 2 * MiB), "scsi0:1", "Hard disk 2")]
    trio.run(backup, repository, found, incremental_path)
    for number in range(24):
        found[0].write((number * 797_003) // CLUSTER * CLUSTER, random_bytes(100 + number, 5000))
    found[0].write(9 * MiB, np.zeros(MiB, np.uint8))
    trio.run(backup, repository, found, incremental_path)
    return repository, found


@pytest.fixture
def repository(backed_up):
    return backed_up[0]


@pytest.fixture
def disks(backed_up):
    return backed_up[1]


@pytest.fixture
def damageable(repository, tmp_path):
    shutil.copytree(repository.path, tmp_path / "copy")
    return Repository(tmp_path / "copy")


@pytest.fixture
def place(tmp_path):
    return tmp_path / "nbd.sock"


@asynccontextmanager
async def served(repository, place, number=-1, **settings):
    """A point of a repository, by its number."""
    async with (
        open_repository(repository.backend()) as reader,
        serve_point(reader, reader.points[number], listen=place, **settings) as server,
    ):
        yield server


@asynccontextmanager
async def asked(server, name="", **how):
    """A client that has chosen an export."""
    async with client_of(server) as client:
        await client.go(name, **how)
        yield client


@asynccontextmanager
async def first_export(repository, *size):
    """The first disk of the newest point as an export, and its decoded frames."""
    async with (
        open_repository(repository.backend()) as reader,
        decoded_frames(reader, *size) as frames,
        in_background() as nursery,
    ):
        point = reader.points[-1]
        yield await PointDisk.open(reader, point, point.disks[0], frames, nursery), frames


def flip(path, place):
    with path.open("r+b") as file:
        file.seek(place)
        [old] = file.read(1)
        file.seek(place)
        file.write(bytes([old ^ 1]))


def runs_of(content):
    """Offset, length and whether it is data: by clusters that hold something but zero."""
    padded = np.zeros(-(-len(content) // CLUSTER) * CLUSTER, np.uint8)
    padded[: len(content)] = content
    data = padded.reshape(-1, CLUSTER).any(axis=1)
    borders = [0, *(np.flatnonzero(data[1:] != data[:-1]) + 1).tolist(), len(data)]
    ends = [min(end * CLUSTER, len(content)) for end in borders]
    return [
        (start, end - start, bool(data[border]))
        for border, start, end in zip(borders, ends[:-1], ends[1:], strict=False)
    ]


@pytest.mark.slow
async def test_every_disk_of_a_point_reads_and_maps_as_it_was(repository, disks, place, tmp_path):
    async with served(repository, place) as server:
        for disk in disks:
            uri = server.uri(disk.key)
            raw = saved(disk.content, tmp_path / "expected.raw")
            await said("nbdcopy", uri, tmp_path / "nbdcopy.raw")
            assert (tmp_path / "nbdcopy.raw").read_bytes() == raw.read_bytes()
            options = image_options(uri)
            await said("qemu-img", "compare", "--image-opts", options, f"driver=raw,file.filename={raw}")
            expected = runs_of(disk.content)
            mapped = await qemu_map(uri)
            assert [(start, data) for start, _, data in mapped] == [(start, d) for start, _, d in expected]
            lines = [line.split() for line in (await said("nbdinfo", "--map", uri)).splitlines()]
            assert [(int(a), int(b), kind == "data") for a, b, _, kind in lines] == expected


async def test_the_first_point_is_served_as_it_was_then(repository, disks, place):
    before = first_disk().content
    async with served(repository, place, 0, keys=["scsi0:0"]) as server, asked(server) as client:
        assert list(server.exports) == ["scsi0:0"]
        assert (await client.run(Command.READ, 0, SIZE)).data == before.tobytes()


@pytest.mark.slow
async def test_any_range_reads_as_it_is_with_and_without_structured_replies(repository, disks, place):
    drawn = random.Random(5)
    content = disks[0].content
    async with served(repository, place, cache=3 * MiB) as server:
        for structured in (True, False):
            async with asked(server, "scsi0:0", structured=structured) as client:
                for _ in range(60):
                    offset = drawn.randrange(SIZE)
                    length = min(drawn.choice([1, 511, 4096, 70_000, 3 * MiB]), SIZE - offset)
                    reply = await client.run(Command.READ, offset, length)
                    assert not reply.error
                    assert reply.data == content[offset : offset + length].tobytes()


@pytest.mark.slow
async def test_sixty_four_clients_at_once_share_the_frames(repository, disks, place, monkeypatch):
    counts = []
    decode = frames_of_serving.DecodedFrames._decode
    monkeypatch.setattr(
        frames_of_serving.DecodedFrames,
        "_decode",
        lambda self, group: (counts.append(len(group)), decode(self, group))[1],
    )
    content = disks[0].content
    async with open_repository(repository.backend()) as reader:
        stored = await frames_in(reader, "scsi0:0")

        async def read(server, seed):
            drawn = random.Random(seed)
            async with client_of(server) as client:
                await client.go("scsi0:0")
                offsets = [drawn.randrange(SIZE - 64 * KiB) for _ in range(20)]
                for offset in offsets:
                    await client.ask(Command.READ, offset, 64 * KiB)
                for _ in offsets:
                    reply = await client.reply(64 * KiB)
                    assert reply.data == content[reply.offset : reply.offset + 64 * KiB].tobytes()

        async with serve_point(reader, reader.points[-1], listen=place) as server:
            async with trio.open_nursery() as nursery:
                for seed in range(64):
                    nursery.start_soon(read, server, seed)
            await until(lambda: not server.connections)
    assert 0 < sum(counts) <= stored


async def frames_in(reader, key):
    point = reader.points[-1]
    content = DiskContent(reader, point, point.disk(key))
    ids = set()
    for offset, digest in content.pages():
        ids |= {each.tobytes() for each in content.rows(offset, digest).frame_ids}
    return len(ids)


async def test_clients_that_are_killed_leave_nothing_to_decode(repository, disks, place):
    async with first_export(repository) as (disk, frames):
        for _ in range(3):
            with trio.move_on_after(0):
                await disk.read(8 * MiB, MiB)
        with trio.fail_after(10):
            while frames._jobs:  # noqa: ASYNC110 - of worker tasks, which tell nobody
                await trio.sleep(0.005)
        assert not frames._urgent
        assert not frames._expected
        parts = await disk.read(8 * MiB, MiB)
        assert b"".join(parts) == disks[0].content[8 * MiB : 9 * MiB].tobytes()


async def test_the_cache_keeps_no_more_than_it_may(repository, disks):
    async with first_export(repository, 2 * MiB) as (disk, frames):
        for _ in range(2):
            for offset in range(0, SIZE - MiB, MiB):
                for part in await disk.read(offset, MiB):
                    assert part
                assert frames.held <= 3 * MiB
        assert frames.held == sum(map(len, frames._frame.values()))


async def test_a_client_that_reads_in_order_finds_frames_decoded(repository, disks):
    async with first_export(repository) as (disk, frames):
        for offset in range(0, 3 * MiB, 256 * KiB):
            if disk.read_nowait(offset, 256 * KiB) is None:
                await disk.read(offset, 256 * KiB)
        await until(lambda: not frames._jobs)
        assert disk.read_nowait(8 * MiB, MiB) is not None


async def test_a_prefetch_decodes_what_is_going_to_be_read(repository, disks, place):
    async with served(repository, place) as server, asked(server, "scsi0:0") as client:
        await client.run(Command.CACHE, 10 * MiB, 4 * MiB)
        disk = server.exports["scsi0:0"]
        await until(lambda: disk.read_nowait(10 * MiB, 4 * MiB) is not None)


def pack_of(repository, reader, disk_offset):
    """The pack, and the place in it, of the frame that holds a byte of scsi0:0."""
    point = reader.points[-1]
    content = DiskContent(reader, point, point.disks[0])
    [(offset, digest), *_] = content.pages()
    page = content.page(offset, digest)
    row = int(np.searchsorted(page.rows.end * CLUSTER, disk_offset, side="right"))
    address = page.addresses[int(page.rows.frame[row])]
    return repository.path / reader.objects.pack(address.pack), address


@pytest.mark.parametrize("structured", [True, False])
async def test_damage_is_an_error_for_its_range_and_named_in_the_log(
    damageable, disks, place, caplog, structured
):
    content = disks[0].content
    async with open_repository(damageable.backend()) as reader:
        path, address = pack_of(damageable, reader, 12 * MiB)
        flip(path, address.offset + address.size // 2)
        point = reader.points[-1].id
    bad = good = 0
    async with (
        served(damageable, place) as server,
        asked(server, "scsi0:0", structured=structured) as client,
    ):
        for offset in range(0, SIZE, 64 * KiB):
            length = min(64 * KiB, SIZE - offset)
            reply = await client.run(Command.READ, offset, length)
            if reply.error:
                assert reply.error == 5
                assert offset // (2 * MiB) in (5, 6)  # a frame has 1 MiB
                bad += 1
            else:
                assert reply.data == content[offset : offset + length].tobytes()
                good += 1
    assert 0 < bad <= 32
    assert good > 250
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told
    assert all(f"scsi0:0 of point {point}" in line for line in told)
    assert any(path.name in line and "bytes 1" in line for line in told)


async def test_a_map_page_that_is_damaged_is_an_error_and_other_disks_are_served(damageable, disks, place):
    async with open_repository(damageable.backend()) as reader:
        point = reader.points[-1]
        digest = DiskContent(reader, point, point.disks[0]).pages()[0][1]
        number, _ = reader.index.lookup(np.frombuffer(digest, np.uint8).reshape(1, 32))
        [address] = reader.index.addresses(number)
        async with serve_point(reader, point, listen=place) as server:
            path = damageable.path / reader.objects.pack(address.pack)
            flip(path, address.offset + address.size - 3)
            async with asked(server, "scsi0:0") as client:
                assert (await client.run(Command.READ, 0, 512)).error == 5
                assert (await client.run(Command.BLOCK_STATUS, 0, SIZE)).error == 5
            async with asked(server, "scsi0:1") as client:
                assert (await client.run(Command.READ, 0, 512)).data == disks[1].content[:512].tobytes()


@pytest.mark.slow
async def test_a_large_disk_of_holes_is_told_and_read_without_loading_maps(place, in_memory_large):
    repository, size = in_memory_large
    async with served(repository, place) as server, asked(server) as client:
        told = await client.run(Command.BLOCK_STATUS, 0, size)
        assert told.extents == [(600 * MiB, HOLE), (MiB, 0), (size - 601 * MiB, HOLE)]
        assert (await client.run(Command.READ, 599 * MiB, 3 * MiB)).data[MiB : MiB + 5] == b"\7" * 5


@pytest.fixture
def in_memory_large(tmp_path):
    size = 900 * MiB
    content = np.zeros(size, np.uint8)
    content[600 * MiB : 601 * MiB] = 7
    made = Repository(tmp_path / "large")
    made.init()
    trio.run(backup, made, [MemoryDisk(content)], incremental_path)
    return made, size


async def test_a_disk_that_the_point_does_not_have_is_refused(repository, disks, place):
    async with open_repository(repository.backend()) as reader:
        with pytest.raises(ConfigError, match="has no disk 'sata0:0'"):
            async with serve_point(reader, reader.points[-1], keys=["sata0:0"], listen=place):
                pass


async def test_an_error_of_the_body_comes_out_bare_and_the_server_is_gone(repository, disks, place):
    async with open_repository(repository.backend()) as reader:
        with pytest.raises(RuntimeError, match="mine"):
            async with serve_point(reader, reader.points[-1], listen=place, limits=Limits()) as server:
                stream = await connect(server)
                raise RuntimeError("mine")
        await stream.aclose()
    assert not place.exists()


async def test_a_read_of_many_frames_waits_for_few_at_once(repository, disks, monkeypatch):
    """Scattered changes: a MiB has clusters of many frames."""
    asked = []
    get = frames_of_serving.DecodedFrames.get

    async def watched(self, wanted):
        asked.append(len(wanted))
        return await get(self, wanted)

    monkeypatch.setattr(frames_of_serving.DecodedFrames, "get", watched)
    monkeypatch.setattr(disk_of_serving, "_MOST_FRAMES", 1)
    async with first_export(repository) as (disk, _):
        for offset in range(0, SIZE, MiB):
            length = min(MiB, SIZE - offset)
            parts = await disk.read(offset, length)
            found = b"".join(bytes(part) for part in parts)
            assert found == disks[0].content[offset : offset + length].tobytes()
    assert max(asked) == 1
    assert len(asked) > 40


async def test_a_reply_keeps_frames_in_memory_only_where_it_is_much_of_them(repository, disks):
    async with first_export(repository) as (disk, frames):
        for offset, length, kept in ((12 * MiB, MiB, True), (12 * MiB, 4 * KiB, False)):
            parts = await disk.read(offset, length)
            held = {id(frame.obj) for frame in frames._frame.values()}
            assert all((id(part.obj) in held) == kept for part in parts if not isinstance(part, int))
