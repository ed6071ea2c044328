"""Removing our snapshots from a VM, by their token: shared by the end of a run and by the sweep.

It starts from what the server shows, never from what we remember, so it can be begun again at any point: after a
lost answer, a restarted server, a killed process. First it waits until the VM's own snapshot tasks have ended: a
snapshot that is still being made is in no tree yet, and would outlive a removal that does not see it.
"""

from __future__ import annotations

from functools import partial

from pyVmomi import vim, vmodl

from pipeline.errors import MoverError, SourceError

from ..api.faults import ConnectionLost
from ..api.properties import read
from ..api.session import VcenterSession
from ..api.tasks import wait_for_task
from .consolidate import Consolidate, rungs, settle_consolidation
from .tree import SnapshotNode, snapshots_of


async def remove_ours(
    session: VcenterSession, vm_moref: str, vm_name: str, token: str, *, consolidate: Consolidate
) -> int:
    """Remove the snapshots of this VM that carry our token, and see that its disks are consolidated.

    `consolidate`: what may be done where that does not come by itself; the token's intent must be in the journal.
    Returns how many were removed. Raises ConsolidationNeeded when only that is left to do, MoverError; what is
    transient may be tried again.
    """
    remove = partial(_out_of_the_tree, session, vm_moref, token)
    removed = await remove()
    ladder = rungs(session, vm_moref, token, consolidate, remove)
    await settle_consolidation(session, vm_moref, vm_name, ladder)
    return removed


async def _out_of_the_tree(session: VcenterSession, vm_moref: str, token: str) -> int:
    """Remove the snapshots with our token, whatever becomes of their disks; returns how many there were."""
    await wait_for_snapshot_tasks(session, vm_moref)
    ours = await ours_of(session, vm_moref, token)
    for node in ours:
        try:
            await _remove(session, node)
        except ConnectionLost:
            raise
        except MoverError as exc:
            # One that failed at its disks, or whose snapshot somebody else removed, left none all the same.
            if exc.transient or node.moref in {
                left.moref for left in await ours_of(session, vm_moref, token)
            }:
                raise
    return len(ours)


async def ours_of(session: VcenterSession, vm_moref: str, token: str) -> list[SnapshotNode]:
    """The snapshots of the VM with our token, as the tree shows them now."""
    return [node for node in await snapshots_of(session, vm_moref) if node.token == token]


async def find_ours(session: VcenterSession, vm_moref: str, token: str) -> SnapshotNode | None:
    """The snapshot with our token, also one that is being made now; None: it is not there."""
    await wait_for_snapshot_tasks(session, vm_moref)
    return next(iter(await ours_of(session, vm_moref, token)), None)


async def wait_for_snapshot_tasks(session: VcenterSession, vm_moref: str) -> None:
    """Wait until no snapshot of the VM is being made or removed, by anybody; how they end does not matter here."""
    subject = vim.VirtualMachine(vm_moref, session.stub)

    def unfinished() -> list[vim.Task]:
        tasks = read(session.content, subject, ["recentTask"]).get("recentTask") or ()
        return [task for task in tasks if _is_snapshot_at_work(session, task)]

    for task in await session.call("RetrieveProperties", unfinished):
        try:
            await wait_for_task(session, task, "snapshot task")
        except ConnectionLost:
            raise
        except SourceError:  # it ended with an error, which is its caller's business
            continue


def _is_snapshot_at_work(session: VcenterSession, task: vim.Task) -> bool:
    try:
        facts = read(session.content, task, ["info.descriptionId", "info.state"])
    except vmodl.fault.ManagedObjectNotFound:
        return False
    at_work = facts.get("info.state") in ("queued", "running")
    description = str(facts.get("info.descriptionId")).lower()
    return at_work and ("snapshot" in description or "consolidate" in description)


async def _remove(session: VcenterSession, node: SnapshotNode) -> None:
    subject = vim.vm.Snapshot(node.moref, session.stub)
    task = await session.call("RemoveSnapshot_Task", lambda: subject.Remove(False, True), changes=True)
    await wait_for_task(session, task, "RemoveSnapshot_Task")
