"""The tree of an inventory: names, paths and containment, from rows of properties. A kernel: no calls.

A VM is in the tree three times: in its folder or vApp, on its host, and in its resource pool. Its inventory path is
the first of these. The others count when a selection names a host or a pool.
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
# The properties that make paths. A vApp is in a pool by `parent`, and in a folder by `parentFolder`.
TREE: Mapping[type[ManagedObject], Sequence[str]] = {
    vim.VirtualMachine: (*_PLACED, "parentVApp"),
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
    def names(self) -> Counter[str]:
        """How many VMs have each name."""
        return Counter(name_of(row) for row in self.vms)

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


def name_of(row: Row) -> str:
    """The name as people write it. The inventory escapes '/', '\\' and '%'."""
    return unquote(str(row.get("name") or row.moref))


def _joined(upwards: Iterable[Row]) -> str:
    return "/".join(reversed([name_of(place) for place in upwards]))
