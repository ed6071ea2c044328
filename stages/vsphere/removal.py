"""Removing our snapshots from a VM, by their token: shared by the end of a run and by the sweep.

It starts from what the server shows, never from what we remember, so it can be begun again at any point: after a
lost answer, a restarted server, a killed process. First it waits until the VM's own snapshot tasks have ended: a
snapshot that is still being made is in no tree yet, and would outlive a removal that does not see it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
from pyVmomi import vim, vmodl

from pipeline.errors import MoverError, SourceError

from .faults import ConnectionLost, ObjectGone
from .properties import read
from .session import VcenterSession
from .snapshot_tree import SnapshotNode, snapshots_of
from .tasks import wait_for_task

T = TypeVar("T")

# Together a little over four minutes: a vCenter that restarts is back by then, and a busy VM is free.
PAUSES_S = (1, 2, 4, 8, 15, 30, 60, 120)


async def remove_ours(session: VcenterSession, vm_moref: str, token: str) -> int:
    """Remove the snapshots of this VM that carry our token, and let the disks be consolidated.

    Returns how many were removed. Raises MoverError; what is transient may be tried again.
    """
    await wait_for_snapshot_tasks(session, vm_moref)
    ours = [node for node in await snapshots_of(session, vm_moref) if node.token == token]
    for node in ours:
        await _remove(session, node)
    return len(ours)


async def find_ours(session: VcenterSession, vm_moref: str, token: str) -> str | None:
    """The moref of the snapshot with our token, also of one that is being made now; None: it never came to be."""
    await wait_for_snapshot_tasks(session, vm_moref)
    return next((node.moref for node in await snapshots_of(session, vm_moref) if node.token == token), None)


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


async def patiently(work: Callable[[], Awaitable[T]]) -> T:
    """`work` again and again while its error is transient, with growing pauses."""
    for pause_s in PAUSES_S:
        try:
            return await work()
        except MoverError as exc:
            if not exc.transient:
                raise
        await trio.sleep(pause_s)
    return await work()


def _is_snapshot_at_work(session: VcenterSession, task: vim.Task) -> bool:
    try:
        facts = read(session.content, task, ["info.descriptionId", "info.state"])
    except vmodl.fault.ManagedObjectNotFound:
        return False
    at_work = facts.get("info.state") in ("queued", "running")
    return at_work and "snapshot" in str(facts.get("info.descriptionId")).lower()


async def _remove(session: VcenterSession, node: SnapshotNode) -> None:
    subject = vim.vm.Snapshot(node.moref, session.stub)
    try:
        task = await session.call("RemoveSnapshot_Task", lambda: subject.Remove(False, True), changes=True)
        await wait_for_task(session, task, "RemoveSnapshot_Task")
    except ObjectGone:  # somebody else removed it, or the server forgot the task
        return
