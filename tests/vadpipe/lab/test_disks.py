"""The lab's disks against a model of bytes, and against qemu-img as an independent witness."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import struct
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from pipeline.units import GiB, KiB, MiB, TiB
from vadpipe.lab.disks import ChangeIdError, Fork, LabDisk
from vadpipe.lab.vmdk_chain import open_link, opened_chain
from vadpipe.lab.vmdk_files import LabDiskError

BLOCK = 64 * KiB
ODD = 2 * MiB + 3 * 512  # neither whole grains nor whole clusters

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def qemu_img(*arguments: object) -> str:
    done = subprocess.run(
        ["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr, done.stderr
    return done.stdout


def witnessed(path: Path) -> bytes:
    """What qemu-img reads through the chain that starts at `path`, after checking every file of it."""
    for link in json.loads(qemu_img("info", "--backing-chain", "--output=json", path)):
        assert link["format"] == "vmdk"
        qemu_img("check", link["filename"])
    raw = path.with_suffix(".witness")
    qemu_img("convert", "-O", "raw", path, raw)
    try:
        return raw.read_bytes()
    finally:
        raw.unlink()


def chain_by_hints(path: Path) -> list[Path]:
    chain = [path]
    while True:
        link = open_link(chain[-1])
        text = link.descriptor
        link.close()
        if "parentFileNameHint" not in text:
            return chain
        chain.append(path.with_name(text.split('parentFileNameHint="')[1].split('"')[0]))


def shown(path: Path) -> bytes:
    """What our own reader finds, following the descriptors and not the state file."""
    with opened_chain(chain_by_hints(path)) as chain:
        return bytes(chain.read(0, chain.links[0].capacity))


def blocks_of(areas: list[tuple[int, int]]) -> set[int]:
    assert all(offset % BLOCK == 0 for offset, _ in areas)
    assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(areas)), "runs are sorted and merged"
    return {
        block for offset, length in areas for block in range(offset // BLOCK, -(-(offset + length) // BLOCK))
    }


def differing(one: bytearray, other: bytearray) -> set[int]:
    different = np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8)
    return set(np.flatnonzero(np.logical_or.reduceat(different, np.arange(0, ODD, BLOCK))).tolist())


def touched(offset: int, length: int) -> set[int]:
    return set(range(offset // BLOCK, -(-(offset + length) // BLOCK)))


def new_disk(directory: Path, provisioning: str = "thin", capacity: int = ODD) -> LabDisk:
    if provisioning == "thin":
        return LabDisk.create(directory, "web01", capacity)
    return LabDisk.create(directory, "web01", capacity, provisioning="flat")


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


# -- against a model


@dataclass
class SnapshotModel:
    fork: Fork
    number: int
    content: bytearray


@dataclass
class DiskModel:
    """Bytes, and sets of blocks per interval between forks: no arrays, no chains."""

    live: bytearray
    snapshots: list[SnapshotModel] = field(default_factory=list)
    written: list[set[int]] = field(default_factory=lambda: [set()])  # by the guest, before the n-th fork
    by_vss: dict[int, set[int]] = field(default_factory=dict)  # by the number of the fork

    def changed(self, since: int, number: int) -> set[int]:
        if since == number:
            return set()
        guest = set().union(*self.written[since + 1 : number + 1])
        return guest.union(*(self.by_vss.get(fork, set()) for fork in range(since, number + 1)))


class Scenario:
    """Random operations on a disk and on its model; the disk is loaded anew after each of them."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.directory = directory
        disk = new_disk(directory, self.rng.choice(["thin", "flat"]))
        disk.enable_tracking()
        self.model = DiskModel(bytearray(ODD))
        self.all: list[SnapshotModel] = []  # also removed ones: their change ids stay good

    @property
    def disk(self) -> LabDisk:
        return LabDisk.load(self.directory, "web01")

    def piece(self) -> tuple[int, bytes]:
        length = self.rng.choice([1, 512, 4096, 70_000, 300_000])
        return self.rng.randrange(ODD - length), self.rng.randbytes(length)

    def write(self) -> None:
        offset, data = self.piece()
        self.disk.write(offset, data)
        self.model.live[offset : offset + len(data)] = data
        self.model.written[-1] |= touched(offset, len(data))

    def fork(self) -> None:
        fork = self.disk.fork(quiesced_second=self.rng.random() < 0.5)
        self.model.snapshots.append(
            SnapshotModel(fork, len(self.model.written) - 1, bytearray(self.model.live))
        )
        self.all.append(self.model.snapshots[-1])
        self.model.written.append(set())

    def write_frozen(self) -> None:
        quiesced = [snapshot for snapshot in self.model.snapshots if self.has_second(snapshot)]
        if quiesced:
            snapshot = self.rng.choice(quiesced)
            offset, data = self.piece()
            self.disk.write_frozen(snapshot.fork.frozen, offset, data)
            snapshot.content[offset : offset + len(data)] = data
            self.model.by_vss.setdefault(snapshot.number, set()).update(touched(offset, len(data)))

    def has_second(self, snapshot: SnapshotModel) -> bool:
        return snapshot.fork.frozen not in self.disk.chain

    def merge(self) -> None:
        if self.model.snapshots:
            gone = self.model.snapshots.pop(self.rng.randrange(len(self.model.snapshots)))
            moved = self.disk.merge(gone.fork.frozen)
            for snapshot in self.model.snapshots:
                fork = snapshot.fork
                snapshot.fork = Fork(moved.get(fork.frozen, fork.frozen), fork.live, fork.change_id)

    def check(self) -> None:
        disk = self.disk
        assert not disk.consolidation_needed
        assert disk.forks == [snapshot.fork for snapshot in self.model.snapshots]
        assert chain_by_hints(disk.leaf) == disk.chain
        assert disk.read(0, ODD) == self.model.live == shown(disk.leaf)
        for newer in self.model.snapshots:
            assert shown(newer.fork.frozen) == newer.content
            assert chain_by_hints(newer.fork.frozen) == disk.frozen_chain(newer.fork.frozen)
            assert disk.fork_of(newer.fork.frozen) == newer.fork
            for older in self.all[: self.all.index(newer) + 1][-5:]:
                assert older.fork.change_id is not None
                changed = blocks_of(disk.changed_areas(older.fork.change_id, newer.fork.frozen))
                assert changed == self.model.changed(older.number, newer.number)
                assert changed >= differing(older.content, newer.content)


