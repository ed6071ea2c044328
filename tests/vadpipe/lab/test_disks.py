"""The lab's disks: what they read, write, freeze and track; qemu-img is an independent witness."""

from __future__ import annotations

import json
import os
import random
import struct

import pytest

from pipeline.units import GiB, KiB, MiB, TiB
from tests.vadpipe.lab.disks_kit import (
    BLOCK,
    ODD,
    blocks_of,
    needs_qemu_img,
    new_disk,
    qemu_img,
    shown,
    witnessed,
)
from vadpipe.lab.disks import ChangeIdError, Fork, LabDisk
from vadpipe.lab.vmdk_chain import open_link
from vadpipe.lab.vmdk_files import LabDiskError


@needs_qemu_img
@pytest.mark.parametrize("capacity", [64 * KiB, ODD, 5 * GiB])
def test_empty_extent_equals_the_one_qemu_img_makes(tmp_path, capacity):
    disk = LabDisk.create(tmp_path, "web01", capacity)
    qemu_img("create", "-f", "vmdk", "-o", "subformat=monolithicSparse", tmp_path / "theirs.vmdk", capacity)
    ours, theirs = disk.base.read_bytes(), (tmp_path / "theirs.vmdk").read_bytes()
    descriptor = slice(512, 21 * 512)
    assert ours[: descriptor.start] == theirs[: descriptor.start]
    assert ours[descriptor.stop :] == theirs[descriptor.stop :]


@needs_qemu_img
def test_reads_what_qemu_img_wrote(tmp_path):
    raw = tmp_path / "disk.raw"
    content = random.Random(1).randbytes(3 * MiB)
    raw.write_bytes(content[: 1 * MiB] + bytes(2 * MiB) + content[MiB:])
    qemu_img("convert", "-O", "vmdk", raw, tmp_path / "disk.vmdk")
    assert shown(tmp_path / "disk.vmdk") == raw.read_bytes()


@needs_qemu_img
@pytest.mark.parametrize("provisioning", ["thin", "flat"])
def test_writes_at_every_kind_of_edge_are_read_back(tmp_path, provisioning):
    disk = new_disk(tmp_path, provisioning)
    model = bytearray(ODD)
    rng = random.Random(2)
    for offset, length in [
        (0, 1), (BLOCK - 1, 2), (3 * BLOCK, BLOCK), (3 * BLOCK - 5, 4 * BLOCK + 10), (ODD - 1, 1), (ODD - 700, 700),
        (10 * BLOCK + 7, 5), (9 * BLOCK, 12 * BLOCK),
    ]:  # fmt: skip
        data = rng.randbytes(length)
        disk.write(offset, data)
        model[offset : offset + length] = data
    assert disk.read(0, ODD) == model
    assert disk.read(BLOCK - 3, 3 * BLOCK) == model[BLOCK - 3 : 4 * BLOCK - 3]
    assert witnessed(disk.leaf) == model


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (ODD, 1), (ODD - 1, 2)])
def test_requests_outside_the_disk_are_refused(tmp_path, offset, length):
    disk = new_disk(tmp_path)
    with pytest.raises(LabDiskError, match="reach past its"):
        disk.read(offset, length)
    with pytest.raises(LabDiskError, match="reach past its"):
        disk.write(offset, bytes(length))


@needs_qemu_img
@pytest.mark.parametrize("provisioning", ["thin", "flat"])
def test_plain_fork_freezes_the_old_leaf(tmp_path, provisioning):
    disk = new_disk(tmp_path, provisioning)
    disk.write(5000, b"before")
    fork = disk.fork(quiesced_second=False)
    assert fork == Fork(tmp_path / "web01.vmdk", tmp_path / "web01-000001.vmdk", None)
    assert disk.chain == [fork.live, disk.base]
    disk.write(5003, b"AFTER")
    frozen, live = bytearray(ODD), bytearray(ODD)
    frozen[5000:5006], live[5000:5008] = b"before", b"befAFTER"
    assert witnessed(fork.frozen) == frozen
    assert witnessed(fork.live) == live == disk.read(0, ODD)
    with pytest.raises(LabDiskError, match="never changes"):
        disk.write_frozen(fork.frozen, 0, b"x")
    assert disk.merge(fork.frozen) == {}
    assert disk.chain == [disk.base]
    assert not fork.live.exists()
    assert witnessed(disk.base) == live


