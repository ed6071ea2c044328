"""Where VMs are now, so that not too many disks of one host or one datastore are read at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyVmomi import vim
from pyVmomi.VmomiSupport import ManagedObject

from ..api.properties import read_all, read_each
from ..api.session import VcenterSession
from .hardware import VmDisk, vm_disks
from .lookup import TREE, Inventory, Vm

_PATHS: Mapping[type[ManagedObject], Sequence[str]] = {
    **TREE,
    vim.VirtualMachine: (*TREE[vim.VirtualMachine], "runtime.host"),
    vim.HostSystem: ("name", "summary.config.product.version"),
}
_DEVICES = "config.hardware.device"


@dataclass(frozen=True)
class Placement:
    """Where a VM is: the name and version of its ESXi host, empty when it is on none, and its disks."""

    host: str
    version: str
    disks: Sequence[VmDisk]


async def placements_of(session: VcenterSession, wanted: Sequence[str | Vm]) -> list[Placement | None]:
    """Where each VM is, in one pass over the inventory; None where no one VM is meant."""
    return await session.call("RetrieveProperties", lambda: _placements(session, wanted))


def _placements(session: VcenterSession, wanted: Sequence[str | Vm]) -> list[Placement | None]:
    inventory = Inventory(read_all(session.content, _PATHS))
    meant = [rows[0] if len(rows := inventory.meant(one)) == 1 else None for one in wanted]
    # The devices are most of a VM's configuration, so they are read of these VMs alone.
    vms = [vim.VirtualMachine(moref, session.stub) for moref in {row.moref: None for row in meant if row}]
    devices = {row.moref: row.get(_DEVICES) or () for row in read_each(session.content, vms, [_DEVICES])}
    found: list[Placement | None] = []
    for row in meant:
        if row is None:
            found.append(None)
            continue
        on = row.get("runtime.host")
        host = inventory.places.get(on._moId) if on is not None else None
        name = str(host.get("name")) if host else ""
        version = str(host.get("summary.config.product.version") or "") if host else ""
        found.append(Placement(name, version, vm_disks(devices.get(row.moref, ()))))
    return found
