"""The device changes of a ConfigSpec, judged and completed as a server does: controllers, units, keys, MACs.

A kernel: devices in, devices out. Whether a network or a datastore exists is `backings`' affair.

Source of keys and units: device lists of VMs of vSphere 6.7 to 8.0, as govmomi's test vectors have them.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from pyVmomi import vim

from .configuration import merged

Device = vim.vm.device.VirtualDevice
Operation = Literal["add", "edit", "remove"]

PCI_KEY, SIO_KEY, SCSI_OWN_UNIT = 100, 400, 7
_DISK_KEYS = 2000
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)


@dataclass(frozen=True)
class Bus:
    """A kind of controller: its first key, how many of it a VM has, its first unit on the PCI bus, since when."""

    kind: type[vim.vm.device.VirtualController]
    first_key: int
    most: int
    pci_unit: int
    since_version: int = 4
    label: str = "Controller"


_BUSES = (
    Bus(vim.vm.device.VirtualSCSIController, 1000, 4, 3, 4, "SCSI controller"),
    Bus(vim.vm.device.VirtualSATAController, 15000, 4, 24, 10, "SATA controller"),
    Bus(vim.vm.device.VirtualNVMEController, 31000, 4, 30, 13, "NVME controller"),
    Bus(vim.vm.device.VirtualIDEController, 200, 2, 0, 4, "IDE"),
    Bus(vim.vm.device.VirtualUSBXHCIController, 14000, 1, 23, 8, "USB xHCI controller"),
    Bus(vim.vm.device.VirtualUSBController, 7000, 1, 22, 4, "USB controller"),
    Bus(vim.vm.device.VirtualNVDIMMController, 30000, 1, 0, 14, "NVDIMM"),
)
# First key, label, controller where none is named, first unit there.
_OTHERS: tuple[tuple[type[Device], int, str, int | None, int], ...] = (
    (vim.vm.device.VirtualEthernetCard, 4000, "Network adapter", PCI_KEY, 7),
    (vim.vm.device.VirtualFloppy, 8000, "Floppy drive", SIO_KEY, 0),
    (vim.vm.device.VirtualSerialPort, 9000, "Serial port", SIO_KEY, 0),
    (vim.vm.device.VirtualParallelPort, 10000, "Parallel port", SIO_KEY, 0),
    (vim.vm.device.VirtualSoundCard, 5000, "Sound card", PCI_KEY, 33),
    (vim.vm.device.VirtualTPM, 11000, "Virtual TPM", None, 0),
    (vim.vm.device.VirtualPCIPassthrough, 13000, "PCI device", PCI_KEY, 40),
    (vim.vm.device.VirtualUSB, 20000, "USB", None, 0),
    (vim.vm.device.VirtualWDT, 18000, "Watchdog timer", PCI_KEY, 37),
    (vim.vm.device.VirtualPrecisionClock, 19000, "Precision clock", None, 0),
)
_FIRST_OTHER_KEY = 50000
_SINGLE = (
    vim.vm.device.VirtualVideoCard,
    vim.vm.device.VirtualVMCIDevice,
    vim.vm.device.VirtualKeyboard,
    vim.vm.device.VirtualPointingDevice,
    vim.vm.device.VirtualPCIController,
    vim.vm.device.VirtualPS2Controller,
    vim.vm.device.VirtualSIOController,
)
_NEEDS_VERSION: tuple[tuple[type[Device], int], ...] = ((vim.vm.device.VirtualTPM, 14),)


@dataclass(frozen=True)
class Change:
    """One change. index: its place in `deviceChange`; device: as it is from then on, or was until then."""

    index: int
    operation: Operation
    device: Device
    file_operation: str | None


def server_made() -> dict[int, Device]:
    """The devices that a server gives to every VM, by key."""
    return {device.key: device for device in _server_made()}


def _server_made() -> Iterator[Device]:
    kinds = vim.vm.device
    for bus in range(2):
        yield kinds.VirtualIDEController(key=200 + bus, deviceInfo=_info(f"IDE {bus}"), busNumber=bus)
    yield kinds.VirtualPS2Controller(key=300, deviceInfo=_info("PS2 controller 0"), busNumber=0)
    yield kinds.VirtualPCIController(key=PCI_KEY, deviceInfo=_info("PCI controller 0"), busNumber=0)
    yield kinds.VirtualSIOController(key=SIO_KEY, deviceInfo=_info("SIO controller 0"), busNumber=0)
    yield kinds.VirtualKeyboard(key=600, deviceInfo=_info("Keyboard"), controllerKey=300, unitNumber=0)
    yield kinds.VirtualPointingDevice(
        key=700,
        deviceInfo=_info("Pointing device"),
        backing=kinds.VirtualPointingDevice.DeviceBackingInfo(
            deviceName="", useAutoDetect=False, hostPointingDevice="autodetect"
        ),
        controllerKey=300,
        unitNumber=1,
    )
    yield kinds.VirtualVideoCard(
        key=500,
        deviceInfo=_info("Video card"),
        controllerKey=PCI_KEY,
        unitNumber=0,
        videoRamSizeInKB=4096,
        numDisplays=1,
        useAutoDetect=False,
        enable3DSupport=False,
        use3dRenderer="automatic",
        graphicsMemorySizeInKB=262144,
    )
    yield kinds.VirtualVMCIDevice(
        key=12000,
        deviceInfo=_info("VMCI device"),
        controllerKey=PCI_KEY,
        unitNumber=17,
        id=-1,
        allowUnrestrictedCommunication=False,
        filterEnable=True,
    )


def _info(label: str, summary: str = "") -> vim.Description:
    return vim.Description(label=label, summary=summary or label)


def fault(
    index: int,
    field: str = "",
    kind: type[vim.fault.InvalidDeviceSpec] = vim.fault.InvalidDeviceSpec,
    **more: object,
) -> vim.fault.InvalidDeviceSpec:
    """The fault for the change at `index`, as a server words it."""
    path = f"deviceChange[{index}].device{'.' if field else ''}{field}"
    return kind(deviceIndex=index, property=path, msg=f"Invalid configuration for device '{index}'.", **more)


def resolve(
    devices: Mapping[int, Device],
    specs: Sequence[vim.vm.device.VirtualDeviceSpec],
    *,
    version: int,
    macs: Collection[str] = (),
) -> tuple[dict[int, Device], list[Change]]:
    """Judge the changes, and complete them.

    Args:
        devices: What the VM has, by key.
        specs: The changes; keys of new devices are temporary names, whatever their sign.
        version: The VM's hardware version.
        macs: Addresses in use, which no generated one may be.

    Returns:
        The devices from then on, and the changes with their final devices: controllers first.

    Raises:
        InvalidDeviceSpec: Or a fault derived from it, with the index of the change.
    """
    return _Resolution(dict(devices), version, set(macs)).run(specs)


class _Resolution:
    def __init__(self, devices: dict[int, Device], version: int, macs: set[str]) -> None:
        self.devices = devices
        self.version = version
        self.macs = macs
        self.real_keys: dict[int, int] = {}  # of new devices, by their temporary ones

    def run(self, specs: Sequence[vim.vm.device.VirtualDeviceSpec]) -> tuple[dict[int, Device], list[Change]]:
        numbered = list(enumerate(specs))
        order = {"remove": 0, "edit": 1, "add": 2}

        def turn(one: tuple[int, vim.vm.device.VirtualDeviceSpec]) -> tuple[int, bool, int]:
            operation = str(one[1].operation or "edit")
            return order[operation], not isinstance(one[1].device, vim.vm.device.VirtualController), one[0]

        changes = [self._change(index, spec) for index, spec in sorted(numbered, key=turn)]
        return self.devices, [change for change in changes if change is not None]

    def _change(self, index: int, spec: vim.vm.device.VirtualDeviceSpec) -> Change | None:
        file_operation = str(spec.fileOperation) if spec.fileOperation else None
        match str(spec.operation or "edit"):
            case "add":
                device = self._added(index, spec.device)
                return Change(index, "add", device, file_operation) if device is not None else None
            case "remove":
                return Change(index, "remove", self._removed(index, spec.device), file_operation)
            case _:
                return Change(index, "edit", self._edited(index, spec.device), file_operation)

    # -- removing and editing

    def _existing(self, index: int, device: Device) -> Device:
        found = self.devices.get(device.key)
        if found is None:
            raise fault(index, "key", vim.fault.DeviceNotFound)
        return found

    def _removed(self, index: int, device: Device) -> Device:
        found = self._existing(index, device)
        attached = [one for one in self.devices.values() if one.controllerKey == found.key]
        if attached or isinstance(found, _SINGLE):
            raise fault(index, "key", vim.fault.InvalidDeviceOperation, badOp="remove")
        del self.devices[found.key]
        return found

    def _edited(self, index: int, device: Device) -> Device:
        found = self._existing(index, device)
        if type(device) is not type(found) and not isinstance(found, type(device)):
            raise fault(index)
        if device.unitNumber is None or device.controllerKey is None:
            device.unitNumber, device.controllerKey = found.unitNumber, found.controllerKey
        result = merged(found, device)
        assert isinstance(result, Device)
        if (result.controllerKey, result.unitNumber) != (found.controllerKey, found.unitNumber):
            del self.devices[found.key]
            self._place(index, result)
        if isinstance(result, vim.vm.device.VirtualEthernetCard):
            self._address(index, result, getattr(found, "macAddress", None))
        self.devices[found.key] = result
        return result

    # -- adding

    def _added(self, index: int, device: Device) -> Device | None:
        if isinstance(device, _SINGLE):
            raise fault(index)
        for kind, since in _NEEDS_VERSION:
            if isinstance(device, kind):
                self._need_version(index, since)
        if isinstance(device, vim.vm.device.VirtualController):
            wanted = device.key
            if isinstance(device, vim.vm.device.VirtualIDEController):
                # Every VM has the two of them: naming one is no addition.
                self.real_keys[wanted] = 200 + min(device.busNumber or 0, 1)
                return None
            self._controller(index, device)
        else:
            wanted = device.key
            if device.controllerKey is not None:
                device.controllerKey = self.real_keys.get(device.controllerKey, device.controllerKey)
            self._place(index, device)
            self._name(device)
            if isinstance(device, vim.vm.device.VirtualEthernetCard):
                self._address(index, device, None)
        self.real_keys[wanted] = device.key
        self.devices[device.key] = device
        return device

    def _need_version(self, index: int, since: int) -> None:
        if self.version < since:
            raise fault(
                index,
                "",
                vim.fault.DeviceUnsupportedForVmVersion,
                currentVersion=f"vmx-{self.version:02}",
                expectedVersion=f"vmx-{since:02}",
            )

    def _controller(self, index: int, device: vim.vm.device.VirtualController) -> None:
        bus = next((one for one in _BUSES if isinstance(device, one.kind)), None)
        if bus is None:
            raise fault(index)
        self._need_version(index, bus.since_version)
        taken = {one.busNumber for one in self.devices.values() if isinstance(one, bus.kind)}
        if device.busNumber is None or device.busNumber < 0:
            device.busNumber = next(number for number in count() if number not in taken)
        if device.busNumber in taken or device.busNumber >= bus.most:
            raise fault(index, "busNumber")
        device.key = bus.first_key + device.busNumber
        device.controllerKey, device.unitNumber = PCI_KEY, bus.pci_unit + device.busNumber
        device.deviceInfo = _info(f"{bus.label} {device.busNumber}")
        if isinstance(device, vim.vm.device.VirtualSCSIController):
            device.hotAddRemove = True
            device.scsiCtlrUnitNumber = SCSI_OWN_UNIT
            device.sharedBus = device.sharedBus or vim.vm.device.VirtualSCSIController.Sharing("noSharing")

    def _place(self, index: int, device: Device) -> None:
        """Give the device a controller and a unit that are there, and are free."""
        _, _, controller_key, first_unit = _other(device)
        if isinstance(device, (vim.vm.device.VirtualDisk, vim.vm.device.VirtualCdrom)):
            controller_key, first_unit = None, 0
            if device.controllerKey is None:
                raise fault(index, "controllerKey", vim.fault.MissingController)
        if device.controllerKey is None:
            device.controllerKey = controller_key
        if device.controllerKey is None:
            return
        controller = self.devices.get(device.controllerKey)
        if not isinstance(controller, vim.vm.device.VirtualController):
            raise fault(
                index, "controllerKey", vim.fault.InvalidController, controllerKey=device.controllerKey
            )
        most = self._units(index, device, controller)
        taken = {
            one.unitNumber
            for one in self.devices.values()
            if one is not device and one.controllerKey == controller.key
        }
        if isinstance(controller, vim.vm.device.VirtualSCSIController):
            taken.add(SCSI_OWN_UNIT)
        unit = device.unitNumber
        on_pci = controller.key == PCI_KEY
        if unit is None or unit < 0 or (on_pci and unit in taken):
            unit = next(number for number in count(first_unit) if number not in taken)
        if unit in taken or unit >= most:
            raise fault(index, "unitNumber")
        device.unitNumber = unit

    def _units(self, index: int, device: Device, controller: vim.vm.device.VirtualController) -> int:
        """How many units the controller has for a device of this kind."""
        kinds = vim.vm.device
        drive = isinstance(device, (kinds.VirtualDisk, kinds.VirtualCdrom))
        match controller:
            case kinds.ParaVirtualSCSIController() if isinstance(device, kinds.VirtualDisk):
                return 65 if self.version >= 14 else 16
            case kinds.VirtualSCSIController() if drive:
                return 16
            case kinds.VirtualSATAController() if drive:
                return 30
            case kinds.VirtualNVMEController() if isinstance(device, kinds.VirtualDisk):
                return 64 if self.version >= 21 else 15
            case kinds.VirtualIDEController() if drive:
                return 2
            case kinds.VirtualPCIController() | kinds.VirtualSIOController() if not drive:
                return 1 << 16
            case kinds.VirtualUSBController() | kinds.VirtualUSBXHCIController() if not drive:
                return 128
        raise fault(index, "controllerKey", vim.fault.InvalidController, controllerKey=controller.key)

    def _name(self, device: Device) -> None:
        """Give a new device its key, and its label."""
        first, label, _, _ = _other(device)
        if isinstance(device, (vim.vm.device.VirtualDisk, vim.vm.device.VirtualCdrom)):
            first = _drive_key(device.unitNumber or 0, self.devices[device.controllerKey or 0])
        device.key = next(key for key in count(first) if key not in self.devices)
        # A client gives a summary at most; the server's own words replace it.
        number = sum(1 for one in self.devices.values() if _other(one)[1] == label) + 1
        device.deviceInfo = _info(f"{label} {number}")

    def _address(self, index: int, card: vim.vm.device.VirtualEthernetCard, before: str | None) -> None:
        kind = str(card.addressType or "generated").lower()
        if kind == "manual":
            if not _MAC.fullmatch(card.macAddress or ""):
                raise fault(index, "macAddress")
            card.macAddress = (card.macAddress or "").lower()
        else:
            card.addressType = "assigned"  # by the vCenter
            card.macAddress = before or next(mac for mac in _generated_macs() if mac not in self.macs)
        self.macs.add(card.macAddress)


def _generated_macs() -> Iterator[str]:
    """Addresses of the range that vCenter servers take them from."""
    while True:
        tail = secrets.token_bytes(3)
        yield f"00:50:56:{0x80 | tail[0] & 0x3F:02x}:{tail[1]:02x}:{tail[2]:02x}"


def _other(device: Device) -> tuple[int, str, int | None, int]:
    for kind, first, label, controller, unit in _OTHERS:
        if isinstance(device, kind):
            return first, label, controller, unit
    if isinstance(device, vim.vm.device.VirtualDisk):
        return _DISK_KEYS, "Hard disk", None, 0
    if isinstance(device, vim.vm.device.VirtualCdrom):
        return 3000, "CD/DVD drive", None, 0
    return _FIRST_OTHER_KEY, type(device).__name__.rpartition(".")[2], None, 0


def _drive_key(unit: int, controller: Device) -> int:
    """The key that a disk or a CD drive in this place has."""
    bus = controller.busNumber if isinstance(controller, vim.vm.device.VirtualController) else 0
    match controller:
        case vim.vm.device.VirtualSCSIController():
            # Units above 15 came later, and their keys lie elsewhere.
            return _DISK_KEYS + 16 * bus + unit if unit < 16 else 131072 + 256 * bus + unit
        case vim.vm.device.VirtualSATAController():
            return 16000 + 30 * bus + unit
        case vim.vm.device.VirtualNVMEController():
            return 32000 + 64 * bus + unit
    return 3000 + 2 * bus + unit
