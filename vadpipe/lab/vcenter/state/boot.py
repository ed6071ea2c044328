"""The guests of VMs that the API created: they boot when the VM is powered on, if its disk holds anything."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyVmomi import vim

from .configuration import from_text

if TYPE_CHECKING:
    from ...disks import LabDisk
    from ..service import Service
    from .inventory import Heartbeat, VmState


@dataclass
class BootTraits:
    """How guests boot. tools_version: of the Tools inside, 0 for none; delay_s: until Tools report, and again
    until the heartbeat is green; None: what a task takes."""

    boots: bool = True
    tools_version: int = 12448
    delay_s: float | None = None


class Boots:
    """Boots the guests, each in a thread of its own."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.traits = BootTraits()
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._newest: dict[str, object] = {}  # by moref: what the VM was powered on for last

    def start(self, vm: VmState) -> None:
        """The VM was powered on. Called with the lock held."""
        this = self._newest[vm.moref] = object()
        vm.heartbeat = "gray"
        thread = threading.Thread(target=self._boot, args=(vm, this), name=f"boot {vm.moref}")
        self._threads = [one for one in self._threads if one.is_alive()] + [thread]
        thread.start()

    def stop(self) -> None:
        """Leave the guests where they are."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _boot(self, vm: VmState, this: object) -> None:
        steps: tuple[Heartbeat, ...] = ("yellow", "green")
        for heartbeat in steps:
            delay_s = self.traits.delay_s
            if self._stopping.wait(self._service.settings.task_s if delay_s is None else delay_s):
                return
            if heartbeat == "yellow" and not (self.traits.boots and self._bootable(vm)):
                return
            with self._service.changes.lock:
                if self._newest.get(vm.moref) is not this or vm.power != "poweredOn":
                    return
                vm.tools_version, vm.heartbeat = self.traits.tools_version, heartbeat
                self._service.vm_changed(vm)

    def _bootable(self, vm: VmState) -> bool:
        with self._service.changes.lock:
            disk = boot_disk(vm, self._service.inventory.disks.get(vm.moref, {}))
        return disk is not None and disk.holds_data


def boot_disk(vm: VmState, disks: dict[int, LabDisk]) -> LabDisk | None:
    """The disk that the firmware tries first: that of the boot order, else the first one."""
    options = from_text(vm.settings["bootOptions"]) if "bootOptions" in vm.settings else None
    for entry in options.bootOrder if isinstance(options, vim.vm.BootOptions) else ():
        if isinstance(entry, vim.vm.BootOptions.BootableDiskDevice) and entry.deviceKey in disks:
            return disks[entry.deviceKey]
    return disks[min(disks)] if disks else None
