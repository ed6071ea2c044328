"""OVF descriptors: a VM's hardware from what a point says of it, as XML. A kernel.

Source: DMTF DSP0243 "Open Virtualization Format Specification" 1.1.0; the extensions of VMware (`vmw:`) as its own
exports write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree as ET

from pipeline.units import GiB, MiB

_OVF: Final = "http://schemas.dmtf.org/ovf/envelope/1"
_VMW: Final = "http://www.vmware.com/schema/ovf"
_CIM: Final = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/"
_RASD: Final = f"{_CIM}CIM_ResourceAllocationSettingData"
_VSSD: Final = f"{_CIM}CIM_VirtualSystemSettingData"
_STREAM: Final = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"

for _prefix, _space in (("ovf", _OVF), ("vmw", _VMW), ("rasd", _RASD), ("vssd", _VSSD)):
    ET.register_namespace(_prefix, _space)

# The API's controller types: (resource type, subtype).
_CONTROLLERS: Final[Mapping[str, tuple[int, str]]] = {
    "VirtualIDEController": (5, ""),
    "VirtualLsiLogicController": (6, "lsilogic"),
    "VirtualLsiLogicSASController": (6, "lsilogicsas"),
    "VirtualBusLogicController": (6, "buslogic"),
    "ParaVirtualSCSIController": (6, "VirtualSCSI"),
    "VirtualAHCIController": (20, "vmware.sata.ahci"),
    "VirtualSATAController": (20, "vmware.sata.ahci"),
    "VirtualNVMEController": (20, "vmware.nvme.controller"),
}
_BY_BUS: Final = {
    "ide": "VirtualIDEController",
    "scsi": "VirtualLsiLogicController",
    "sata": "VirtualAHCIController",
    "nvme": "VirtualNVMEController",
}
# What a .vmx calls them (scsi0.virtualDev).
_IN_VMX: Final = {
    "lsilogic": "VirtualLsiLogicController",
    "lsisas1068": "VirtualLsiLogicSASController",
    "buslogic": "VirtualBusLogicController",
    "pvscsi": "ParaVirtualSCSIController",
}
_NICS: Final = {
    "VirtualVmxnet3": "VmxNet3",
    "VirtualVmxnet2": "VmxNet2",
    "VirtualE1000": "E1000",
    "VirtualE1000e": "E1000e",
    "VirtualPCNet32": "PCNet32",
    "vmxnet3": "VmxNet3",
    "vmxnet": "VmxNet2",
    "e1000": "E1000",
    "e1000e": "E1000e",
    "vlance": "PCNet32",
}
_KEY = re.compile(r"(?P<bus>(?P<kind>ide|scsi|sata|nvme)(?P<number>\d+)):(?P<unit>\d+)")
_BUS = re.compile(r"(ide|scsi|sata|nvme)\d+")
_LINUX = re.compile(
    r"linux|ubuntu|debian|rhel|centos|sles|oracle|fedora|photon|rocky|alma|suse", re.IGNORECASE
)

_NOT_XML = re.compile("[^\\t\\n\\u0020-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")

# Numbers of CIM_OperatingSystem.OsType; `vmw:osType` says it exactly.
_OTHER, _LINUX_64 = 1, 101


@dataclass(frozen=True)
class Nic:
    """A network card: its OVF subtype and the name of its network."""

    kind: str
    network: str


@dataclass(frozen=True)
class Hardware:
    """What an OVF descriptor says of a VM. Bytes; `controllers`: the API's types by bus ('scsi0')."""

    name: str
    cpus: int
    cores_per_socket: int
    memory: int
    guest_id: str
    guest_name: str
    version: str
    firmware: str
    secure_boot: bool
    annotation: str
    controllers: Mapping[str, str]
    nics: Sequence[Nic]
    assumed: Sequence[str]


@dataclass(frozen=True)
class DiskImage:
    """A disk by its key in the point, and its file. Bytes."""

    key: str
    file: str
    capacity: int


@dataclass(frozen=True)
class PackedFile:
    """A file of the package, in the order of the package."""

    name: str
    size: int


