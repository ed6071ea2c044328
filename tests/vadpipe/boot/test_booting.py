"""A point boots under QEMU, and answers on its serial port."""

import gzip
import io
import os
import re
import shutil
import struct
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import trio

from pipeline import MiB
from pipeline.errors import ConfigError
from tests.conftest import command, vadpipe
from tests.vadpipe.filesystems.filesystems_kit import TOOLS, ext_image, tool
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup
from vadpipe.boot import run
from vadpipe.boot.machine import Choices

pytestmark = pytest.mark.slow

HARDWARE = {
    "firmware": "bios",
    "memory": 192 * MiB,
    "cpus": 1,
    "guest_id": "debian12_64Guest",
    "controllers": [{"key": "scsi0", "type": "ParaVirtualSCSIController"}],
    "nics": [{"type": "VirtualVmxnet3", "network": "VM Network", "mac_address": "00:50:56:00:00:01"}],
}


@pytest.fixture(scope="module", autouse=True)
def _qemu():
    for program in ("qemu-system-x86_64", "qemu-img"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


class Guest:
    """`vadpipe boot --run`, with the guest's serial port."""

    def __init__(self, repository, *arguments):
        self.said = ""
        self.process = subprocess.Popen(
            command(
                "boot", repository.path, "latest", "--kvm", "--run", "--emulate", "--console", *arguments
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.set_blocking(self.process.stdout.fileno(), False)

    def wait_for(self, text, within_s=120):
        deadline = time.monotonic() + within_s
        while text not in self.said:
            assert time.monotonic() < deadline, self.said
            part = self.process.stdout.read()
            if part:
                self.said += part.decode("latin-1")
            else:
                assert self.process.poll() is None, self.said + self.process.stderr.read().decode()
                time.sleep(0.02)

    def say(self, text):
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def end(self):
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors.decode()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self.process as process:
            process.kill()


def boot_sector():
    """A boot sector that greets on the serial port, repeats one letter, and resets the machine."""
    greeting = b"the sector runs; say a letter\n\0"
    start = b"\x31\xc0\x8e\xd8\xbe"  # xor ax, ax; mov ds, ax; mov si, greeting
    body = (
        b"\xfc"  # cld
        b"\xac\x84\xc0\x74\x06\xba\xf8\x03\xee\xeb\xf5"  # each letter: lodsb; until 0; out 3f8h
        b"\xba\xfd\x03\xec\xa8\x01\x74\xf8"  # wait for one: in al, 3fdh; test al, 1
        b"\xba\xf8\x03\xec\xee\xee\xee"  # read it, and say it three times
        b"\xb0\xfe\xe6\x64\xf4\xeb\xfd"  # reset by the keyboard's controller; hlt
    )
    code = start + struct.pack("<H", 0x7C00 + len(start) + 2 + len(body)) + body + greeting
    return code.ljust(510, b"\0") + b"\x55\xaa"


@pytest.fixture
def sector(repository):
    """A point with a disk that is a boot sector."""
    disk = np.zeros(2 * MiB, np.uint8)
    disk[:512] = np.frombuffer(boot_sector(), np.uint8)
    trio.run(lambda: backup(repository, [MemoryDisk(disk)], configuration=HARDWARE))
    return repository


def test_a_point_boots_and_answers_on_its_serial_port(sector):
    with Guest(sector, "--", "-no-reboot") as guest:
        guest.wait_for("the sector runs; say a letter")
        guest.say("v")
        guest.wait_for("vvv")
        code, errors = guest.end()
    assert code == 0, errors
    assert "The network cards are connected to nothing" in errors


def test_an_overlay_is_kept_for_the_next_run_and_for_its_point_alone(sector, tmp_path):
    for _ in range(2):
        with Guest(sector, "--overlay", tmp_path / "kept", "--", "-no-reboot") as guest:
            guest.wait_for("the sector runs")
            guest.say("v")
            assert guest.end()[0] == 0
    assert sorted(os.listdir(tmp_path / "kept")) == ["point", "scsi0-0.qcow2"]
    (tmp_path / "kept" / "point").write_text("another\n")
    done = vadpipe("boot", sector.path, "latest", "--kvm", "--run", "--overlay", tmp_path / "kept")
    assert done.returncode == 2
    assert "what a guest wrote over point another, not over" in done.stderr


def test_a_signal_ends_the_machine_and_leaves_nothing(sector, monkeypatch):
    with tempfile.TemporaryDirectory(prefix="v") as place:  # the path of a Unix socket has at most 107 bytes
        monkeypatch.setenv("TMPDIR", place)
        with Guest(sector) as guest:
            guest.wait_for("the sector runs")
            (own,) = Path(place).iterdir()
            assert sorted(os.listdir(own)) == ["nbd.sock", "point", "scsi0-0.qcow2"]
            assert own.stat().st_mode & 0o777 == 0o700
            guest.process.terminate()
            code, errors = guest.end()
        assert code == 130, errors
        assert os.listdir(place) == []


def test_the_commands_are_printed_for_a_shell(sector, tmp_path):
    done = vadpipe("boot", sector.path, "latest", "--kvm", "--overlay", tmp_path / "here", "--memory", "1GiB")
    assert done.returncode == 0, done.stderr
    assert re.search(
        rf"^vadpipe serve {sector.path} [0-9a-f]+ --socket {tmp_path}/here/nbd.sock &", done.stdout, re.M
    )
    assert (
        f"-b 'nbd+unix:///scsi0:0?socket={tmp_path}/here/nbd.sock' {tmp_path}/here/scsi0-0.qcow2"
        in done.stdout
    )
    assert "-device pvscsi,id=scsi0 \\" in done.stdout
    assert "-m 1024M" in done.stdout
    assert not (tmp_path / "here").exists()
    told = vadpipe("boot", sector.path, "latest")
    assert (told.returncode, told.stdout) == (2, "")
    assert "Add --kvm" in told.stderr


def test_efi_without_firmware_is_refused_with_its_remedy(sector, monkeypatch):
    monkeypatch.setattr(run, "find_firmware", lambda _: None)

    class Point:
        configuration = {"firmware": "efi"}  # noqa: RUF012
        machine = type("Machine", (), {"name": "dc01"})

    with pytest.raises(ConfigError, match=r"dc01 boots by EFI.*Install OVMF"):
        run.plan_for(Point, [], Path(), Choices())


INIT = """\
#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /dev /disk
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
for module in {modules}; do $b insmod /modules/$module; done
for wait in 1 2 3 4 5 6 7 8 9; do [ -e /dev/sda2 ] || $b sleep 1; done
$b mount -t ext4 /dev/sda2 /disk
echo "guest: $($b cat /disk/message)"
read -r line
echo "guest answers: $line"
echo "$line" > /disk/kept
$b umount /disk
$b poweroff -f
"""


def debian_package(name, directory):
    """A package of Debian's, as an open archive of its files."""
    done = subprocess.run(
        ["apt-get", "download", name], cwd=directory, capture_output=True, text=True, check=False
    )
    found = sorted(directory.glob(f"{name}_*.deb"))
    if done.returncode or not found:
        pytest.skip(f"the package {name} cannot be had: {done.stderr.strip()[-200:]}")
    files = subprocess.run(["dpkg-deb", "--fsys-tarfile", found[0]], capture_output=True, check=True).stdout
    return tarfile.open(fileobj=io.BytesIO(files))


def cpio(files):
    """An initramfs (newc): mode and content by name."""
    out = io.BytesIO()
    for number, (name, (mode, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        out.write(b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0")
        out.write(bytes(-out.tell() % 4) + content)
        out.write(bytes(-out.tell() % 4))
    return gzip.compress(out.getvalue(), 1)


# In the order of their loading: SCSI disks, and VMware's PVSCSI.
MODULES = [
    "scsi_common",
    "crc64",
    "crc64-rocksoft",
    "crc-t10dif",
    "t10-pi",
    "scsi_mod",
    "sd_mod",
    "vmw_pvscsi",
]


@pytest.fixture
def linux(tmp_path, repository):
    """A point with a disk of a small Linux: Debian's kernel, busybox, and an ext4."""
    for program in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if shutil.which("syslinux", path=TOOLS) is None:
        pytest.skip("syslinux is not installed")
    depends = subprocess.run(
        ["apt-cache", "depends", "linux-image-cloud-amd64"], capture_output=True, text=True, check=False
    ).stdout
    names = re.findall(r"Depends: (linux-image-\S+)", depends)
    if not names:
        pytest.skip("apt knows no linux-image-cloud-amd64")
    kernel, busybox = debian_package(names[0], tmp_path), debian_package("busybox-static", tmp_path)
    paths = {os.path.basename(name): name for name in kernel.getnames()}
    modules = [f"{name}.ko" for name in MODULES if f"{name}.ko" in paths]
    files = {
        "bin": (0o40755, b""),
        "modules": (0o40755, b""),
        "bin/busybox": (0o100755, busybox.extractfile("./bin/busybox").read()),
        "init": (0o100755, INIT.format(modules=" ".join(modules)).encode()),
        **{f"modules/{name}": (0o100644, kernel.extractfile(paths[name]).read()) for name in modules},
    }
    (tmp_path / "initrd").write_bytes(cpio(files))
    image = next(name for name in kernel.getnames() if "/vmlinuz-" in name)
    (tmp_path / "vmlinuz").write_bytes(kernel.extractfile(image).read())
    (tmp_path / "syslinux.cfg").write_text(
        "DEFAULT linux\nLABEL linux\nKERNEL vmlinuz\nINITRD initrd\nAPPEND console=ttyS0 quiet panic=-1\n"
    )
    (tmp_path / "message").write_bytes(b"hello from the point\n")
    boot = tmp_path / "boot"
    with boot.open("wb") as file:
        file.truncate(30 * MiB)
    tool("mkfs.fat", "-F", "16", "-h", "2048", boot)
    tool("mcopy", "-i", boot, *(tmp_path / name for name in ("vmlinuz", "initrd", "syslinux.cfg")), "::/")
    tool("syslinux", "-i", boot)
    data = ext_image(tmp_path / "data", [f"write {tmp_path / 'message'} message"], "8M")
    disk = np.zeros(40 * MiB, np.uint8)
    loader = next(
        (
            path
            for path in ("/usr/lib/syslinux/mbr/mbr.bin", "/usr/share/syslinux/mbr.bin")
            if os.path.exists(path)
        ),
        None,
    )
    if loader is None:
        pytest.skip("syslinux has no mbr.bin here")
    with open(loader, "rb") as file:
        code = bytearray(file.read().ljust(512, b"\0")[:512])
    for number, (flag, kind, first, count) in enumerate([(0x80, 0x0E, 2048, 61440), (0, 0x83, 63488, 16384)]):
        struct.pack_into("<B3xB3xII", code, 446 + 16 * number, flag, kind, first, count)
    code[510:] = b"\x55\xaa"
    disk[:512] = np.frombuffer(bytes(code), np.uint8)
    disk[MiB : 31 * MiB] = np.fromfile(boot, np.uint8)
    disk[31 * MiB : 39 * MiB] = np.fromfile(data, np.uint8)
    trio.run(lambda: backup(repository, [MemoryDisk(disk)], configuration=HARDWARE))
    return repository


def test_a_small_linux_boots_from_a_point_and_what_it_writes_is_in_the_overlay(linux, tmp_path):
    with Guest(linux, "--overlay", tmp_path / "kept") as guest:
        guest.wait_for("guest: hello from the point")
        guest.say("are you there?\n")
        guest.wait_for("guest answers: are you there?")
        code, errors = guest.end()
    assert code == 0, errors
    assert (tmp_path / "kept" / "scsi0-0.qcow2").stat().st_size < 8 * MiB
    listed = vadpipe("files", linux.path, "latest", "list", "2:/")
    if "pip install" not in listed.stderr:
        assert "message" in listed.stdout, listed.stderr
        assert "kept" not in listed.stdout
