"""The mark of a VM whose disks are being written over, in its notes and its settings, and its change tracking.

While the mark stands, the disks are neither what they were nor what a point holds: it is there so that nobody
powers the VM on. All of this may be repeated after a lost answer.
"""

from __future__ import annotations

from functools import partial

from pyVmomi import vim

from ..api.retry import retry
from ..api.session import VcenterSession
from ..api.tasks import wait_for_task

SETTING = "vadpipe.restoring"
_BEGIN = "[vadpipe] This VM is being restored in place"


async def mark(session: VcenterSession, vm_moref: str, point: str) -> None:
    """Say in the notes and the settings of the VM that it must not be powered on. May be repeated."""
    line = f"{_BEGIN} to point {point}. Its disks are mixed: do not power it on, run the restore again."
    kept = unmarked(await _annotation(session, vm_moref))
    await _reconfigure(session, vm_moref, annotation=f"{line}\n{kept}", setting=f"to point {point}")


async def unmark(session: VcenterSession, vm_moref: str) -> None:
    """Remove the mark; other lines of the notes stay. May be repeated."""
    kept = unmarked(await _annotation(session, vm_moref))
    await _reconfigure(session, vm_moref, annotation=kept, setting="")


async def _annotation(session: VcenterSession, vm_moref: str) -> str:
    row = await session.properties(vim.VirtualMachine(vm_moref, session.stub), ["config.annotation"])
    return str(row.get("config.annotation") or "")


def unmarked(annotation: str) -> str:
    """The notes without our line; the rest is not ours, and stays to the byte."""
    return "".join(line for line in annotation.splitlines(keepends=True) if not line.startswith(_BEGIN))


async def set_tracking(session: VcenterSession, vm_moref: str, *, on: bool) -> None:
    """Switch the setting of change tracking; it reaches the disks with the next stun or power cycle."""
    await retry(
        partial(_send, session, vm_moref, vim.vm.ConfigSpec(changeTrackingEnabled=on)),
        session.settings.patience_s,
    )


async def _reconfigure(session: VcenterSession, vm_moref: str, *, annotation: str, setting: str) -> None:
    option = vim.option.OptionValue(key=SETTING, value=setting)
    spec = vim.vm.ConfigSpec(annotation=annotation, extraConfig=[option])
    await retry(partial(_send, session, vm_moref, spec), session.settings.patience_s)


async def _send(session: VcenterSession, vm_moref: str, spec: vim.vm.ConfigSpec) -> None:
    subject = vim.VirtualMachine(vm_moref, session.stub)
    task = await session.call("ReconfigVM_Task", lambda: subject.Reconfigure(spec), changes=True)
    await wait_for_task(session, task, "ReconfigVM_Task")
