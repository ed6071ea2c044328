"""Reading from qemu-nbd and nbdkit: bytes, extents, TLS, lost servers."""

from __future__ import annotations

import json
import logging
import subprocess
from pathlib import Path

import numpy as np
import pytest
import trio

from pipeline import ConfigError, Disk, DiskReceipt, Extents, Job, Pipeline, Span
from pipeline.units import SPAN, KiB, MiB
from sinks import IntoRepository, Point, RawDirectory, Repository, open_repository, restore
from stages import (
    AllocatedExtents,
    Compress,
    CutChunks,
    Dedupe,
    Digest,
    MarkZeros,
    NbdVm,
    ReadSpans,
    Zstd,
)
from tests.vadpipe.nbd.nbd_kit import SIZE, Serve, keeps_the_rules_of_disks, qemu_nbd
from tests.vadpipe.reading_kit import whole_disk
from vadpipe.nbd import Nbd, NbdError


def mapped(image: Path) -> Extents:
    """What qemu-img says holds data."""
    areas = json.loads(subprocess.check_output(["qemu-img", "map", "--output=json", "-f", "qcow2", image]))
    return Extents.of((area["start"], area["length"]) for area in areas if not area["zero"])


@pytest.mark.parametrize("depth", [1, 8])
async def test_qemu_nbd_gives_the_bytes_and_extents_of_its_image(serve, raw, qcow2, pool, depth):
    socket = qemu_nbd(serve, qcow2)
    data = mapped(qcow2)
    async with Nbd(str(socket), export="vm/disk", depth=depth, request=256 * KiB).open(pool=pool) as disk:
        assert (disk.capacity, disk.key, disk.label, disk.allocation) == (SIZE, "vm/disk", "disk", "queried")
        await keeps_the_rules_of_disks(disk, raw)
        assert await disk.allocated(0, SIZE) == data.within(0, SIZE)
        assert await disk.allocated(5000, 9 * MiB) == data.within(5000, 9 * MiB)


@pytest.mark.parametrize("filters", [(), ("--filter=noextents",), ("--no-sr",)])
async def test_nbdkit_gives_the_bytes_with_and_without_structured_replies(serve, raw, pool, filters):
    socket = serve("nbdkit", "-f", "-r", "-U", "SOCKET", *filters, "file", raw)
    async with Nbd(str(socket)).open(pool=pool) as disk:
        assert disk.allocation == ("unavailable" if "--no-sr" in filters else "queried")
        await keeps_the_rules_of_disks(disk, raw)


async def test_the_stages_read_an_export_alone(serve, raw, qcow2):
    socket = qemu_nbd(serve, qcow2)
    image = np.zeros(SIZE, np.uint8)
    async with Nbd(str(socket), export="vm/disk").open() as opened:
        disk: Disk = opened
        async with (AllocatedExtents(disk) | ReadSpans(disk) | MarkZeros()).open() as pieces:
            async for piece in pieces:
                if isinstance(piece, Span):
                    for start, length in piece.data:
                        image[start : start + length] = piece.bytes_of(start, length)
                    piece.release()
    assert np.array_equal(image, np.fromfile(raw, np.uint8))


def path(disk: Disk, point: Point) -> Pipeline[DiskReceipt]:
    read = AllocatedExtents(disk) | ReadSpans(disk) | MarkZeros()
    return (
        read | CutChunks() | Digest(point) | Dedupe(point) | Compress(Zstd(1)) | IntoRepository(point, disk)
    )


async def test_a_qcow2_image_comes_back_from_a_repository(serve: Serve, qcow2: Path, tmp_path: Path) -> None:
    vm = NbdVm("web01", {"system": Nbd(str(qemu_nbd(serve, qcow2)), export="vm/disk")})
    repository = Repository(tmp_path / "repository")
    repository.init()
    for _ in range(2):
        await Job(vm, path, into=repository).run()
    async with open_repository(repository.path) as reader:
        first, second = reader.points
        assert [disk.key for disk in second.disks] == ["system"]
        assert first.disks[0].receipt.root == second.disks[0].receipt.root
        await restore(reader, second, RawDirectory(tmp_path / "restored"))
    (restored,) = (tmp_path / "restored").rglob("*.raw")
    compare = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", restored, qcow2]
    assert b"identical" in (await trio.run_process(compare, capture_stdout=True)).stdout


