"""Looking a VM up by its name, inventory path, managed object reference or UUID."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyVmomi import vim

from pipeline.errors import SourceError

from ..api.properties import Row, read_all, read_each
from ..api.session import VcenterSession
from .tree import TREE, Inventory, name_of

_MOREF = re.compile(r"vm-\d+|\d+")  # vCenter's form, and an ESXi host's
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NAMED_IN_AN_ERROR = 10


@dataclass(frozen=True)
class Vm:
    """A VM in an inventory.

    Args:
        moref: Its managed object reference, e.g. 'vm-42'.
        name: Its name.
        path: Its inventory path, e.g. '/DC/vm/Web/web01'.
        datacenter: The inventory path of its datacenter, e.g. 'Folder/DC'.
        uuid: Its identity, which survives renaming and registering again.
        alone: No other VM that the account can see has this name.
    """

    moref: str
    name: str
    path: str
    datacenter: str
    uuid: str
    alone: bool = True

    @property
    def title(self) -> str:
        """Its name, or its inventory path when several VMs have that name."""
        return self.name if self.alone else self.path

    def reference(self, session: VcenterSession) -> vim.VirtualMachine:
        return vim.VirtualMachine(self.moref, session.stub)


async def find_vm(session: VcenterSession, wanted: str | Vm) -> Vm:
    """The one VM that is meant.

    Args:
        session: The session.
        wanted: A name, an inventory path ('/DC/vm/Web/web01', also without '/DC/vm'), a moref ('vm-42'), an
            instance UUID or a BIOS UUID; or a VM that was found before, to read it again.

    Raises:
        SourceError: There is none (with near names), there are several (with their paths), or it is gone.
    """
    [found] = await find_vms(session, [wanted])
    return found


async def find_vms(session: VcenterSession, wanted: Sequence[str | Vm]) -> list[Vm]:
    """The VM for each of these, as by `find_vm`, in one pass over the inventory."""
    rows = await session.call("RetrieveProperties", lambda: read_all(session.content, TREE))
    inventory = Inventory(rows)
    found = [await _meant(session, one, inventory) for one in wanted]
    return await _identified(session, found, inventory)


async def find_vm_by_uuid(session: VcenterSession, uuid: str) -> str | None:
    """The moref of the VM with this instance UUID; None when it is not registered here."""
    index = session.content.searchIndex
    if index is None:
        return None
    found = await session.call("FindByUuid", lambda: index.FindByUuid(None, uuid, True, True))
    return None if found is None else str(found._moId)


async def _with_uuid(session: VcenterSession, wanted: str) -> frozenset[str]:
    """The morefs of the VMs with this UUID. Several clones can have one BIOS UUID."""
    index = session.content.searchIndex
    if index is None or not _UUID.fullmatch(wanted):
        return frozenset()
    instances = await session.call("FindAllByUuid", lambda: index.FindAllByUuid(None, wanted, True, True))
    found = instances or await session.call(
        "FindAllByUuid", lambda: index.FindAllByUuid(None, wanted, True, False)
    )
    return frozenset(str(vm._moId) for vm in found)


async def _meant(session: VcenterSession, wanted: str | Vm, inventory: Inventory) -> Row:
    if isinstance(wanted, Vm):
        row = inventory.places.get(wanted.moref)
        if row is None:
            raise _gone(session, wanted)
        return row
    with_uuid = await _with_uuid(session, wanted)
    found = [row for row in inventory.vms if row.moref in with_uuid or _is_meant(row, wanted, inventory)]
    if len(found) != 1:
        raise _several(session, wanted, found, inventory) if found else _none(session, wanted, inventory)
    return found[0]


async def _identified(session: VcenterSession, rows: Sequence[Row], inventory: Inventory) -> list[Vm]:
    subjects = [vim.VirtualMachine(moref, session.stub) for moref in dict.fromkeys(row.moref for row in rows)]
    paths = ("config.instanceUuid", "config.uuid")
    found = await session.call(
        "RetrieveProperties", lambda: read_each(session.content, subjects, paths, strict=True)
    )
    uuids = {one.moref: one.get("config.instanceUuid") or one.get("config.uuid") for one in found}
    for row in rows:
        if uuids[row.moref] is None:
            raise SourceError(
                f"The VM {name_of(row)} has no configuration: {session.server} cannot reach its files.",
                remedy="Check that its host is connected and its datastore is accessible.",
                vm=name_of(row),
            )
    return [vm_of(row, inventory, uuids[row.moref]) for row in rows]


def vm_of(row: Row, inventory: Inventory, uuid: str) -> Vm:
    """A VM by its place in the inventory."""
    name = name_of(row)
    return Vm(
        row.moref, name, inventory.path(row), inventory.datacenter(row), uuid, inventory.names[name] == 1
    )


def _is_meant(row: Row, wanted: str, inventory: Inventory) -> bool:
    if wanted in (name_of(row), row.get("name")) or (_MOREF.fullmatch(wanted) and row.moref == wanted):
        return True
    if "/" not in wanted:
        return False
    path, asked = inventory.path(row), "/" + wanted.strip("/")
    return path == asked or path.endswith(asked)


def nearest(wanted: str, names: Iterable[str]) -> list[str]:
    """The names with a spelling like `wanted`, the best first, for the error that there is none."""
    return difflib.get_close_matches(wanted, sorted(set(names)), n=_NAMED_IN_AN_ERROR, cutoff=0.5)


def _none(session: VcenterSession, wanted: str, inventory: Inventory) -> SourceError:
    near = nearest(wanted.rpartition("/")[2], (name_of(row) for row in inventory.vms))
    if near:
        hint = f"Near names: {', '.join(near)}."
    elif inventory.vms:
        hint = "Check the spelling, and that the account can see the VM."
    else:
        hint = "The account sees no VM at all."
    return SourceError(
        f"There is no VM {wanted!r} on {session.server}.",
        remedy=hint,
        vm=wanted,
        server=session.server,
        near=near,
    )


def _several(session: VcenterSession, wanted: str, found: list[Row], inventory: Inventory) -> SourceError:
    paths = sorted(f"{inventory.path(row)} ({row.moref})" for row in found)
    shown = ", ".join(paths[:_NAMED_IN_AN_ERROR]) + (", ..." if len(paths) > _NAMED_IN_AN_ERROR else "")
    return SourceError(
        f"{len(found)} VMs on {session.server} are called {wanted!r}: {shown}.",
        remedy="Name the VM by its inventory path or by its moref.",
        vm=wanted,
        server=session.server,
        found=paths,
    )


def _gone(session: VcenterSession, vm: Vm) -> SourceError:
    return SourceError(
        f"The VM {vm.path} ({vm.moref}) is no longer on {session.server}.",
        remedy="It was there when the VMs were selected: check whether it was removed, or registered again.",
        vm=vm.path,
        server=session.server,
    )