@pytest.mark.slow
@needs_qemu_img
@pytest.mark.parametrize("seed", range(5))
def test_a_disk_behaves_like_the_model(tmp_path, seed):
    scenario = Scenario(tmp_path, seed)
    operations = [scenario.write, scenario.fork, scenario.write_frozen, scenario.merge]
    for _ in range(30):
        scenario.rng.choices(operations, weights=[5, 3, 2, 2])[0]()
        scenario.check()
    assert len(scenario.all) >= 3
    for snapshot in scenario.model.snapshots:
        assert witnessed(snapshot.fork.frozen) == snapshot.content
    while scenario.model.snapshots:
        scenario.merge()
        scenario.check()
        assert witnessed(scenario.disk.leaf) == scenario.model.live
    assert scenario.disk.chain == [tmp_path / "web01.vmdk"]
    assert len(list(tmp_path.glob("web01-0*"))) == 0


# -- killed at any moment


class Killed(BaseException):
    pass


def killing(monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """Let the n-th step that changes a file, counted from 0, not happen, nor anything after it."""
    steps = itertools.count()

    def patched(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def step(*arguments: object, **options: object) -> object:
            if next(steps) >= moment:
                raise Killed
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, step)

    for owner, name in ((os, "pwritev"), (os, "truncate"), (Path, "replace"), (Path, "unlink")):
        patched(owner, name)


def three_forks(directory: Path) -> tuple[LabDisk, list[bytes], bytes]:
    disk = new_disk(directory)
    disk.enable_tracking()
    images = []
    for number, quiesced in enumerate([False, True, True]):
        disk.write(number * 5000, random.Random(number).randbytes(150_000))
        fork = disk.fork(quiesced_second=quiesced)
        if quiesced:
            disk.write_frozen(fork.frozen, 7, b"VSS")
        images.append(shown(fork.frozen))
    disk.write(MiB, b"live")
    return disk, images, disk.read(0, ODD)


@pytest.mark.slow
@needs_qemu_img
@pytest.mark.parametrize("removed", [0, 1, 2])
def test_merge_killed_at_every_step_can_be_finished(tmp_path, removed):
    _, images, live = three_forks(tmp_path / "made")
    kept = [index for index in range(3) if index != removed]
    interrupted = 0
    for moment in itertools.count():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(tmp_path / "made", tmp_path / "run")
        disk = LabDisk.load(tmp_path / "run", "web01")
        try:
            with pytest.MonkeyPatch.context() as patch:
                killing(patch, moment)
                disk.merge(disk.forks[removed].frozen)
            break
        except Killed:
            interrupted += 1
        disk = LabDisk.load(tmp_path / "run", "web01")
        assert disk.read(0, ODD) == live
        others = [fork for index, fork in enumerate(disk.forks) if len(disk.forks) == 2 or index != removed]
        assert [shown(fork.frozen) for fork in others] == [images[index] for index in kept]
        if disk.consolidation_needed and moment % 2:
            disk.consolidate()
        elif len(disk.forks) == 3:
            disk.merge(disk.forks[removed].frozen)
        else:
            disk.consolidate()
        assert not disk.consolidation_needed
        assert disk.read(0, ODD) == live == shown(disk.leaf)
        remaining = images if len(disk.forks) == 3 else [images[index] for index in kept]
        assert [shown(fork.frozen) for fork in disk.forks] == remaining
        qemu_img("check", disk.leaf)
    assert interrupted >= 5


@needs_qemu_img
def test_fork_killed_at_every_step_leaves_the_disk_as_it_was(tmp_path):
    disk, images, live = three_forks(tmp_path)
    for moment in itertools.count():
        try:
            with pytest.MonkeyPatch.context() as patch:
                killing(patch, moment)
                disk.fork(quiesced_second=True)
            break
        except Killed:
            disk = LabDisk.load(tmp_path, "web01")
        assert disk.read(0, ODD) == live
        assert len(disk.forks) == 3
        assert disk.consolidation_needed
        disk.consolidate()
        assert not disk.consolidation_needed
    assert moment > 5
    assert [shown(fork.frozen) for fork in disk.forks] == [*images, live]
    assert witnessed(disk.leaf) == live


def test_tracking_reset_killed_at_every_step_never_reports_too_little(tmp_path):
    disk = new_disk(tmp_path)
    disk.enable_tracking()
    first = disk.fork(quiesced_second=False)
    assert first.change_id is not None
    disk.write(0, b"x")
    for moment in itertools.count():
        try:
            with pytest.MonkeyPatch.context() as patch:
                killing(patch, moment)
                disk.reset_tracking()
        except Killed:
            disk = LabDisk.load(tmp_path, "web01")
        later = disk.fork(quiesced_second=False)
        if later.change_id is None or later.change_id[:36] != first.change_id[:36]:
            with pytest.raises(ChangeIdError):
                disk.changed_areas(first.change_id, later.frozen)
        else:
            assert disk.changed_areas(first.change_id, later.frozen) == [(0, BLOCK)]
        if disk.change_id and disk.change_id[:36] != first.change_id[:36]:
            break
    assert moment > 0


def test_files_of_a_running_operation_are_not_leftovers(tmp_path):
    disk, _, _ = three_forks(tmp_path)
    (tmp_path / "web01-000077.vmdk").touch()
    assert disk.consolidation_needed
    seen: list[bool] = []
    with disk._lock:
        thread = threading.Thread(target=lambda: seen.append(disk.consolidation_needed))
        thread.start()
        thread.join()
    assert seen == [False]
    disk.consolidate()
    assert not (tmp_path / "web01-000077.vmdk").exists()


def test_unfinished_merge_comes_before_another(tmp_path):
    disk, _, _ = three_forks(tmp_path)
    frozen = disk.forks[0].frozen
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, 3)
        with pytest.raises(Killed):
            disk.merge(frozen)
    disk = LabDisk.load(tmp_path, "web01")
    with pytest.raises(LabDiskError, match="Consolidate the disk first"):
        disk.merge(disk.forks[1].frozen)
