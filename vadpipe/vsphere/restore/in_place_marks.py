"""What is changed at a VM around a restore over it: a mark that people see, and change tracking, which is reset.

The mark stands in the notes of the VM and in its settings while its disks are mixed, so that nobody powers it on.

Change tracking does not describe what a restore writes, so a change id from before it must never be used again.
Tracking is switched off before the first byte and on after the proof. The setting reaches a disk at a stun only, so
a snapshot is made and removed in between; the disks then show that they have no tracking any more. Switched on again
it begins with another UUID, and the next backup is full and says that tracking was reset.

Source: KB 2139574 (resetting changed block tracking).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial

from pyVmomi import vim

from pipeline.errors import SourceError

from ..api.retry import retry
from ..api.session import VcenterSession
from ..api.tasks import wait_for_task
from ..inventory.hardware import VmDisk, vm_disks
from ..inventory.lookup import Vm
from ..journal.intents import Journal
from ..snapshot.quiesce import Quiesce
from ..snapshot.snapshot import open_snapshot

log = logging.getLogger(__name__)

SETTING = "vadpipe.restoring"
_BEGIN = "[vadpipe] This VM is being restored in place"


async def mark(session: VcenterSession, vm: Vm, point: str) -> None:
    """Say in the notes and the settings of the VM that it must not be powered on. May be repeated."""
    line = f"{_BEGIN} to point {point}. Its disks are mixed: do not power it on, run the restore again."
    kept = _unmarked(await _annotation(session, vm))
    await _reconfigure(session, vm, annotation="\n".join([line, *kept]), setting=f"to point {point}")


async def unmark(session: VcenterSession, vm: Vm) -> None:
    """Remove the mark; other lines of the notes stay. May be repeated."""
    kept = _unmarked(await _annotation(session, vm))
    await _reconfigure(session, vm, annotation="\n".join(kept), setting="")


async def end_tracking(
    session: VcenterSession, vm: Vm, disks: Mapping[str, VmDisk], journal: Journal, *, run: str
) -> Mapping[str, VmDisk]:
    """Switch change tracking off, and see that the disks have none. Returns the disks as they are now.

    Raises:
        SourceError: A disk still has it, or is another file now.
        MoverError: Of the server.
    """
    await _set_tracking(session, vm, on=False)
    if any(disk.tracked for disk in disks.values()):
        log.info("%s: a snapshot is made and removed, so that its disks drop change tracking", vm.name)
        async with open_snapshot(session, vm, Quiesce.none(), journal, run=run):
            pass
    row = await session.properties(vm.reference(session), ["config.hardware.device"])
    now = {disk.key: disk for disk in vm_disks(row.get("config.hardware.device") or ())}
    found = {key: now.get(disk.key, disk) for key, disk in disks.items()}
    tracked = [disk.label for disk in found.values() if disk.tracked]
    if tracked:
        raise SourceError(
            f"Change tracking of {vm.name} was switched off, but {', '.join(tracked)} still has it: a later backup "
            "could trust it although it misses what a restore writes.",
            remedy="Power the VM on and off once with change tracking off, or restore into a new VM.",
            vm=vm.name,
        )
    moved = [key for key, disk in found.items() if disk.path != disks[key].path]
    if moved:
        raise SourceError(
            f"The disks {', '.join(moved)} of {vm.name} have other files now than before.",
            remedy="See who else changes the VM, and run again.",
            vm=vm.name,
        )
    return found


async def begin_tracking(session: VcenterSession, vm: Vm, disks: Sequence[VmDisk]) -> str:
    """Switch change tracking on again. Returns a sentence for the report."""
    await _set_tracking(session, vm, on=True)
    return (
        f"Change tracking of {vm.name} was reset: its next backup reads {len(disks)} "
        f"disk{'s' * (len(disks) != 1)} in full."
    )


async def _annotation(session: VcenterSession, vm: Vm) -> str:
    row = await session.properties(vm.reference(session), ["config.annotation"])
    return str(row.get("config.annotation") or "")


def _unmarked(annotation: str) -> list[str]:
    return [line for line in annotation.splitlines() if not line.startswith(_BEGIN)]


async def _set_tracking(session: VcenterSession, vm: Vm, *, on: bool) -> None:
    await retry(
        partial(_send, session, vm, vim.vm.ConfigSpec(changeTrackingEnabled=on)), session.settings.patience_s
    )


async def _reconfigure(session: VcenterSession, vm: Vm, *, annotation: str, setting: str) -> None:
    option = vim.option.OptionValue(key=SETTING, value=setting)
    spec = vim.vm.ConfigSpec(annotation=annotation, extraConfig=[option])
    await retry(partial(_send, session, vm, spec), session.settings.patience_s)


async def _send(session: VcenterSession, vm: Vm, spec: vim.vm.ConfigSpec) -> None:
    subject = vm.reference(session)
    task = await session.call("ReconfigVM_Task", lambda: subject.Reconfigure(spec), changes=True)
    await wait_for_task(session, task, "ReconfigVM_Task")
