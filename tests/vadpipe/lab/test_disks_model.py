"""The lab's disks against a model of bytes, and against qemu-img as an independent witness."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.vadpipe.lab.disks_kit import (
    ODD,
    blocks_of,
    chain_by_hints,
    differing,
    needs_qemu_img,
    new_disk,
    shown,
    touched,
    witnessed,
)
from vadpipe.lab.disks import Fork, LabDisk


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
