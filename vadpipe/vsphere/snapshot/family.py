"""What one creation made: which of its snapshots holds the quiesced state, and what of it is not surely ours.

VSS writers may still change the image after the freeze, so application quiescing of Windows gives each disk a
second redo log. Mostly it belongs to the one snapshot, whose configuration names it: that is what to read. But it
may also show as a writable sibling in the tree: then one snapshot names the files that were frozen, and the other a
redo log directly on each of them, which is the quiesced state. A snapshot that somebody takes on top of ours hangs
on the same files, and is told from a sibling by its place: it is a child.

Reading does no harm, so the place and the files decide what is read. Removing does: only what carries our mark is
removed, and a sibling without it is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pyVmomi import vim

from ..api.session import VcenterSession
from ..inventory.hardware import chains
from ..inventory.lookup import Vm
from .tree import SnapshotNode, snapshots_of

Chains = Mapping[int, Sequence[str]]
"""By device key, the files of a disk from what a snapshot names down to its base."""


@dataclass(frozen=True)
class Family:
    """The snapshots of one creation. `node`: the one to read, with what any of them says of the quiescing.

    `attention`: a sentence for what the creation left that may not be removed.
    """

    node: SnapshotNode
    morefs: frozenset[str]
    attention: Sequence[str] = ()


async def family_of(session: VcenterSession, vm: Vm, token: str, created: str) -> Family | None:
    """What was made with the snapshot `created`, whose description has `token`; None: it is not in the tree."""
    nodes = await snapshots_of(session, vm.moref)
    named = next((node for node in nodes if node.moref == created), None)
    if named is None:
        return None
    beside = [node for node in nodes if node is not named and _may_be_of(node, named, token)]
    if not beside:
        return Family(named, frozenset({created}))
    known = {node.moref: await _chains(session, node) for node in (named, *beside)}
    ours = [node for node in beside if node.token == token]
    chosen = next((node for node in beside if lies_on(known[node.moref], known[created])), named)
    family = [named, *ours, chosen]
    attention = [] if chosen is named or chosen in ours else [_unmarked(vm, chosen)]
    if chosen is named and ours and not any(lies_on(known[created], known[node.moref]) for node in ours):
        attention = [_undecided(vm, [named, *ours])]
    morefs = frozenset(node.moref for node in family)
    quiesced = any(node.quiesced for node in family)
    node = replace(chosen, backup_manifest=named_manifest(family, morefs), quiesced=quiesced)
    return Family(node, morefs, attention)


def named_manifest(nodes: Iterable[SnapshotNode], family: frozenset[str]) -> str | None:
    """The VSS manifest that the tree names for any snapshot of one creation."""
    named = (node.backup_manifest for node in nodes if node.moref in family)
    return next((manifest for manifest in named if manifest), None)


def lies_on(upper: Chains, lower: Chains) -> bool:
    """Whether `upper` is a writable layer on what `lower` shows.

    Every disk is the same in both, or hangs directly on the file that `lower` names; one at least does.
    """
    if upper.keys() != lower.keys():
        return False
    pairs = [(list(upper[key]), list(lower[key])) for key in upper]
    layered = [above[1:] == below and bool(below) for above, below in pairs]
    same = [above == below for above, below in pairs]
    return any(layered) and all(one or other for one, other in zip(layered, same, strict=True))


def _may_be_of(node: SnapshotNode, named: SnapshotNode, token: str) -> bool:
    return node.parent == named.parent and node.token in (token, None)


async def _chains(session: VcenterSession, node: SnapshotNode) -> Chains:
    subject = vim.vm.Snapshot(node.moref, session.stub)
    paths = ["config.hardware.device"]
    row = await session.properties(subject, paths)
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
