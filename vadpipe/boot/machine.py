"""QEMU's command for a VM of VMware: firmware, controllers, disks, network cards, memory and processors. A kernel.

QEMU has VMware's own PVSCSI and VMXNET3, and the same LSI SAS 1068, AHCI and Intel cards, so a guest finds the
drivers that it has. What QEMU lacks gets the nearest, and a note.

Source: qemu(1) and `qemu-system-x86_64 -device help` of QEMU 7.2; ESXi's devices are those of ovf.hardware.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.units import MiB
from vadpipe.ovf import Hardware, hardware

QEMU: Final = "qemu-system-x86_64"
IMAGE_TOOL: Final = "qemu-img"


@dataclass(frozen=True)
class _Controller:
    """A kind of controller: QEMU's device, how a disk is plugged, and how many it takes. `note`: what differs."""

    device: str
    disk: str
    ports: int
    note: str = ""


_PVSCSI: Final = _Controller("pvscsi", "scsi-hd,bus={bus}.0,scsi-id={port},lun=0", 64)
_LSI: Final = _Controller(
    "lsi53c895a",
    "scsi-hd,bus={bus}.0,scsi-id={port},lun=0",
    7,
    "QEMU has no {kind}; its LSI 53C895A stands in, for which Linux has a driver and Windows has none. "
    "Use --bus sata or --bus ide for Windows.",
)
_SAS: Final = _Controller("mptsas1068", "scsi-hd,bus={bus}.0,scsi-id={port},lun=0", 8)
_AHCI: Final = _Controller("ich9-ahci", "ide-hd,bus={bus}.{port}", 6)
_NVME: Final = _Controller("nvme,serial={bus}", "nvme-ns,bus={bus},nsid={number}", 15)
_IDE: Final = _Controller("", "ide-hd,bus=ide.{channel},unit={unit}", 4)
_VIRTIO: Final = _Controller("virtio-scsi-pci", "scsi-hd,bus={bus}.0,scsi-id={port},lun=0", 256)

_CONTROLLERS: Final[Mapping[str, _Controller]] = {
    "ParaVirtualSCSIController": _PVSCSI,
    "VirtualLsiLogicController": _LSI,
    "VirtualBusLogicController": _LSI,
    "VirtualLsiLogicSASController": _SAS,
    "VirtualAHCIController": _AHCI,
    "VirtualSATAController": _AHCI,
    "VirtualNVMEController": _NVME,
    "VirtualIDEController": _IDE,
}
BUSES: Final[Mapping[str, _Controller]] = {
    "pvscsi": _PVSCSI,
    "lsi": _LSI,
    "sas": _SAS,
    "sata": _AHCI,
    "nvme": _NVME,
    "ide": _IDE,
    "virtio": _VIRTIO,
}
_BY_NAME: Final = {"scsi": _LSI, "sata": _AHCI, "nvme": _NVME, "ide": _IDE}  # of a bus that is not described

_NICS: Final = {"VmxNet3": "vmxnet3", "E1000": "e1000", "E1000e": "e1000e", "PCNet32": "pcnet"}
_KEY: Final = re.compile(r"((?:ide|scsi|sata|nvme)\d+):(\d+)")
_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._ -]")  # in a name: commas separate options

# Where distributions put OVMF: code and variables (Debian, Fedora, SUSE, Arch).
_FIRMWARE: Final = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
)


@dataclass(frozen=True)
class BootDisk:
    """A disk: its key, the URI of the served export, and the image that takes what the guest writes."""

    key: str
    uri: str
    overlay: Path


@dataclass(frozen=True)
class Firmware:
    """UEFI for QEMU: the code, and a copy of the empty variables for this machine."""

    code: Path
    template: Path
    variables: Path


@dataclass(frozen=True)
class Choices:
    """What the user decides.

    Args:
        network: Connect the network cards, to a network of QEMU's own behind NAT; else to nothing.
        memory: Bytes; None: as the VM had.
        bus: One of BUSES for all disks; None: as the VM had.
        emulate: Without KVM, in software.
        console: No display; the guest's first serial port on standard input and output.
        further: More arguments for QEMU.
    """

    network: bool = False
    memory: int | None = None
    bus: str | None = None
    emulate: bool = False
    console: bool = False
    further: Sequence[str] = ()


@dataclass(frozen=True)
class BootPlan:
    """The commands, each as a list of arguments, and what differs from the VM in sentences."""

    overlays: Sequence[Sequence[str]]
    qemu: Sequence[str]
    firmware: Firmware | None
    notes: Sequence[str]


