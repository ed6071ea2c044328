"""Reconfiguring a VM, and configuring a new one: what a ConfigSpec asks for is judged first, and then all done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyVmomi import VmomiSupport, vim

from ..api.managed import Call, Entity
from ..state import backings, configuration, hardware, vm_devices
from ..state.inventory import VmState
from . import encryption, vm_disks

if TYPE_CHECKING:
    from ..service import Service

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
_FOR_A_NEW_VM = ("extraConfig", "swapPlacement", "managedBy", "crypto")  # the others come with creating it
_ONLY_WHILE_OFF = ("version", "uuid", "firmware", "numCoresPerSocket", "cpuFeatureMask", "nestedHVEnabled")


class Reconfigurable(Entity):
    """The method of a VM that changes its configuration."""

    state: VmState

    def ReconfigVM_Task(self, call: Call, spec: vim.vm.ConfigSpec) -> vim.Task:
        need_privileges(self.service, self.ref, spec)

        def work() -> None:
            with self.service.changes.lock:
                self.service.need_vm(self.state)
                configure(self.service, self.state, spec)

        return self.service.tasks.start(call, self, work, exclusive=True)


def need_privileges(
    service: Service, entity: VmomiSupport.ManagedObject, spec: vim.vm.ConfigSpec, *, creating: bool = False
) -> None:
    """Raises NoPermission for the first privilege that the account lacks for what `spec` asks for."""
    for name in _FOR_A_NEW_VM if creating else _PRIVILEGES:
        if getattr(spec, name) not in (None, []):
            service.need(_PRIVILEGES[name], entity)
    for change in spec.deviceChange:
        for privilege, place in _needed_for(service, change, entity):
            if not (creating and privilege == f"{_CONFIG}.AddRemoveDevice"):
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


@dataclass(frozen=True)
class Judged:
    """What a spec does to a VM, judged: nothing is done yet. devices: as they are from then on, by key."""

    version: int
    settings: dict[str, str]
    devices: dict[int, hardware.Device]
    changes: Sequence[hardware.Change]
    disks: Sequence[vm_disks.NewDisk]


def judge(service: Service, vm: VmState, spec: vim.vm.ConfigSpec) -> Judged:
    """Raises the fault of the API for which a server refuses to apply a spec to a VM. Called with the lock held."""
    _check_state(service, vm, spec)
    version = _version(service, vm, spec)
    settings = configuration.settings_of(spec, vm.settings)
    configuration.check(spec, version, spec.firmware or _firmware(vm))
    before = vm_devices.kept(service.inventory, vm)
    if isinstance(spec.crypto, vim.encryption.CryptoSpecEncrypt):
        settings["keyId"] = configuration.to_text(encryption.usable(service, spec.crypto.cryptoKeyId))
    after, changes = hardware.resolve(before, spec.deviceChange, version=version, macs=_macs(service, vm))
    disks = list(vm_disks.planned(service, vm, changes))
    for change in changes:
        if change.operation != "remove" and not isinstance(change.device, vim.vm.device.VirtualDisk):
            backings.complete(service.inventory, vm, change)
        if change.operation == "add" and isinstance(change.device, vim.vm.device.VirtualTPM):
            encryption.check_tpm(service, change.index, spec.firmware or _firmware(vm))
        vm_disks.check_removal(service, vm, change)
    _check_boot_order(spec, after)
    vm_disks.check_space(service, disks)
    return Judged(version, settings, after, changes, disks)


def configure(service: Service, vm: VmState, spec: vim.vm.ConfigSpec, *, creating: bool = False) -> None:
    """Apply a spec to a VM, whole or not at all. Called with the lock held; raises a fault of the API.

    creating: the VM is not in the inventory yet.
    """
    judged = judge(service, vm, spec)
    vm_disks.make(service, vm, judged.disks)
    for change in judged.changes:
        if change.operation == "remove" and isinstance(change.device, vim.vm.device.VirtualDisk):
            vm_disks.drop(service, vm, change)
    if judged.changes:
        vm.devices = {key: configuration.to_text(device) for key, device in judged.devices.items()}
    vm.settings = judged.settings
    vm.traits.hardware_version = judged.version
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
        version = configuration.version_number(spec.version)
    except ValueError:
        raise configuration.wrong("version") from None
    if version > configuration.newest_version(host.version):
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
