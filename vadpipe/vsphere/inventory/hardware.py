"""The virtual hardware of a VM as facts, and the configuration that restores it. Kernels over the API's devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pyVmomi import vim

from vadpipe.vmdk.vmx import redacted

from .datastore import DatastorePath

Device = vim.vm.device.VirtualDevice

# Bus names as VMware's own files write them (scsi0:0), by controller type. Subclasses count as their parent.
_BUSES: Mapping[type, str] = {
    vim.vm.device.VirtualIDEController: "ide",
    vim.vm.device.VirtualSCSIController: "scsi",
    vim.vm.device.VirtualSATAController: "sata",
    vim.vm.device.VirtualNVMEController: "nvme",
}
_RAW = {"physicalMode": "physical", "virtualMode": "virtual"}

# Settings of extraConfig that a guest depends on. The others are the server's own bookkeeping.
_KEPT_SETTINGS = ("disk.", "guestinfo.", "monitor_control.", "pciBridge", "svga.", "nvram")


@dataclass(frozen=True)
class VmDisk:
    """A virtual disk in the configuration of a VM or of a snapshot.

    Args:
        key: Place on its controller, e.g. 'scsi0:0'.
        device_key: The API's number of the device.
        label: The name in the client, e.g. 'Hard disk 1'.
        path: Datastore path of the descriptor. In a snapshot this is the redo log that holds the snapshot's state.
        capacity: Bytes.
        change_id: Id of changed block tracking; None when tracking is off.
        uuid: UUID of the disk; None when the server gives none.
        mode: Disk mode of the API, e.g. 'persistent'.
        left_out: Why a snapshot does not hold this disk; empty when it does.
        raw: 'physical' or 'virtual' for a raw device mapping, else empty.
        multi_writer: Several VMs may write to it.
        encrypted: It is encrypted with a key of a key server.
        chain: Datastore paths of its descriptors, the newest first, the base last.
    """

    key: str
    device_key: int
    label: str
    path: str
    capacity: int
    change_id: str | None = None
    uuid: str | None = None
    mode: str = ""
    left_out: str = ""
    raw: str = ""
    multi_writer: bool = False
    encrypted: bool = False
    chain: Sequence[str] = ()

    @property
    def bus(self) -> str:
        """'scsi', 'ide', 'sata' or 'nvme'; empty when the disk has no known controller."""
        bus = self.key.partition(":")[0].rstrip("0123456789")
        return bus if bus in _BUSES.values() else ""

    @property
    def datastore(self) -> str:
        """The name of the datastore of `path`; empty without one."""
        try:
            return DatastorePath.parse(self.path).datastore
        except ValueError:
            return ""

    @property
    def tracked(self) -> bool:
        """Whether changed block tracking is on for this disk."""
        return self.change_id is not None

    @property
    def files(self) -> int:
        """How many VMDKs its chain has, at least 1."""
        return max(1, len(self.chain))


@dataclass(frozen=True)
class VmController:
    """A disk controller.

    Args:
        key: Its bus and number, e.g. 'scsi0'.
        kind: The API's type, e.g. 'ParaVirtualSCSIController'.
        sharing: The API's word for its bus sharing; empty when the type has none.
        attached: How many devices of any kind are on it.
    """

    key: str
    kind: str
    sharing: str = ""
    attached: int = 0

    @property
    def is_scsi(self) -> bool:
        return self.key.startswith("scsi")


def vm_disks(devices: Sequence[Device]) -> list[VmDisk]:
    """Every virtual disk among the devices, in the order of their device keys."""
    controllers = {device.key: device for device in devices}
    disks = [device for device in devices if isinstance(device, vim.vm.device.VirtualDisk)]
    return sorted((_disk(disk, controllers) for disk in disks), key=lambda disk: disk.device_key)


def vm_controllers(devices: Sequence[Device]) -> list[VmController]:
    """Every controller that can hold disks."""
    return [
        VmController(
            key=bus_of(device),
            kind=type_name(device),
            sharing=str(getattr(device, "sharedBus", None) or ""),
            attached=sum(1 for other in devices if other.controllerKey == device.key),
        )
        for device in devices
        if isinstance(device, tuple(_BUSES))
    ]


def passed_through(devices: Sequence[Device]) -> list[str]:
    """Labels of the host's own devices that are passed through. A shared graphics card is not one of them."""
    return [
        device.deviceInfo.label if device.deviceInfo else str(device.key)
        for device in devices
        if _is_passed_through(device)
    ]


