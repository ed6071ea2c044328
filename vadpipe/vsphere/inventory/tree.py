"""The tree of a vCenter's inventory over rows of properties: names, paths, and what lies in what.

A VM hangs in the tree three times: in its folder or vApp, on its host, and in its resource pool. Its inventory path
is the first of these; a host or a pool, as a place to select from, means the others. A kernel: no calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import unquote

from pyVmomi import vim
from pyVmomi.VmomiSupport import ManagedObject

from ..api.properties import Row

_PLACED = ("name", "parent")
# What paths are made of. A vApp is in a pool by `parent`, and in a folder by `parentFolder`.
TREE: Mapping[type[ManagedObject], Sequence[str]] = {
    vim.VirtualMachine: (*_PLACED, "parentVApp"),
    vim.VirtualApp: (*_PLACED, "parentFolder"),
    vim.Folder: _PLACED,
    vim.Datacenter: _PLACED,
}
# With these a VM is found by its host, cluster or pool, too.
TREE_OF_HOSTS: Mapping[type[ManagedObject], Sequence[str]] = {
    **TREE,
    vim.VirtualMachine: (*TREE[vim.VirtualMachine], "runtime.host", "resourcePool"),
    vim.ComputeResource: _PLACED,
    vim.HostSystem: _PLACED,
    vim.ResourcePool: _PLACED,
}
_UPWARDS = ("parent", "parentVApp", "parentFolder", "runtime.host", "resourcePool")


@dataclass(frozen=True)
class Inventory:
    """All objects that the account sees, by rows with the paths of TREE or more."""

    rows: Sequence[Row]

    @cached_property
    def places(self) -> Mapping[str, Row]:
        """By moref."""
        return {row.moref: row for row in self.rows}

    @cached_property
    def vms(self) -> Sequence[Row]:
        return [row for row in self.rows if row.kind == "VirtualMachine"]

    @cached_property
    def names(self) -> Counter[str]:
        """How many VMs have each name."""
        return Counter(name_of(row) for row in self.vms)

    def path(self, row: Row) -> str:
        """Its inventory path, from below the root folder: '/DC/vm/Web/web01'."""
        return "/" + _joined([row, *self._upwards(row)])

    def datacenter(self, row: Row) -> str:
        """The inventory path of its datacenter without a leading slash, as in 'Folder/DC'; empty without one."""
        above = list(self._upwards(row))
        last = next((index for index, place in enumerate(above) if place.kind == "Datacenter"), len(above))
        return _joined(above[last:])

    def at(self, path: str) -> list[Row]:
        """The places, not VMs, with this inventory path."""
        asked = "/" + path.strip("/")
        return [row for row in self.rows if row.kind != "VirtualMachine" and self.path(row) == asked]

    def below(self, places: Iterable[Row]) -> frozenset[str]:
        """Morefs of everything that lies in one of these, at any depth, in whichever tree."""
        found: set[str] = set()
        waiting = [row.moref for row in places]
        while waiting:
            new = [moref for moref in self._children.get(waiting.pop(), ()) if moref not in found]
            found.update(new)
            waiting += new
        return frozenset(found)

    @cached_property
    def _children(self) -> Mapping[str, Sequence[str]]:
        """What lies directly in each, by moref."""
        children: dict[str, list[str]] = {}
        for row in self.rows:
            for path in _UPWARDS:
                if (above := row.get(path)) is not None:
                    children.setdefault(str(above._moId), []).append(row.moref)
        return children

    def _upwards(self, row: Row) -> Iterator[Row]:
        """The places above, nearest first, without the root folder: a container view does not hold its own root."""
        while (above := row.get("parentFolder") or row.get("parent") or row.get("parentVApp")) is not None:
            found = self.places.get(str(above._moId))
            if found is None:
                return
            yield found
            row = found


def name_of(row: Row) -> str:
    """The name as people write it: the inventory escapes '/', '\\' and '%'."""
    return unquote(str(row.get("name") or row.moref))


def _joined(upwards: Iterable[Row]) -> str:
    return "/".join(reversed([name_of(place) for place in upwards]))
