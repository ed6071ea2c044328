"""The disks that a ConfigSpec adds to a VM or takes from it: where their files go, what they need, making them.

A VM that has snapshots takes new disks, and keeps those it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pyVmomi import vim, vmodl

from ...disks import LabDisk, Provisioning
from ...vmdk_files import LabDiskError
from ..api.managed import moref_of
from ..state import backings, hardware
from ..state.inventory import DatastoreTraits, DiskState, VmState
from ..state.outside import has_writer
from .relocation import free_directory

if TYPE_CHECKING:
    from ..service import Service

_LARGEST_DISK = 62 << 40  # VMFS 5 and later
_SECTOR = 512


@dataclass
class NewDisk:
    """A disk to be added. existing: one that is there already; capacity and what follows: of a new one."""

    change: hardware.Change
    device: vim.vm.device.VirtualDisk
    datastore: str
    directory: Path
    name: str
    capacity: int
    provisioning: Provisioning
    uuid: UUID | None
    existing: LabDisk | None = None

    @property
    def reserved(self) -> int:
        """Bytes that a datastore sets aside for it at once."""
        return 0 if self.provisioning == "thin" else self.capacity


def check_removal(service: Service, vm: VmState, change: hardware.Change) -> None:
    """Refuse to take a disk from a VM with snapshots, and to delete one that somebody writes to."""
    if not isinstance(change.device, vim.vm.device.VirtualDisk) or change.operation != "remove":
        return
    if vm.snapshots:
        raise hardware.fault(
            change.index,
            "",
            vim.fault.InvalidDeviceOperation,
            badOp="remove",
            badFileOp=change.file_operation,
        )
    disk = service.inventory.disks_of(vm).get(change.device.key)
    if disk is not None and change.file_operation == "destroy":
        need_unlocked(service, disk)


def planned(service: Service, vm: VmState, changes: Sequence[hardware.Change]) -> Iterator[NewDisk]:
    taken: set[Path] = set()
    for change in changes:
        device = change.device
        if not isinstance(device, vim.vm.device.VirtualDisk):
            continue
        if change.operation == "edit":
            _check_edited_disk(service, vm, change)
        if change.operation == "add":
            disk = _planned_disk(service, vm, change, device, taken)
            taken.add(disk.directory / f"{disk.name}.vmdk")
            yield disk


def _check_edited_disk(service: Service, vm: VmState, change: hardware.Change) -> None:
    device, disk = change.device, service.inventory.disks_of(vm).get(change.device.key)
    if disk is None or not isinstance(device, vim.vm.device.VirtualDisk):
        return
    wanted = _capacity(device)
    if wanted == disk.capacity:
        return
    if wanted < disk.capacity:
        raise hardware.fault(change.index, "capacityInKB")
    raise vmodl.fault.NotSupported(msg="The lab's disks do not grow.")


def _capacity(device: vim.vm.device.VirtualDisk) -> int:
    return int(device.capacityInBytes or device.capacityInKB * 1024)


def _planned_disk(
    service: Service,
    vm: VmState,
    change: hardware.Change,
    device: vim.vm.device.VirtualDisk,
    taken: set[Path],
) -> NewDisk:
    backing = device.backing
    kinds = vim.vm.device.VirtualDisk
    if not isinstance(backing, (kinds.FlatVer2BackingInfo, kinds.SeSparseBackingInfo)) or backing.parent:
        raise hardware.fault(change.index, "backing", vim.fault.InvalidDeviceBacking)
    datastore, path = _place(service, vm, backing)
    backings.need_datastore(service.inventory, datastore, vm.host)
    root = service.inventory.datastore_root(datastore)
    if change.file_operation is None:
        return _attached(service, vm, change, device, datastore, root / path)
    if change.file_operation != "create":
        raise vmodl.fault.NotSupported(msg=f"The lab has no file operation {change.file_operation}.")
    capacity = _capacity(device)
    if capacity <= 0 or capacity % _SECTOR:
        raise hardware.fault(change.index, "capacityInBytes")
    if capacity > _LARGEST_DISK:
        raise vim.fault.FileTooLarge(
            file=backing.fileName,
            datastore=datastore,
            fileSize=capacity,
            maxFileSize=_LARGEST_DISK,
            msg=f"File {backing.fileName} is larger than the maximum size supported by datastore {datastore}.",
        )
    if path:
        directory, name = (root / path).parent, Path(path).stem
        file = directory / f"{name}.vmdk"
        if file.exists() or file in taken:
            raise vim.fault.FileAlreadyExists(
                file=backing.fileName, msg=f"The file {backing.fileName} already exists."
            )
        if not directory.is_dir():
            raise vim.fault.FileNotFound(
                file=backing.fileName, msg=f"The folder of {backing.fileName} was not found."
            )
    else:
        directory = _own_directory(service, vm, datastore)
        name = _free_name(directory, vm.files_name, taken)
    return NewDisk(
        change,
        device,
        datastore,
        directory,
        name,
        capacity,
        _provisioning(backing),
        UUID(backing.uuid.replace(" ", "")) if backing.uuid else None,
    )


def _place(
    service: Service, vm: VmState, backing: vim.vm.device.VirtualDevice.FileBackingInfo
) -> tuple[str, str]:
    """The datastore and the path that a backing names; the path is empty where the server is to choose."""
    if backing.fileName:
        place = backings.split_path(backing.fileName)
        if place is None:
            raise vim.fault.InvalidDatastorePath(
                datastorePath=backing.fileName, msg=f"Invalid datastore path '{backing.fileName}'."
            )
        return place
    if backing.datastore is not None:
        morefs = {moref: name for name, moref in service.inventory.datastores.items()}
        return morefs.get(moref_of(backing.datastore), moref_of(backing.datastore)), ""
    return vm.datastore, ""


def _provisioning(backing: vim.vm.device.VirtualDevice.FileBackingInfo) -> Provisioning:
    if not isinstance(backing, vim.vm.device.VirtualDisk.FlatVer2BackingInfo) or backing.thinProvisioned:
        return "thin"
    return "eager" if backing.eagerlyScrub else "flat"


def _own_directory(service: Service, vm: VmState, datastore: str) -> Path:
    """Where the VM's files are on a datastore: where some are already, else a new directory of its name."""
    root = service.inventory.datastore_root(datastore)
    if datastore == vm.datastore:
        return service.inventory.directory_of(vm)
    for disk in service.inventory.disks_of(vm).values():
        if disk.directory.is_relative_to(root):
            return disk.directory
    return free_directory(root, vm.files_name)