def boot_plan(
    name: str,
    configuration: Mapping[str, Any],
    disks: Sequence[BootDisk],
    choices: Choices,
    firmware: Firmware | None,
) -> BootPlan:
    """The commands that boot a point.

    Args:
        name: The VM's.
        configuration: What the point says of it.
        disks: In the order of the VM; it boots from the first that it can boot from.
        choices: What differs from it.
        firmware: For a VM with EFI; else None.
    """
    machine = hardware(name, configuration)
    notes = list(machine.assumed)
    title = _UNSAFE.sub("_", name) or "vm"
    memory = choices.memory or machine.memory
    cores = machine.cores_per_socket if machine.cpus % max(1, machine.cores_per_socket) == 0 else 1
    sockets = machine.cpus // max(1, cores)
    command = [QEMU, "-name", title, "-machine", "pc", "-nodefaults"]
    command += ["-accel", "tcg", "-cpu", "max"] if choices.emulate else ["-accel", "kvm", "-cpu", "host"]
    command += ["-m", f"{max(1, memory // MiB)}M"]
    command += ["-smp", f"{machine.cpus},sockets={sockets},cores={max(1, cores)},threads=1"]
    if machine.guest_id.lower().startswith("win") or machine.guest_name.lower().startswith("win"):
        command += ["-rtc", "base=localtime"]
    if firmware is not None:
        command += ["-drive", f"if=pflash,format=raw,readonly=on,file={_file(firmware.code)}"]
        command += ["-drive", f"if=pflash,format=raw,file={_file(firmware.variables)}"]
        notes.append(
            "The firmware variables of the VM are not used: the firmware looks for \\EFI\\BOOT\\BOOTX64.EFI, and "
            "for other boot entries its setup has to be used."
        )
        if machine.secure_boot:
            notes.append("Secure boot is off here.")
    command += _storage(machine, disks, choices.bus, notes)
    command += _network(machine, configuration, choices.network, notes)
    if choices.console:
        command += ["-display", "none", "-serial", "stdio"]
    else:
        command += ["-vga", "std", "-usb", "-device", "usb-tablet"]
    overlays = [
        [IMAGE_TOOL, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", disk.uri, str(disk.overlay)]
        for disk in disks
    ]
    return BootPlan(overlays, [*command, *choices.further], firmware, notes)


def needs_firmware(configuration: Mapping[str, Any]) -> bool:
    """Whether the VM has EFI."""
    return hardware("", configuration).firmware.lower() == "efi"


def find_firmware(variables: Path) -> Firmware | None:
    """The UEFI of this machine, where there is one, with `variables` for its variables."""
    for code, template in _FIRMWARE:
        if Path(code).is_file() and Path(template).is_file():
            return Firmware(Path(code), Path(template), variables)
    return None


def shell_lines(command: Sequence[str]) -> list[str]:
    """A command for a shell, an option a line."""
    lines: list[list[str]] = [[]]
    for word in command:
        if word.startswith("-") and lines[-1]:
            lines.append([])
        lines[-1].append(shlex.quote(word))
    texts = [" ".join(line) for line in lines]
    goes_on = " \\"
    return [
        f"{'    ' if number else ''}{text}{goes_on if number < len(texts) - 1 else ''}"
        for number, text in enumerate(texts)
    ]


def _storage(machine: Hardware, disks: Sequence[BootDisk], bus: str | None, notes: list[str]) -> list[str]:
    """Controllers and disks. What a controller of QEMU does not take goes to another one of its kind."""
    command: list[str] = []
    used: dict[str, int] = {}  # how many disks each controller of QEMU has
    for number, disk in enumerate(disks, 1):
        match = _KEY.fullmatch(disk.key)
        wanted = match.group(1) if match else "scsi0"
        port = int(match.group(2)) if match else number - 1
        kind = machine.controllers.get(wanted, "")
        controller = _CONTROLLERS.get(kind) or _BY_NAME[wanted.rstrip("0123456789")]
        if bus is not None:
            controller, wanted, port = BUSES[bus], bus, used.get(bus, 0)
        elif controller.note:
            note = controller.note.format(kind="BusLogic" if "Bus" in kind else "LSI Logic Parallel")
            if note not in notes:
                notes.append(note)
        if controller is _IDE and bus is None:
            port += 2 * int(wanted[3:])
        extra, port = divmod(port, controller.ports)
        name = f"{wanted}x{extra}" if extra else wanted
        if controller is _IDE and (extra or port > 3):
            notes.append(f"Disk {disk.key} is left out: QEMU has four places on IDE.")
            continue
        if name not in used and controller.device:
            device, *options = controller.device.format(bus=name).split(",")
            command += ["-device", ",".join([device, f"id={name}", *options])]
        used[name] = used.get(name, 0) + 1
        if bus is not None:
            used[bus] = number
        drive = f"disk{number}"
        command += ["-drive", f"if=none,id={drive},format=qcow2,discard=unmap,file={_file(disk.overlay)}"]
        place = controller.disk.format(bus=name, port=port, number=port + 1, channel=port // 2, unit=port % 2)
        command += ["-device", f"{place},drive={drive},bootindex={number}"]
    return command


def _network(
    machine: Hardware, configuration: Mapping[str, Any], connected: bool, notes: list[str]
) -> list[str]:
    command: list[str] = []
    described = configuration.get("nics") or [{}] * len(machine.nics)
    for number, nic in enumerate(machine.nics):
        device = _NICS.get(nic.kind)
        if device is None:
            device = "pcnet"
            notes.append(f"QEMU has no {nic.kind}; network card {number + 1} is a PCNet32.")
        mac = str(described[number].get("mac_address") or "") if number < len(described) else ""
        backend = "user" if connected else f"hubport,hubid={number}"
        command += ["-netdev", f"{backend},id=net{number}"]
        address = f",mac={mac.lower()}" if _MAC.fullmatch(mac) else ""
        command += ["-device", f"{device},netdev=net{number}{address}"]
    if machine.nics and not connected:
        notes.append("The network cards are connected to nothing; --network connects them behind NAT.")
    return command


def _file(path: Path) -> str:
    """A path as the value of an option: commas are doubled."""
    return str(path).replace(",", ",,")
