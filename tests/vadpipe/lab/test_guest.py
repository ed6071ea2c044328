"""The lab's guest: what the tools of its file system find in the disks after qemu-img read them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.units import CLUSTER, KiB, MiB
from vadpipe.lab import guest as guest_room
from vadpipe.lab import guest_volumes
from vadpipe.lab.guest import VSS_FILE, Guest, build_windows_guest
from vadpipe.lab.guest_content import machine_files
from vadpipe.lab.guest_volumes import FileSystem, volume_in
from vadpipe.lab.vmdk_files import LabDiskError

BLOCK = 64 * KiB
FILL = 4 * MiB
PATH = guest_volumes._TOOL_PATH

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if shutil.which(tool, path=PATH) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


every_file_system = pytest.mark.parametrize(
    "filesystem",
    [
        pytest.param("ntfs", marks=needs("mkntfs", "ntfscp", "ntfscat", "ntfsls")),
        pytest.param("ext4", marks=needs("mke2fs", "debugfs")),
    ],
)


@pytest.fixture
def filesystem() -> FileSystem:
    return "none"


@pytest.fixture
def guest(tmp_path: Path, filesystem: FileSystem, monkeypatch: pytest.MonkeyPatch) -> Guest:
    monkeypatch.setattr(guest_room, "best_file_system", lambda: filesystem)
    return build_small(tmp_path)


def build_small(directory: Path) -> Guest:
    return build_windows_guest(directory, system_capacity=64 * MiB, data_capacity=16 * MiB, fill=FILL)


def tool(name: str, *arguments: object) -> bytes:
    command = [shutil.which(name, path=PATH) or name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout


def converted(path: Path) -> Path:
    """The raw image that qemu-img makes of the chain, after checking its first file."""
    raw = path.with_suffix(".witness")
    tool("qemu-img", "check", path)
    tool("qemu-img", "convert", "-O", "raw", path, raw)
    return raw


def names_in(raw: Path, filesystem: FileSystem) -> set[str]:
    if filesystem == "ntfs":
        return {line.strip() for line in tool("ntfsls", raw).decode().splitlines()}
    return {line.split("/")[5] for line in tool("debugfs", "-R", "ls -p", raw).decode().split() if line}


def content_of(raw: Path, filesystem: FileSystem, name: str) -> bytes:
    if filesystem == "ntfs":
        return tool("ntfscat", raw, name)
    return tool("debugfs", "-R", f'cat "{name}"', raw)


def different_blocks(one: bytes, other: bytes) -> set[int]:
    return {
        offset // BLOCK
        for offset in range(0, len(one), BLOCK)
        if one[offset : offset + BLOCK] != other[offset : offset + BLOCK]
    }


def changed_blocks(areas: list[tuple[int, int]]) -> set[int]:
    return {block for offset, length in areas for block in range(offset // BLOCK, (offset + length) // BLOCK)}


@pytest.mark.slow
@needs_qemu_img
@every_file_system
def test_files_of_the_machine_are_on_the_system_disk(guest, filesystem):
    assert guest.filesystem == filesystem
    raw = converted(guest.disks[0].leaf)
    sources = machine_files(FILL, 1)
    assert guest.files == sorted(sources)
    assert FILL * 0.8 < sum(source.stat().st_size for source in sources.values()) <= FILL
    assert names_in(raw, filesystem) >= set(sources)
    for name, source in sources.items():
        assert content_of(raw, filesystem, name) == source.read_bytes()


@pytest.mark.slow
@needs_qemu_img
@every_file_system
def test_work_is_seen_in_the_files_and_by_change_tracking(guest, filesystem):
    for disk in guest.disks:
        disk.enable_tracking()
    before = [disk.fork(quiesced_second=False) for disk in guest.disks]
    images = [converted(fork.frozen).read_bytes() for fork in before]
    old = set(guest.files)
    done = guest.work(seed=7, amount=3 * MiB)
    after = [disk.fork(quiesced_second=False) for disk in guest.disks]

    raw = converted(after[0].frozen)
    new = set(guest.files) - old
    assert new
    assert len(old - set(guest.files)) == 1
    assert names_in(raw, filesystem) >= set(guest.files)
    for name in new:
        assert f"wrote {name}" in "\n".join(done)
        assert b" stock reserved, invoice sent\n" in content_of(raw, filesystem, name)
    for disk, image, first, second in zip(guest.disks, images, before, after, strict=True):
        assert first.change_id is not None
        changed = changed_blocks(disk.changed_areas(first.change_id, second.frozen))
        assert changed == different_blocks(image, converted(second.frozen).read_bytes()) != set()
        assert converted(first.frozen).read_bytes() == image


@pytest.mark.slow
@needs_qemu_img
@every_file_system
def test_vss_writers_change_only_the_quiesced_image(guest, filesystem):
    live = [converted(disk.leaf).read_bytes() for disk in guest.disks]
    forks = [disk.fork(quiesced_second=True) for disk in guest.disks]
    guest.vss_writers(forks)
    system = converted(forks[0].frozen)
    assert len(content_of(system, filesystem, VSS_FILE)) == 8 * KiB
    for disk, fork, image in zip(guest.disks, forks, live, strict=True):
        quiesced = converted(fork.frozen).read_bytes()
        assert 0 < len(different_blocks(quiesced, image)) < 20
        assert converted(disk.leaf).read_bytes() == image
        assert len(disk.differences(disk.directory / "guest" / f"{disk.name}.raw")) == 0
    assert VSS_FILE not in names_in(converted(guest.disks[0].leaf), filesystem)


@pytest.mark.slow
def test_without_tools_the_disks_still_hold_the_files(guest):
    assert guest.filesystem == "none"
    content = guest.disks[0].read(0, guest.disks[0].capacity)
    held = [source for source in machine_files(FILL, 1).values() if source.read_bytes() in content]
    assert len(held) > 3
    forks = [disk.fork(quiesced_second=True) for disk in guest.disks]
    guest.vss_writers(forks)
    assert guest.disks[0].read(0, guest.disks[0].capacity) == content
    guest.work(seed=1, amount=MiB)
    assert guest.disks[0].read(0, guest.disks[0].capacity) != content


@pytest.mark.slow
def test_the_same_seed_gives_the_same_disks(guest, tmp_path):
    other = build_small(tmp_path / "other")
    for seed in (3, 4):
        assert guest.work(seed, MiB) == other.work(seed, MiB)
    for ours, theirs in zip(guest.disks, other.disks, strict=True):
        assert ours.read(0, ours.capacity) == theirs.read(0, theirs.capacity)
    assert guest.disks[0].uuid != other.disks[0].uuid


def test_database_pages_are_written_singly(guest):
    disk = guest.disks[1]
    disk.fork(quiesced_second=False)
    before = disk.read(0, disk.capacity)
    done = guest.work(seed=5, amount=3 * 40 * CLUSTER)
    assert "wrote 40 of 256 pages of 4 KiB of the database on web01_1" in done
    after = disk.read(0, disk.capacity)
    pages = range(0, disk.capacity, CLUSTER)
    changed = [page for page in pages if before[page : page + CLUSTER] != after[page : page + CLUSTER]]
    assert len(changed) == 40
    assert min(changed) >= disk.capacity // 2


def test_data_disk_begins_with_an_archive(guest, tmp_path):
    archive = tmp_path / "archive.tar"
    archive.write_bytes(guest.disks[1].read(0, 8 * MiB))
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    unpacked = {path.name: path.read_bytes() for path in (tmp_path / "unpacked").iterdir()}
    sources = machine_files(FILL, 1)
    assert unpacked
    assert all(content == sources[name].read_bytes() for name, content in unpacked.items())


def test_vmx_names_the_leaves(guest):
    def settings() -> dict[str, str]:
        lines = (guest.directory / "web01.vmx").read_text(encoding="utf-8").splitlines()
        return {key: value.strip('"') for key, _, value in (line.partition(" = ") for line in lines)}

    built = settings()
    assert built["guestOS"] == "windows2019srv-64"
    assert built["disk.EnableUUID"] == "TRUE"
    assert built["uuid.bios"].startswith("56 4d ")
    assert [built["scsi0:0.fileName"], built["scsi0:1.fileName"]] == ["web01.vmdk", "web01_1.vmdk"]
    guest.disks[0].enable_tracking()
    guest.disks[0].fork(quiesced_second=True)
    guest.write_vmx()
    forked = settings()
    assert [forked["scsi0:0.fileName"], forked["scsi0:1.fileName"]] == ["web01-000001.vmdk", "web01_1.vmdk"]
    assert forked["scsi0:0.ctkEnabled"] == "TRUE"
    assert "scsi0:1.ctkEnabled" not in forked
    assert forked["uuid.bios"] == built["uuid.bios"]


def test_guest_goes_on_after_a_restart(guest):
    guest.work(seed=1, amount=MiB)
    loaded = Guest.load(guest.directory)
    assert (loaded.files, loaded.filesystem) == (guest.files, guest.filesystem)
    assert loaded.work(seed=2, amount=MiB)
    with pytest.raises(LabDiskError, match=r"db01.json does not describe a guest"):
        Guest.load(guest.directory, "db01")


def test_a_guest_with_too_little_to_fill_its_disk_is_refused(tmp_path):
    with pytest.raises(LabDiskError, match="Raise `fill`"):
        build_windows_guest(tmp_path, fill=KiB)


@every_file_system
def test_a_full_file_system_says_so(tmp_path, filesystem):
    raw = tmp_path / "small.raw"
    raw.touch()
    with raw.open("r+b") as file:
        file.truncate(8 * MiB)
    volume = volume_in(raw, filesystem)
    volume.make({})
    with pytest.raises(LabDiskError, match=r"ntfscp failed|debugfs cannot change"):
        volume.put("large", b"x" * (9 * MiB))


def test_a_missing_tool_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(guest_volumes, "_TOOL_PATH", str(tmp_path))
    assert guest_volumes.best_file_system() == "none"
    with pytest.raises(LabDiskError, match="mkntfs is not installed"):
        volume_in(tmp_path / "x.raw", "ntfs").make({})
