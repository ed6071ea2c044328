"""The VM that restores restore: one point in a repository, for all runs of a campaign."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trio

from pipeline import Disk, DiskReceipt, Job, MiB, Pipeline
from sinks import IntoRepository, Point, Repository
from stages import (
    AllocatedExtents,
    Compress,
    CutChunks,
    Dedupe,
    Digest,
    MarkZeros,
    Quiesce,
    ReadSpans,
    Refine,
    VcenterVm,
    Zstd,
)

from ..disks import LabDisk
from .disks import LabReader
from .lab import CampaignLab, digest_of, new_root

VM = "web01"
CAPACITY = 3 * MiB + 512
_CONTENT = 256 * 1024  # at each place: it is read, sent and hashed many times in a run


@dataclass(frozen=True)
class Source:
    """A VM that was backed up: its lab, its disks, the repository with its point, and their digests then."""

    lab: CampaignLab
    moref: str
    disks: list[LabDisk]
    repository: Path
    digests: list[str]


@contextmanager
def backed_up(directory: Path, *, change_tracking: bool = False) -> Iterator[Source]:
    """Make the VM with two disks in `directory`, which has a certificate, and back it up; its lab serves on."""
    lab = CampaignLab(new_root(directory / "source", directory))
    repository = Repository(directory / "repository")
    repository.init()
    with lab.vcenter:
        place = lab.vcenter.datastore("datastore1") / VM
        chance = np.random.default_rng(0)
        disks = [LabDisk.create(place, f"{VM}_{number}", CAPACITY) for number in range(2)]
        for disk in disks:
            disk.write(0, chance.bytes(_CONTENT))
            disk.write(2 * MiB + 4096, chance.bytes(_CONTENT))
            disk.write(CAPACITY - 512, b"the very end".ljust(512, b"."))
        moref = lab.vcenter.register_vm(place, VM, disks, change_tracking=change_tracking)
        machine = VcenterVm(
            lab.settings(),
            VM,
            reader=LabReader(lab.root),
            quiesce=Quiesce.none(),
            journal=lab.journal,
            preflight=None,
            lock_relocation=False,
        )
        trio.run(Job(machine, _path, into=repository).run)
        yield Source(lab, moref, disks, repository.path, [digest_of(disk) for disk in disks])


def _path(disk: Disk, point: Point) -> Pipeline[DiskReceipt]:
    return (
        AllocatedExtents(disk)
        | ReadSpans(disk)
        | MarkZeros()
        | CutChunks()
        | Digest(point)
        | Refine(point, disk)
        | Dedupe(point)
        | Compress(Zstd(level=1))
        | IntoRepository(point, disk)
    )