def hardware(name: str, configuration: Mapping[str, Any]) -> Hardware:
    """The hardware from a point's configuration, of a VM of a vCenter or of a local one."""
    vmx: Mapping[str, str] = configuration.get("vmx") or {}
    found = dict(configuration) if not vmx else _from_vmx(vmx)
    assumed = [
        f"The point does not say the {what}: {value} is assumed."
        for what, key, value in (("memory", "memory", "1 GiB"), ("number of processors", "cpus", "1"))
        if not found.get(key)
    ]

    def text(key: str, default: str = "") -> str:
        return _text(str(found.get(key) or default))

    return Hardware(
        name=name,
        cpus=int(found.get("cpus") or 1),
        cores_per_socket=int(found.get("cores_per_socket") or 1),
        memory=int(found.get("memory") or GiB),
        guest_id=text("guest_id"),
        guest_name=text("guest_name"),
        version=text("hardware_version", "vmx-13"),
        firmware=text("firmware", "bios"),
        secure_boot=bool(found.get("secure_boot")),
        annotation=text("annotation"),
        controllers={
            str(one["key"]): str(one["type"])
            for one in found.get("controllers") or ()
            if _BUS.fullmatch(str(one["key"]))
        },
        nics=[
            Nic(_NICS.get(str(one.get("type")), "VmxNet3"), _text(str(one.get("network") or "VM Network")))
            for one in found.get("nics") or ()
        ],
        assumed=assumed,
    )


def _from_vmx(vmx: Mapping[str, str]) -> dict[str, Any]:
    """The keys of a vCenter's configuration from the settings of a .vmx, whose names are in lower case."""

    def number(key: str) -> int:
        value = vmx.get(key, "")
        return int(value) if value.isascii() and value.isdigit() else 0

    def present(device: str) -> bool:
        return vmx.get(f"{device}.present", "").lower() == "true"

    buses = [f"{kind}{at}" for kind in _BY_BUS for at in range(4)]
    nics = [f"ethernet{at}" for at in range(10)]
    version = number("virtualhw.version")
    return {
        "cpus": number("numvcpus") or 1,
        "cores_per_socket": number("cpuid.corespersocket"),
        "memory": number("memsize") * MiB,
        "guest_name": vmx.get("guestos", ""),
        "hardware_version": f"vmx-{version:02}" if version else "",
        "firmware": vmx.get("firmware", ""),
        "secure_boot": vmx.get("uefi.secureboot.enabled", "").lower() == "true",
        "annotation": vmx.get("annotation", ""),
        "controllers": [
            {"key": bus, "type": _IN_VMX.get(vmx.get(f"{bus}.virtualdev", "").lower(), _BY_BUS[bus[:-1]])}
            for bus in buses
            if present(bus)
        ],
        "nics": [
            {"type": vmx.get(f"{nic}.virtualdev", "e1000"), "network": vmx.get(f"{nic}.networkname", "")}
            for nic in nics
            if present(nic)
        ],
    }


def descriptor(
    machine: Hardware, disks: Sequence[DiskImage], files: Sequence[PackedFile], nvram: str = ""
) -> bytes:
    """The text of a descriptor.

    Args:
        machine: The VM.
        disks: In the order of the VM.
        files: All files of the package beside this one, in its order.
        nvram: The name of the NVRAM file among them; empty: there is none.
    """
    ids = {file.name: f"file{number}" for number, file in enumerate(files, 1)}
    root = ET.Element(_ovf("Envelope"))
    references = ET.SubElement(root, _ovf("References"))
    for file in files:
        facts = {_ovf("href"): file.name, _ovf("id"): ids[file.name], _ovf("size"): str(file.size)}
        ET.SubElement(references, _ovf("File"), facts)
    section = _section(root, "DiskSection", "Virtual disks")
    for number, disk in enumerate(disks, 1):
        facts = {
            "capacity": str(disk.capacity),
            "capacityAllocationUnits": "byte",
            "diskId": f"vmdisk{number}",
            "fileRef": ids[disk.file],
            "format": _STREAM,
        }
        ET.SubElement(section, _ovf("Disk"), {_ovf(key): value for key, value in facts.items()})
    networks = list(dict.fromkeys(nic.network for nic in machine.nics))
    if networks:
        section = _section(root, "NetworkSection", "Networks")
        for network in networks:
            ET.SubElement(section, _ovf("Network"), {_ovf("name"): network})
    _system(root, machine, disks, ids.get(nvram, ""))
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="UTF-8", xml_declaration=True)
    return text


