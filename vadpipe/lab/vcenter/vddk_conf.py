"""`vddk.conf`: what the VDDK stand-in may accept, one `key=value` per line.

thumbprint, user, password, cookie    of this server, its account and its live sessions
api                                   "VirtualCenter", or "HostAgent"
vm, snapshot, datastore               morefs of those that there are
on                                    morefs of VMs that are not powered off, whose disks nobody may write
lazy, eager                           datastore paths of disks with all their blocks set aside; others are thin
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .service import Service
    from .state.inventory import Inventory


def vddk_conf(service: Service) -> str:
    """The text of the file as things are. Called with the lock held."""
    settings, inventory = service.settings, service.inventory
    lines = [
        f"thumbprint={service.certificate.thumbprint_sha1}",
        f"user={settings.user}",
        f"password={settings.password}",
        *(f"cookie={form}" for session in service.sessions.live() for form in session.cookie_forms),
        f"api={settings.api_type}",
        *_present(inventory),
    ]
    return "".join(f"{line}\n" for line in lines)


def _present(inventory: Inventory) -> Iterator[str]:
    for moref in inventory.datastores.values():
        yield f"datastore={moref}"
    for vm in inventory.vms.values():
        yield f"vm={vm.moref}"
        if vm.power != "poweredOff":
            yield f"on={vm.moref}"
        yield from (f"snapshot={snapshot.moref}" for snapshot in vm.snapshots)
        for disk in inventory.disks_of(vm).values():
            if disk.provisioning != "thin":
                kind = "eager" if disk.provisioning == "eager" else "lazy"
                yield f"{kind}={inventory.datastore_path(disk.base)}"