@needs_qemu_img
def test_application_quiesced_fork_has_a_second_redo_log(tmp_path):
    disk = new_disk(tmp_path)
    disk.enable_tracking()
    disk.write(0, b"guest")
    fork = disk.fork(quiesced_second=True)
    assert (fork.frozen.name, fork.live.name) == ("web01-000002.vmdk", "web01-000001.vmdk")
    disk.write_frozen(fork.frozen, 2, b"VSS")
    disk.write(BLOCK, b"live")
    assert witnessed(fork.frozen)[: BLOCK + 8] == b"guVSS" + bytes(BLOCK + 3)
    assert witnessed(disk.leaf)[: BLOCK + 8] == b"guest" + bytes(BLOCK - 5) + b"live" + bytes(4)
    disk.merge(fork.frozen)
    assert sorted(path.name for path in tmp_path.glob("*.vmdk")) == ["web01.vmdk"]
    following = disk.fork(quiesced_second=False)
    assert fork.change_id is not None
    # Block 0 was not written by the running VM, but the backup of the first snapshot holds what VSS wrote there.
    assert disk.changed_areas(fork.change_id, following.frozen) == [(0, 2 * BLOCK)]


@needs_qemu_img
def test_middle_of_three_snapshots_is_removed(tmp_path):
    disk = new_disk(tmp_path)
    forks = []
    for number, quiesced in enumerate([False, False, True]):
        disk.write(number * BLOCK, b"%d" % number)
        forks.append(disk.fork(quiesced_second=quiesced))
    disk.write(4 * BLOCK, b"4")
    images = [witnessed(fork.frozen) for fork in forks]
    live = witnessed(disk.leaf)
    assert len(json.loads(qemu_img("info", "--backing-chain", "--output=json", disk.leaf))) == 4
    assert disk.merge(forks[1].frozen) == {}, "the third snapshot names its own redo log, which stays"
    assert [fork.frozen for fork in disk.forks] == [forks[0].frozen, forks[2].frozen]
    assert [witnessed(fork.frozen) for fork in disk.forks] == [images[0], images[2]]
    assert witnessed(disk.leaf) == live


def test_merge_moves_the_name_that_a_newer_snapshot_uses(tmp_path):
    disk = new_disk(tmp_path)
    older, newer = disk.fork(quiesced_second=False), disk.fork(quiesced_second=False)
    assert newer.frozen == older.live
    assert disk.merge(older.frozen) == {newer.frozen: disk.base}
    with pytest.raises(LabDiskError, match="not the frozen file"):
        disk.merge(newer.frozen)
    disk.merge(disk.base)
    assert disk.chain == [disk.base]


def test_redo_logs_take_the_lowest_free_number(tmp_path):
    disk = new_disk(tmp_path)
    first = disk.fork(quiesced_second=False)
    disk.fork(quiesced_second=False)
    disk.merge(first.frozen)
    assert disk.fork(quiesced_second=False).live.name == "web01-000001.vmdk"


def test_content_id_stays_while_there_are_children(tmp_path):
    def content_id() -> str:
        link = open_link(disk.base)
        text = link.descriptor
        link.close()
        return text.split("\nCID=")[1][:8]

    disk = new_disk(tmp_path, "flat")
    created = content_id()
    disk.write(0, b"x")
    written = content_id()
    assert written != created
    fork = disk.fork(quiesced_second=True)
    disk.write(0, b"y")
    disk.write_frozen(fork.frozen, 0, b"z")
    assert content_id() == written
    disk.merge(fork.frozen)
    assert content_id() != written


def test_unknown_change_ids_are_refused(tmp_path):
    disk = new_disk(tmp_path)
    untracked = disk.fork(quiesced_second=False)
    with pytest.raises(ChangeIdError, match="without change tracking"):
        disk.changed_areas("*", untracked.frozen)
    disk.enable_tracking()
    first = disk.fork(quiesced_second=False)
    assert first.change_id is not None
    assert first.change_id.endswith("/1")
    second = disk.fork(quiesced_second=False)
    assert second.change_id is not None
    assert disk.changed_areas(second.change_id, second.frozen) == []
    uuid = first.change_id.partition("/")[0]
    for wrong in (second.change_id, f"{uuid}/x", uuid, "", "52000000-0000-4000-8000-000000000000/1"):
        with pytest.raises(ChangeIdError, match="is not one before"):
            disk.changed_areas(wrong, first.frozen)
    disk.reset_tracking()
    third = disk.fork(quiesced_second=False)
    with pytest.raises(ChangeIdError, match="is not one before"):
        disk.changed_areas(second.change_id, third.frozen)
    disk.disable_tracking()
    assert disk.change_id is None
    assert disk.changed_areas(first.change_id, second.frozen) == []


def test_vss_writes_do_not_count_in_a_later_tracking(tmp_path):
    disk = new_disk(tmp_path)
    disk.enable_tracking()
    before = disk.fork(quiesced_second=True)
    disk.reset_tracking()
    first = disk.fork(quiesced_second=False)
    disk.write_frozen(before.frozen, 0, b"VSS")
    second = disk.fork(quiesced_second=False)
    assert first.change_id is not None
    assert disk.changed_areas(first.change_id.replace("/1", "/0"), first.frozen) == []
    assert disk.changed_areas(first.change_id, second.frozen) == []


