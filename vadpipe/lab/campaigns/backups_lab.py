"""The lab of one run of the backups: a VM, two hosts, two datastores, and what others made there."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from pyVmomi import vmodl

from pipeline import MiB
from vadpipe.vsphere.vm.disk import DiskReader

from ..disks import LabDisk
from ..vcenter.state.inventory import HostTraits, VmTraits
from ..vcenter.state.outside import relocation_lock
from .backups_scenario import BackupScenario
from .disks import LabReader
from .lab import CampaignLab, digest_of
from .points import DirectoryTarget
from .troubles import MOVES, READ
from .vddk import ANOTHER, left_outside, lock_by_another, vddk_reader

VM = "web01"
_OTHER_DATASTORE = "datastore2"


class BackupLab(CampaignLab):
    """A vCenter with the VM of one scenario, two hosts and two datastores.

    `libdir`: where VDDK is; None: nowhere.
    """

    def __init__(self, root: Path, scenario: BackupScenario, libdir: Path | None) -> None:
        super().__init__(root)
        self.scenario = scenario
        self.libdir = libdir
        directory = self.vcenter.datastore("datastore1") / VM
        chance = random.Random(scenario.seed)
        self.disks = [LabDisk.create(directory, f"disk{n}", 2 * MiB) for n in range(scenario.disks)]
        for disk in self.disks:
            disk.write(chance.randrange(1 << 20), chance.randbytes(100_000))
        self.moref = self.vcenter.register_vm(directory, VM, self.disks)
        self.vcenter.register_vm(directory.with_name("proxy"), "proxy", [], traits=VmTraits(proxy=True))
        self.other_host = self.vcenter.add_host(HostTraits("esxi02.lab.local"))
        self.vcenter.datastore(_OTHER_DATASTORE)
        self.foreign = [
            self.vcenter.take_snapshot(self.moref, f"foreign {n}") for n in range(scenario.foreign)
        ]
        if scenario.vddk and scenario.vddk.locked_by_another:
            lock_by_another(root, self.moref)
        self.roots = self._roots()

    def reader(self) -> DiskReader:
        return disk_reader(self.root, self.scenario, self.libdir, partial(self.vcenter.meet, READ))

    def events(self) -> Mapping[str, Callable[[], None]]:
        elsewhere = {"host": self.other_host, "datastore": _OTHER_DATASTORE}
        moves = ({"host": self.other_host}, {"datastore": _OTHER_DATASTORE}, elsewhere)
        return {
            **super().events(),
            **{name: partial(self._move, **where) for name, where in zip(MOVES, moves, strict=True)},
        }

    def left_ours(self) -> list[str]:
        """The morefs of our snapshots."""
        return [moref for moref, text in self.vcenter.snapshots(self.moref).items() if "[vadpipe:" in text]

    def wrongs(self) -> list[str]:
        """What is left that must not be, whatever the report says."""
        here = self.vcenter.snapshots(self.moref)
        found = [f"{moref} of ours is left" for moref in self.left_ours()]
        found += [f"the foreign {moref} is gone" for moref in self.foreign if moref not in here]
        found += [sentence for left in left_outside(self.root, self.moref).values() for sentence in left]
        if self.scenario.vddk and self.scenario.vddk.locked_by_another:
            holder = relocation_lock(self.root, self.moref)
            found += [] if holder == ANOTHER else [f"the lock of another is that of {holder!r} now"]
        points = DirectoryTarget(self.root / "points").points()
        found += [
            f"a point is not whole: {point}" for point in points if sorted(point.values()) != self.roots
        ]
        return found + ([] if self._roots() == self.roots else ["the VM's own disks have changed"])

    def _roots(self) -> list[str]:
        return sorted(digest_of(disk) for disk in self.disks)

    def _move(self, **where: str) -> None:
        with suppress(vmodl.MethodFault):  # refused while a task is at work
            self.vcenter.move(self.moref, **where)


def disk_reader(
    root: Path, scenario: BackupScenario, libdir: Path | None, before_read: Callable[[], None] | None = None
) -> DiskReader:
    """VDDK where the scenario wants it, else the lab's own reader."""
    if scenario.vddk is None or libdir is None:
        return LabReader(root, before_read)
    return vddk_reader(libdir, scenario.vddk, before_read)
