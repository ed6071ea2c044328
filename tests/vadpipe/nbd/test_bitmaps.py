"""QEMU's dirty bitmaps in the place of change tracking: what is asked, and when everything is read instead."""

import subprocess

import numpy as np
import pytest

from pipeline import ChangeTrackingInvalid, ConfigError, Extents, KiB, MiB
from pipeline.job import Job
from sinks import IntoRepository, open_repository, restore
from sinks.raw import RawDirectory
from stages import (
    ChangedExtents,
    Compress,
    CutChunks,
    Dedupe,
    Digest,
    MarkZeros,
    NbdVm,
    ReadSpans,
    Refine,
    Zstd,
)
from tests.vadpipe.nbd.nbd_kit import needs
from vadpipe.nbd import Bitmaps, Nbd, new_bitmap

CAPACITY = 20 * MiB + 512 * 7
B1, B2, B3 = (f"vadpipe-{number:032x}" for number in range(1, 4))


def test_a_new_name_was_never_used():
    assert Bitmaps(started=new_bitmap(), frozen=[new_bitmap()])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"started": "backup"}, "no UUID"),
        ({"frozen": ["backup"]}, "no UUID"),
        ({"started": B1, "frozen": [B1]}, "two moments"),
        ({"frozen": [B1, B2, B1]}, "two moments"),
        ({"frozen": B1}, "must be a list"),
    ],
)
def test_names_that_may_hide_a_missed_interval_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        Bitmaps(**settings)


def test_the_bitmaps_from_the_change_id_on_are_asked():
    bitmaps = Bitmaps(started=B3, frozen=[B1, B2])
    assert bitmaps.change_id == f"qemu:dirty-bitmap:{B3}"
    assert bitmaps.since(f"qemu:dirty-bitmap:{B2}") == [f"qemu:dirty-bitmap:{B2}"]
    assert bitmaps.since(f"qemu:dirty-bitmap:{B1}") == [f"qemu:dirty-bitmap:{name}" for name in (B1, B2)]
    for unknown in (bitmaps.change_id, "", B1, "52 aa/3"):
        with pytest.raises(ChangeTrackingInvalid, match="not among the frozen"):
            bitmaps.since(unknown)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", path, CAPACITY)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 6M", path)
    return path


def run(name, *arguments):
    return subprocess.run([needs(name), *map(str, arguments)], check=True, capture_output=True).stdout


def guest_writes(image, *places):
    commands = [word for place in places for word in ("-c", f"write -P {place % 250 + 2} {place * 64}k 64k")]
    run("qemu-io", "-f", "qcow2", *commands, image)


def moment(image, started, frozen=""):
    """What a backup of a VM that is off does: one bitmap ends, the next begins."""
    if frozen:
        run("qemu-img", "bitmap", "--disable", image, frozen)
    run("qemu-img", "bitmap", "--add", image, started)


def serve_bitmap(serve, image, name):
    words = ["qemu-nbd", "--read-only", "--persistent", "--shared=4", "-f", "qcow2", "-k", "SOCKET"]
    return serve(*words, *(("-B", name) if name else ()), image)


async def test_what_changed_is_what_the_guest_wrote(image, serve, pool):
    moment(image, B1)
    guest_writes(image, 3, 4, 200, CAPACITY // (64 * KiB) - 1)
    moment(image, B2, frozen=B1)
    socket = serve_bitmap(serve, image, B1)
    bitmaps = Bitmaps(started=B2, frozen=[B1])
    async with Nbd(str(socket)).open(pool=pool, bitmaps=bitmaps) as disk:
        page = await disk.changed(f"qemu:dirty-bitmap:{B1}", 0)
        assert (page.offset, page.length) == (0, disk.capacity)
        places = (3, 4, 200, CAPACITY // (64 * KiB) - 1)
        assert page.extents == Extents.of([(place * 64 * KiB, 64 * KiB) for place in places])
        part = await disk.changed(f"qemu:dirty-bitmap:{B1}", 4 * 64 * KiB)
        assert part.extents.total == 3 * 64 * KiB
        assert (await disk.allocated(0, MiB)).total == MiB  # holes are told beside it
    async with Nbd(str(socket)).open(pool=pool) as disk:
        assert disk.change_id is None
        with pytest.raises(ChangeTrackingInvalid, match="without dirty bitmaps"):
            await disk.changed(f"qemu:dirty-bitmap:{B1}", 0)


async def test_a_bitmap_that_the_server_does_not_offer_is_no_answer(image, serve, pool):
    moment(image, B1)
    moment(image, B2, frozen=B1)
    socket = serve_bitmap(serve, image, "")
    async with Nbd(str(socket)).open(pool=pool, bitmaps=Bitmaps(frozen=[B1])) as disk:
        with pytest.raises(ChangeTrackingInvalid, match="does not offer"):
            await disk.changed(f"qemu:dirty-bitmap:{B1}", 0)


def path(disk, point):
    return (
        ChangedExtents(disk, point.previous(disk))
        | ReadSpans(disk)
        | MarkZeros()
        | CutChunks()
        | Digest(point)
        | Refine(point, disk)
        | Dedupe(point)
        | Compress(Zstd(level=1))
        | IntoRepository(point, disk)
    )


async def backed_up(repository, socket, bitmaps):
    vm = NbdVm("web01", {"system": Nbd(str(socket))}, bitmaps=bitmaps)
    return (await Job(vm, path, into=repository).run()).disks[0]


async def restored_equals(repository, image, directory):
    async with open_repository(repository.path) as reader:
        receipt = await restore(reader, reader.points[-1], RawDirectory(directory))
        content = np.fromfile(receipt.disks[0].place, np.uint8)
    wanted = directory.with_suffix(".witness")
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, wanted)
    return np.array_equal(content, np.fromfile(wanted, np.uint8)[: len(content)])


@pytest.mark.slow
async def test_backups_by_bitmaps_read_what_changed_and_restore_the_disk(image, serve, repository, tmp_path):
    moment(image, B1)
    first = await backed_up(repository, serve_bitmap(serve, image, ""), Bitmaps(started=B1))
    serve.kill()
    assert first.mode == "full"
    guest_writes(image, 5, 9, 250)
    moment(image, B2, frozen=B1)
    second = await backed_up(repository, serve_bitmap(serve, image, B1), Bitmaps(started=B2, frozen=[B1]))
    serve.kill()
    assert (second.mode, second.changed) == ("incremental", 3 * 64 * KiB)
    assert await restored_equals(repository, image, tmp_path / "second")


@pytest.mark.slow
async def test_a_backup_that_failed_leaves_an_interval_that_is_not_missed(image, serve, repository, tmp_path):
    """The bitmap of the failed backup alone would leave out what was written before it."""
    moment(image, B1)
    await backed_up(repository, serve_bitmap(serve, image, ""), Bitmaps(started=B1))
    serve.kill()
    guest_writes(image, 5)
    moment(image, B2, frozen=B1)  # and this backup fails
    guest_writes(image, 7)
    moment(image, B3, frozen=B2)
    third = await backed_up(repository, serve_bitmap(serve, image, B2), Bitmaps(started=B3, frozen=[B2]))
    serve.kill()
    assert third.mode == "full"
    assert "not among the frozen" in third.reason
    assert await restored_equals(repository, image, tmp_path / "third")
