"""Reconfiguring a VM, and configuring a new one: what a ConfigSpec asks for is judged first, and then all done.

A change of the devices of a VM that has snapshots may add disks, and may not remove any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pyVmomi import VmomiSupport, vim, vmodl

from ...disks import LabDisk, Provisioning
from ...vmdk_files import LabDiskError
from ..api.managed import Call, Entity, moref_of
from ..state import backings, configuration, hardware, vm_devices
from ..state.inventory import DatastoreTraits, DiskState, VmState
from .relocation import free_directory

if TYPE_CHECKING:
    from ..service import Service

_LARGEST_DISK = 62 << 40  # VMFS 5 and later
_SECTOR = 512
_CONFIG = "VirtualMachine.Config"
# What the account needs, by the field of the spec that is set.
_PRIVILEGES = {
    "name": f"{_CONFIG}.Rename",
    "annotation": f"{_CONFIG}.Annotation",
    "changeTrackingEnabled": f"{_CONFIG}.ChangeTracking",
    "extraConfig": f"{_CONFIG}.AdvancedConfig",
    "numCPUs": f"{_CONFIG}.CPUCount",
    "memoryMB": f"{_CONFIG}.Memory",
    "bootOptions": f"{_CONFIG}.Settings",
    "flags": f"{_CONFIG}.Settings",
    "firmware": f"{_CONFIG}.Settings",
    "cpuAllocation": f"{_CONFIG}.Resource",
    "memoryAllocation": f"{_CONFIG}.Resource",
    "swapPlacement": f"{_CONFIG}.SwapPlacement",
    "managedBy": f"{_CONFIG}.ManagedBy",
    "crypto": "Cryptographer.Encrypt",
}
_ONLY_WHILE_OFF = ("version", "uuid", "firmware", "numCoresPerSocket", "cpuFeatureMask", "nestedHVEnabled")


@dataclass
class _Disk:
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
        return 0 if self.provisioning == "thin" or self.existing else self.capacity


class Reconfigurable(Entity):
    """The method of a VM that changes its configuration."""

    state: VmState

    def ReconfigVM_Task(self, call: Call, spec: vim.vm.ConfigSpec) -> vim.Task:
        need_privileges(self.service, self.ref, spec)

        def work() -> None:
            with self.service.changes.lock:
                configure(self.service, self.state, spec)

        return self.service.tasks.start(call, self, work, exclusive=True)


def need_privileges(service: Service, entity: VmomiSupport.ManagedObject, spec: vim.vm.ConfigSpec) -> None:
    """Raises NoPermission for the first privilege that the account lacks for what `spec` asks for."""
    for name, privilege in _PRIVILEGES.items():
        value = getattr(spec, name)
        if value is not None and value != []:
            service.need(privilege, entity)
    for change in spec.deviceChange:
        for privilege, place in _needed_for(service, change, entity):
            service.need(privilege, place)


def _needed_for(
    service: Service, change: vim.vm.device.VirtualDeviceSpec, entity: VmomiSupport.ManagedObject
) -> Iterator[tuple[str, VmomiSupport.ManagedObject]]:
    device, operation = change.device, str(change.operation or "edit")
    if not isinstance(device, vim.vm.device.VirtualDisk):
        yield f"{_CONFIG}.{'EditDevice' if operation == 'edit' else 'AddRemoveDevice'}", entity
        if isinstance(device, vim.vm.device.VirtualEthernetCard) and operation != "remove":
            yield "Network.Assign", entity
    elif operation == "remove":
        yield f"{_CONFIG}.RemoveDisk", entity
    elif operation == "edit":
        yield f"{_CONFIG}.EditDevice", entity
    else:
        yield f"{_CONFIG}.{'AddNewDisk' if change.fileOperation else 'AddExistingDisk'}", entity
        place = backings.split_path(getattr(device.backing, "fileName", "") or "")
        if place is not None and place[0] in service.inventory.datastores:
            service.need_datastore_privilege("Datastore.AllocateSpace", place[0])


def configure(service: Service, vm: VmState, spec: vim.vm.ConfigSpec, *, creating: bool = False) -> None:
    """Apply a spec to a VM, whole or not at all. Called with the lock held; raises a fault of the API.

    creating: the VM is not in the inventory yet.
    """
    _check_state(service, vm, spec)
    version = _version(service, vm, spec)
    settings = configuration.settings_of(spec, vm.settings)
    firmware = spec.firmware or _firmware(vm)
    configuration.check(spec, version, firmware)
    before = vm_devices.kept(service.inventory, vm)
    after, changes = hardware.resolve(before, spec.deviceChange, version=version, macs=_macs(service, vm))
    disks = list(_planned_disks(service, vm, changes))
    for change in changes:
        if change.operation != "remove" and not isinstance(change.device, vim.vm.device.VirtualDisk):
            backings.complete(service.inventory, vm, change)
        _check_disk_change(vm, change)
    _check_boot_order(spec, after)
    _reserve(service, disks)
    _make_disks(service, vm, disks)
    for change in changes:
        if change.operation == "remove" and isinstance(change.device, vim.vm.device.VirtualDisk):
            _drop_disk(service, vm, change)
    if changes:
        vm.devices = {key: configuration.to_text(device) for key, device in after.items()}
    vm.settings = settings
    vm.traits.hardware_version = version
    _enter(service, vm, spec)
    if not creating:
        service.vm_changed(vm)


def _check_state(service: Service, vm: VmState, spec: vim.vm.ConfigSpec) -> None:
    if spec.changeTrackingEnabled is not None and vm.snapshots:
        raise vim.fault.InvalidState(
            msg="Change tracking cannot be changed while the virtual machine has snapshots."
        )
    on_only = [name for name in _ONLY_WHILE_OFF if getattr(spec, name) not in (None, [])]
    if vm.power != "poweredOff" and on_only:
        raise vim.fault.InvalidPowerState(
            requestedState="poweredOff",
            existingState=vm.power,
            msg=f"{on_only[0]} cannot be changed while the virtual machine is powered on.",
        )
    if spec.name and spec.name != vm.name:
        service.need_free_name(spec.name, vm.folder)


def _version(service: Service, vm: VmState, spec: vim.vm.ConfigSpec) -> int:
    """The VM's hardware version with `spec`."""
    if not spec.version:
        return vm.traits.hardware_version
    host = service.inventory.hosts[vm.host]
    try:
        version = hardware.version_number(spec.version)
    except ValueError:
        raise configuration.wrong("version") from None
    if version > hardware.newest_version(host.version):
        raise vim.fault.VirtualHardwareVersionNotSupported(
            hostName=host.name,
            host=vim.HostSystem(vm.host),
            msg=f"Virtual hardware version {spec.version} is not supported by the host {host.name}.",
        )
    return version