def _free_name(directory: Path, name: str, taken: set[Path]) -> str:
    for number in count():
        candidate = f"{name}_{number}" if number else name
        file = directory / f"{candidate}.vmdk"
        if not file.exists() and file not in taken:
            return candidate
    raise AssertionError


def _attached(
    service: Service,
    vm: VmState,
    change: hardware.Change,
    device: vim.vm.device.VirtualDisk,
    datastore: str,
    file: Path,
) -> NewDisk:
    """A disk that is there already, of another VM or of none."""
    backing: Any = device.backing
    name = backing.fileName
    if not file.is_file():
        raise vim.fault.FileNotFound(file=name, msg=f"File {name} was not found")
    existing = None
    for moref, disks in service.inventory.disks.items():
        for disk in disks.values():
            if disk.leaf.resolve() == file.resolve():
                existing = disk
                running = service.inventory.vms[moref].power == "poweredOn"
                if running and "nonpersistent" not in (backing.diskMode or ""):
                    raise vim.fault.FileLocked(file=name, msg=f"Failed to lock the file {name}.")
    try:
        existing = existing or LabDisk.load(file.parent, file.stem)
    except LabDiskError:
        raise vim.fault.InvalidDiskFormat(msg=f"{name} is not a virtual disk.") from None
    return NewDisk(
        change,
        device,
        datastore,
        existing.directory,
        existing.name,
        existing.capacity,
        existing.provisioning,
        None,
        existing,
    )


def check_space(service: Service, disks: Sequence[NewDisk]) -> None:
    """Raises NoDiskSpace where the datastores have no room for the disks."""
    wanted: dict[str, int] = {}
    for disk in disks:
        if disk.existing is not None:
            continue
        wanted[disk.datastore] = wanted.get(disk.datastore, 0) + disk.reserved
        free = service.inventory.datastore_traits.get(disk.datastore, DatastoreTraits()).free
        if free is not None and (free <= 0 or wanted[disk.datastore] > free):
            raise vim.fault.NoDiskSpace(
                file=f"[{disk.datastore}] {disk.name}.vmdk",
                datastore=disk.datastore,
                msg=f"Insufficient disk space on datastore '{disk.datastore}'.",
            )


def make(service: Service, vm: VmState, disks: Sequence[NewDisk]) -> None:
    made: list[LabDisk] = []
    own = service.inventory.directory_of(vm).resolve()
    try:
        for disk in disks:
            if disk.existing is None:
                disk.existing = LabDisk.create(
                    disk.directory, disk.name, disk.capacity, provisioning=disk.provisioning, uuid=disk.uuid
                )
                made.append(disk.existing)
                service.inventory.allocate(disk.datastore, disk.reserved)
    except LabDiskError as error:
        for one in made:
            delete(service, one)
        raise vim.fault.GenericVmConfigFault(reason=str(error), msg=str(error)) from error
    datastores = service.inventory.root / "datastores"
    for disk in disks:
        assert disk.existing is not None
        key = disk.device.key
        at = disk.existing.directory
        elsewhere = "" if at.resolve() == own else at.resolve().relative_to(datastores.resolve()).as_posix()
        vm.disks.append(DiskState(key, disk.existing.name, elsewhere))
        service.inventory.disks[vm.moref][key] = disk.existing


def drop(service: Service, vm: VmState, change: hardware.Change) -> None:
    key = change.device.key
    disk = service.inventory.disks[vm.moref].pop(key, None)
    vm.disks = [one for one in vm.disks if one.key != key]
    if disk is not None and change.file_operation == "destroy":
        delete(service, disk)


def need_unlocked(service: Service, disk: LabDisk) -> None:
    """Raises FileLocked while a VDDK client has the disk open for writing."""
    if has_writer(disk.leaf):
        name = service.inventory.datastore_path(disk.leaf)
        raise vim.fault.FileLocked(file=name, msg=f"Failed to lock the file {name}.")


def delete(service: Service, disk: LabDisk) -> None:
    """Delete a disk's files; its space is free again."""
    datastore = service.inventory.datastore_path(disk.base)[1:].partition("]")[0]
    service.inventory.allocate(datastore, 0 if disk.provisioning == "thin" else -disk.capacity)
    disk.delete()
