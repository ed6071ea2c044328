"""The reset of change tracking around a restore over a VM.

Change tracking does not describe what a restore writes, so a change id from before it must never be used again.
Tracking is switched off before the first byte and on after the proof. The setting reaches a disk at a stun only, so
a snapshot is made and removed in between; the disks then show that they have no tracking any more. Switched on
again it begins with another UUID, and the next backup is full and says that tracking was reset.

Source: KB 2139574 (resetting changed block tracking).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from pipeline.errors import SourceError

from ..api.session import VcenterSession
from ..inventory.hardware import VmDisk, vm_disks
from ..inventory.lookup import Vm
from ..journal.intents import Journal
from ..snapshot.quiesce import Quiesce
from ..snapshot.snapshot import open_snapshot
from ..vm.mark import set_tracking

log = logging.getLogger(__name__)


async def end_tracking(
    session: VcenterSession, vm: Vm, disks: Mapping[str, VmDisk], journal: Journal, *, run: str
) -> Mapping[str, VmDisk]:
    """Switch change tracking off, and see that the disks have none. Returns the disks as they are now.

    Raises:
        SourceError: A disk still has it, or is another file now.
        MoverError: Of the server.
    """
    await set_tracking(session, vm.moref, on=False)
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
    await set_tracking(session, vm.moref, on=True)
    return (
        f"Change tracking of {vm.name} was reset: its next backup reads {len(disks)} "
        f"disk{'s' * (len(disks) != 1)} in full."
    )
