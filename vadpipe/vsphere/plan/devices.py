"""The devices of the restored VM: which are made with it, which disks are added, and what is left out.

Kernels. A device that is made gets a negative temporary key; what the server makes itself keeps its known key, and
other devices refer to it by that. Source: VDDK programming guide 8.0, `Restoring a virtual machine`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from pyVmomi import vim

from ..inventory.hardware import bus_of, type_name
from .places import Findings, Places, datastore_for, network_for
from .policy_devices import rule_of_device
from .saved import SavedDisk, SavedNetwork, SavedVm
from .values import (
    BootEntry,
    Decision,
    Net,
    Outcome,
    PlannedDisk,
    PointDisk,
    Problem,
    Provisioning,
    Site,
    StoredDiskFacts,
    Wanted,
)

_device = vim.vm.device
Device = vim.vm.device.VirtualDevice

# Keys of the controllers that the server makes. Source: VDDK programming guide 8.0; bareos does the same.
_MADE_BY_SERVER: Final = frozenset({100, 200, 201, 300, 400})
_SIO: Final = 400
_FIRST_TEMPORARY: Final = -100
_SCSI_OWN_UNIT: Final = 7
# Units of a controller. Source: vSphere configuration maximums (64 on a paravirtual one since hardware 14).
_UNITS: Final = {"ide": 2, "scsi": 65, "sata": 30, "nvme": 64}
_ORDER: Final = ("scsi", "sata", "nvme", "ide", "bus")


@dataclass
class PlannedDevices:
    """`changes`: of the specification; `disks`: to add afterwards; `nics`: the device keys that the NICs of the
    specification had, in its order; `buses`: the controllers that there will be, 'scsi0', with their new keys."""

    changes: list[vim.vm.device.VirtualDeviceSpec] = field(default_factory=list)
    disks: list[PlannedDisk] = field(default_factory=list)
    nics: list[int] = field(default_factory=list)
    buses: dict[str, int] = field(default_factory=dict)


def planned_devices(
    saved: SavedVm,
    wanted: Wanted,
    site: Site,
    stored: Sequence[StoredDiskFacts],
    places: Places,
    found: Findings,
) -> PlannedDevices:
    """Decide about every device of the saved VM, and about every disk of the point."""
    work = _Devices(saved, wanted, site, places, found)
    work.controllers()
    work.others()
    work.disks({disk.key: PointDisk(disk.key, disk.capacity, disk.data) for disk in stored})
    return work.planned


def boot_order(saved: SavedVm, planned: PlannedDevices) -> list[BootEntry]:
    """The saved boot order, without the devices that are left out."""
    options = saved.config.bootOptions
    keys = {disk.device_key: disk.key for disk in saved.disks}
    made = {disk.key for disk in planned.disks}
    order: list[BootEntry] = []
    for entry in options.bootOrder if options is not None else ():
        if isinstance(entry, vim.vm.BootOptions.BootableDiskDevice):
            if (key := keys.get(entry.deviceKey)) in made and key is not None:
                order.append(BootEntry("disk", key))
        elif isinstance(entry, vim.vm.BootOptions.BootableEthernetDevice):
            if entry.deviceKey in planned.nics:
                order.append(BootEntry("network", number=planned.nics.index(entry.deviceKey)))
        elif isinstance(entry, vim.vm.BootOptions.BootableCdromDevice):
            order.append(BootEntry("cdrom"))
        elif isinstance(entry, vim.vm.BootOptions.BootableFloppyDevice):
            order.append(BootEntry("floppy"))
    return order


class _Devices:
    def __init__(self, saved: SavedVm, wanted: Wanted, site: Site, places: Places, found: Findings) -> None:
        self.saved, self.wanted, self.site, self.places, self.found = saved, wanted, site, places, found
        hardware = saved.config.hardware
        self.devices: Sequence[Device] = hardware.device if hardware is not None else []
        self.planned = PlannedDevices()
        self.new_keys: dict[int, int] = {key: key for key in _MADE_BY_SERVER}
        self.planned.buses |= {"ide0": 200, "ide1": 201}

    def _bus_sharing(self, one: vim.vm.device.VirtualSCSIController) -> str:
        """A copy shares its disks with nobody: the VMs that the original shares with know other disks."""
        none = _device.VirtualSCSIController.Sharing.noSharing
        return none if self.wanted.mode == "copy" else one.sharedBus or none

    def controllers(self) -> None:
        """Those that disks hang on first, in ascending order of their numbers."""
        every = [one for one in self.devices if isinstance(one, _device.VirtualController)]
        for one in sorted(every, key=lambda one: (_ORDER.index(_bus(one)), one.busNumber or 0, one.key)):
            name, rule = type_name(one), self._rule(one)
            if rule[0] != "carried" or self._dropped(one):
                self._note(one, rule[0], rule[1])
                continue
            made: vim.vm.device.VirtualController = type(one)(busNumber=one.busNumber or 0)
            if isinstance(one, _device.VirtualSCSIController):
                made.sharedBus = self._bus_sharing(one)
                made.hotAddRemove = one.hotAddRemove
            elif isinstance(one, _device.VirtualNVMEController) and one.sharedBus is not None:
                made.sharedBus = one.sharedBus
            elif isinstance(one, _device.VirtualUSBController):
                made.autoConnectDevices, made.ehciEnabled = one.autoConnectDevices, one.ehciEnabled
            elif isinstance(one, _device.VirtualUSBXHCIController):
                made.autoConnectDevices = one.autoConnectDevices
            self._add(one, made)
            if _bus(one) != "bus":
                self.planned.buses[bus_of(one)] = made.key
            self._note(one, "carried", rule[1], new=name)

    def others(self) -> None:
        for one in self.devices:
            if isinstance(one, _device.VirtualController | _device.VirtualDisk):
                continue
            outcome, reason = self._rule(one)
            if self._dropped(one):
                self._note(one, "left out", "It was named to be left out.")
            elif outcome == "mapped" and isinstance(one, _device.VirtualEthernetCard):
                self._nic(one, reason)
            elif outcome == "changed" and isinstance(one, _device.VirtualCdrom | _device.VirtualFloppy):
                self._drive(one, reason)
            elif outcome == "asked" and isinstance(one, _device.VirtualTPM):
                self._tpm(one, reason)
            else:
                self._note(one, outcome if outcome == "left out" else "left out", reason)

    def disks(self, stored: Mapping[str, PointDisk]) -> None:
        """One for each disk of the point, and on request one for each disk that the point has no data of."""
        known = {disk.key: disk for disk in self.saved.disks}
        for disk in self.saved.disks:
            if disk.key in stored:
                self._disk(disk, stored[disk.key])
            elif self.wanted.empty_disks:
                self._disk(disk, None)
            else:
                reason = "The point has no data of it."
                self._decide(disk.label, "", "left out", f"{disk.capacity} bytes at {disk.key}", "", reason)
                self.found.warnings.append(
                    f"{disk.label} ({disk.key}) is not restored: the point has no data of it."
                )
        for key, facts in stored.items():
            if key not in known and self.saved.source != "nothing":
                self._no_place(key, f"disk {key} of {facts.capacity} bytes")

    def _nic(self, one: vim.vm.device.VirtualEthernetCard, reason: str) -> None:
        old = self.saved.networks.get(one.key, SavedNetwork(""))
        label = _label(one)
        net, on_purpose = network_for(old, label, self.wanted, self.site, self.found, self.places)
        if net is None:
            why = "It was mapped to no network." if on_purpose else "Its network is not known in the target."
            self._note(one, "left out" if on_purpose else "asked", why, old=old.name)
            return
        connect = self.wanted.connect_nics
        connected = self.wanted.mode == "replace" if connect is None else connect
        was = one.connectable
        start = connected and (was is None or was.startConnected is not False)
        made: vim.vm.device.VirtualEthernetCard = type(one)(
            backing=nic_backing(net),
            connectable=_device.VirtualDevice.ConnectInfo(
                startConnected=start,
                allowGuestControl=True if was is None else bool(was.allowGuestControl),
                connected=False,
            ),
            wakeOnLanEnabled=one.wakeOnLanEnabled,
        )
        if isinstance(one, _device.VirtualVmxnet3):
            made.uptCompatibilityEnabled = one.uptCompatibilityEnabled
        if self.wanted.mode == "replace" and one.resourceAllocation is not None:
            made.resourceAllocation = one.resourceAllocation
        self._add(one, made)
        self.planned.nics.append(one.key)
        carried: Outcome = "carried" if old.name == net.name else "mapped"
        self._note(one, "mapped", reason, old=type_name(one), new=type_name(one))
        self._decide(label, "network", carried, old.name, f"{net.name} ({net.kind})", reason)
        self._decide(
            label,
            "startConnected",
            "carried" if start else "changed",
            str(bool(was is None or was.startConnected)),
            str(start),
            "A copy must not answer in place of the original."
            if not start
            else "It takes the place of the lost VM.",
        )
        self._mac(one, made, label)

    def _mac(
        self,
        one: vim.vm.device.VirtualEthernetCard,
        made: vim.vm.device.VirtualEthernetCard,
        label: str,
    ) -> None:
        old = (one.macAddress or "").lower()
        other = self.site.macs.get(old) if old else None
        if self.wanted.mode == "replace" and old and other is None:
            made.addressType, made.macAddress = "manual", one.macAddress
            self._decide(label, "macAddress", "carried", old, old, "No other VM that is visible has it.")
            return
        made.addressType = "generated"
        if self.wanted.mode == "copy":
            reason = "A copy beside the original needs its own."
        elif other is None:
            reason = "It is not known."
        else:
            reason = f"The VM {other} has it."
            self.found.warnings.append(f"{label} gets a new MAC address: {other} has {old}.")
        self._decide(label, "macAddress", "changed", old, "generated", reason)

    def _drive(self, one: Device, reason: str) -> None:
        unconnected = _device.VirtualDevice.ConnectInfo(
            startConnected=False, allowGuestControl=True, connected=False
        )
        made: Device
        controller: int | None = _SIO
        if isinstance(one, _device.VirtualCdrom):
            backing = _device.VirtualCdrom.RemoteAtapiBackingInfo(deviceName="", useAutoDetect=False)
            made = _device.VirtualCdrom(backing=backing, connectable=unconnected)
            controller = self.new_keys.get(one.controllerKey) if one.controllerKey is not None else None
            if controller in (100, 300, 400):
                controller = None
        else:
            floppy = _device.VirtualFloppy.RemoteDeviceBackingInfo(deviceName="", useAutoDetect=False)
            made = _device.VirtualFloppy(backing=floppy, connectable=unconnected)
        if controller is None:
            self._note(one, "left out", "The controller that it is on is left out.")
            return
        made.controllerKey, made.unitNumber = controller, one.unitNumber
        self._add(one, made)
        self._note(one, "changed", reason, old=_backing_title(one), new="client device, not connected")

    def _tpm(self, one: Device, reason: str) -> None:
        self._note(one, "left out" if self.wanted.drop_encryption else "asked", reason)
        if self.wanted.drop_encryption:
            self.found.warnings.append(
                "The VM comes back without its virtual TPM: keys that the guest keeps in it are lost. "
                "Have the recovery keys of encrypted volumes (BitLocker) at hand."
            )
            return
        self.found.problems.append(
            Problem(
                "virtual TPM",
                f"{self.saved.name} has a virtual TPM, whose content cannot be restored.",
                "Allow with drop_encryption that it comes back without, and have the recovery keys of encrypted "
                "volumes (BitLocker) at hand.",
            )
        )

    def _disk(self, disk: SavedDisk, facts: PointDisk | None) -> None:
        controller, _, unit_text = disk.key.partition(":")
        bus = controller.rstrip("0123456789")
        unit = int(unit_text) if unit_text.isdigit() else -1
        if controller not in self.planned.buses or not 0 <= unit < _UNITS.get(bus, 0):
            self._no_place(disk.key, disk.label)
            return
        if bus == "scsi" and unit == _SCSI_OWN_UNIT:
            self._no_place(disk.key, disk.label, "unit 7 of a SCSI controller is the controller itself")
            return
        asked = self.wanted.datastores.get(disk.key)
        store = datastore_for(
            asked or self.wanted.datastore or disk.datastore or self.saved.datastore,
            self.site,
            self.found,
            self.places,
            f"{disk.label} ({disk.key})",
            asked=asked is not None,
        )
        sharing, provisioning = self._sharing(disk), self._provisioning(disk)
        if sharing:
            provisioning = "eager"
        capacity = facts.capacity if facts else disk.capacity
        policy = self._policy(disk)
        keeps = self.wanted.mode == "replace" and bool(disk.uuid)
        independent = disk.mode.startswith("independent")
        mode = disk.mode if facts is None or not independent else "persistent"
        self._decide_disk(disk, store.name if store else "", provisioning, capacity, mode, keeps=keeps)
        if store is None:
            return
        self.planned.disks.append(
            PlannedDisk(
                key=disk.key,
                label=disk.label,
                controller=controller,
                unit=unit,
                capacity=capacity,
                data=facts.data if facts else 0,
                provisioning=provisioning,
                datastore=store.name,
                datastore_moref=store.moref,
                mode=mode,
                sharing=sharing,
                uuid=disk.uuid if keeps else None,
                write=facts is not None,
                policy=policy,
            )
        )

    def _decide_disk(
        self, disk: SavedDisk, store: str, provisioning: str, capacity: int, mode: str, *, keeps: bool
    ) -> None:
        label = disk.label
        self._decide(
            label,
            "",
            "mapped",
            f"{disk.capacity} bytes at {disk.key}",
            f"{capacity} bytes at {disk.key}",
            "It is added when the VM exists, with a file that the server names.",
        )
        self._decide(
            label,
            "datastore",
            _moved(disk.datastore, store),
            disk.datastore,
            store,
            "The same name in the target, or the one that was asked for." if store else "It has to be named.",
        )
        self._decide(
            label,
            "provisioning",
            "carried" if provisioning == disk.provisioning else "changed",
            disk.provisioning or "unknown",
            provisioning,
            "A shared disk must be eager."
            if disk.sharing == "sharingMultiWriter"
            else "As it was."
            if provisioning == disk.provisioning
            else "As asked for, or the smallest.",
        )
        if disk.mode != mode or mode != "persistent":
            self._decide(
                label,
                "diskMode",
                "carried" if disk.mode == mode else "changed",
                disk.mode,
                mode,
                "Written as a disk that snapshots hold.",
            )
        if disk.uuid:
            self._decide(
                label,
                "uuid",
                "carried" if keeps else "left out",
                disk.uuid,
                disk.uuid if keeps else "",
                "The guest knows its disk by it." if keeps else "A copy has disks of its own.",
            )
        if disk.raw:
            self._decide(
                label,
                "raw device mapping",
                "changed",
                disk.raw,
                "a disk on a datastore",
                "The logical unit is not made again.",
            )
        if disk.encrypted:
            self._decide(
                label,
                "keyId",
                "left out",
                "encrypted",
                "",
                "The stored data are clear, and keys are not stored.",
            )

    def _sharing(self, disk: SavedDisk) -> str:
        if disk.sharing in ("", "sharingNone"):
            return ""
        if self.wanted.mode == "copy":
            self._decide(
                disk.label, "sharing", "left out", disk.sharing, "", "A copy shares its disks with nobody."
            )
            return ""
        self._decide(
            disk.label,
            "sharing",
            "carried",
            disk.sharing,
            disk.sharing,
            "The other VMs have to be attached to the new file by hand.",
        )
        self.found.warnings.append(
            f"{disk.label} ({disk.key}) was shared with other VMs: attach the new file to them by hand."
        )
        return disk.sharing

    def _provisioning(self, disk: SavedDisk) -> Provisioning:
        for known in ("thin", "lazy", "eager"):
            if known == (self.wanted.provisioning or disk.provisioning):
                return known  # a literal of the same text
        return "thin"

    def _policy(self, disk: SavedDisk) -> str | None:
        return policy_id(disk.policy, disk.label, self.saved, self.site, self.found)

    def _no_place(self, key: str, label: str, why: str = "") -> None:
        why = why or f"{key.partition(':')[0]} is not among the controllers of the saved configuration"
        self._decide(label, "", "asked", key, "", f"No controller can hold it: {why}.")
        self.found.problems.append(
            Problem(
                "no controller",
                f"No controller can hold {label} ({key}): {why}.",
                "Restore that disk to a file, or leave it out by naming the other disks.",
            )
        )

    def _rule(self, one: Device) -> tuple[Outcome, str]:
        unknown = self.saved.unknown_devices.get(one.key)
        rule = rule_of_device(unknown or type_name(one))
        return rule.outcome(self.wanted.mode), rule.reason

    def _dropped(self, one: Device) -> bool:
        return any(fnmatchcase(_label(one).lower(), pattern.lower()) for pattern in self.wanted.drop)

    def _add(self, one: Device, made: Device) -> None:
        made.key = _FIRST_TEMPORARY - len(self.planned.changes)
        self.new_keys[one.key] = made.key
        self.planned.changes.append(_device.VirtualDeviceSpec(operation="add", device=made))

    def _note(self, one: Device, outcome: Outcome, reason: str, *, old: str = "", new: str = "") -> None:
        kind = self.saved.unknown_devices.get(one.key) or type_name(one)
        self._decide(_label(one), "", outcome, old or kind, new, reason)

    def _decide(self, subject: str, name: str, outcome: Outcome, old: str, new: str, reason: str) -> None:
        self.found.decisions.append(Decision(subject, name, outcome, old, new, reason))


def nic_backing(net: Net) -> vim.vm.device.VirtualDevice.BackingInfo:
    """What connects a NIC to a network of the target."""
    card = _device.VirtualEthernetCard
    if net.kind == "distributed":
        port = vim.dvs.PortConnection(
            switchUuid=net.ids.get("switch_uuid", ""), portgroupKey=net.ids.get("portgroup_key") or net.moref
        )
        return card.DistributedVirtualPortBackingInfo(port=port)
    if net.kind == "opaque":
        return card.OpaqueNetworkBackingInfo(
            opaqueNetworkId=net.ids.get("opaque_id", ""), opaqueNetworkType=net.ids.get("opaque_type", "")
        )
    return card.NetworkBackingInfo(deviceName=net.name, network=vim.Network(net.moref))


def policy_id(name: str, subject: str, saved: SavedVm, site: Site, found: Findings) -> str | None:
    """The id of the target's storage policy with this name; None: the default of the datastore."""
    if not name:
        return None
    known = (site.storage_policies or {}).get(name)
    if known is None or saved.encrypted:
        why = (
            "It may demand an encryption that is dropped."
            if known is not None
            else "The target has none of this name that is visible."
        )
        found.decisions.append(Decision(subject, "storage policy", "asked", name, "", why))
        found.warnings.append(f"{subject} gets the default storage policy in place of {name!r}.")
        return None
    found.decisions.append(
        Decision(subject, "storage policy", "mapped", name, name, "The target has one of this name.")
    )
    return known


def _bus(one: vim.vm.device.VirtualController) -> str:
    bus = re.sub(r"\d+$", "", bus_of(one))
    return bus if bus in _ORDER else "bus"


def _label(one: Device) -> str:
    if one.deviceInfo is not None and one.deviceInfo.label:
        return one.deviceInfo.label
    return f"{type_name(one)} {one.key}"


def _backing_title(one: Device) -> str:
    backing = one.backing
    name = getattr(backing, "fileName", None) or getattr(backing, "deviceName", None) or ""
    kind = "" if backing is None else type(backing).__name__.rpartition(".")[2].removesuffix("BackingInfo")
    return f"{kind} {name}".strip()


def _moved(old: str, new: str) -> Outcome:
    return "asked" if not new else "carried" if old == new else "mapped"
