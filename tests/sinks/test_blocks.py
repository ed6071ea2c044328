"""Targets that are there already: exports of NBD servers and block devices."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import trio

from pipeline import BufferPool, ConfigError, Extents, MiB, SinkError
from sinks.blocks import DeviceTarget, NbdTarget
from sinks.qemu import Qcow2Directory
from sinks.targets import parse_target
from tests.sinks.target_kit import restored, tool
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, random_bytes
from vadpipe.cli.output import error_lines
from vadpipe.nbd import Nbd
from vadpipe.nbd.writer import open_for_writing

SIZE = 9 * MiB + 512


@pytest.fixture
def disk(repository):
    content = random_bytes(1, SIZE)
    content[MiB : 6 * MiB] = 0
    content[-MiB:] = 0
    disk = MemoryDisk(content, pool=BufferPool())
    trio.run(backup, repository, [disk])
    return disk


def used(tmp_path, size=SIZE):
    """An image that is full of something else."""
    image = tmp_path / "used.raw"
    image.write_bytes(b"\xaa" * size)
    return image


def by_qemu(serve, image, *options):
    return serve("qemu-nbd", "--socket=SOCKET", "--format=raw", "--persistent", *options, image)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["qemu-nbd", "nbdkit", "nbdkit without zeroing"])
def test_an_export_becomes_the_disk_with_its_zeros(serve, repository, disk, tmp_path, server):
    image = used(tmp_path, SIZE + 4096)
    if server == "qemu-nbd":
        socket = by_qemu(serve, image)
    else:
        filters = [] if server == "nbdkit" else ["--filter=nozero"]
        socket = serve("nbdkit", "--foreground", "--unix", "SOCKET", *filters, "file", image)
    receipt = restored(repository, parse_target(f"nbd+unix:///?socket={socket}"), force=True)
    assert [line for failed in receipt.failures for line in error_lines(failed)] == []
    content = np.fromfile(image, np.uint8)
    assert np.array_equal(content[:SIZE], disk.content)
    assert (content[SIZE:] == 0xAA).all()
    assert receipt.remarks == [
        f"the export of {socket} is 4096 bytes larger than the disk; they were left as they are."
    ]


@pytest.mark.slow
def test_an_export_is_overwritten_by_force_only_and_must_be_large_enough(serve, repository, disk, tmp_path):
    image = used(tmp_path, SIZE - 512)
    target = parse_target(f"nbd+unix:///?socket={by_qemu(serve, image)}")
    with pytest.raises(ConfigError, match=r"overwrites what the export .* holds\. Add --force"):
        restored(repository, target)
    with pytest.raises(
        SinkError, match=rf"has {SIZE - 512} bytes; disk scsi0:0 has {SIZE}.*nothing was written"
    ):
        restored(repository, target, force=True)
    assert image.read_bytes() == b"\xaa" * (SIZE - 512)


@pytest.mark.slow
def test_an_export_for_reading_only_is_refused(serve, repository, disk, tmp_path):
    socket = by_qemu(serve, used(tmp_path), "--read-only")
    with pytest.raises(SinkError, match="for reading only"):
        restored(repository, parse_target(f"nbd+unix:///?socket={socket}"), force=True)


def test_a_server_that_is_not_there_is_named(repository, disk, tmp_path):
    with pytest.raises(SinkError, match=rf"The NBD server {tmp_path}/none cannot be used"):
        restored(repository, parse_target(f"nbd+unix:///?socket={tmp_path}/none"), force=True)


@pytest.mark.slow
async def test_writes_in_any_order_come_to_their_place(serve, tmp_path):
    image = used(tmp_path, 8 * MiB)
    socket = await trio.to_thread.run_sync(by_qemu, serve, image)
    content = random_bytes(4, 8 * MiB)
    pool = BufferPool()
    async with open_for_writing(Nbd(str(socket), request=256 * 1024)) as writer:
        for offset in (4 * MiB, 0):
            buffer = await pool.acquire()
            buffer.array[:] = content[offset : offset + 4 * MiB]
            await writer.write(
                buffer, offset, Extents.of([(offset + 512, MiB), (offset + 2 * MiB, MiB + 4096)])
            )
            buffer.release()
        await writer.write_zeros(MiB + 4096, 8192)
        await writer.flush()
    expected = np.full(8 * MiB, 0xAA, np.uint8)
    for offset in (4 * MiB, 0):
        for start, length in ((offset + 512, MiB), (offset + 2 * MiB, MiB + 4096)):
            expected[start : start + length] = content[start : start + length]
    expected[MiB + 4096 : MiB + 3 * 4096] = 0
    assert np.array_equal(np.fromfile(image, np.uint8), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nbd://host:x/", "names no NBD server"),
        ("nbd:///export", "do not name an NBD server"),
        ("nbd+unix:///export", "needs the path of a socket"),
        ("nbd+unix:///?socket=relative", "needs the path of a socket"),
    ],
)
def test_a_url_that_names_no_server_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_target(text)


def test_a_url_names_host_port_and_export():
    assert parse_target("nbd://host:1/a%20b") == NbdTarget(Nbd("host", 1, export="a b"))
    assert parse_target("nbd://host/") == NbdTarget(Nbd("host"))
    assert parse_target("nbd+unix:///x?socket=/run/s") == NbdTarget(Nbd("/run/s", export="x"))
    secured = parse_target("nbds://host/x")
    assert isinstance(secured, NbdTarget)
    assert secured.server.tls is not None


def test_a_missing_tool_of_qemu_is_named_with_its_package(repository, disk, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"qemu-img is missing.*Install the package qemu-utils"):
        restored(repository, Qcow2Directory(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_qcow2_image_holds_no_zeros(repository, tmp_path):
    content = np.zeros(64 * MiB, np.uint8)
    content[40 * MiB : 41 * MiB] = random_bytes(1, MiB)
    trio.run(backup, repository, [MemoryDisk(content, pool=BufferPool())])
    receipt = restored(repository, Qcow2Directory(tmp_path / "out"))
    [done] = receipt.disks
    assert Path(str(done.place)).stat().st_blocks * 512 < 2 * MiB
    checked = subprocess.run(
        [tool("qemu-img"), "check", "-f", "qcow2", done.place], capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


@pytest.fixture
def device(tmp_path):
    """A loop device over a file that is full of something else."""
    losetup = shutil.which("losetup")
    if losetup is None:
        pytest.skip("losetup is not installed: no block device to write to")
    image = used(tmp_path, 10 * MiB)
    made = subprocess.run([losetup, "--find", "--show", image], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device can be made here: {made.stderr.strip()}")
    path = Path(made.stdout.strip())
    yield path, image
    subprocess.run([losetup, "--detach", path], check=True)


@pytest.mark.slow
def test_a_device_becomes_the_disk_with_its_zeros(device, repository, disk):
    path, _ = device
    with pytest.raises(ConfigError, match=rf"overwrites what {path} holds. Add --force"):
        restored(repository, DeviceTarget(path))
    receipt = restored(repository, parse_target(f"device:{path}"), force=True)
    assert list(receipt.failures) == []
    content = np.fromfile(path, np.uint8)
    assert np.array_equal(content[:SIZE], disk.content)
    assert (content[SIZE:] == 0xAA).all()
    assert re.search(r"bytes larger than the disk", receipt.remarks[0])


@pytest.mark.slow
def test_a_device_that_is_in_use_or_too_small_is_refused(device, repository, tmp_path):
    path, image = device
    trio.run(backup, repository, [MemoryDisk(random_bytes(1, 11 * MiB), pool=BufferPool())])
    with pytest.raises(SinkError, match=rf"{path} has {10 * MiB} bytes; disk scsi0:0 has {11 * MiB}"):
        restored(repository, DeviceTarget(path), force=True)
    subprocess.run([tool("mkfs.ext4"), "-q", path], check=True)
    place = tmp_path / "mounted"
    place.mkdir()
    if subprocess.run(["mount", path, place], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with pytest.raises(SinkError, match=f"{path} is in use"):
            restored(repository, DeviceTarget(path), force=True)
    finally:
        subprocess.run(["umount", place], check=True)
    assert image.stat().st_size == 10 * MiB


def test_what_is_no_device_is_refused(repository, disk, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match="file is no block device"):
        restored(repository, DeviceTarget(tmp_path / "file"), force=True)
    with pytest.raises(SinkError, match="none cannot be opened: No such file"):
        restored(repository, DeviceTarget(tmp_path / "none"), force=True)
