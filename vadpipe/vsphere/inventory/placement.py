"""Where VMs are now, so that not too many of one host or one datastore are backed up at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pyVmomi import vim
from pyVmomi.VmomiSupport import ManagedObject

from ..api.properties import Row, read_all
from ..api.session import VcenterSession
from .lookup import TREE, Inventory, Vm

_PATHS: Mapping[type[ManagedObject], Sequence[str]] = {
    **TREE,
    vim.VirtualMachine: (*TREE[vim.VirtualMachine], "runtime.host", "datastore"),
}


class Place(NamedTuple):
    """An ESXi host or a datastore. `kind`: 'host' or 'datastore'; `server`: the server's own identity."""

    kind: str
    server: str
    moref: str


async def places_of(session: VcenterSession, wanted: Sequence[str | Vm]) -> list[frozenset[Place]]:
    """The host and the datastores of each VM, in one pass over the inventory; none where no one VM is meant."""
    rows = await session.call("RetrieveProperties", lambda: read_all(session.content, _PATHS))
    inventory = Inventory(rows)
    return [frozenset(_places(session.server_id, inventory.meant(one))) for one in wanted]


def _places(server: str, meant: Sequence[Row]) -> Iterator[Place]:
    if len(meant) != 1:
        return
    if (host := meant[0].get("runtime.host")) is not None:
        yield Place("host", server, str(host._moId))
    for datastore in meant[0].get("datastore") or ():
        yield Place("datastore", server, str(datastore._moId))
