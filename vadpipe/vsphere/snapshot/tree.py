"""The snapshots of a VM: which of them are ours, and which of them one creation made.

VSS writers may still change the image after the freeze, so application quiescing of Windows gives each disk a
second redo log. Usually it belongs to the one snapshot, whose configuration names it, and that is read. It may also
appear as a writable sibling in the tree: then one snapshot names the frozen files, and the other a redo log
directly on each of them, which holds the quiesced state. A snapshot that somebody takes on top of ours has the same
files below it, but is a child, not a sibling.

Reading does no harm, so the place in the tree and the files decide what is read. Removing may do harm: only what
carries our mark is removed, and a sibling without the mark is reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pyVmomi import vim

from vadpipe.words import duration

from ..api.faults import Busy
from ..api.properties import Row
from ..api.session import VcenterSession
from ..inventory.hardware import chains
from ..inventory.lookup import Vm

_CONNECTION = "runtime.connectionState"
SNAPSHOT_PATHS = ("snapshot", _CONNECTION)
_MARK = re.compile(r"\[vadpipe:(?P<token>[0-9a-f]{32})\]")

Chains = Mapping[int, Sequence[str]]
"""By device key, the files of a disk from the one that a snapshot names down to its base."""


@dataclass(frozen=True)
class SnapshotNode:
    """One snapshot of a VM.

    `token`: of our intent, from the description; None: the snapshot is not ours. `parent`: moref of the snapshot
    above it, empty at the root. `created`: by the server's clock.
    """

    moref: str
    name: str
    description: str
    quiesced: bool
    backup_manifest: str | None
    token: str | None
    parent: str = ""
    created: datetime | None = None

    @property
    def title(self) -> str:
        """Its name, reference and age, as in "'vadpipe 2026...' (snapshot-12, 3 hours old)"."""
        age = f", {duration((datetime.now(UTC) - self.created).total_seconds())} old" if self.created else ""
        return f"{self.name!r} ({self.moref}{age})"


def description_with(token: str, origin: str = "") -> str:
    """The description of a snapshot of ours. `origin`: which run of which process made it."""
    made = f" by {origin}" if origin else ""
    return (
        f"Temporary snapshot of a backup{made}, removed at its end. Do not edit this line. [vadpipe:{token}]"
    )


async def snapshots_of(session: VcenterSession, vm_moref: str) -> list[SnapshotNode]:
    """All snapshots of the VM, whoever made them, parents before children.

    Raises:
        Busy: The server cannot tell (transient). An unset tree means "none" only for a VM whose host is connected.
    """
    row = await session.properties(vim.VirtualMachine(vm_moref, session.stub), SNAPSHOT_PATHS)
    return snapshots_in(session, row)


def snapshots_in(session: VcenterSession, row: Row) -> list[SnapshotNode]:
    """As `snapshots_of`, from the properties SNAPSHOT_PATHS of the VM."""
    tree, connection = row.get("snapshot"), row.get(_CONNECTION)
    if tree is None and connection != "connected":
        raise Busy(
            f"{session.server} shows no snapshots of the VM {row.moref}, but the VM is {connection}.",
            remedy="See whether its host is connected and its datastore accessible.",
            server=session.server,
            vm_moref=row.moref,
        )
    return list(flat_tree(tree.rootSnapshotList)) if tree else []


async def snapshots_left(session: VcenterSession, vm: Vm) -> int:
    """The number of snapshots of the VM, whoever made them."""
    return len(await snapshots_of(session, vm.moref))


def flat_tree(trees: Iterable[vim.vm.SnapshotTree], parent: str = "") -> Iterable[SnapshotNode]:
    """The snapshots of the API's trees, parents before children."""
    for tree in trees:
        mark = _MARK.search(tree.description or "")
        yield SnapshotNode(
            moref=str(tree.snapshot._moId),
            name=tree.name,
            description=tree.description or "",
            quiesced=bool(tree.quiesced),
            backup_manifest=tree.backupManifest or None,
            token=mark["token"] if mark else None,
            parent=parent,
            created=tree.createTime,
        )
        yield from flat_tree(tree.childSnapshotList, str(tree.snapshot._moId))


@dataclass(frozen=True)
class Family:
    """The snapshots that one creation made.

    `node`: the one to read; its manifest and its quiesced flag may come from any member. `attention`: a sentence
    for what the creation left and nobody may remove.
    """

    node: SnapshotNode
    morefs: frozenset[str]
    attention: Sequence[str] = ()


async def family_of(session: VcenterSession, vm: Vm, token: str, created: str) -> Family | None:
    """The family of the snapshot `created`, which carries `token`; None when the tree does not show it."""
    nodes = await snapshots_of(session, vm.moref)
    named = next((node for node in nodes if node.moref == created), None)
    if named is None:
        return None
    beside = [
        node
        for node in nodes
        if node is not named and node.parent == named.parent and node.token in (token, None)
    ]
    if not beside:
        return Family(named, frozenset({created}))
    files = {node.moref: await _chains(session, node) for node in (named, *beside)}
    ours = [node for node in beside if node.token == token]
    chosen = next((node for node in beside if lies_on(files[node.moref], files[created])), named)
    family = [named, *ours, chosen]
    attention = [] if chosen is named or chosen in ours else [_unmarked(vm, chosen)]
    if chosen is named and ours and not any(lies_on(files[created], files[node.moref]) for node in ours):
        attention = [_undecided(vm, [named, *ours])]
    morefs = frozenset(node.moref for node in family)
    quiesced = any(node.quiesced for node in family)
    node = replace(chosen, backup_manifest=named_manifest(family, morefs), quiesced=quiesced)
    return Family(node, morefs, attention)


def named_manifest(nodes: Iterable[SnapshotNode], family: frozenset[str]) -> str | None:
    """The VSS manifest that the tree names for any snapshot of the family."""
    named = (node.backup_manifest for node in nodes if node.moref in family)
    return next((manifest for manifest in named if manifest), None)


def lies_on(upper: Chains, lower: Chains) -> bool:
    """Whether `upper` is a writable layer on `lower`.

    Every disk is either the same in both or a file directly on the one that `lower` names; at least one is the
    latter.
    """
    if upper.keys() != lower.keys():
        return False
    pairs = [(list(upper[key]), list(lower[key])) for key in upper]
    layered = [above[1:] == below and bool(below) for above, below in pairs]
    same = [above == below for above, below in pairs]
    return any(layered) and all(one or other for one, other in zip(layered, same, strict=True))


async def _chains(session: VcenterSession, node: SnapshotNode) -> Chains:
    row = await session.properties(vim.vm.Snapshot(node.moref, session.stub), ["config.hardware.device"])
    return chains(row.get("config.hardware.device") or ())


def _undecided(vm: Vm, nodes: Sequence[SnapshotNode]) -> str:
    return (
        f"{vm.name} was quiesced into the snapshots {' and '.join(node.moref for node in nodes)}, and the server "
        f"does not tell which of them the guest's writers changed; {nodes[0].moref} was read."
    )


def _unmarked(vm: Vm, node: SnapshotNode) -> str:
    return (
        f"The quiesced state of {vm.name} was read from the snapshot {node.name!r} ({node.moref}), which appeared "
        "beside ours and does not carry our mark. It is left alone; remove it in the vSphere Client."
    )
