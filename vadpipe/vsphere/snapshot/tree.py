"""The snapshots of a VM as a flat list, and which of them are ours."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pyVmomi import vim

from ..api.faults import Busy
from ..api.session import VcenterSession
from ..inventory.lookup import Vm

_CONNECTION = "runtime.connectionState"
_MARK = re.compile(r"\[vadpipe:(?P<token>[0-9a-f]{32})\]")


@dataclass(frozen=True)
class SnapshotNode:
    """One snapshot of a VM. `token`: of our intent, from its description; None: it is not ours. `parent`: the moref
    of the snapshot above it, empty at the root."""

    moref: str
    name: str
    description: str
    quiesced: bool
    backup_manifest: str | None
    token: str | None
    parent: str = ""


def description_with(token: str, origin: str = "") -> str:
    """The description of a snapshot of ours, which names its intent. `origin`: for people, what made it where."""
    made = f" by {origin}" if origin else ""
    return (
        f"Temporary snapshot of a backup{made}, removed at its end. Do not edit this line. [vadpipe:{token}]"
    )


async def snapshots_of(session: VcenterSession, vm_moref: str) -> list[SnapshotNode]:
    """All snapshots of the VM, ours and others, parents before children.

    Raises Busy, which is transient, where the server cannot see: an unset tree means "none" only for a VM whose
    host is connected and whose files are accessible.
    """
    subject, paths = vim.VirtualMachine(vm_moref, session.stub), ["snapshot", _CONNECTION]
    row = await session.properties(subject, paths)
    tree, connection = row.get("snapshot"), row.get(_CONNECTION)
    if tree is None and connection != "connected":
        raise Busy(
            f"{session.server} shows no snapshots of the VM {vm_moref}, but the VM is {connection}.",
            remedy="See whether its host is connected and its datastore accessible.",
            server=session.server,
            vm_moref=vm_moref,
        )
    return list(flat_tree(tree.rootSnapshotList)) if tree else []


async def snapshots_left(session: VcenterSession, vm: Vm) -> int:
    """How many snapshots the VM has, whoever made them."""
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
        )
        yield from flat_tree(tree.childSnapshotList, str(tree.snapshot._moId))
