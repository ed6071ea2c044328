"""Selecting VMs: by name pattern, by place in the inventory, by tag, and without those that are excluded.

The whole inventory that the account sees is read once, in one pass with narrow paths, then the selection is made
here. Case counts, as in all look-ups by name: 'Web*' does not select 'web01'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from fnmatch import fnmatchcase

from pyVmomi import vim

from pipeline.errors import ConfigError, SourceError

from ..api.properties import Row, read_all
from ..api.session import VcenterSession
from .lookup import Vm, nearest, vm_of
from .tags import tagged
from .tree import (
    TREE,
    TREE_OF_HOSTS,
    Inventory,
    name_of,
)

_IDENTITY = ("config.instanceUuid", "config.uuid", "config.template")
_NAMED_IN_AN_ERROR = 10

Tagged = Mapping[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class SelectVms:
    """VMs for which everything holds that is given; at least one thing is. Settings only, no I/O.

    `pattern`: of names, with '*', '?', '[abc]' and '[!abc]' as in a shell; one that begins with '/' is of inventory
    paths, where '*' also stands for slashes. `inside`: the inventory path of a folder, datacenter, cluster, host,
    resource pool or vApp, as in '/DC/vm/Web' or '/DC/host/Cluster'; what is below it at any depth counts. `tag`:
    'category/tag', on the VM itself, for vSphere does not pass tags down. `exclude`: patterns, or whole selections.

    Templates are never selected; powered-off VMs are.

    >>> SelectVms("web*", inside="/DC/vm/Web", exclude=["*-test"])
    SelectVms(pattern='web*', inside='/DC/vm/Web', tag=None, exclude=('*-test',))
    """

    pattern: str | None = None
    _: KW_ONLY
    inside: str | None = None
    tag: str | None = None
    exclude: Sequence[str | SelectVms] = ()

    def __post_init__(self) -> None:
        if self.pattern is None and self.inside is None and self.tag is None:
            raise ConfigError(
                "A selection of VMs says nothing of them.",
                remedy="Give pattern=, inside= or tag=; every VM is SelectVms('*').",
            )
        if "" in (self.pattern, self.inside, self.tag):
            raise ConfigError(
                "A selection of VMs looks for an empty text.", remedy="Give a text, or leave it out."
            )
        category, _, name = (self.tag or "a/b").partition("/")
        if not category or not name:
            raise ConfigError(
                f"{self.tag!r} does not name a tag: the same name may be in several categories.",
                remedy="Name it with its category, as in 'backup/daily'.",
            )
        if isinstance(self.exclude, str):
            raise ConfigError("exclude= is one text.", remedy=f"Give a list: exclude=[{self.exclude!r}].")
        object.__setattr__(self, "exclude", tuple(self.exclude))

    def __str__(self) -> str:
        """What is looked for, after the word 'VM': "named web*, inside /DC/vm/Web, not *-test"."""
        told = [
            f"named {self.pattern}" if self.pattern else "",
            f"inside {self.inside}" if self.inside else "",
            f"tagged {self.tag}" if self.tag else "",
            *(f"not {one}" for one in self.exclude),
        ]
        return ", ".join(part for part in told if part)

    def parts(self) -> Iterator[SelectVms]:
        """Itself and the selections that it excludes, at any depth."""
        yield self
        for one in self.exclude:
            if isinstance(one, SelectVms):
                yield from one.parts()


async def select_vms(session: VcenterSession, selections: Sequence[SelectVms]) -> list[Vm]:
    """The VMs of at least one of the selections, each once, sorted by inventory path.

    A VM whose configuration the server cannot reach is selected too, with an empty `uuid`: it must not go missing
    silently. Raises SourceError: a selection has no VM, a place or a tag is not there (all with near names).
    """
    parts = [part for selection in selections for part in selection.parts()]
    tags = {tag: await tagged(session, tag) for tag in dict.fromkeys(part.tag for part in parts) if tag}
    paths = dict(TREE_OF_HOSTS if any(part.inside for part in parts) else TREE)
    paths[vim.VirtualMachine] = (*paths[vim.VirtualMachine], *_IDENTITY)
    rows = await session.call("RetrieveProperties", lambda: read_all(session.content, paths))
    return selected(Inventory(rows), selections, tags, session.server)


def selected(inventory: Inventory, selections: Sequence[SelectVms], tags: Tagged, server: str) -> list[Vm]:
    """The kernel of `select_vms`. `tags`: what carries each tag, as (type, moref)."""
    search = _Search(inventory, tags, server)
    found: dict[str, Row] = {}
    for selection in selections:
        here = search.find(selection)
        if not here:
            raise search.nothing(selection)
        found |= here
    vms = [
        vm_of(row, inventory, row.get("config.instanceUuid") or row.get("config.uuid") or "")
        for row in found.values()
    ]
    return sorted(vms, key=lambda vm: (vm.path, vm.moref))


@dataclass(frozen=True)
class _Search:
    """One pass of selecting."""

    inventory: Inventory
    tags: Tagged
    server: str

    def find(self, selection: SelectVms) -> dict[str, Row]:
        """By moref; may be empty. Raises SourceError for a place that is not there."""
        rows = [row for row in self.inventory.vms if not row.get("config.template")]
        if selection.tag:
            tagged = self.tags[selection.tag]
            rows = [row for row in rows if ("VirtualMachine", row.moref) in tagged]
        if selection.inside:
            inside = self.inventory.below(self._places(selection.inside))
            rows = [row for row in rows if row.moref in inside]
        if selection.pattern:
            rows = [row for row in rows if self._fits(row, selection.pattern)]
        excluded: set[str] = set()
        for one in selection.exclude:
            if isinstance(one, SelectVms):
                excluded |= self.find(one).keys()
            else:
                excluded |= {row.moref for row in rows if self._fits(row, one)}
        return {row.moref: row for row in rows if row.moref not in excluded}

    def nothing(self, selection: SelectVms) -> SourceError:
        """The error for a selection without a VM."""
        remedies = []
        if selection.pattern and (near := self._near(selection.pattern)):
            remedies.append(f"Near names: {', '.join(near)}.")
        kinds = {kind for kind, _ in self.tags.get(selection.tag or "", ())}
        if kinds and "VirtualMachine" not in kinds:
            remedies.append(
                f"The tag is on objects of the type {', '.join(sorted(kinds))}: vSphere does not pass it down "
                "to VMs; select by inside=, or tag the VMs."
            )
        seen = len(self.inventory.vms)
        return SourceError(
            f"No VM on {self.server} is {selection}; the account sees {seen} VM{'s' * (seen != 1)}.",
            remedy=" ".join(remedies)
            or "Check the selection, and that the account may see the VMs; templates are left out.",
            server=self.server,
            selection=str(selection),
        )

    def _places(self, path: str) -> list[Row]:
        found = self.inventory.at(path)
        if not found:
            places = [row for row in self.inventory.rows if row.kind != "VirtualMachine"]
            near = nearest("/" + path.strip("/"), map(self.inventory.path, places))
            raise SourceError(
                f"There is no folder or other place {path!r} on {self.server}.",
                remedy=f"Near names: {', '.join(near)}."
                if near
                else "Give an inventory path from the top, as in '/DC/vm/Web'.",
                server=self.server,
                near=near,
            )
        return found

    def _fits(self, row: Row, pattern: str) -> bool:
        return fnmatchcase(self._told(row, pattern), pattern)

    def _near(self, pattern: str) -> list[str]:
        """What fits in another case, else what is spelled like the pattern without its wildcards.

        Nothing where VMs fit, so that it is something else that does not hold.
        """
        told = sorted({self._told(row, pattern) for row in self.inventory.vms})
        if any(fnmatchcase(text, pattern) for text in told):
            return []
        other_case = [text for text in told if fnmatchcase(text.casefold(), pattern.casefold())]
        return other_case[:_NAMED_IN_AN_ERROR] or nearest(pattern.strip("*?"), told)

    def _told(self, row: Row, pattern: str) -> str:
        """What of a VM the pattern is for."""
        return self.inventory.path(row) if pattern.startswith("/") else name_of(row)
