"""What the devices of a spec hang on: networks, images, keys. Completed as a server does, or refused."""

from __future__ import annotations

import re
from typing import Any

from pyVmomi import vim

from . import hardware
from .inventory import DatastoreTraits, Inventory, VmState
from .networks import NetworkTraits

_DATASTORE_PATH = re.compile(r"\[(?P<datastore>[^\]]+)\]\s*(?P<path>.*)")
_Card = vim.vm.device.VirtualEthernetCard


def complete(inventory: Inventory, vm: VmState, change: hardware.Change) -> None:
    """Complete the backing of a device that is not a disk. Raises InvalidDeviceSpec or one derived from it."""
    device, index = change.device, change.index
    if isinstance(device, _Card):
        _complete_card(inventory, device, index)
    elif isinstance(device, vim.vm.device.VirtualCdrom):
        _complete_cdrom(inventory, vm, device, index)
    elif isinstance(device, (vim.vm.device.VirtualPCIPassthrough, vim.vm.device.VirtualUSB)):
        raise _refused(index)  # the lab's hosts have no such card, and no such stick
    if device.connectable is None and isinstance(device, (_Card, vim.vm.device.VirtualCdrom)):
        device.connectable = vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=True, allowGuestControl=True, connected=False
        )
    if device.connectable is not None:
        on = vm.power == "poweredOn"
        device.connectable.connected = bool(on and device.connectable.startConnected)
        device.connectable.status = "ok" if on else "untried"


def _refused(index: int, field: str = "backing") -> vim.fault.InvalidDeviceSpec:
    return hardware.fault(index, field, vim.fault.InvalidDeviceBacking)


# -- networks


def _complete_card(inventory: Inventory, card: _Card, index: int) -> None:
    backing, summary = card.backing, ""
    match backing:
        case _Card.NetworkBackingInfo():
            moref, traits = _standard(inventory, backing, index)
            backing.deviceName, backing.network = traits.name, vim.Network(moref)
            backing.useAutoDetect, summary = False, traits.name
        case _Card.DistributedVirtualPortBackingInfo():
            moref, traits = _portgroup(inventory, backing, index)
            backing.port.portKey = backing.port.portKey or str(card.key - 4000)
            backing.port.connectionCookie = backing.port.connectionCookie or 1
            summary = f"DVSwitch: {traits.switch_uuid}"
        case _Card.OpaqueNetworkBackingInfo():
            wanted = ("opaque", backing.opaqueNetworkId, backing.opaqueNetworkType)
            if all((one.kind, one.id, one.type) != wanted for one in inventory.networks.values()):
                raise _refused(index)
            summary = f"{backing.opaqueNetworkType}: {backing.opaqueNetworkId}"
        case _:
            raise _refused(index)
    card.deviceInfo = vim.Description(label=card.deviceInfo.label if card.deviceInfo else "", summary=summary)
    if card.wakeOnLanEnabled is None:
        card.wakeOnLanEnabled = True


def _standard(
    inventory: Inventory, backing: _Card.NetworkBackingInfo, index: int
) -> tuple[str, NetworkTraits]:
    """By its reference where there is one, by its name else."""
    for moref, traits in inventory.networks.items():
        named = backing.network._moId == moref if backing.network else backing.deviceName == traits.name
        if named and traits.kind == "standard":
            return moref, traits
    raise _refused(index)


def _portgroup(
    inventory: Inventory, backing: _Card.DistributedVirtualPortBackingInfo, index: int
) -> tuple[str, NetworkTraits]:
    moref = backing.port.portgroupKey or ""
    traits = inventory.networks.get(moref)
    if traits is None or traits.kind != "distributed" or traits.switch_uuid != backing.port.switchUuid:
        raise _refused(index)
    return moref, traits


def networks_of(inventory: Inventory, devices: dict[int, hardware.Device]) -> list[str]:
    """The morefs of the networks that a VM's adapters are on."""
    found: dict[str, None] = {}
    for device in devices.values():
        backing: Any = device.backing
        match device.backing:
            case _Card.NetworkBackingInfo():
                found[backing.network._moId] = None
            case _Card.DistributedVirtualPortBackingInfo():
                found[backing.port.portgroupKey] = None
            case _Card.OpaqueNetworkBackingInfo():
                for moref, traits in inventory.networks.items():
                    if traits.kind == "opaque" and traits.id == backing.opaqueNetworkId:
                        found[moref] = None
    return list(found)


# -- images, and the datastores of disks


def split_path(path: str) -> tuple[str, str] | None:
    """`[datastore] path` as the two; None when it has another form."""
    match = _DATASTORE_PATH.fullmatch(path.strip())
    return (match["datastore"], match["path"].strip("/")) if match else None


def _complete_cdrom(inventory: Inventory, vm: VmState, drive: vim.vm.device.VirtualCdrom, index: int) -> None:
    backing = drive.backing
    if not isinstance(backing, vim.vm.device.VirtualCdrom.IsoBackingInfo):
        return
    place = split_path(backing.fileName or "")
    if place is None or place[0] not in inventory.datastores:
        raise _refused(index)
    if place[1] and not (inventory.datastore_root(place[0]) / place[1]).is_file():
        raise _refused(index)
    need_datastore(inventory, place[0], vm.host)
    backing.datastore = vim.Datastore(inventory.datastores[place[0]])
    label = drive.deviceInfo.label if drive.deviceInfo else ""
    drive.deviceInfo = vim.Description(label=label, summary=f"ISO {backing.fileName}")


def need_datastore(inventory: Inventory, name: str, host: str) -> DatastoreTraits:
    """What is known of a datastore that a host must reach.

    Raises InvalidDatastore, InaccessibleDatastore.
    """
    if name not in inventory.datastores:
        raise vim.fault.InvalidDatastore(name=name, msg=f"Datastore '{name}' does not exist.")
    traits = inventory.datastore_traits.get(name, DatastoreTraits())
    if not traits.accessible or traits.maintenance != "normal" or host not in inventory.hosts_of(name):
        raise vim.fault.InaccessibleDatastore(
            datastore=vim.Datastore(inventory.datastores[name]),
            name=name,
            msg=f"Unable to access datastore {name} from the host.",
        )
    return traits
