"""Selecting VMs by name pattern, by place in the inventory and by tag, with exclusions.

One pass with narrow paths reads the whole inventory that the account can see; the selection is made from that. Case
matters, as in all look-ups by name: 'Web*' does not select 'web01'.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from fnmatch import fnmatchcase

from pyVmomi import vim

from pipeline.errors import ConfigError, SourceError

from ..api.properties import Row, read_all
from ..api.session import VcenterSession
from .lookup import TREE, TREE_OF_HOSTS, Inventory, Vm, name_of, nearest
from .tags import tagged

log = logging.getLogger(__name__)

_KIND = ("config.template", "config.managedBy")
_AGENT_MANAGER = "com.vmware.vim.eam"  # vSphere ESX Agent Manager, which also deploys the VMs of vCLS
_NAMED_IN_AN_ERROR = 10

Tagged = Mapping[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class SelectVms:
    """The VMs that meet every criterion given. Settings only, no I/O.

    Templates and agents of vSphere (VMs that it manages itself, as those of vCLS) are never selected.
    Powered-off VMs are.

    Args:
        pattern: A pattern of names, with '*', '?', '[abc]' and '[!abc]' as in a shell. One that begins with '/'
            matches inventory paths; there '*' also matches slashes.
        inside: The inventory path of a folder, datacenter, cluster, host, resource pool or vApp, as in '/DC/vm/Web'
            or '/DC/host/Cluster'. Everything below it counts, at any depth.
        tag: 'category/tag' of the VM itself, because vSphere does not pass tags down.
        exclude: Patterns or selections whose VMs are left out.

    Raises:
        ConfigError: No criterion is given, or one has a wrong form.

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
                "A selection of VMs has no criterion.",
                remedy="Give pattern=, inside= or tag=; every VM is SelectVms('*').",
            )
        if "" in (self.pattern, self.inside, self.tag):
            raise ConfigError(
                "A criterion of a selection of VMs is empty.", remedy="Give a text, or leave it out."
            )
        category, _, name = (self.tag or "a/b").partition("/")
        if not category or not name:
            raise ConfigError(
                f"{self.tag!r} does not name a tag: several categories can have a tag of one name.",
                remedy="Name it with its category, as in 'backup/daily'.",
            )
        if isinstance(self.exclude, str):
            raise ConfigError("exclude= must be a list.", remedy=f"Give a list: exclude=[{self.exclude!r}].")
        object.__setattr__(self, "exclude", tuple(self.exclude))

    def __str__(self) -> str:
        """The criteria, as in "named web*, inside /DC/vm/Web, not *-test"."""
        criteria = [
            f"named {self.pattern}" if self.pattern else "",
            f"inside {self.inside}" if self.inside else "",
            f"tagged {self.tag}" if self.tag else "",
            *(f"not {one}" for one in self.exclude),
        ]
        return ", ".join(part for part in criteria if part)

    def parts(self) -> Iterator[SelectVms]:
        """This selection and the selections that it excludes, at any depth."""
        yield self
        for one in self.exclude:
            if isinstance(one, SelectVms):
                yield from one.parts()


async def select_vms(session: VcenterSession, selections: Sequence[SelectVms]) -> list[Vm]:
    """The VMs of at least one of the selections, each once, sorted by inventory path.

    A VM whose configuration the server cannot read is selected too, with an empty `uuid`, so that it does not go
    missing silently.

    Raises:
        SourceError: A selection has no VM, or a place or a tag does not exist (with near names).
        VsphereError: The inventory or the tags cannot be read.
    """
    parts = [part for selection in selections for part in selection.parts()]
    tags = {tag: await tagged(session, tag) for tag in dict.fromkeys(part.tag for part in parts) if tag}
    paths = dict(TREE_OF_HOSTS if any(part.inside for part in parts) else TREE)
    paths[vim.VirtualMachine] = (*paths[vim.VirtualMachine], *_KIND)
    rows = await session.call("RetrieveProperties", lambda: read_all(session.content, paths))
    inventory = Inventory(rows)
    if left_out := _left_out(inventory):
        log.info("%s: left out of every selection: %s", session.server, left_out)
    return selected(inventory, selections, tags, session.server)


def selected(inventory: Inventory, selections: Sequence[SelectVms], tags: Tagged, server: str) -> list[Vm]:
    """The kernel of `select_vms`. `tags`: the objects with each tag, as (type, moref)."""
    search = _Search(inventory, tags, server)
    found: dict[str, Row] = {}
    for selection in selections:
        here = search.find(selection)
        if not here:
            raise search.nothing(selection)
        found |= here
    return sorted(map(inventory.vm, found.values()), key=lambda vm: (vm.path, vm.moref))


def is_agent(row: Row) -> bool:
    """Whether vSphere manages this VM itself, from 'config.managedBy': agents of hosts, the VMs of vCLS."""
    managed_by = row.get("config.managedBy")
    return managed_by is not None and managed_by.extensionKey == _AGENT_MANAGER


def _left_out(inventory: Inventory) -> str:
    """How many VMs are never selected, as in '2 templates, 3 agents of vSphere'; empty for none."""
    kinds = ("template" if row.get("config.template") else "agent" * is_agent(row) for row in inventory.vms)
    found = Counter(kind for kind in kinds if kind)
    return ", ".join(
        f"{found[kind]} {kind}{'s' * (found[kind] != 1)}{of}"
        for kind, of in (("template", ""), ("agent", " of vSphere"))
        if found[kind]
    )


@dataclass(frozen=True)
class _Search:
    """Selections from one inventory."""

    inventory: Inventory
    tags: Tagged
    server: str

    def find(self, selection: SelectVms) -> dict[str, Row]:
        """The rows by moref, possibly none. Raises SourceError for a place that does not exist."""
        rows = [row for row in self.inventory.vms if not row.get("config.template") and not is_agent(row)]
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
        seen, left_out = len(self.inventory.vms), _left_out(self.inventory)
        return SourceError(
            f"No VM on {self.server} is {selection}; the account sees {seen} VM{'s' * (seen != 1)}"
            f"{f', of which these are never selected: {left_out}' if left_out else ''}.",
            remedy=" ".join(remedies) or "Check the selection, and that the account can see the VMs.",
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
        return fnmatchcase(self._text(row, pattern), pattern)

    def _near(self, pattern: str) -> list[str]:
        """What matches in another case, else what is spelled like the pattern without its wildcards.

        Nothing when VMs match the pattern: then another criterion excludes them.
        """
        texts = sorted({self._text(row, pattern) for row in self.inventory.vms})
        if any(fnmatchcase(text, pattern) for text in texts):
            return []
        other_case = [text for text in texts if fnmatchcase(text.casefold(), pattern.casefold())]
        return other_case[:_NAMED_IN_AN_ERROR] or nearest(pattern.strip("*?"), texts)

    def _text(self, row: Row, pattern: str) -> str:
        """The path or the name of a VM, whichever the pattern is for."""
        return self.inventory.path(row) if pattern.startswith("/") else name_of(row)
