"""Operations of the lab's disks that are killed at any step leave a usable disk."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import threading
from pathlib import Path

import pytest

from pipeline.units import MiB
from tests.vadpipe.lab.disks_kit import (
    BLOCK,
    ODD,
    needs_qemu_img,
    new_disk,
    qemu_img,
    shown,
    witnessed,
)
from vadpipe.lab.disks import ChangeIdError, LabDisk
from vadpipe.lab.vmdk_files import LabDiskError


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
