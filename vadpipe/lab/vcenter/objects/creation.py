"""VMs come and go: Folder.CreateVM_Task, and what ends one, with its files or without."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pyVmomi import VmomiSupport, vim, vmodl

from ..api.managed import Call, Entity, moref_of
from ..state import backings, configuration, hardware
from ..state.inventory import VmState, VmTraits
from . import vm_disks
from .power import need_host
from .reconfiguration import configure, need_privileges
from .relocation import free_directory

if TYPE_CHECKING:
    from ..service import Service

_FORBIDDEN_IN_FILES = str.maketrans(dict.fromkeys('/\\:*?"<>|', "_"))


class Creating(Entity):
    """The methods of a folder that make something in it."""

    def CreateVM_Task(
        self,
        call: Call,
        config: vim.vm.ConfigSpec,
        pool: vim.ResourcePool,
        host: vim.HostSystem | None,
    ) -> vim.Task:
        folder = self.service.vm_folder_path(self)
        if folder is None:
            raise vmodl.fault.NotSupported(msg="Virtual machines are in folders of virtual machines only.")
        self.service.need("VirtualMachine.Inventory.Create", self.ref)
        self.service.need("Resource.AssignVMToPool", pool)
        need_privileges(self.service, self.ref, config, creating=True)
        _need_datastore_privilege(self.service, config)

        def work() -> vim.VirtualMachine:
            return vim.VirtualMachine(create(self.service, folder, config, pool, host).moref)

        return self.service.tasks.start(call, self, work)

    def CreateFolder(self, call: Call, name: str) -> vim.Folder:
        path = self.service.vm_folder_path(self)
        if path is None:
            raise vmodl.fault.NotSupported(msg="The lab makes folders of virtual machines only.")
        self.service.need("Folder.Create", self.ref)
        with self.service.changes.lock:
            self.service.need_free_name(name, path)
            made = self.service.make_folder(f"{path}/{name}".strip("/"))
            self.service.changes.touch(self.moref)
            return vim.Folder(made)


class Mortal(Entity):
    """The methods of a VM that end it."""

    state: VmState

    def Destroy_Task(self, call: Call) -> vim.Task:
        self.service.need("VirtualMachine.Inventory.Delete", self.ref)
        return self.service.tasks.start(call, self, lambda: destroy(self.service, self.state), exclusive=True)

    def UnregisterVM(self, call: Call) -> None:
        self.service.need("VirtualMachine.Inventory.Unregister", self.ref)
        with self.service.changes.lock:
            _need_off(self.state)
            self.service.remove_vm(self.state)


def _need_datastore_privilege(service: Service, config: vim.vm.ConfigSpec) -> None:
    place = backings.split_path((config.files and config.files.vmPathName) or "")
    if place is not None and place[0] in service.inventory.datastores:
        service.need_datastore_privilege("Datastore.AllocateSpace", place[0])


def create(
    service: Service,
    folder: str,
    config: vim.vm.ConfigSpec,
    pool: VmomiSupport.ManagedObject,
    host: VmomiSupport.ManagedObject | None,
) -> VmState:
    """A new VM in the folder with this path. Raises a fault of the API; nothing is made then."""
    with service.changes.lock:
        if not config.name:
            raise vim.fault.InvalidName(name=config.name or "", msg="A virtual machine needs a name.")
        service.need_free_name(config.name, folder)
        vm = blank(service, folder, config, host_of(service, pool, host))
        directory = service.inventory.directory_of(vm)
        directory.mkdir(parents=True)
        service.inventory.disks[vm.moref] = {}
        try:
            configure(service, vm, config, creating=True)
        except Exception:
            del service.inventory.disks[vm.moref]
            directory.rmdir()
            raise
        vm.extra_config["nvram"] = f"{vm.files_name}.nvram"  # the server names it, whatever the spec says
        service.inventory.vms[vm.moref] = vm
        service.add_vm(vm)
        return vm


def blank(service: Service, folder: str, config: vim.vm.ConfigSpec, host: str) -> VmState:
    """A VM before its spec is applied, in no inventory yet. host: its moref. Raises a fault of the API."""
    files_name = (config.name or "New Virtual Machine").translate(_FORBIDDEN_IN_FILES)
    directory, files_name, datastore = _home(service, config, host, files_name)
    devices = hardware.server_made().items()
    return VmState(
        moref=f"vm-{service.inventory.number()}",
        name=config.name or "",
        files_name=files_name,
        datastore=datastore,
        directory=directory.relative_to(service.inventory.datastore_root(datastore)).as_posix(),
        uuid=_new_uuid("42"),
        instance_uuid=_new_uuid("50"),
        guest_id="otherGuest",
        power="poweredOff",
        tools_version=0,
        quiescing=None,
        change_tracking=False,
        extra_config={"svga.present": "TRUE", "hpet0.present": "TRUE"},
        disks=[],
        traits=VmTraits(hardware_version=configuration.newest_version(service.inventory.hosts[host].version)),
        folder=folder,
        host=host,
        devices={key: configuration.to_text(device) for key, device in devices},
        settings={path: configuration.to_text(value) for path, value in _new_settings()},
        heartbeat="gray",
    )


def _new_settings() -> Iterator[tuple[str, object]]:
    yield "createDate", datetime.now(UTC)
    yield "firmware", "bios"
    yield "hardware.numCPU", 1
    yield "hardware.memoryMB", 128


def _new_uuid(prefix: str) -> str:
    return prefix + str(uuid.uuid4())[len(prefix) :]


def host_of(
    service: Service, pool: VmomiSupport.ManagedObject, host: VmomiSupport.ManagedObject | None
) -> str:
    """The moref of the pool's host, which must be the one that was named, and there."""
    owner = service.host_of_pool(pool)
    if host is not None and moref_of(host) != owner:
        raise vmodl.fault.InvalidArgument(
            invalidProperty="host", msg="The host is not in the compute resource of the pool."
        )
    need_host(service.inventory.hosts[owner])
    return owner