def boot_bus(disks: Sequence[VmDisk], boot_order: Sequence[object]) -> str | None:
    """The bus of the disk that the VM boots from; None when neither its boot order nor its disks determine it."""
    for entry in boot_order:
        if isinstance(entry, vim.vm.BootOptions.BootableDiskDevice):
            return next((disk.bus for disk in disks if disk.device_key == entry.deviceKey), None)
    buses = {disk.bus for disk in disks}
    return buses.pop() if len(buses) == 1 else None


def chains(devices: Sequence[Device]) -> dict[int, Sequence[str]]:
    """The chain of each disk (see `VmDisk.chain`) by its device key. An unreadable parent ends the chain."""
    return {disk.device_key: list(disk.chain) for disk in vm_disks(devices)}


def provisioning_of(backing: vim.vm.device.VirtualDevice.BackingInfo | None) -> str:
    """How the base of a disk is allocated: 'thin', 'lazy' or 'eager'; empty when its backing does not tell."""
    while (parent := getattr(backing, "parent", None)) is not None:
        backing = parent
    if getattr(backing, "thinProvisioned", None):
        return "thin"
    if getattr(backing, "eagerlyScrub", None):
        return "eager"
    return "lazy" if getattr(backing, "thinProvisioned", None) is not None else ""


def configuration(config: vim.vm.ConfigInfo, left_out: Sequence[str]) -> dict[str, object]:
    """The facts that are needed to create the VM again.

    Args:
        config: The configuration of the snapshot.
        left_out: A sentence for each disk that the backup does not hold.

    Returns:
        A document of JSON values.
    """
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
        "controllers": [
            {"key": one.key, "type": one.kind, "sharing": one.sharing or "noSharing"}
            for one in vm_controllers(hardware.device)
        ],
        "disks": [_disk_document(disk) for disk in vm_disks(hardware.device)],
        "left_out": list(left_out),
        "nics": [
            _nic(device)
            for device in hardware.device
            if isinstance(device, vim.vm.device.VirtualEthernetCard)
        ],
        "settings": {
            option.key: redacted(option.key, str(option.value))
            for option in config.extraConfig
            if option.key.startswith(_KEPT_SETTINGS)
        },
    }


def _disk(disk: vim.vm.device.VirtualDisk, controllers: Mapping[int, Device]) -> VmDisk:
    backing = disk.backing
    controller = controllers.get(disk.controllerKey) if disk.controllerKey is not None else None
    key = f"{bus_of(controller)}:{disk.unitNumber}" if controller is not None else f"disk{disk.key}"
    return VmDisk(
        key=key,
        device_key=disk.key,
        label=disk.deviceInfo.label if disk.deviceInfo else key,
        path=getattr(backing, "fileName", None) or "",
        capacity=disk.capacityInBytes or disk.capacityInKB << 10,
        change_id=getattr(backing, "changeId", None),
        uuid=getattr(backing, "uuid", None),
        mode=getattr(backing, "diskMode", None) or "",
        left_out=_left_out(backing),
        raw=_RAW.get(str(getattr(backing, "compatibilityMode", "")), ""),
        multi_writer=getattr(backing, "sharing", None) == "sharingMultiWriter",
        encrypted=getattr(backing, "keyId", None) is not None,
        chain=tuple(_files_below(backing)),
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


def bus_of(controller: Device) -> str:
    name = next((name for kind, name in _BUSES.items() if isinstance(controller, kind)), "bus")
    return f"{name}{getattr(controller, 'busNumber', 0)}"


def type_name(device: Device) -> str:
    return type(device).__name__.rpartition(".")[2]


def _is_passed_through(device: Device) -> bool:
    if isinstance(device, vim.vm.device.VirtualSriovEthernetCard):
        return True
    shared = vim.vm.device.VirtualPCIPassthrough.VmiopBackingInfo
    return isinstance(device, vim.vm.device.VirtualPCIPassthrough) and not isinstance(device.backing, shared)


def _disk_document(disk: VmDisk) -> dict[str, object]:
    names = ("key", "label", "capacity", "path", "uuid", "mode", "change_id")
    return {name: getattr(disk, name) for name in names}


def _nic(device: Device) -> dict[str, object]:
    return {
        "type": type_name(device),
        "label": device.deviceInfo.label if device.deviceInfo else "",
        "network": device.deviceInfo.summary if device.deviceInfo else "",
        "mac_address": getattr(device, "macAddress", None),
        "address_type": getattr(device, "addressType", None),
    }
