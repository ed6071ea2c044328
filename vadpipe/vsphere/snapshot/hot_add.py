"""Disks that VDDK attaches to this machine, and how they are detached for certain.

With the transport hotadd the library attaches a snapshot's disk to the VM that it runs in. Closing the disk and the
library's own clean-up detach it. A process of the library that crashed or hung did neither; the disk then stays
attached and locked, with a redo log of its own, and its snapshot must not be removed before it is detached.

When the library cannot clean up, e.g. because it cannot connect, vSphere is asked which VM has the disks attached.
Where none has, there is nothing to detach, and the snapshot is removed.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pyVmomi import vim

from pipeline.errors import LeftBehind, MoverError, leaves
from vadpipe.vddk.access import VmAccess
from vadpipe.vddk.errors import VddkError
from vadpipe.words import counted

from ..api.properties import read, read_each
from ..api.retry import retry
from ..api.session import VcenterSession
from ..inventory.datastore import vms_on
from ..inventory.hardware import chains, vm_disks
from ..inventory.lookup import Vm
from ..journal.access import AccessReader, Attachable, library_of, vm_access
from ..journal.intents import IntentKind, Journal
from ..journal.journaled import journaled
from .tree import flat_tree

log = logging.getLogger(__name__)

# A process of the library that lost its mover is gone after half a minute; one of its calls takes minutes at most.
_DETACH_WITHIN_S = 600.0
# How long a disk that is still open in another process is waited for.
_CLOSED_WITHIN_S = 60.0
_BEFORE_OPEN = ("InitEx", "AllocateConnectParams", "ConnectEx")
_DEVICES = "config.hardware.device"


class DisksStillAttached(LeftBehind):
    """Disks of a snapshot are still hot-added to a VM. Transient: whoever has them open may close them."""

    transient = True


@dataclass
class HotAdds:
    """Disks that are opened while they may be hot-added. `begun`: at least one open was tried."""

    begun: bool = False
    opened: list[object] = field(default_factory=list)

    @property
    def in_doubt(self) -> bool:
        """Whether a disk that was opened and closed may still be attached."""
        return any(isinstance(disk, Attachable) and disk.may_be_attached for disk in self.opened)


@asynccontextmanager
async def hot_added(
    session: VcenterSession, vm: Vm, reader: object, journal: Journal, *, run: str
) -> AsyncIterator[HotAdds]:
    """Open disks inside, say so in the value, and close them inside too.

    Raises:
        DisksStillAttached: Not all disks could be detached; in a group with the error of the body when both failed.
    """
    adds = HotAdds()
    if not isinstance(reader, AccessReader) or not reader.may_hot_add:
        yield adds
        return
    access = vm_access(session, vm.moref)
    library = library_of(reader, access)

    async def undo(failure: BaseException | None) -> None:
        if not adds.begun or (failure is None and not adds.in_doubt):
            return
        never_opened = failure is not None and _failed_before_open(failure)
        if never_opened and not await attached_to(session, vm.moref):
            return
        await detach(session, reader, access, vm.name)

    def left(reason: str) -> DisksStillAttached:
        return DisksStillAttached(
            f"Disks of {vm.name} may still be hot-added to this machine: {reason.rstrip('.')}.",
            remedy="The next run or 'vadpipe cleanup' tries again.",
            vm=vm.name,
            vm_moref=vm.moref,
            server=session.server,
        )

    async with journaled(session, vm, journal, IntentKind.HOT_ADD, run=run, **library) as entry:
        entry.undo_with(undo, within_s=_DETACH_WITHIN_S, or_else=left)
        yield adds


async def detach(session: VcenterSession, reader: AccessReader, access: VmAccess, vm_name: str) -> int:
    """Detach the VM's disks that a process left attached; returns how many.

    Raises:
        DisksStillAttached: vSphere shows disks of the VM's snapshots attached to another VM.
        MoverError: Neither the library nor vSphere could be asked.
    """
    done = 0

    async def clean_up() -> None:
        nonlocal done
        result = await reader.clean_up(access)
        done += result.cleaned
        if result.remaining:
            raise DisksStillAttached(
                f"VDDK could not detach {counted(result.remaining, 'disk')} of {vm_name}"
            )

    try:
        await retry(clean_up, min(session.settings.patience_s, _CLOSED_WITHIN_S))
    except MoverError as exc:
        holders = await attached_to(session, access.vm)
        if holders:
            raise DisksStillAttached(
                f"Disks of {vm_name} are still hot-added to {', '.join(holders)}: {exc.problem.rstrip('.')}.",
                remedy="The next run or 'vadpipe cleanup' tries again; or remove the disks from that VM in the "
                "vSphere Client, without deleting them, and then the snapshot.",
                vm=vm_name,
                vm_moref=access.vm,
                server=access.server,
                attached_to=holders,
            ) from exc
        log.info("VDDK could not clean up for %s, but no VM has its disks attached: %s", vm_name, exc)
    return done


async def attached_to(session: VcenterSession, vm_moref: str) -> list[str]:
    """The names of other VMs that have a disk of this VM, or of one of our snapshots of it, attached.

    Of each disk only the file that is in use counts: linked clones share the files below it. Independent disks do
    not count, because no snapshot holds them: disks that are hot-added to this VM are such.
    """
    subject = vim.VirtualMachine(vm_moref, session.stub)

    def ask() -> list[str]:
        content = session.content
        vm = read(content, subject, [_DEVICES, "snapshot", "datastore"])
        tree = vm.get("snapshot")
        nodes = flat_tree(tree.rootSnapshotList) if tree else ()
        ours = [vim.vm.Snapshot(node.moref, session.stub) for node in nodes if node.token]
        rows = [vm, *read_each(content, ours, [_DEVICES])]
        disks = [facts for row in rows for facts in vm_disks(row.get(_DEVICES) or ())]
        in_use = {facts.path for facts in disks if not facts.left_out}
        others = vms_on(content, vm.get("datastore") or ())
        others.pop(vm_moref, None)
        return sorted(
            str(row.get("name"))
            for row in read_each(content, list(others.values()), ["name", _DEVICES])
            if any(in_use.intersection(chain) for chain in chains(row.get(_DEVICES) or ()).values())
        )

    return await session.call("RetrieveProperties", ask)


def _failed_before_open(failure: BaseException) -> bool:
    calls = [leaf.facts.get("call") for leaf in leaves(failure) if isinstance(leaf, VddkError)]
    return any(call in _BEFORE_OPEN for call in calls)
