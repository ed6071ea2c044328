"""A VM's virtual hardware as facts. Kernels over the API's devices."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyVmomi import vim

from vadpipe.vsphere.inventory.hardware import DiskFacts, disk_facts

from .facts import VmController, VmDisk

_DATASTORE = re.compile(r"\[(?P<name>[^\]]*)\]")
_RAW = {"physicalMode": "physical", "virtualMode": "virtual"}
_CONTROLLERS: dict[type, str] = {
    vim.vm.device.VirtualIDEController: "ide",
    vim.vm.device.VirtualSCSIController: "scsi",
    vim.vm.device.VirtualSATAController: "sata",
    vim.vm.device.VirtualNVMEController: "nvme",
}

Device = vim.vm.device.VirtualDevice


def vm_disks(devices: Sequence[Device]) -> list[VmDisk]:
    """Every virtual disk, in the order of its device key."""
    by_key = {device.key: device for device in devices}
    return [_disk(facts, by_key[facts.device_key]) for facts in disk_facts(devices)]


def vm_controllers(devices: Sequence[Device]) -> list[VmController]:
    """Every controller that disks may be on, and how many devices are on it."""
    return [
        VmController(
            key=f"{bus}{getattr(device, 'busNumber', 0)}",
            kind=_kind(device),
            sharing=str(getattr(device, "sharedBus", None) or ""),
            attached=sum(1 for other in devices if other.controllerKey == device.key),
        )
        for device in devices
        if (bus := _bus(device))
    ]


def passed_through(devices: Sequence[Device]) -> list[str]:
    """Labels of the devices that belong to the host. A shared graphics card is not one of them."""
    return [
        device.deviceInfo.label if device.deviceInfo else str(device.key)
        for device in devices
        if _is_hosts(device)
    ]


def boot_bus(disks: Sequence[VmDisk], boot_order: Sequence[object]) -> str | None:
    """The bus of the disk that the VM boots from; None: neither its boot order nor its disks tell."""
    for entry in boot_order:
        if isinstance(entry, vim.vm.BootOptions.BootableDiskDevice):
            return next((disk.bus for disk in disks if disk.device_key == entry.deviceKey), None)
    buses = {disk.bus for disk in disks}
    return buses.pop() if len(buses) == 1 else None


def _disk(facts: DiskFacts, device: Device) -> VmDisk:
    backing = device.backing
    datastore = _DATASTORE.match(facts.path)
    return VmDisk(
        key=facts.key,
        device_key=facts.device_key,
        label=facts.label,
        bus=re.sub(r"\d.*", "", facts.key),
        datastore=datastore["name"] if datastore else "",
        capacity=facts.capacity,
        left_out=facts.left_out,
        raw=_RAW.get(str(getattr(backing, "compatibilityMode", "")), ""),
        multi_writer=getattr(backing, "sharing", None) == "sharingMultiWriter",
        encrypted=getattr(backing, "keyId", None) is not None,
        tracked=facts.change_id is not None,
        files=_chain(backing),
    )


def _chain(backing: object) -> int:
    files = 0
    while backing is not None:
        files += 1
        backing = getattr(backing, "parent", None)
    return files


def _bus(device: Device) -> str:
    return next((bus for kind, bus in _CONTROLLERS.items() if isinstance(device, kind)), "")


def _is_hosts(device: Device) -> bool:
    if isinstance(device, vim.vm.device.VirtualSriovEthernetCard):
        return True
    shared = vim.vm.device.VirtualPCIPassthrough.VmiopBackingInfo
    return isinstance(device, vim.vm.device.VirtualPCIPassthrough) and not isinstance(device.backing, shared)


def _kind(device: Device) -> str:
    return type(device).__name__.rpartition(".")[2]
