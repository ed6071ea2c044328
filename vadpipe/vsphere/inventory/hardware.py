"""What a VM is made of: the disks of a snapshot, and the facts to make the VM again. Kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pyVmomi import vim

from vadpipe.vmdk.vmx import redacted

# Bus names as VMware's own files write them (scsi0:0), by controller type; the nearest ancestor counts.
_BUSES: Mapping[type, str] = {
    vim.vm.device.VirtualIDEController: "ide",
    vim.vm.device.VirtualSCSIController: "scsi",
    vim.vm.device.VirtualSATAController: "sata",
    vim.vm.device.VirtualNVMEController: "nvme",
}

# Settings of extraConfig that a guest depends on; the rest is the server's own bookkeeping.
_KEPT_SETTINGS = ("disk.", "guestinfo.", "monitor_control.", "pciBridge", "svga.", "nvram")


@dataclass(frozen=True)
class DiskFacts:
    """A virtual disk in the configuration of a snapshot.

    `key`: place on its controller, 'scsi0:0'. `device_key`: the API's number of the device. `path`: datastore path
    of the descriptor to open, which for a snapshot names the redo log that holds the quiesced state.
    `capacity`: bytes. `left_out`: why a snapshot does not hold this disk; empty when it does.
    """

    key: str
    label: str
    device_key: int
    path: str
    capacity: int
    change_id: str | None
    uuid: str | None
    mode: str
    left_out: str


def disk_facts(devices: Sequence[vim.vm.device.VirtualDevice]) -> list[DiskFacts]:
    """Every virtual disk among the devices, in the order of their keys on the buses."""
    controllers = {device.key: device for device in devices}
    disks = [device for device in devices if isinstance(device, vim.vm.device.VirtualDisk)]
    return sorted((_disk(disk, controllers) for disk in disks), key=lambda facts: facts.device_key)


def chains(devices: Sequence[vim.vm.device.VirtualDevice]) -> dict[int, Sequence[str]]:
    """By device key, the datastore paths of each disk's descriptors: what it names first, its base last.

    An ancestor that the server does not tell ends the chain.
    """
    disks = [device for device in devices if isinstance(device, vim.vm.device.VirtualDisk)]
    return {disk.key: list(_files_below(disk.backing)) for disk in disks}


def configuration(config: vim.vm.ConfigInfo, left_out: Sequence[str]) -> dict[str, object]:
    """What is needed to make the VM again; JSON values only. `left_out`: disks that the backup does not hold."""
    hardware = config.hardware
    return {
        "name": config.name,
        "uuid": config.uuid,
        "instance_uuid": config.instanceUuid,
        "guest_id": config.guestId,
        "guest_name": config.guestFullName,
        "hardware_version": config.version,
        "firmware": config.firmware,
        "secure_boot": bool(config.bootOptions and config.bootOptions.efiSecureBootEnabled),
        "memory": hardware.memoryMB << 20,
        "cpus": hardware.numCPU,
        "cores_per_socket": hardware.numCoresPerSocket,
        "annotation": config.annotation,
        "vmx_path": config.files.vmPathName,
        "change_tracking": bool(config.changeTrackingEnabled),
        "controllers": [found for device in hardware.device if (found := _controller(device))],
        "disks": [_disk_document(facts) for facts in disk_facts(hardware.device)],
        "left_out": list(left_out),
        "nics": [_nic(device) for device in hardware.device if _is_nic(device)],
        "settings": {
            option.key: redacted(option.key, str(option.value))
            for option in config.extraConfig
            if option.key.startswith(_KEPT_SETTINGS)
        },
    }


def _disk(
    disk: vim.vm.device.VirtualDisk, controllers: Mapping[int, vim.vm.device.VirtualDevice]
) -> DiskFacts:
    backing = disk.backing
    controller = controllers.get(disk.controllerKey) if disk.controllerKey is not None else None
    key = f"{_bus(controller)}:{disk.unitNumber}" if controller is not None else f"disk{disk.key}"
    label = disk.deviceInfo.label if disk.deviceInfo else key
    return DiskFacts(
        key=key,
        label=label,
        device_key=disk.key,
        path=getattr(backing, "fileName", None) or "",
        capacity=disk.capacityInBytes or disk.capacityInKB << 10,
        change_id=getattr(backing, "changeId", None),
        uuid=getattr(backing, "uuid", None),
        mode=getattr(backing, "diskMode", None) or "",
        left_out=_left_out(backing),
    )


def _files_below(backing: vim.vm.device.VirtualDevice.BackingInfo | None) -> Iterator[str]:
    while backing is not None:
        if name := getattr(backing, "fileName", None):
            yield name
        backing = getattr(backing, "parent", None)


def _left_out(backing: vim.vm.device.VirtualDevice.BackingInfo | None) -> str:
    mode = str(getattr(backing, "diskMode", None) or "")
    if mode.startswith("independent"):
        return f"it is independent ({mode}), so snapshots do not hold it"
    if getattr(backing, "compatibilityMode", None) == "physicalMode":
        return "it is a raw device mapping in physical mode, so snapshots do not hold it"
    if not getattr(backing, "fileName", None):
        return "it has no file on a datastore"
    return ""


def _bus(controller: vim.vm.device.VirtualDevice) -> str:
    name = next((name for kind, name in _BUSES.items() if isinstance(controller, kind)), "bus")
    return f"{name}{getattr(controller, 'busNumber', 0)}"


def _controller(device: vim.vm.device.VirtualDevice) -> dict[str, object] | None:
    if not isinstance(device, tuple(_BUSES)):
        return None
    return {
        "key": _bus(device),
        "type": type(device).__name__.rpartition(".")[2],
        "sharing": str(getattr(device, "sharedBus", None) or "noSharing"),
    }


def _disk_document(facts: DiskFacts) -> dict[str, object]:
    return {
        "key": facts.key,
        "label": facts.label,
        "capacity": facts.capacity,
        "path": facts.path,
        "uuid": facts.uuid,
        "mode": facts.mode,
        "change_id": facts.change_id,
    }


def _is_nic(device: vim.vm.device.VirtualDevice) -> bool:
    return isinstance(device, vim.vm.device.VirtualEthernetCard)


def _nic(device: vim.vm.device.VirtualDevice) -> dict[str, object]:
    return {
        "type": type(device).__name__.rpartition(".")[2],
        "label": device.deviceInfo.label if device.deviceInfo else "",
        "network": device.deviceInfo.summary if device.deviceInfo else "",
        "mac_address": getattr(device, "macAddress", None),
        "address_type": getattr(device, "addressType", None),
    }
