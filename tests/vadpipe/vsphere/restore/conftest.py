"""A VM of the lab with two disks, backed up through the stand-in VDDK, and restored over itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from pipeline import Job, KiB
from sinks.in_place import OverVm
from sinks.restoring import RestoreReceipt, restore
from stages.vcenter_vm import VcenterVm
from tests.vadpipe.repository.repository_kit import incremental_path, random_bytes
from tests.vadpipe.vsphere.vsphere_kit import settings_of
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.repository.format.restore_point import RestorePoint
from vadpipe.repository.reader import open_repository
from vadpipe.repository.store import Repository
from vadpipe.vddk.disk import Vddk
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.snapshot.quiesce import Quiesce


@dataclass
class Original:
    """`images`: what each disk held at each backup."""

    lab: LabVcenter
    moref: str
    repository: Repository
    journal: Journal
    libdir: Path
    images: list[list[np.ndarray]] = field(default_factory=list)

    @property
    def vcenter(self) -> Vcenter:
        return settings_of(self.lab, patience_s=2)

    @property
    def vddk(self) -> Vddk:
        return Vddk(self.libdir, transports="nbdssl", end_timeout_s=5, restarts=0, restart_pause_s=0)

    @property
    def disks(self) -> list[LabDisk]:
        return self.lab.disks(self.moref)

    @property
    def state(self):
        """The lab's own record of the VM."""
        return self.lab.guests.service.inventory.vms[self.moref]

    @property
    def target(self) -> OverVm:
        return OverVm(self.vcenter, writer=self.vddk, allow=True, journal=self.journal)

    def now(self) -> list[np.ndarray]:
        return [np.frombuffer(disk.read(0, disk.capacity), np.uint8) for disk in self.disks]

    def holds(self, backup: int) -> list[bool]:
        return [np.array_equal(*pair) for pair in zip(self.now(), self.images[backup], strict=True)]

    async def back_up(self, *, enable_change_tracking: bool = False):
        """One more point; the job's receipt."""
        self.images.append(self.now())
        machine = VcenterVm(
            self.vcenter,
            "web01",
            reader=self.vddk,
            quiesce=Quiesce.none(),
            journal=self.journal,
            preflight=None,
            enable_change_tracking=enable_change_tracking,
        )
        return await Job(machine, incremental_path, self.repository).run()

    async def points(self) -> tuple[RestorePoint, ...]:
        async with open_repository(self.repository.path) as reader:
            return reader.points

    async def restore(self, backup: int = 0, target: OverVm | None = None, **options) -> RestoreReceipt:
        async with open_repository(self.repository.path) as reader:
            return await restore(reader, reader.points[backup], target or self.target, **options)

    @property
    def where(self) -> dict[str, object]:
        """For `in_place_runs`: all that another process has to know."""
        places = {
            "libdir": self.libdir,
            "journal": self.journal.directory,
            "repository": self.repository.path,
        }
        return {**self.lab.description(), **{name: str(place) for name, place in places.items()}}

    def write(self, *pieces: tuple[int, int, bytes]) -> None:
        """(disk, offset, data)."""
        for number, offset, data in pieces:
            self.disks[number].write(offset, data)


@pytest.fixture
def original(lab, add_vm, repository, journal, libdir, monkeypatch) -> Original:
    monkeypatch.setenv("VADPIPE_LAB_ROOT", str(lab.root))
    moref = add_vm(disks=2, change_tracking=True)
    made = Original(lab, moref, repository, journal, libdir)
    made.write(
        (0, 0, random_bytes(1, 700 * KiB).tobytes()), (1, 64 * KiB, random_bytes(2, 256 * KiB).tobytes())
    )
    return made