def _firmware(vm: VmState) -> str:
    kept = vm.settings.get("firmware")
    return str(configuration.from_text(kept)) if kept else "efi" if vm.devices is None else "bios"


def _macs(service: Service, vm: VmState) -> set[str]:
    """The addresses of other VMs' adapters."""
    return {
        device.macAddress or ""
        for other in service.inventory.vms.values()
        if other is not vm and other.devices is not None
        for device in vm_devices.kept(service.inventory, other).values()
        if isinstance(device, vim.vm.device.VirtualEthernetCard)
    }


def _check_boot_order(spec: vim.vm.ConfigSpec, devices: dict[int, hardware.Device]) -> None:
    for entry in spec.bootOptions.bootOrder if spec.bootOptions else ():
        key = getattr(entry, "deviceKey", None)
        if key is not None and key not in devices:
            raise configuration.wrong("bootOptions.bootOrder")


def _check_disk_change(vm: VmState, change: hardware.Change) -> None:
    if not isinstance(change.device, vim.vm.device.VirtualDisk):
        return
    if change.operation == "remove" and vm.snapshots:
        raise hardware.fault(
            change.index,
            "",
            vim.fault.InvalidDeviceOperation,
            badOp="remove",
            badFileOp=change.file_operation,
        )


def _enter(service: Service, vm: VmState, spec: vim.vm.ConfigSpec) -> None:
    if spec.changeTrackingEnabled is not None:
        vm.change_tracking = spec.changeTrackingEnabled
    vm.name = spec.name or vm.name
    vm.guest_id = spec.guestId or vm.guest_id
    vm.uuid = (spec.uuid or vm.uuid).lower()
    if spec.instanceUuid is not None:
        vm.instance_uuid = service.free_instance_uuid(spec.instanceUuid, vm)
    for option in spec.extraConfig:
        if option.value in (None, ""):  # an empty value removes the key
            vm.extra_config.pop(option.key, None)
        else:
            vm.extra_config[option.key] = str(option.value)