def _system(root: ET.Element, machine: Hardware, disks: Sequence[DiskImage], nvram: str) -> None:
    system = ET.SubElement(root, _ovf("VirtualSystem"), {_ovf("id"): _text(machine.name) or "vm"})
    ET.SubElement(system, _ovf("Info")).text = "A virtual machine"
    ET.SubElement(system, _ovf("Name")).text = _text(machine.name)
    number = _LINUX_64 if _LINUX.search(machine.guest_id) else _OTHER
    guest = {_ovf("id"): str(number), **({_vmw("osType"): machine.guest_id} if machine.guest_id else {})}
    section = _section(system, "OperatingSystemSection", "The guest operating system", guest)
    ET.SubElement(section, _ovf("Description")).text = _text(
        machine.guest_name or machine.guest_id or "other"
    )
    section = _section(system, "VirtualHardwareSection", "Virtual hardware")
    facts = ET.SubElement(section, _ovf("System"))
    for key, value in (
        ("ElementName", "Virtual Hardware Family"),
        ("InstanceID", "0"),
        ("VirtualSystemIdentifier", _text(machine.name)),
        ("VirtualSystemType", machine.version),
    ):
        ET.SubElement(facts, f"{{{_VSSD}}}{key}").text = value
    for number, item in enumerate(_items(machine, disks), 1):
        cores = item.pop("cores", None)
        element = ET.SubElement(section, _ovf("Item"))
        for name, fact in sorted(
            {**item, "InstanceID": number}.items()
        ):  # the schema's order is the alphabet's
            ET.SubElement(element, f"{{{_RASD}}}{name}").text = _text(str(fact))
        if cores is not None:
            ET.SubElement(element, _vmw("CoresPerSocket"), {_ovf("required"): "false"}).text = str(cores)
    settings = {"firmware": machine.firmware}
    if machine.secure_boot:
        settings["bootOptions.efiSecureBootEnabled"] = "true"
    for key, value in settings.items():
        facts_of = {_ovf("required"): "false", _vmw("key"): key, _vmw("value"): value}
        ET.SubElement(section, _vmw("Config"), facts_of)
    if nvram:
        facts_of = {_ovf("required"): "false", _vmw("key"): "nvram", _vmw("value"): f"ovf:/file/{nvram}"}
        ET.SubElement(section, _vmw("ExtraConfig"), facts_of)
    if machine.annotation:
        section = _section(system, "AnnotationSection", "A note")
        ET.SubElement(section, _ovf("Annotation")).text = _text(machine.annotation)


def _items(machine: Hardware, disks: Sequence[DiskImage]) -> Iterator[dict[str, object]]:
    """The items of the hardware section; the instance id of each is its place, from 1 on."""
    yield {
        "AllocationUnits": "hertz * 10^6",
        "ElementName": f"{machine.cpus} virtual CPUs",
        "ResourceType": 3,
        "VirtualQuantity": machine.cpus,
        "cores": machine.cores_per_socket,
    }
    yield {
        "AllocationUnits": "byte * 2^20",
        "ElementName": f"{machine.memory // MiB} MB of memory",
        "ResourceType": 4,
        "VirtualQuantity": machine.memory // MiB,
    }
    places = _places(machine, disks)
    buses = sorted({bus for bus, _ in places} | machine.controllers.keys())
    instances = {}
    for instance, bus in enumerate(buses, 3):
        instances[bus] = instance
        kind = machine.controllers.get(bus) or _BY_BUS[bus.rstrip("0123456789")]
        resource, subtype = _CONTROLLERS.get(kind, _CONTROLLERS[_BY_BUS[bus.rstrip("0123456789")]])
        yield {
            "Address": int(bus.lstrip("abcdefghijklmnopqrstuvwxyz")),
            "ElementName": f"Controller {bus}",
            "ResourceType": resource,
            **({"ResourceSubType": subtype} if subtype else {}),
        }
    for number, (_, (bus, unit)) in enumerate(zip(disks, places, strict=True), 1):
        yield {
            "AddressOnParent": unit,
            "ElementName": f"Hard disk {number}",
            "HostResource": f"ovf:/disk/vmdisk{number}",
            "Parent": instances[bus],
            "ResourceType": 17,
        }
    for number, nic in enumerate(machine.nics):
        yield {
            "AddressOnParent": 7 + number,
            "AutomaticAllocation": "true",
            "Connection": nic.network,
            "ElementName": f"Network adapter {number + 1}",
            "ResourceSubType": nic.kind,
            "ResourceType": 10,
        }


def _places(machine: Hardware, disks: Sequence[DiskImage]) -> list[tuple[str, int]]:
    """(bus, unit) of each disk. Disks whose key is no place get what is free on scsi0; unit 7 is the controller."""
    found = [_KEY.fullmatch(disk.key) for disk in disks]
    taken = {(place["bus"], int(place["unit"])) for place in found if place}
    free = (("scsi0", unit) for unit in range(1 << 16) if unit != 7 and ("scsi0", unit) not in taken)
    return [(place["bus"], int(place["unit"])) if place else next(free) for place in found]


def _section(
    parent: ET.Element, name: str, info: str, attributes: Mapping[str, str] | None = None
) -> ET.Element:
    section = ET.SubElement(parent, _ovf(name), dict(attributes or {}))
    ET.SubElement(section, _ovf("Info")).text = info
    return section


def _ovf(name: str) -> str:
    return f"{{{_OVF}}}{name}"


def _vmw(name: str) -> str:
    return f"{{{_VMW}}}{name}"


def _text(text: str) -> str:
    """The text without letters that XML does not have."""
    return _NOT_XML.sub("", text)