def test_a_vm_without_exports_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one disk"):
        NbdVm("web01", {})


async def test_a_server_that_was_restarted_is_connected_anew(serve, raw, qcow2, pool, caplog):
    caplog.set_level(logging.INFO, logger="vadpipe.nbd")
    socket = qemu_nbd(serve, qcow2)
    async with Nbd(str(socket), export="vm/disk", restart_pause_s=0.01, restarts=8).open(pool=pool) as disk:
        serve.kill()  # type: ignore[attr-defined]
        qemu_nbd(serve, qcow2, socket=socket)
        assert np.array_equal(await whole_disk(disk, pool), np.fromfile(raw, np.uint8))
        assert disk.reconnects >= 1
    assert "is made anew in" in caplog.text


async def test_a_server_that_stays_away_is_one_error(serve, qcow2, pool):
    socket = qemu_nbd(serve, qcow2)
    async with Nbd(str(socket), export="vm/disk", restart_pause_s=0.01, restarts=2).open(pool=pool) as disk:
        serve.kill()  # type: ignore[attr-defined]
        buffer = await pool.acquire()
        with pytest.raises(NbdError, match="2 new connections did not help") as caught:
            await disk.read(buffer, 0, Extents.whole(64 * KiB))
        assert caught.value.transient
        buffer.release()


async def test_a_silent_server_is_given_up_after_its_timeout(serve, raw, pool):
    socket = serve("nbdkit", "-f", "-r", "-U", "SOCKET", "--filter=delay", "file", raw, "rdelay=30")
    async with Nbd(str(socket), timeout_s=0.3, restarts=0).open(pool=pool) as disk:
        buffer = await pool.acquire()
        with pytest.raises(NbdError, match=r"no reply for 0\.3 s"):
            await disk.read(buffer, 0, Extents.whole(64 * KiB))
        buffer.release()


async def test_an_error_of_the_server_names_the_place(serve, raw, pool):
    socket = serve(
        "nbdkit",
        "-f",
        "-r",
        "-U",
        "SOCKET",
        "--filter=error",
        "file",
        raw,
        "error-pread=EIO",
        "error-pread-rate=100%",
    )
    async with Nbd(str(socket), request=64 * KiB).open(pool=pool) as disk:
        buffer = await pool.acquire()
        with pytest.raises(NbdError, match="Input/output error") as caught:
            await disk.read(buffer, 0, Extents.whole(64 * KiB))
        assert (caught.value.facts["offset"], caught.value.transient) == (0, False)
        buffer.release()


async def test_a_cancelled_read_leaves_its_buffer_alone(serve, raw, pool):
    socket = serve("nbdkit", "-f", "-r", "-U", "SOCKET", "--filter=delay", "file", raw, "delay-read=200ms")
    async with Nbd(str(socket), depth=4).open(pool=pool) as disk:
        buffer = await pool.acquire()
        with trio.move_on_after(0.05) as scope:
            await disk.read(buffer, 4 * MiB, Extents.whole(SPAN, 4 * MiB))
        assert scope.cancelled_caught
        buffer.array[:] = 0xEE
        other = await pool.acquire()
        await disk.read(other, 0, Extents.whole(SPAN))
        assert np.array_equal(other.array, np.fromfile(raw, np.uint8)[:SPAN])
        assert (buffer.array == 0xEE).all()
        other.release()
        buffer.release()


async def test_an_unknown_export_and_an_absent_server_are_refused(serve, qcow2, tmp_path):
    socket = qemu_nbd(serve, qcow2)
    for settings, why in (
        (Nbd(str(socket), export="other"), "refused the export 'other'"),
        (Nbd(str(tmp_path / "absent")), "cannot be used"),
    ):
        with pytest.raises(NbdError, match=why) as caught:
            async with settings.open():
                pytest.fail("it is not open")
        assert caught.value.remedy


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"request": 1000}, {"port": 0}, {"host": ""}], ids=str)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        Nbd(**{"host": "server", **wrong})  # type: ignore[arg-type]
