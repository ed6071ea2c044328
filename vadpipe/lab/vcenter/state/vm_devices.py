"""The virtual hardware of a VM in the API's words: controllers, disks, and devices that are in the way."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from pyVmomi import vim

from ...disks import LabDisk
from ...vmdk_flat import flat_path
from .inventory import Inventory, SnapshotState, VmState, controller_and_unit
from .outside import hot_added

_FIRST_CONTROLLER_KEY = 1000
_CDROM_KEY, _PASSTHROUGH_KEY, _PCI_KEY = 16000, 13000, 100
_HOT_ADDED_KEY = 2900
_SCSI_OWN_UNIT = 7
_CONTROLLERS: dict[str, tuple[type[vim.vm.device.VirtualController], str]] = {
    "pvscsi": (vim.vm.device.ParaVirtualSCSIController, "SCSI controller"),
    "lsi-sas": (vim.vm.device.VirtualLsiLogicSASController, "SCSI controller"),
    "ide": (vim.vm.device.VirtualIDEController, "IDE"),
    "sata": (vim.vm.device.VirtualAHCIController, "SATA controller"),
    "nvme": (vim.vm.device.VirtualNVMEController, "NVME controller"),
}


def devices(
    inventory: Inventory, vm: VmState, snapshot: SnapshotState | None = None
) -> list[vim.vm.device.VirtualDevice]:
    """All devices, with the disks as they run, or as `snapshot` froze them."""
    found: list[vim.vm.device.VirtualDevice] = []
    for bus, disks in groupby(vm.disks, key=lambda disk: controller_and_unit(disk.key)[0]):
        keys = [disk.key for disk in disks]
        found.append(_controller(vm, bus, keys))
        for key in keys:
            disk = inventory.disks_of(vm)[key]
            chain, change_id = disk.chain, disk.change_id
            if snapshot is not None:
                fork = inventory.fork_of(vm, snapshot, key)
                chain, change_id = disk.frozen_chain(fork.frozen), fork.change_id
                chain = chain[1:] if snapshot.side == "fixed" else chain
            found.append(_disk(inventory, vm, key, disk, chain, change_id))
    return [*found, *_others(vm), *(_hot_added(inventory) if vm.traits.proxy else ())]


def _controller(vm: VmState, bus: int, keys: list[int]) -> vim.vm.device.VirtualController:
    kind, label = _CONTROLLERS[vm.traits.controller]
    controller = kind(
        key=_FIRST_CONTROLLER_KEY + bus,
        deviceInfo=vim.Description(label=f"{label} {bus}", summary=vm.traits.controller),
        busNumber=bus,
        device=keys,
    )
    if isinstance(controller, vim.vm.device.VirtualSCSIController):
        controller.hotAddRemove = True
        controller.sharedBus = vim.vm.device.VirtualSCSIController.Sharing(vm.traits.bus_sharing)
        controller.scsiCtlrUnitNumber = _SCSI_OWN_UNIT
    return controller


def _disk(
    inventory: Inventory, vm: VmState, key: int, disk: LabDisk, chain: list[Path], change_id: str | None
) -> vim.vm.device.VirtualDisk:
    bus, unit = controller_and_unit(key)
    keys = [one.key for one in vm.disks]
    return vim.vm.device.VirtualDisk(
        key=key,
        deviceInfo=vim.Description(
            label=f"Hard disk {keys.index(key) + 1}", summary=f"{disk.capacity // 1024:,} KB"
        ),
        controllerKey=_FIRST_CONTROLLER_KEY + bus,
        unitNumber=unit,
        capacityInKB=disk.capacity // 1024,
        capacityInBytes=disk.capacity,
        backing=_backing(inventory, vm, disk, chain, change_id, is_last=key == keys[-1]),
    )


def _backing(
    inventory: Inventory,
    vm: VmState,
    disk: LabDisk,
    chain: list[Path],
    change_id: str | None,
    *,
    is_last: bool,
) -> vim.vm.device.VirtualDevice.FileBackingInfo:
    traits = vm.traits
    path = inventory.datastore_path(chain[0])
    datastore = vim.Datastore(inventory.datastores[path[1 : path.index("]")]])
    mode = traits.disk_mode if is_last else "persistent"
    if is_last and traits.raw:
        return vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo(
            fileName=path, datastore=datastore, diskMode=mode, compatibilityMode=traits.raw, uuid=disk.uuid
        )
    return vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
        fileName=path,
        datastore=datastore,
        diskMode=mode,
        split=False,
        writeThrough=False,
        thinProvisioned=not flat_path(disk.base).exists(),
        uuid=disk.uuid,
        changeId=change_id,
        parent=_parent(
            datastore, [*map(inventory.datastore_path, chain[1:]), *filter(None, [traits.linked_to])]
        ),
        sharing="sharingMultiWriter" if is_last and traits.multi_writer else "sharingNone",
    )


def _parent(
    datastore: vim.Datastore, chain: list[str]
) -> vim.vm.device.VirtualDisk.FlatVer2BackingInfo | None:
    """What a disk hangs on. chain: datastore paths, leaf first."""
    parent = None
    for path in reversed(chain):
        parent = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=path,
            datastore=datastore,
            diskMode="persistent",
            parent=parent,
        )
    return parent


def _hot_added(inventory: Inventory) -> Iterator[vim.vm.device.VirtualDisk]:
    """The disks of other VMs that VDDK has attached to the proxy."""
    files = [(vm, file) for vm in inventory.vms.values() for file in hot_added(inventory.root, vm.moref)]
    for number, (vm, file) in enumerate(files):
        yield vim.vm.device.VirtualDisk(
            key=_HOT_ADDED_KEY + number,
            deviceInfo=vim.Description(label=f"Hot-added disk {number + 1}", summary=file),
            controllerKey=_FIRST_CONTROLLER_KEY,
            unitNumber=number,
            capacityInKB=0,
            backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                fileName=vm.datastore_path(file), diskMode="independent_nonpersistent"
            ),
        )


def _others(vm: VmState) -> Iterator[vim.vm.device.VirtualDevice]:
    free_units = [unit for unit in range(16) if unit != _SCSI_OWN_UNIT][len(vm.disks) :]
    for number, unit in zip(range(vm.traits.cdroms), free_units, strict=False):
        yield vim.vm.device.VirtualCdrom(
            key=_CDROM_KEY + number,
            deviceInfo=vim.Description(label=f"CD/DVD drive {number + 1}", summary="Remote device"),
            backing=vim.vm.device.VirtualCdrom.RemotePassthroughBackingInfo(deviceName="", exclusive=False),
            controllerKey=_FIRST_CONTROLLER_KEY,
            unitNumber=unit,
        )
    if vm.traits.passthrough:
        yield vim.vm.device.VirtualPCIPassthrough(
            key=_PASSTHROUGH_KEY,
            deviceInfo=vim.Description(label="PCI device 0", summary="a card of the host"),
            controllerKey=_PCI_KEY,
            unitNumber=20,
        )