def test_both_sets_of_grain_tables_agree(tmp_path):
    disk = new_disk(tmp_path)
    for offset in (0, 5 * BLOCK, 4 * BLOCK, ODD - 1):
        disk.write(offset, b"x")
    image = disk.base.read_bytes()
    redundant_directory, directory = struct.unpack_from("<QQ", image, 48)  # fields of the header, in sectors
    tables = [struct.unpack_from("<I", image, 512 * sector)[0] for sector in (redundant_directory, directory)]
    entries = [struct.unpack_from("<512I", image, 512 * table) for table in tables]
    assert tables[0] != tables[1]
    assert entries[0] == entries[1]
    assert [grain for grain, sector in enumerate(entries[1]) if sector] == [0, 4, 5, 32]


def test_allocated_extents_are_those_of_the_snapshot(tmp_path):
    disk = new_disk(tmp_path)
    disk.enable_tracking()
    disk.write(BLOCK, b"x")
    fork = disk.fork(quiesced_second=True)
    disk.write(3 * BLOCK, b"x")
    disk.write_frozen(fork.frozen, ODD - 1, b"x")
    assert disk.changed_areas("*", fork.frozen) == [(BLOCK, BLOCK), (2 * MiB, ODD - 2 * MiB)]
    assert disk.changed_areas("*", disk.fork(quiesced_second=False).frozen) == [
        (BLOCK, BLOCK),
        (3 * BLOCK, BLOCK),
    ]


@needs_qemu_img
@pytest.mark.parametrize("provisioning", ["thin", "flat"])
def test_a_raw_image_is_imported_and_compared(tmp_path, provisioning):
    raw = tmp_path / "image.raw"
    rng = random.Random(3)
    with raw.open("wb") as file:
        file.truncate(ODD)
        os.pwrite(file.fileno(), rng.randbytes(100 * KiB), 200 * KiB)
        os.pwrite(file.fileno(), bytes(10 * BLOCK), 10 * BLOCK)  # data for the file system, zero all the same
        os.pwrite(file.fileno(), b"end", ODD - 3)
    disk = new_disk(tmp_path, provisioning)
    disk.enable_tracking()
    disk.import_raw(raw)
    assert witnessed(disk.leaf) == raw.read_bytes()
    first = disk.fork(quiesced_second=False)
    assert disk.changed_areas("*", first.frozen) == [(3 * BLOCK, 2 * BLOCK), (32 * BLOCK, ODD - 32 * BLOCK)]
    with raw.open("r+b") as file:
        for place, data in ((204 * KiB, b"changed"), (800 * KiB, b"new"), (ODD - 3, bytes(3))):
            os.pwrite(file.fileno(), data, place)
    expected = [(204 * KiB, 4 * KiB), (800 * KiB, 4 * KiB), (2 * MiB, ODD - 2 * MiB)]
    assert list(disk.differences(raw)) == expected
    assert list(disk.apply_raw_difference(raw)) == expected
    assert list(disk.apply_raw_difference(raw)) == []
    assert witnessed(disk.leaf) == raw.read_bytes()
    second = disk.fork(quiesced_second=False)
    assert first.change_id is not None
    areas = disk.changed_areas(first.change_id, second.frozen)
    assert blocks_of(areas) == {3, 12, 32}
    with pytest.raises(LabDiskError, match="holds data already"):
        disk.import_raw(raw)
    os.truncate(raw, ODD + 512)
    with pytest.raises(LabDiskError, match="as large as the disk"):
        disk.differences(raw)


@needs_qemu_img
def test_a_disk_of_4_tib_needs_no_memory_for_its_size(tmp_path):
    disk = LabDisk.create(tmp_path, "big", 4 * TiB)
    disk.enable_tracking()
    first = disk.fork(quiesced_second=True)
    disk.write(3 * TiB, bytes(100))
    second = disk.fork(quiesced_second=False)
    assert first.change_id is not None
    assert disk.changed_areas(first.change_id, second.frozen) == [(3 * TiB, BLOCK)]
    assert disk.changed_areas("*", second.frozen) == [(3 * TiB, BLOCK)]
    assert json.loads(qemu_img("info", "--output=json", disk.leaf))["virtual-size"] == 4 * TiB
    disk.merge(first.frozen)
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir()) < 8 * MiB


def test_loading_a_disk_names_the_missing_file(tmp_path):
    with pytest.raises(LabDiskError, match=r"web01-ctk.json does not describe a disk"):
        LabDisk.load(tmp_path, "web01")
    new_disk(tmp_path)
    with pytest.raises(LabDiskError, match="exists already"):
        new_disk(tmp_path)
    with pytest.raises(LabDiskError, match="not a whole number of sectors"):
        LabDisk.create(tmp_path, "web02", 1000)
