"""The lab of one run of the campaign: a vCenter with a VM, everything armed that its scenario wants to go wrong."""

from __future__ import annotations

import hashlib
import random
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from pyVmomi import vmodl

from pipeline import MiB, Secret
from stages import Vcenter
from vadpipe.vsphere.vm.disk import DiskReader

from .campaign_kit import DirectoryTarget, LabReader
from .campaign_scenario import READ, Scenario
from .campaign_vddk import ANOTHER, left_outside, lock_by_another, vddk_reader
from .disks import LabDisk
from .vcenter.faults.injection import Event
from .vcenter.server import LabVcenter
from .vcenter.state.inventory import HostTraits, VmTraits
from .vcenter.state.outside import relocation_lock

VM = "web01"
_OTHER_DATASTORE = "datastore2"
# Events that stop and start the server must not meet each other.
_EVENTS = threading.Lock()


class Lab:
    """A vCenter with the VM of one scenario, two hosts and two datastores.

    `identity`: where its certificate is; `libdir`: where VDDK is, None for nowhere.
    """

    def __init__(self, root: Path, scenario: Scenario, identity: Path, libdir: Path | None) -> None:
        root.mkdir(parents=True)
        for name in ("server.crt", "server.key"):
            shutil.copy2(identity / name, root / name)
        self.root = root
        self.scenario = scenario
        self.libdir = libdir
        self.vcenter = LabVcenter(root, task_s=0.01)
        self.threads: list[threading.Thread] = []
        self.child: BaseProcess | None = None
        self.child_started = threading.Event()
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
        self.roots = self._digests()

    def settings(self) -> Vcenter:
        vcenter = self.vcenter
        return server_settings(vcenter.address, vcenter.port, vcenter.thumbprint)

    def reader(self) -> DiskReader:
        return disk_reader(self.root, self.scenario, self.libdir, partial(self.vcenter.meet, READ))

    def arm(self) -> None:
        """Set up everything that the scenario wants to go wrong."""
        for one in self.scenario.troubles:
            failure = self._event(one.failure) if isinstance(one.failure, str) else one.failure
            self.vcenter.inject(one.method, failure, one.nth, in_task=one.in_task, after=one.after)
        if self.scenario.killed:
            method, nth = self.scenario.killed
            self.vcenter.inject(method, Event(self._kill), nth)

    def settle(self) -> None:
        """End the trouble, and wait until no host is at work any more."""
        self.vcenter.calm()
        for thread in self.threads:
            thread.join()
        while not self.vcenter.idle:
            time.sleep(0.005)

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
        return found + ([] if self._digests() == self.roots else ["the VM's own disks have changed"])

    def _digests(self) -> list[str]:
        return sorted(hashlib.sha256(disk.read(0, disk.capacity)).hexdigest() for disk in self.disks)

    def _event(self, name: str) -> Event:
        elsewhere = {"host": self.other_host, "datastore": _OTHER_DATASTORE}
        happen: dict[str, Callable[[], None]] = {
            "restart": partial(self._beside, partial(self.vcenter.restart, 0.05)),
            "expire": self.vcenter.expire_sessions,
            "cut": partial(self._beside, self.vcenter.drop_connections),
            "vmotion": partial(self._move, host=elsewhere["host"]),
            "storage vmotion": partial(self._move, datastore=elsewhere["datastore"]),
            "both vmotions": partial(self._move, **elsewhere),
        }
        return Event(happen[name])

    def _move(self, **where: str) -> None:
        with suppress(vmodl.MethodFault):  # refused while a task is at work
            self.vcenter.move(self.moref, **where)

    def _beside(self, work: Callable[[], None]) -> None:
        """In another thread: the one that answers a call cannot end itself."""
        thread = threading.Thread(target=self._one_at_a_time, args=(work,))
        self.threads.append(thread)
        thread.start()

    def _one_at_a_time(self, work: Callable[[], None]) -> None:
        with _EVENTS:
            work()

    def _kill(self) -> None:
        if self.child is not None:
            self.child_started.wait()
            self.child.kill()


def disk_reader(
    root: Path, scenario: Scenario, libdir: Path | None, before_read: Callable[[], None] | None = None
) -> DiskReader:
    """VDDK where the scenario wants it, else the lab's own reader."""
    if scenario.vddk is None or libdir is None:
        return LabReader(root, before_read)
    return vddk_reader(libdir, scenario.vddk, before_read)


def server_settings(host: str, port: int, thumbprint: str) -> Vcenter:
    return Vcenter(
        host,
        "backup",
        Secret.from_text("lab"),
        thumbprint=thumbprint,
        port=port,
        patience_s=2,
        keep_alive_s=3600,  # by the clock: its calls would count in no run as in another
    )
