"""A lab with a VM web01 that is backed up, and restores of its point into new VMs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import Event, Finisher, Job, MiB
from sinks import IntoRepository, Repository, open_repository
from sinks.new_vm import NewVm
from sinks.restoring import RestoreReceipt, restore
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
    Vddk,
    Zstd,
)
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.witness import chain_digest
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.journal.intents import Journal

CAPACITY = 12 * MiB + 512


@dataclass
class Backed:
    """A VM with a point. `digests`: of its disks as they were backed up, by qemu-img."""

    lab: LabVcenter
    vcenter: Vcenter
    journal: Journal
    repository: Repository
    libdir: Path
    moref: str
    digests: list[str] = field(default_factory=list)

    @property
    def writer(self) -> Vddk:
        return Vddk(self.libdir, transports="nbdssl", restart_pause_s=0.0, end_timeout_s=10.0)

    def target(self, **settings: Any) -> NewVm:
        settings = {"name": "web01-restored", "journal": self.journal, "writer": self.writer} | settings
        return NewVm(self.vcenter, **settings)

    async def back_up(self, *finish: Finisher[Any]) -> None:
        self.digests = [chain_digest(disk.chain, disk.capacity) for disk in self.lab.disks(self.moref)]
        machine = VcenterVm(
            self.vcenter,
            "web01",
            reader=self.writer,
            quiesce=Quiesce.none(),
            journal=self.journal,
            preflight=None,
            lock_relocation=False,
        )

        def path(disk, point):
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

        await Job(machine, path, into=self.repository, finish=finish).run()

    async def restore(self, target: NewVm | None = None, **settings: Any) -> RestoreReceipt:
        async with open_repository(self.repository.path) as reader:
            return await restore(reader, reader.points[-1], target or self.target(**settings))

    def restored(self, name: str = "web01-restored") -> list[str]:
        """The digests of the disks of a VM of the lab, by qemu-img."""
        return [chain_digest(disk.chain, disk.capacity) for disk in self.lab.disks(self.lab.moref(name))]

    @property
    def names(self) -> list[str]:
        return sorted(vm.name for vm in self.lab._inventory.vms.values())

    def files(self) -> list[str]:
        """The directories in all datastores."""
        return sorted(
            place.name for store in (self.lab.root / "datastores").iterdir() for place in store.iterdir()
        )


def filled(directory: Path, name: str, seed: int) -> LabDisk:
    """A disk with data at its begin and its end, and a hole between."""
    disk = LabDisk.create(directory, name, CAPACITY)
    random = np.random.default_rng(seed)
    disk.write(0, random.integers(0, 256, 1 * MiB, np.uint8).tobytes())
    disk.write(5 * MiB + 4096, random.integers(0, 256, 3 * MiB, np.uint8).tobytes())
    disk.write(CAPACITY - 512, b"the very end".ljust(512, b"."))
    return disk


def at_step(beginning: str, do: Callable[[], None]) -> Callable[[Event], None]:
    """An observer that does something once, when a restore reaches the step that begins so."""
    done: list[Event] = []

    def observe(event: Event) -> None:
        if event.kind == "restoring" and str(event.facts["step"]).startswith(beginning) and not done:
            done.append(event)
            do()

    return observe
