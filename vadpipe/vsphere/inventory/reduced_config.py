"""A configuration from the little that an older point or a .vmx says: processors, memory, disks, NICs, firmware."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pyVmomi import vim

from vadpipe.vmdk.vmx import Vmx

_device = vim.vm.device
Device = vim.vm.device.VirtualDevice

# The first key that vSphere gives to a controller of each bus; ide is made by the server.
_CONTROLLER_KEYS: Final = {"ide": 200, "scsi": 1000, "sata": 15000, "nvme": 31000}
_FIRST_DISK, _PER_BUS, _FIRST_NIC = 2000, 16, 4000

# By the value of scsiN.virtualDev; a .vmx without one has BusLogic.
# Source: VMware KB 1010398, the settings of paravirtual SCSI adapters in a .vmx.
_SCSI: Final[Mapping[str, type[vim.vm.device.VirtualController]]] = {
    "pvscsi": _device.ParaVirtualSCSIController,
    "lsisas1068": _device.VirtualLsiLogicSASController,
    "lsilogic": _device.VirtualLsiLogicController,
    "buslogic": _device.VirtualBusLogicController,
}
_OTHERS: Final[Mapping[str, type[vim.vm.device.VirtualController]]] = {
    "ide": _device.VirtualIDEController,
    "sata": _device.VirtualAHCIController,
    "nvme": _device.VirtualNVMEController,
}
_NICS: Final[Mapping[str, type[vim.vm.device.VirtualEthernetCard]]] = {
    "e1000": _device.VirtualE1000,
    "e1000e": _device.VirtualE1000e,
    "vmxnet": _device.VirtualVmxnet2,
    "vmxnet3": _device.VirtualVmxnet3,
    "vlance": _device.VirtualPCNet32,
}
_PLACE = re.compile(r"(ide|scsi|sata|nvme)(\d+):(\d+)")


def config_of_summary(summary: Mapping[str, object]) -> vim.vm.ConfigInfo:
    """From the `configuration` of a point without a raw answer, as `hardware.configuration` makes it."""
    devices: list[Device] = []
    for one in _entries(summary, "controllers"):
        devices += _controller(_text(one, "key"), _text(one, "type"), _text(one, "sharing"))
    for one in _entries(summary, "disks"):
        devices += _disk(
            _text(one, "key"),
            _number(one, "capacity"),
            label=_text(one, "label"),
            path=_text(one, "path"),
            mode=_text(one, "mode"),
            uuid=_text(one, "uuid"),
        )
    devices += [
        _nic(
            number,
            _text(one, "type"),
            network=_text(one, "network"),
            mac=_text(one, "mac_address"),
            address_type=_text(one, "address_type"),
            label=_text(one, "label"),
        )
        for number, one in enumerate(_entries(summary, "nics"))
    ]
    settings = summary.get("settings")
    return vim.vm.ConfigInfo(
        name=_text(summary, "name"),
        uuid=_text(summary, "uuid"),
        instanceUuid=_text(summary, "instance_uuid") or None,
        guestId=_text(summary, "guest_id"),
        guestFullName=_text(summary, "guest_name"),
        version=_text(summary, "hardware_version"),
        firmware=_text(summary, "firmware") or None,
        annotation=_text(summary, "annotation") or None,
        changeTrackingEnabled=bool(summary.get("change_tracking")),
        bootOptions=vim.vm.BootOptions(efiSecureBootEnabled=bool(summary.get("secure_boot"))),
        files=vim.vm.FileInfo(vmPathName=_text(summary, "vmx_path") or None),
        extraConfig=[
            vim.option.OptionValue(key=key, value=str(value))
            for key, value in (settings.items() if isinstance(settings, Mapping) else ())
        ],
        hardware=_hardware(
            devices,
            _number(summary, "cpus"),
            _number(summary, "cores_per_socket"),
            _number(summary, "memory") >> 20,
        ),
    )


def config_of_vmx(settings: Mapping[str, object], capacities: Mapping[str, int]) -> vim.vm.ConfigInfo:
    """From the settings of a .vmx.

    Args:
        settings: By lower-case key.
        capacities: Bytes of each disk of the point, by its key.
    """
    vmx = Vmx({key.lower(): str(value) for key, value in settings.items()})
    version = vmx.settings.get("virtualhw.version", "")
    return vim.vm.ConfigInfo(
        name=vmx.display_name or "",
        uuid=vmx.uuid,
        guestId=guest_id(vmx.settings.get("guestos", "")),
        version=f"vmx-{int(version):02}" if version.isdigit() else None,
        firmware=vmx.settings.get("firmware", "bios"),
        annotation=vmx.settings.get("annotation") or None,
        bootOptions=vim.vm.BootOptions(efiSecureBootEnabled=_true(vmx, "uefi.secureboot.enabled")),
        hardware=_hardware(
            list(_devices_of(vmx, capacities)),
            _integer(vmx, "numvcpus", 1),
            _integer(vmx, "cpuid.corespersocket", 0),
            _integer(vmx, "memsize", 0),
        ),
    )


def guest_id(guest_os: str) -> str:
    """The API's identifier for the guestOS of a .vmx, e.g. 'windows2019srv_64Guest' for 'windows2019srv-64'.

    Another spelling is looked for among the identifiers that pyVmomi knows; empty: none.
    """
    wanted = re.sub(r"[-_]|guest$", "", guest_os.lower())
    known: Sequence[str] = getattr(vim.vm.GuestOsDescriptor.GuestOsIdentifier, "values", ())
    return next((one for one in known if re.sub(r"[-_]|guest$", "", one.lower()) == wanted), "")


def _devices_of(vmx: Vmx, capacities: Mapping[str, int]) -> Iterator[Device]:
    disks = vmx.disks()
    used = {key.partition(":")[0] for key, _ in disks}
    for bus in ("ide", "scsi", "sata", "nvme"):
        for number in range(4):
            name = f"{bus}{number}"
            if name in used or (bus != "ide" and _true(vmx, f"{name}.present")):
                kind = _SCSI.get(vmx.settings.get(f"{name}.virtualdev", "buslogic").lower())
                yield from _controller(name, _type_name(kind) if kind and bus == "scsi" else "", "")
    for key, file in disks:
        yield from _disk(key, capacities.get(key, 0), label=file, path="", mode="persistent", uuid="")
    for number in range(10):
        name = f"ethernet{number}"
        if _true(vmx, f"{name}.present"):
            card = _NICS.get(vmx.settings.get(f"{name}.virtualdev", "vlance").lower(), _device.VirtualE1000)
            static = vmx.settings.get(f"{name}.addresstype", "").lower() == "static"
            yield _nic(
                number,
                _type_name(card),
                network=vmx.settings.get(f"{name}.networkname", ""),
                mac=vmx.settings.get(f"{name}.address" if static else f"{name}.generatedaddress", ""),
                address_type="manual" if static else "generated",
                label=f"Network adapter {number + 1}",
            )


def _controller(key: str, kind: str, sharing: str) -> list[Device]:
    """The controller 'scsi0' of a type; of the usual one for its bus where the type is not known."""
    shape = re.fullmatch(r"(ide|scsi|sata|nvme)(\d+)", key)
    if shape is None:
        return []
    bus, number = shape[1], int(shape[2])
    classes = {_type_name(one): one for one in (*_SCSI.values(), *_OTHERS.values())}
    made = classes.get(kind) or _OTHERS.get(bus) or _SCSI["lsilogic"]
    controller = made(
        key=_CONTROLLER_KEYS[bus] + number,
        busNumber=number,
        deviceInfo=vim.Description(label=f"{bus.upper()} controller {number}", summary=""),
    )
    if isinstance(controller, _device.VirtualSCSIController):
        controller.sharedBus = _device.VirtualSCSIController.Sharing(sharing or "noSharing")
        controller.hotAddRemove = True
    return [controller]


def _disk(key: str, capacity: int, *, label: str, path: str, mode: str, uuid: str) -> list[Device]:
    place = _PLACE.fullmatch(key)
    if place is None:
        return []
    bus, number, unit = place[1], int(place[2]), int(place[3])
    base = _FIRST_DISK + 10_000 * list(_CONTROLLER_KEYS).index(bus) if bus != "scsi" else _FIRST_DISK
    backing = _device.VirtualDisk.FlatVer2BackingInfo(
        fileName=path, diskMode=mode or "persistent", uuid=uuid or None
    )
    return [
        _device.VirtualDisk(
            key=base + _PER_BUS * number + unit,
            controllerKey=_CONTROLLER_KEYS[bus] + number,
            unitNumber=unit,
            capacityInKB=capacity >> 10,
            capacityInBytes=capacity,
            deviceInfo=vim.Description(label=label or key, summary=""),
            backing=backing,
        )
    ]


def _nic(number: int, kind: str, *, network: str, mac: str, address_type: str, label: str) -> Device:
    made = next((one for one in _NICS.values() if _type_name(one) == kind), _device.VirtualVmxnet3)
    nic = made(
        key=_FIRST_NIC + number,
        deviceInfo=vim.Description(label=label or f"Network adapter {number + 1}", summary=network),
        macAddress=mac or None,
        addressType=address_type or None,
    )
    if network and not network.startswith("DVSwitch:"):
        nic.backing = _device.VirtualEthernetCard.NetworkBackingInfo(deviceName=network)
    return nic


def _hardware(devices: list[Device], cpus: int, cores: int, memory: int) -> vim.vm.VirtualHardware:
    return vim.vm.VirtualHardware(
        numCPU=cpus or 1, numCoresPerSocket=cores or None, memoryMB=memory or None, device=devices
    )


def _type_name(kind: type) -> str:
    return kind.__name__.rpartition(".")[2]


def _true(vmx: Vmx, key: str) -> bool:
    return vmx.settings.get(key, "").upper() == "TRUE"


def _integer(vmx: Vmx, key: str, default: int) -> int:
    text = vmx.settings.get(key, "")
    return int(text) if text.isdigit() else default


def _entries(holder: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    value = holder.get(name)
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _text(holder: Mapping[str, object], name: str) -> str:
    value = holder.get(name)
    return value if isinstance(value, str) else ""


def _number(holder: Mapping[str, object], name: str) -> int:
    value = holder.get(name)
    return value if isinstance(value, int) else 0