# -- disks


def _planned_disks(service: Service, vm: VmState, changes: Sequence[hardware.Change]) -> Iterator[_Disk]:
    taken: set[Path] = set()
    for change in changes:
        device = change.device
        if not isinstance(device, vim.vm.device.VirtualDisk):
            continue
        if change.operation == "edit":
            _check_edited_disk(service, vm, change)
        if change.operation == "add":
            disk = _planned(service, vm, change, device, taken)
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


def _planned(
    service: Service,
    vm: VmState,
    change: hardware.Change,
    device: vim.vm.device.VirtualDisk,
    taken: set[Path],
) -> _Disk:
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
    return _Disk(
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
) -> _Disk:
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
    return _Disk(
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


def _reserve(service: Service, disks: Sequence[_Disk]) -> None:
    """Take the space of disks from their datastores. Raises NoDiskSpace, having taken none."""
    wanted: dict[str, int] = {}
    for disk in disks:
        wanted[disk.datastore] = wanted.get(disk.datastore, 0) + disk.reserved
        traits = service.inventory.datastore_traits.get(disk.datastore, DatastoreTraits())
        if traits.free is not None and (traits.free <= 0 or wanted[disk.datastore] > traits.free):
            raise vim.fault.NoDiskSpace(
                file=f"[{disk.datastore}] {disk.name}.vmdk",
                datastore=disk.datastore,
                msg=f"Insufficient disk space on datastore '{disk.datastore}'.",
            )
    for name, size in wanted.items():
        service.inventory.allocate(name, size)


def _make_disks(service: Service, vm: VmState, disks: Sequence[_Disk]) -> None:
    made: list[LabDisk] = []
    own = service.inventory.directory_of(vm).resolve()
    try:
        for disk in disks:
            if disk.existing is None:
                disk.existing = LabDisk.create(
                    disk.directory, disk.name, disk.capacity, provisioning=disk.provisioning, uuid=disk.uuid
                )
                made.append(disk.existing)
    except LabDiskError as error:
        for one in made:
            one.delete()
        for disk in disks:
            service.inventory.allocate(disk.datastore, -disk.reserved)
        raise vim.fault.GenericVmConfigFault(reason=str(error), msg=str(error)) from error
    datastores = service.inventory.root / "datastores"
    for disk in disks:
        assert disk.existing is not None
        key = disk.device.key
        at = disk.existing.directory
        elsewhere = "" if at.resolve() == own else at.resolve().relative_to(datastores.resolve()).as_posix()
        vm.disks.append(DiskState(key, disk.existing.name, elsewhere))
        service.inventory.disks[vm.moref][key] = disk.existing


def _drop_disk(service: Service, vm: VmState, change: hardware.Change) -> None:
    key = change.device.key
    disk = service.inventory.disks[vm.moref].pop(key, None)
    vm.disks = [one for one in vm.disks if one.key != key]
    if disk is not None and change.file_operation == "destroy":
        delete_disk(service, disk)


def delete_disk(service: Service, disk: LabDisk) -> None:
    """Delete a disk's files; its space is free again."""
    datastore = service.inventory.datastore_path(disk.base)[1:].partition("]")[0]
    service.inventory.allocate(datastore, 0 if disk.provisioning == "thin" else -disk.capacity)
    disk.delete()
