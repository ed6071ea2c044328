"""QEMU's dirty bitmaps in the place of change tracking: what is asked, and when everything is read instead."""

import json
import socket as socketlib
import subprocess
import time

import numpy as np
import pytest

from pipeline import SPAN, ChangeTrackingInvalid, ConfigError, Extents, KiB, MiB
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
from vadpipe.nbd.writer import open_for_writing

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


class Monitor:
    """The monitor of a qemu-storage-daemon: commands of QMP, one after the other."""

    def __init__(self, path):
        self.socket = socketlib.socket(socketlib.AF_UNIX)
        deadline = time.monotonic() + 20
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        self.lines = self.socket.makefile("r")
        self.lines.readline()  # its greeting
        self("qmp_capabilities")

    def __call__(self, command, **arguments):
        order = {
            "execute": command,
            "arguments": {name.replace("_", "-"): arguments[name] for name in arguments},
        }
        self.socket.sendall(json.dumps(order).encode())
        while "return" not in (answer := json.loads(self.lines.readline())):
            assert "error" not in answer, answer
        return answer["return"]

    def moment(self, image, number, frozen):
        """The disk as it is now, exported while it is written on: as docs/embedding.md says."""
        overlay = image.with_name(f"fleece-{number}.qcow2")
        run("qemu-img", "create", "-q", "-f", "qcow2", overlay, CAPACITY)
        file = {"driver": "file", "filename": str(overlay)}
        self("blockdev-add", driver="qcow2", node_name="fleece", file=file, backing="disk")
        started = f"vadpipe-{number:032x}"
        actions = [
            ("block-dirty-bitmap-add", {"node": "disk", "name": started, "persistent": True}),
            ("blockdev-backup", {"device": "disk", "target": "fleece", "sync": "none", "job-id": "fleece"}),
        ]
        if frozen:
            actions.insert(0, ("block-dirty-bitmap-disable", {"node": "disk", "name": frozen[-1]}))
        self("transaction", actions=[{"type": kind, "data": data} for kind, data in actions])
        bitmaps = [{"node": "disk", "name": name} for name in frozen]
        self("block-export-add", type="nbd", id="backup", node_name="fleece", name="system", bitmaps=bitmaps)
        return started

    def end(self):
        self("block-export-del", id="backup", mode="hard")
        self("job-cancel", id="fleece")
        while self("query-jobs"):
            time.sleep(0.01)
        self("blockdev-del", node_name="fleece")


@pytest.fixture
def running(image, tmp_path):
    """A disk that is in use, exported as `guest` for whoever writes to it; its monitor, and its socket."""
    socket, monitor = tmp_path / "nbd.sock", tmp_path / "qmp.sock"
    process = subprocess.Popen(
        [
            needs("qemu-storage-daemon"),
            f"--blockdev=driver=qcow2,node-name=disk,file.driver=file,file.filename={image}",
            f"--nbd-server=addr.type=unix,addr.path={socket},max-connections=8",
            "--export=type=nbd,id=guest,node-name=disk,name=guest,writable=on",
            f"--chardev=socket,id=qmp,path={monitor},server=on,wait=off",
            "--monitor=chardev=qmp",
        ]
    )
    try:
        connected = Monitor(monitor)
        yield connected, socket
        connected.lines.close()
        connected.socket.close()
    finally:
        process.kill()
        process.wait()


async def write(socket, pool, *places):
    async with open_for_writing(Nbd(str(socket), export="guest"), pool) as guest:
        for place in places:
            buffer = await pool.acquire()
            buffer.array[: 64 * KiB] = place % 250 + 2
            await guest.write(buffer, place * 64 * KiB, Extents.whole(64 * KiB, place * 64 * KiB))
            buffer.release()
        await guest.flush()


@pytest.mark.slow
async def test_a_disk_in_use_is_backed_up_by_a_chain_of_frozen_bitmaps(
    image, running, repository, tmp_path, pool
):
    monitor, socket = running
    moments: list[np.ndarray] = []
    runs = []
    frozen: list[str] = []
    for number, places in ((1, (90,)), (2, (3, 4)), (3, (4, 120)), (4, (200,))):
        started = monitor.moment(image, number, frozen)
        vm = NbdVm(
            "web01",
            {"system": Nbd(str(socket), export="system")},
            bitmaps=Bitmaps(started=started, frozen=frozen),
        )
        async with Nbd(str(socket), export="guest").open(pool=pool) as disk:
            moments.append(await content(disk))
        await write(socket, pool, *places)  # behind the moment: it is not in this backup
        if number != 3:  # the third backup is left out, its interval is not
            runs.append((await Job(vm, path, into=repository).run()).disks[0])
        monitor.end()
        frozen.append(started)
    assert [run.mode for run in runs] == ["full", "incremental", "incremental"]
    assert [run.changed for run in runs[1:]] == [64 * KiB, 3 * 64 * KiB]
    async with open_repository(repository.path) as reader:
        for point, wanted in zip(reader.points, (moments[0], moments[1], moments[3]), strict=True):
            receipt = await restore(reader, point, RawDirectory(tmp_path / "restored"))
            assert np.array_equal(np.fromfile(receipt.disks[0].place, np.uint8), wanted)


async def content(disk):
    found = np.zeros(disk.capacity, np.uint8)
    for offset in range(0, disk.capacity, SPAN):
        buffer = await disk.pool.acquire()
        size = min(SPAN, disk.capacity - offset)
        await disk.read(buffer, offset, Extents.whole(size, offset))
        found[offset : offset + size] = buffer.array[:size]
        buffer.release()
    return found
