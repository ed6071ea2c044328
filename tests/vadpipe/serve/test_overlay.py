"""What clients change: seen by them, thrown away, or kept as a qcow2 image that QEMU finds sound."""

import random

import numpy as np
import pytest
import trio

from pipeline import ConfigError, KiB, MiB, SinkError
from tests.vadpipe.nbd.server_kit import (
    HOLE,
    MemoryExport,
    client_of,
    image_options,
    pattern,
    said,
    saved,
)
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, incremental_path
from vadpipe.nbd.protocol import Command
from vadpipe.nbd.server import serve
from vadpipe.repository.reader import open_repository
from vadpipe.serve import discarded_overlay, kept_overlay, serve_point
from vadpipe.serve.qcow2 import CLUSTER, TABLE

SIZE = 5 * MiB + 1536
DATA = [(0, 700 * KiB), (2 * MiB, 4 * MiB), (SIZE - 700, SIZE)]


@pytest.fixture
def base():
    return MemoryExport(pattern(SIZE, DATA), "scsi0:0")


@pytest.fixture
def place(tmp_path):
    return tmp_path / "nbd.sock"


async def content_of(export):
    image = np.zeros(export.size, np.uint8)
    for low in range(0, export.size, MiB):
        at = low
        for part in await export.read(low, min(MiB, export.size - low)):
            size = part if isinstance(part, int) else len(part)
            if not isinstance(part, int):
                image[at : at + size] = np.frombuffer(part, np.uint8)
            at += size
    return image


async def change(export, model, drawn):
    """One change at random, of the export and of the model."""
    offset = drawn.choice([drawn.randrange(SIZE), drawn.randrange(SIZE) // CLUSTER * CLUSTER])
    length = min(drawn.choice([1, 512, 4096, CLUSTER, CLUSTER + 5, 5 * CLUSTER, MiB]), SIZE - offset)
    if drawn.random() < 0.4:
        await export.zero(offset, length)
        model[offset : offset + length] = 0
    else:
        new = np.frombuffer(drawn.randbytes(length), np.uint8)
        await export.write(offset, memoryview(new))
        model[offset : offset + length] = new


@pytest.mark.parametrize("seed", range(6))
async def test_what_is_changed_reads_as_a_plain_disk_would(base, seed):
    drawn, model = random.Random(seed), base.content.copy()
    async with discarded_overlay(base) as made:
        for _ in range(25):
            await change(made, model, drawn)
            offset = drawn.randrange(SIZE - 1)
            length = min(drawn.choice([1, 4096, 100_000]), SIZE - offset)
            parts = await made.read(offset, length)
            found = b"".join(bytes(part) for part in parts)
            assert found == model[offset : offset + length].tobytes()
        assert np.array_equal(await content_of(made), model)
        at = 0
        while at < SIZE:
            for length, state in await made.states(at, SIZE - at):
                assert not (state and model[at : at + length].any())
                at += length
        assert at == SIZE
    assert np.array_equal(base.content, pattern(SIZE, DATA))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_a_kept_image_is_sound_and_holds_the_changes(base, place, tmp_path, seed):
    drawn, model = random.Random(seed), base.content.copy()
    kept = tmp_path / "kept.qcow2"
    async with kept_overlay(base, kept) as made:
        async with serve([made], place) as server:
            made.backing = server.uri("scsi0:0")
            for _ in range(30):
                await change(made, model, drawn)
        assert not kept.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["kept.qcow2"]
    async with serve([base], place) as server:
        assert "No errors were found" in await said("qemu-img", "check", kept)
        info = await said("qemu-img", "info", kept)
        assert server.uri("scsi0:0") in info
        assert "backing file format: raw" in info
        raw = saved(model, tmp_path / "expected.raw")
        await said("qemu-img", "compare", "-f", "qcow2", "-F", "raw", kept, raw)


async def test_an_image_without_changes_is_sound(base, place, tmp_path):
    kept = tmp_path / "kept.qcow2"
    async with kept_overlay(base, kept) as made, serve([made], place) as server:
        made.backing = server.uri("scsi0:0")
    async with serve([base], place):
        assert "No errors were found" in await said("qemu-img", "check", kept)


async def test_a_discarded_disk_of_many_tables_costs_one(place, tmp_path):
    class Large(MemoryExport):
        size = 1 << 44

        async def states(self, offset, length):
            await trio.lowlevel.checkpoint()
            return [(length, 0)]

    kept = tmp_path / "kept.qcow2"
    base = Large(pattern(SIZE, DATA))
    async with kept_overlay(base, kept) as made, serve([made], place) as server:
        await made.zero(0, 1 << 40)
        assert len(made._tables) == (1 << 40) // TABLE
        assert len({id(table) for table in made._tables.values()}) == 1
        await made.write(CLUSTER, memoryview(b"new"))
        assert [bytes(part) for part in await made.read(CLUSTER, 4)] == [b"new\0"]
        told = await made.states(0, 1 << 32)
        assert told[:2] == [(CLUSTER, HOLE), (CLUSTER, 0)]
        made._tables = {number: made._tables[number] for number in (0, 1, 2047)}
        made.backing = server.uri("disk")
    async with serve([base], place):
        assert "No errors were found" in await said("qemu-img", "check", kept)


async def test_a_name_that_is_taken_is_refused_before_anything_is_served(base, tmp_path):
    kept = saved(base.content, tmp_path / "kept.qcow2")
    with pytest.raises(ConfigError, match=r"kept\.qcow2 exists already"):
        async with kept_overlay(base, kept):
            pass
    with pytest.raises(SinkError, match="cannot be made: No such file"):
        async with kept_overlay(base, tmp_path / "missing" / "kept.qcow2"):
            pass


async def test_nothing_is_kept_when_the_server_could_not_start(base, tmp_path):
    with pytest.raises(ConfigError):
        async with kept_overlay(base, tmp_path / "kept.qcow2"):
            raise ConfigError("The address is taken.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
async def test_qemu_writes_into_a_point_and_the_point_stays_as_it_was(repository, place, tmp_path):
    disk = MemoryDisk(pattern(SIZE, DATA))
    await backup(repository, [disk], incremental_path)
    model = disk.content.copy()
    model[4096 : 4096 + 8192] = 0x5A
    model[2 * MiB : 3 * MiB] = 0
    raw, kept = saved(model, tmp_path / "expected.raw"), tmp_path / "kept.qcow2"
    async with open_repository(repository.backend()) as reader:
        point = reader.points[-1]
        async with serve_point(reader, point, listen=place, writable=True, keep={"scsi0:0": kept}) as server:
            options = image_options(server.uri("scsi0:0"))
            await said(
                "qemu-io", "--image-opts", options,
                "-c", "write -P 0x5a 4096 8192", "-c", "write -z 2M 1M", "-c", "flush",
            )  # fmt: skip
            await said("qemu-img", "compare", "--image-opts", options, f"driver=raw,file.filename={raw}")
        async with serve_point(reader, point, listen=place) as server, client_of(server) as client:
            await said("qemu-img", "compare", "-f", "qcow2", "-F", "raw", kept, raw)
            await client.go()
            assert (await client.run(Command.READ, 0, SIZE)).data == disk.content.tobytes()
        async with (
            serve_point(reader, point, listen=place, writable=True) as server,
            client_of(server) as client,
        ):
            await client.go()  # nothing of the changes is left
            assert (await client.run(Command.READ, 0, SIZE)).data == disk.content.tobytes()
