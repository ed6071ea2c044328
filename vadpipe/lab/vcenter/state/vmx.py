"""The VM's own configuration file, so that a VM's directory is complete without its vCenter."""

from __future__ import annotations

from collections.abc import Iterator

from pyVmomi import vim

from .configuration import from_text
from .hardware import Device
from .inventory import Inventory, VmState, controller_and_unit
from .vm_devices import kept

_BUSES = {
    vim.vm.device.VirtualSCSIController: "scsi",
    vim.vm.device.VirtualSATAController: "sata",
    vim.vm.device.VirtualNVMEController: "nvme",
    vim.vm.device.VirtualIDEController: "ide",
}
_VIRTUAL_DEVICES: dict[type[Device], str] = {
    vim.vm.device.ParaVirtualSCSIController: "pvscsi",
    vim.vm.device.VirtualLsiLogicSASController: "lsisas1068",
    vim.vm.device.VirtualLsiLogicController: "lsilogic",
    vim.vm.device.VirtualBusLogicController: "buslogic",
    vim.vm.device.VirtualVmxnet3: "vmxnet3",
    vim.vm.device.VirtualE1000e: "e1000e",
    vim.vm.device.VirtualE1000: "e1000",
}


def vmx_text(inventory: Inventory, vm: VmState) -> str:
    """The `.vmx` of the VM as it runs now: one `key = "value"` per line."""
    values = {
        ".encoding": "UTF-8",
        "config.version": "8",
        "virtualHW.version": str(vm.traits.hardware_version if vm.created else 19),
        "displayName": vm.name,
        "guestOS": vm.guest_id.removesuffix("Guest").replace("_", "-"),
        "firmware": _setting(vm, "firmware", "efi"),
        "memSize": _setting(vm, "hardware.memoryMB", "4096"),
        "numvcpus": _setting(vm, "hardware.numCPU", "2"),
        "uuid.bios": _spaced(vm.uuid),
        "vc.uuid": _spaced(vm.instance_uuid),
        **(_registered_disks(inventory, vm) if vm.devices is None else dict(_devices(inventory, vm))),
    }
    values["ctkEnabled"] = "TRUE" if vm.change_tracking else "FALSE"
    values |= vm.extra_config
    return "".join(f'{key} = "{_escaped(value)}"\n' for key, value in values.items())


def _setting(vm: VmState, path: str, otherwise: str) -> str:
    return str(from_text(vm.settings[path])) if path in vm.settings else otherwise


def _registered_disks(inventory: Inventory, vm: VmState) -> dict[str, str]:
    values: dict[str, str] = {}
    for key, disk in inventory.disks_of(vm).items():
        bus, unit = controller_and_unit(key)
        values |= {
            f"scsi{bus}.present": "TRUE",
            f"scsi{bus}.virtualDev": "pvscsi",
            f"scsi{bus}:{unit}.present": "TRUE",
            f"scsi{bus}:{unit}.deviceType": "scsi-hardDisk",
            f"scsi{bus}:{unit}.fileName": disk.leaf.name,
            f"scsi{bus}:{unit}.ctkEnabled": "TRUE" if disk.change_id else "FALSE",
        }
    return values


def _devices(inventory: Inventory, vm: VmState) -> Iterator[tuple[str, str]]:
    """Controllers, disks and adapters of a VM whose devices were given to it."""
    devices = kept(inventory, vm)
    names = {key: name for key, device in devices.items() if (name := _bus_name(device))}
    for key, device in devices.items():
        if key in names and not isinstance(device, vim.vm.device.VirtualIDEController):
            yield f"{names[key]}.present", "TRUE"
            if kind := _VIRTUAL_DEVICES.get(type(device)):
                yield f"{names[key]}.virtualDev", kind
        elif isinstance(device, vim.vm.device.VirtualDisk) and key in inventory.disks_of(vm):
            disk, name = (
                inventory.disks_of(vm)[key],
                f"{names[device.controllerKey or 0]}:{device.unitNumber}",
            )
            own = disk.directory.resolve() == inventory.directory_of(vm).resolve()
            yield f"{name}.present", "TRUE"
            yield f"{name}.fileName", disk.leaf.name if own else str(disk.leaf.resolve())
            yield f"{name}.ctkEnabled", "TRUE" if disk.change_id else "FALSE"
        elif isinstance(device, vim.vm.device.VirtualEthernetCard):
            name = f"ethernet{key - 4000}"
            yield f"{name}.present", "TRUE"
            yield f"{name}.virtualDev", _VIRTUAL_DEVICES.get(type(device), "vmxnet3")
            yield f"{name}.addressType", "static" if device.addressType == "manual" else "vpx"
            yield f"{name}.address", device.macAddress or ""


def _bus_name(device: Device) -> str:
    if not isinstance(device, vim.vm.device.VirtualController):
        return ""
    name = next((name for kind, name in _BUSES.items() if isinstance(device, kind)), "")
    return f"{name}{device.busNumber}" if name else ""


def _spaced(uuid: str) -> str:
    """A UUID as .vmx files write it: sixteen bytes with spaces, a dash in the middle."""
    digits = uuid.replace("-", "")
    pairs = [digits[at : at + 2] for at in range(0, 32, 2)]
    return f"{' '.join(pairs[:8])}-{' '.join(pairs[8:])}"


def _escaped(value: str) -> str:
    """The bytes that the format cannot hold in quotes travel as `|` and two hexadecimal digits."""
    return "".join(f"|{ord(char):02X}" if char in '"|' or char < " " else char for char in value)
