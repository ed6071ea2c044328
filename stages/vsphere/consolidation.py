"""Redo logs that outlived their snapshot: `consolidationNeeded`, and what can be done about it."""

from __future__ import annotations

from functools import partial

import trio
from pyVmomi import vim

from pipeline.errors import MoverError, SnapshotLeaked

from .patience import patiently, pauses
from .properties import read
from .session import VcenterSession
from .tasks import wait_for_task

# How long a host may take to say that the disks are consolidated after a removal has ended.
_SETTLE_S = 30.0
_NEEDED = "runtime.consolidationNeeded"


class ConsolidationNeeded(SnapshotLeaked):
    """The snapshot left the tree, its redo logs did not; the VM goes on growing them."""


async def needs_consolidation(session: VcenterSession, vm_moref: str) -> bool:
    """Whether vSphere says that the VM's disks need consolidation."""
    subject = vim.VirtualMachine(vm_moref, session.stub)
    row = await session.call("RetrieveProperties", lambda: read(session.content, subject, [_NEEDED]))
    return bool(row.get(_NEEDED))


async def settle_consolidation(
    session: VcenterSession, vm_moref: str, vm_name: str, *, allowed: bool
) -> bool:
    """Wait until the disks need no consolidation, and consolidate them if that is `allowed` and does not come.

    Returns whether they were consolidated. Raises ConsolidationNeeded.
    """
    if not await needs_consolidation(session, vm_moref):
        return False
    for pause_s in pauses(min(_SETTLE_S, session.settings.patience_s)):
        await trio.sleep(pause_s)
        if not await needs_consolidation(session, vm_moref):
            return False
    reason = "consolidating is not allowed by the configuration"
    if allowed:
        try:
            await patiently(partial(_consolidate, session, vm_moref), session.settings.patience_s)
            reason = "vSphere still says so after ConsolidateVMDisks"
        except MoverError as exc:
            reason = exc.problem.rstrip(".")
        if not await needs_consolidation(session, vm_moref):
            return True
    raise ConsolidationNeeded(
        f"The disks of {vm_name} need consolidation: {reason}.",
        remedy="Run 'vadpipe cleanup' again, or consolidate the disks in the vSphere Client before they fill the "
        "datastore.",
        vm=vm_name,
        vm_moref=vm_moref,
        server=session.server,
    )


async def _consolidate(session: VcenterSession, vm_moref: str) -> None:
    if not await needs_consolidation(session, vm_moref):
        return
    subject = vim.VirtualMachine(vm_moref, session.stub)
    task = await session.call("ConsolidateVMDisks_Task", subject.ConsolidateVMDisks_Task, changes=True)
    await wait_for_task(session, task, "ConsolidateVMDisks_Task")
