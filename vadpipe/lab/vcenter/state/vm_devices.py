"""The virtual hardware of a VM in the API's words: controllers, disks, and devices that are in the way."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from pyVmomi import VmomiSupport, vim

from ...disks import LabDisk
from ...vmdk_flat import flat_path
from .configuration import from_text
from .hardware import server_made
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
    if vm.devices is not None:
        return [*_kept(inventory, vm, snapshot), *(_hot_added(inventory) if vm.traits.proxy else ())]
    found: list[vim.vm.device.VirtualDevice] = []
    for bus, disks in groupby(vm.disks, key=lambda disk: controller_and_unit(disk.key)[0]):
        keys = [disk.key for disk in disks]
        found.append(_controller(vm, bus, keys))
        for key in keys:
            disk = inventory.disks_of(vm)[key]
            chain, change_id = _chain(inventory, vm, key, snapshot)
            found.append(_disk(inventory, vm, key, disk, chain, change_id))
    return [*found, *_others(vm), *(_hot_added(inventory) if vm.traits.proxy else ())]


def _chain(
    inventory: Inventory, vm: VmState, key: int, snapshot: SnapshotState | None
) -> tuple[list[Path], str | None]:
    """The files of a disk, leaf first, and its change id: as it runs, or as `snapshot` froze it."""
    disk = inventory.disks_of(vm)[key]
    if snapshot is None:
        return disk.chain, disk.change_id
    fork = inventory.fork_of(vm, snapshot, key)
    chain = disk.frozen_chain(fork.frozen)
    return (chain[1:] if snapshot.side == "fixed" else chain), fork.change_id


def kept(inventory: Inventory, vm: VmState) -> dict[int, vim.vm.device.VirtualDevice]:
    """The devices of a VM by key, as changes to them begin; a registered VM has got the server's own then."""
    if vm.devices is None:
        own = {device.key: device for device in devices(inventory, vm) if device.key < _HOT_ADDED_KEY}
        others = {device.key: device for device in _others(vm)}
        return server_made() | own | others
    found = {key: from_text(text) for key, text in vm.devices.items()}
    return {key: device for key, device in found.items() if isinstance(device, vim.vm.device.VirtualDevice)}


def _kept(
    inventory: Inventory, vm: VmState, snapshot: SnapshotState | None
) -> Iterator[vim.vm.device.VirtualDevice]:
    """The devices that a VM was given, as they are now, or with the disks as `snapshot` froze them."""
    found = kept(inventory, vm)
    for key, device in found.items():
        if isinstance(device, vim.vm.device.VirtualController):
            device.device = [one.key for one in found.values() if one.controllerKey == key]
        if isinstance(device, vim.vm.device.VirtualDisk):
            if key not in inventory.disks_of(vm) or (snapshot and key not in snapshot.redo_logs):
                continue  # it came after the snapshot
            _describe_disk(inventory, vm, device, snapshot)
        yield device


def _describe_disk(
    inventory: Inventory, vm: VmState, device: vim.vm.device.VirtualDisk, snapshot: SnapshotState | None
) -> None:
    """Enter what the disk's files say."""
    backing: Any = device.backing
    disk = inventory.disks_of(vm)[device.key]
    chain, change_id = _chain(inventory, vm, device.key, snapshot)
    path = inventory.datastore_path(chain[0])
    device.capacityInBytes = VmomiSupport.long(disk.capacity)
    device.capacityInKB = VmomiSupport.long(disk.capacity // 1024)
    if device.deviceInfo is not None:
        device.deviceInfo.summary = f"{device.capacityInKB:,} KB"
    device.diskObjectId = f"{vm.moref.removeprefix('vm-')}-{device.key}"
    device.nativeUnmanagedLinkedClone = False
    backing.fileName = path
    backing.datastore = vim.Datastore(inventory.datastores[path[1 : path.index("]")]])
    backing.uuid, backing.changeId = disk.uuid, change_id
    backing.diskMode = backing.diskMode or "persistent"
    if isinstance(backing, vim.vm.device.VirtualDisk.FlatVer2BackingInfo):
        backing.split, backing.writeThrough = False, bool(backing.writeThrough)
        backing.thinProvisioned = disk.provisioning == "thin"
        backing.eagerlyScrub = True if disk.provisioning == "eager" else None
        backing.sharing = backing.sharing or "sharingNone"
        below = [*map(inventory.datastore_path, chain[1:])]
        backing.parent = _parent(backing.datastore, below, backing.thinProvisioned, backing.eagerlyScrub)


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
            datastore,
            [*map(inventory.datastore_path, chain[1:]), *filter(None, [traits.linked_to])],
            thin=not flat_path(disk.base).exists(),
        ),
        sharing="sharingMultiWriter" if is_last and traits.multi_writer else "sharingNone",
    )


def _parent(
    datastore: vim.Datastore, chain: list[str], thin: bool | None, eager: bool | None = None
) -> vim.vm.device.VirtualDisk.FlatVer2BackingInfo | None:
    """What a disk hangs on. chain: datastore paths, leaf first; thin, eager: how they are allocated."""
    parent = None
    for path in reversed(chain):
        parent = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=path,
            datastore=datastore,
            diskMode="persistent",
            thinProvisioned=thin,
            eagerlyScrub=eager,
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
