"""The tree of an inventory, and the VM in it that a name, a path, a managed object reference or a UUID means.

A VM is in the tree three times: in its folder or vApp, on its host, and in its resource pool. Its inventory path is
the first of these. The others count when a selection names a host or a pool.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import unquote

from pyVmomi import vim
from pyVmomi.VmomiSupport import ManagedObject

from pipeline.errors import SourceError

from ..api.properties import Row, read_all
from ..api.session import VcenterSession

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NAMED_IN_AN_ERROR = 10
_PLACED = ("name", "parent")
# The properties that make paths, and the UUIDs of VMs. A vApp is in a pool by `parent` and in a folder by
# `parentFolder`.
TREE: Mapping[type[ManagedObject], Sequence[str]] = {
    vim.VirtualMachine: (*_PLACED, "parentVApp", "config.instanceUuid", "config.uuid"),
    vim.VirtualApp: (*_PLACED, "parentFolder"),
    vim.Folder: _PLACED,
    vim.Datacenter: _PLACED,
}
# With these, a VM is also found by its host, cluster or pool.
TREE_OF_HOSTS: Mapping[type[ManagedObject], Sequence[str]] = {
    **TREE,
    vim.VirtualMachine: (*TREE[vim.VirtualMachine], "runtime.host", "resourcePool"),
    vim.ComputeResource: _PLACED,
    vim.HostSystem: _PLACED,
    vim.ResourcePool: _PLACED,
}
_UPWARDS = ("parent", "parentVApp", "parentFolder", "runtime.host", "resourcePool")


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


@dataclass(frozen=True)
class Inventory:
    """All objects that the account can see, as rows with at least the paths of TREE."""

    rows: Sequence[Row]

    @cached_property
    def places(self) -> Mapping[str, Row]:
        """The rows by moref."""
        return {row.moref: row for row in self.rows}

    @cached_property
    def vms(self) -> Sequence[Row]:
        return [row for row in self.rows if row.kind == "VirtualMachine"]

    @cached_property
    def named(self) -> Mapping[str, Sequence[Row]]:
        """The VMs by moref, by both spellings of their names, and by the last segment of their paths."""
        found: dict[str, list[Row]] = {}
        for row in self.vms:
            name = name_of(row)
            for one in {name, name.rpartition("/")[2], str(row.get("name")), row.moref}:
                found.setdefault(one, []).append(row)
        return found

    @cached_property
    def names(self) -> Counter[str]:
        """How many VMs have each name."""
        return Counter(name_of(row) for row in self.vms)

    def vm(self, row: Row) -> Vm:
        """The VM of a row. Its `uuid` is empty when its configuration cannot be read."""
        name, uuid = name_of(row), row.get("config.instanceUuid") or row.get("config.uuid") or ""
        return Vm(row.moref, name, self.path(row), self.datacenter(row), uuid, self.names[name] == 1)

    def meant(self, wanted: str | Vm) -> list[Row]:
        """The VMs that may be meant, as by `find_vm`."""
        if isinstance(wanted, Vm):
            return [self.places[wanted.moref]] if wanted.moref in self.places else []
        return self.called(wanted) or self.with_uuid(wanted)

    def called(self, wanted: str) -> list[Row]:
        """The VMs with this name, this moref, or an inventory path that is or ends with this one."""
        found = [
            row for row in self.named.get(wanted, ()) if wanted in (name_of(row), row.get("name"), row.moref)
        ]
        if "/" in wanted:
            asked = "/" + wanted.strip("/")
            near = self.named.get(asked.rpartition("/")[2], ())
            found += [row for row in near if row not in found and self.path(row).endswith(asked)]
        return found

    def with_uuid(self, uuid: str) -> list[Row]:
        """The VMs with this instance UUID, else with this BIOS UUID, which several clones can have."""
        for path in ("config.instanceUuid", "config.uuid") if _UUID.fullmatch(uuid) else ():
            if found := [row for row in self.vms if str(row.get(path)).lower() == uuid.lower()]:
                return found
        return []

    def path(self, row: Row) -> str:
        """The inventory path of a row, e.g. '/DC/vm/Web/web01'. It begins below the root folder."""
        return "/" + _joined([row, *self._upwards(row)])

    def datacenter(self, row: Row) -> str:
        """The inventory path of a row's datacenter, e.g. 'Folder/DC'; empty without one."""
        above = list(self._upwards(row))
        last = next((index for index, place in enumerate(above) if place.kind == "Datacenter"), len(above))
        return _joined(above[last:])

    def at(self, path: str) -> list[Row]:
        """The places with this inventory path, without VMs."""
        wanted = "/" + path.strip("/")
        return [row for row in self.rows if row.kind != "VirtualMachine" and self.path(row) == wanted]

    def below(self, places: Iterable[Row]) -> frozenset[str]:
        """Morefs of everything in one of these places, at any depth."""
        found: set[str] = set()
        waiting = [row.moref for row in places]
        while waiting:
            new = [moref for moref in self._children.get(waiting.pop(), ()) if moref not in found]
            found.update(new)
            waiting += new
        return frozenset(found)

    @cached_property
    def _children(self) -> Mapping[str, Sequence[str]]:
        """The direct content of each place, by moref."""
        children: dict[str, list[str]] = {}
        for row in self.rows:
            for path in _UPWARDS:
                if (above := row.get(path)) is not None:
                    children.setdefault(str(above._moId), []).append(row.moref)
        return children

    def _upwards(self, row: Row) -> Iterator[Row]:
        """The places above, the nearest first. The root folder is missing: a view does not contain its own root."""
        while (above := row.get("parentFolder") or row.get("parent") or row.get("parentVApp")) is not None:
            found = self.places.get(str(above._moId))
            if found is None:
                return
            yield found
            row = found


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
    return [_identified(session, _meant(session, one, inventory), inventory) for one in wanted]


async def find_vm_by_uuid(session: VcenterSession, uuid: str) -> str | None:
    """The moref of the VM with this instance UUID; None when it is not registered here."""
    index = session.content.searchIndex
    if index is None:
        return None
    found = await session.call("FindByUuid", lambda: index.FindByUuid(None, uuid, True, True))
    return None if found is None else str(found._moId)


def _meant(session: VcenterSession, wanted: str | Vm, inventory: Inventory) -> Row:
    found = inventory.meant(wanted)
    if isinstance(wanted, Vm):
        if not found:
            raise _gone(session, wanted)
    elif len(found) != 1:
        raise _several(session, wanted, found, inventory) if found else _none(session, wanted, inventory)
    return found[0]


def _identified(session: VcenterSession, row: Row, inventory: Inventory) -> Vm:
    vm = inventory.vm(row)
    if not vm.uuid:
        raise SourceError(
            f"The configuration of the VM {vm.name} cannot be read: {session.server} cannot reach its files.",
            remedy="Check that its host is connected, its datastore is accessible, and the account can read it.",
            vm=vm.name,
        )
    return vm


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


def name_of(row: Row) -> str:
    """The name as people write it. The inventory escapes '/', '\\' and '%'."""
    return unquote(str(row.get("name") or row.moref))


def escaped(name: str) -> str:
    """A name as the inventory keeps it; `name_of` is the way back."""
    return name.replace("%", "%25").replace("/", "%2f").replace("\\", "%5c")


def _joined(upwards: Iterable[Row]) -> str:
    return "/".join(reversed([name_of(place) for place in upwards]))
