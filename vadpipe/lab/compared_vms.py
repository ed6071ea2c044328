"""Two VMs of a vCenter compared field by field: the original, and the copy that a restore made of it.

Read by pyVmomi and named here; nothing of the product takes part. A copy has to agree in what a guest runs on, and
has to differ in what identifies a machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim

Wanted = Literal["same", "different", "either"]

# Of ConfigInfo, and what a copy has to do with it. What a server makes anew at creation is `either`.
_FIELDS: Mapping[str, Wanted] = {
    "name": "different",
    "uuid": "different",
    "instanceUuid": "different",
    "files.vmPathName": "different",
    "guestId": "same",
    "alternateGuestName": "same",
    "version": "same",
    "firmware": "same",
    "bootOptions.efiSecureBootEnabled": "same",
    "flags.diskUuidEnabled": "same",
    "hardware.numCPU": "same",
    "hardware.numCoresPerSocket": "same",
    "hardware.memoryMB": "same",
    "cpuHotAddEnabled": "same",
    "memoryHotAddEnabled": "same",
    "nestedHVEnabled": "same",
}
# Of extraConfig: what a guest's applications and device names hang on.
_EXTRA = ("disk.EnableUUID",)


@dataclass(frozen=True)
class Row:
    """One field of both VMs. None: the VM does not have it."""

    field: str
    original: str | None
    restored: str | None
    wanted: Wanted

    @property
    def outcome(self) -> str:
        if self.original == self.restored:
            return "NOT NEW" if self.wanted == "different" and self.original else "same"
        return "DIFFERS" if self.wanted == "same" else "new"

    @property
    def wrong(self) -> bool:
        return self.outcome.isupper()


def compared(original: vim.vm.ConfigInfo, restored: vim.vm.ConfigInfo) -> list[Row]:
    """Every field that is compared, in the order of a reader's interest: machine, controllers, disks, adapters."""
    rows = [
        Row(name, _text(_value(original, name)), _text(_value(restored, name)), wanted)
        for name, wanted in _FIELDS.items()
    ]
    rows += [Row(key, _extra(original, key), _extra(restored, key), "same") for key in _EXTRA]
    one, other = dict(_devices(original)), dict(_devices(restored))
    for field in dict.fromkeys([*one, *other]):
        wanted: Wanted = "same"
        if field.endswith((" file", " address", " uuid")):
            wanted = "different"
        elif field.endswith(" connected at start"):
            wanted = "either"
        rows.append(Row(field, one.get(field), other.get(field), wanted))
    return rows


def table(rows: list[Row]) -> Iterator[str]:
    """The rows as lines of a table."""
    shown = [("FIELD", "ORIGINAL", "RESTORED", "OUTCOME")]
    shown += [(row.field, row.original or "-", row.restored or "-", row.outcome) for row in rows]
    widths = [max(len(line[column]) for line in shown) for column in range(4)]
    for line in shown:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def configurations(server: str, port: int, user: str, password: str, *names: str) -> list[vim.vm.ConfigInfo]:
    """The configurations of these VMs, by a session of its own. Raises LookupError for one that is not there."""
    session = SmartConnect(host=server, port=port, user=user, pwd=password, disableSslCertValidation=True)
    try:
        content: Any = session.RetrieveContent()
        view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
        found = {machine.name: machine.config for machine in view.view}
        view.DestroyView()
    finally:
        Disconnect(session)
    missing = [name for name in names if name not in found]
    if missing:
        raise LookupError(f"{server} has no VM {', '.join(missing)}; it has {', '.join(sorted(found))}")
    return [found[name] for name in names]


def _value(config: vim.vm.ConfigInfo, name: str) -> object:
    value: object = config
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _text(value: object) -> str | None:
    """None for what is not there, and for a switch that is off: servers leave such switches out."""
    return None if value is None or value is False or value == "" else str(value)


def _extra(config: vim.vm.ConfigInfo, key: str) -> str | None:
    values = {option.key.lower(): _text(option.value) for option in config.extraConfig or ()}
    value = values.get(key.lower())
    return value.lower() if value else value  # letter case of TRUE does not count


def _devices(config: vim.vm.ConfigInfo) -> Iterator[tuple[str, str | None]]:
    """Fields of controllers, disks and network adapters, named by their places and not by their keys."""
    devices = config.hardware.device
    controllers = {one.key: one for one in devices if isinstance(one, vim.vm.device.VirtualController)}
    for controller in controllers.values():
        if isinstance(controller, vim.vm.device.VirtualSCSIController):
            place = f"scsi{controller.busNumber}"
            yield f"{place} kind", _kind(controller)
            yield f"{place} sharing", _text(controller.sharedBus)
    for disk in devices:
        if isinstance(disk, vim.vm.device.VirtualDisk):
            controller = controllers[disk.controllerKey or 0]
            place = f"disk {_bus(controller)}{controller.busNumber}:{disk.unitNumber}"
            backing = disk.backing
            yield f"{place} capacity", _text(disk.capacityInBytes or disk.capacityInKB * 1024)
            yield f"{place} mode", _text(getattr(backing, "diskMode", None))
            yield f"{place} provisioning", _provisioning(backing)
            yield f"{place} uuid", _text(getattr(backing, "uuid", None))
            yield f"{place} file", _text(getattr(backing, "fileName", None))
    cards = [one for one in devices if isinstance(one, vim.vm.device.VirtualEthernetCard)]
    for number, card in enumerate(sorted(cards, key=lambda one: one.key)):
        place = f"adapter {number}"
        yield f"{place} kind", _kind(card)
        yield f"{place} network", _text(getattr(card.backing, "deviceName", None))
        yield f"{place} address", _text(card.macAddress)
        yield f"{place} connected at start", _text(card.connectable and card.connectable.startConnected)


def _kind(device: object) -> str:
    return type(device).__name__.rpartition(".")[2]


def _bus(controller: object) -> str:
    for kind, name in (
        (vim.vm.device.VirtualSCSIController, "scsi"),
        (vim.vm.device.VirtualSATAController, "sata"),
        (vim.vm.device.VirtualNVMEController, "nvme"),
        (vim.vm.device.VirtualIDEController, "ide"),
    ):
        if isinstance(controller, kind):
            return name
    return _kind(controller)


def _provisioning(backing: object) -> str:
    if getattr(backing, "thinProvisioned", False):
        return "thin"
    return "eager" if getattr(backing, "eagerlyScrub", False) else "lazy"