def _home(service: Service, config: vim.vm.ConfigSpec, host: str, files_name: str) -> tuple[Path, str, str]:
    """The VM's new directory, the name of its files, and the datastore."""
    if config.files is None or not config.files.vmPathName:
        raise vim.fault.InvalidVmConfig(
            property="configSpec.files.vmPathName", msg="Invalid virtual machine configuration."
        )
    path = config.files.vmPathName
    place = backings.split_path(path)
    if place is None or ".." in place[1].split("/"):
        raise vim.fault.InvalidDatastorePath(datastorePath=path, msg=f"Invalid datastore path '{path}'.")
    backings.need_datastore(service.inventory, place[0], host)
    root = service.inventory.datastore_root(place[0])
    if not place[1]:
        return free_directory(root, files_name), files_name, place[0]
    file = root / place[1]
    directory = file.parent if file.suffix == ".vmx" else file
    if directory.exists():
        raise vim.fault.AlreadyExists(
            name=path, msg=f"The specified key, name, or identifier '{path}' already exists."
        )
    return directory, file.stem if file.suffix == ".vmx" else files_name, place[0]


def _need_off(vm: VmState) -> None:
    if vm.power != "poweredOff":
        raise vim.fault.InvalidPowerState(
            requestedState="poweredOff",
            existingState=vm.power,
            msg="The attempted operation cannot be performed in the current state (Powered on).",
        )


def destroy(service: Service, vm: VmState) -> None:
    """Take a VM from the inventory, with its files; what others put into its directory stays."""
    with service.changes.lock:
        service.need_vm(vm)
        _need_off(vm)
        disks = list(service.inventory.disks_of(vm).values())
        for disk in disks:
            vm_disks.need_unlocked(service, disk)
            for other in service.inventory.vms.values():
                shared = other is not vm and disk in service.inventory.disks_of(other).values()
                if shared and other.power == "poweredOn":
                    raise vim.fault.FileLocked(
                        file=service.inventory.datastore_path(disk.base),
                        msg=f"Failed to lock the file {disk.base.name}.",
                    )
        home, stem = service.inventory.directory_of(vm), vm.files_name
        manifests = [one.manifest for one in vm.snapshots if one.manifest]
        service.remove_vm(vm)
        for disk in disks:
            vm_disks.delete(service, disk)
        own = [f"{stem}.vmx", f"{stem}.vmsd", f"{stem}.vmxf", f"{stem}.nvram", "vmware.log", *manifests]
        for name in {*own, vm.extra_config.get("nvram", f"{stem}.nvram")}:
            (home / name).unlink(missing_ok=True)
        for directory in {home, *(disk.directory for disk in disks)}:
            if directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()
        service.tagging.forget(vm.moref)
        service.inventory.save()
