"""Finding a VM by its name, its inventory path, its managed object reference, or a UUID."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from pyVmomi import vim
from pyVmomi.VmomiSupport import ManagedObject

from pipeline.errors import SourceError

from .properties import Row, read_all, read_each
from .session import VcenterSession

_MOREF = re.compile(r"vm-\d+|\d+")  # vCenter's form, and an ESXi host's
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NAMED_IN_AN_ERROR = 10


@dataclass(frozen=True)
class Vm:
    """Which VM. `uuid`: its identity over renames and re-registration. `datacenter`: its inventory path, as in
    'Folder/DC'."""

    moref: str
    name: str
    path: str
    datacenter: str
    uuid: str

    def reference(self, session: VcenterSession) -> vim.VirtualMachine:
        return vim.VirtualMachine(self.moref, session.stub)


async def find_vm(session: VcenterSession, wanted: str) -> Vm:
    """The one VM with this name, inventory path ('/DC/vm/Web/web01', also without '/DC/vm'), moref ('vm-42'),
    instance UUID or BIOS UUID.

    Raises SourceError: none (with near names), or several (with their paths).
    """
    [found] = await find_vms(session, [wanted])
    return found


async def find_vms(session: VcenterSession, wanted: Sequence[str]) -> list[Vm]:
    """The VM for each of these, as `find_vm` finds it, in one look at the inventory however many there are."""

    def inventory() -> list[Row]:
        placed = ("name", "parent")
        paths: dict[type[ManagedObject], Sequence[str]] = {
            vim.VirtualMachine: (*placed, "parentVApp"),
            vim.Folder: placed,
            vim.Datacenter: placed,
        }
        return read_all(session.content, paths)

    rows = await session.call("RetrieveProperties", inventory)
    places = {row.moref: row for row in rows}
    vms = [row for row in rows if row.kind == "VirtualMachine"]
    one_each = []
    for one in wanted:
        with_uuid = await _with_uuid(session, one)
        found = [row for row in vms if row.moref in with_uuid or _is_meant(row, one, places)]
        if len(found) != 1:
            raise _several(session, one, found, places) if found else _none(session, one, vms)
        one_each += found
    return await _identified(session, one_each, places)


async def find_vm_by_uuid(session: VcenterSession, uuid: str) -> str | None:
    """The moref of the VM with this instance UUID; None: not registered here."""
    index = session.content.searchIndex
    if index is None:
        return None
    found = await session.call("FindByUuid", lambda: index.FindByUuid(None, uuid, True, True))
    return None if found is None else str(found._moId)


async def _with_uuid(session: VcenterSession, wanted: str) -> frozenset[str]:
    """The morefs of the VMs with this UUID, none when it is no UUID. A BIOS UUID may be that of several clones."""
    index = session.content.searchIndex
    if index is None or not _UUID.fullmatch(wanted):
        return frozenset()
    instances = await session.call("FindAllByUuid", lambda: index.FindAllByUuid(None, wanted, True, True))
    found = instances or await session.call(
        "FindAllByUuid", lambda: index.FindAllByUuid(None, wanted, True, False)
    )
    return frozenset(str(vm._moId) for vm in found)


async def _identified(session: VcenterSession, rows: Sequence[Row], places: Mapping[str, Row]) -> list[Vm]:
    subjects = [vim.VirtualMachine(moref, session.stub) for moref in dict.fromkeys(row.moref for row in rows)]
    paths = ("config.instanceUuid", "config.uuid")
    found = await session.call("RetrieveProperties", lambda: read_each(session.content, subjects, paths))
    identities = {identity.moref: identity for identity in found}
    return [_vm(session, row, identities[row.moref], places) for row in rows]


def _vm(session: VcenterSession, row: Row, identity: Row, places: Mapping[str, Row]) -> Vm:
    uuid = identity.get("config.instanceUuid") or identity.get("config.uuid")
    if uuid is None:
        raise SourceError(
            f"The VM {_name(row)} has no configuration: {session.server} cannot reach its files.",
            remedy="See whether its host is connected and its datastore accessible.",
            vm=_name(row),
        )
    above = list(_upwards(row, places))
    last = next((index for index, place in enumerate(above) if place.kind == "Datacenter"), len(above))
    return Vm(row.moref, _name(row), _path(row, places), _joined(above[last:]), uuid)


def _is_meant(row: Row, wanted: str, places: Mapping[str, Row]) -> bool:
    if wanted in (_name(row), row.get("name")) or (_MOREF.fullmatch(wanted) and row.moref == wanted):
        return True
    if "/" not in wanted:
        return False
    path, asked = _path(row, places), "/" + wanted.strip("/")
    return path == asked or path.endswith(asked)


def _none(session: VcenterSession, wanted: str, vms: Iterable[Row]) -> SourceError:
    names = sorted({_name(row) for row in vms})
    near = difflib.get_close_matches(wanted.rpartition("/")[2], names, n=_NAMED_IN_AN_ERROR, cutoff=0.5)
    if near:
        hint = f"Near names: {', '.join(near)}."
    elif names:
        hint = "Check the spelling, and that the account may see the VM."
    else:
        hint = "The account sees no VM at all."
    return SourceError(
        f"There is no VM {wanted!r} on {session.server}.",
        remedy=hint,
        vm=wanted,
        server=session.server,
        near=near,
    )


def _several(
    session: VcenterSession, wanted: str, found: list[Row], places: Mapping[str, Row]
) -> SourceError:
    paths = sorted(f"{_path(row, places)} ({row.moref})" for row in found)
    shown = ", ".join(paths[:_NAMED_IN_AN_ERROR]) + (", ..." if len(paths) > _NAMED_IN_AN_ERROR else "")
    return SourceError(
        f"{len(found)} VMs on {session.server} are called {wanted!r}: {shown}.",
        remedy="Name the VM by its inventory path or by its moref.",
        vm=wanted,
        server=session.server,
        found=paths,
    )


def _name(row: Row) -> str:
    """The name as people write it: the inventory escapes '/', '\\' and '%'."""
    return unquote(str(row.get("name") or row.moref))


def _path(row: Row, places: Mapping[str, Row]) -> str:
    return "/" + _joined([row, *_upwards(row, places)])


def _joined(upwards: Iterable[Row]) -> str:
    return "/".join(reversed([_name(place) for place in upwards]))


def _upwards(row: Row, places: Mapping[str, Row]) -> Iterable[Row]:
    """The folders above, nearest first, without the root folder (a container view does not hold its own root)."""
    while (above := row.get("parent") or row.get("parentVApp")) is not None:
        found = places.get(str(above._moId))
        if found is None:
            return
        yield found
        row = found
