"""Disks that VDDK attaches to this machine, and what it takes to be sure that they are detached again.

With the transport hotadd the library attaches a snapshot's disk to the VM that it runs in. Closing the disk and its
own clean-up detach it. A process of it that crashed or hung did neither; then a disk stays attached, locked, with a
redo log of its own, and its snapshot must not be removed before `VixDiskLib_Cleanup` has detached it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from pipeline.errors import LeftBehind, MoverError
from vadpipe.vddk.access import VmAccess

from ..api.retry import patiently
from ..api.session import VcenterSession
from ..inventory.lookup import Vm
from .access import (
    AccessReader,
    Attachable,
    library_of,
    vm_access,
)
from .intents import Journal, Kind
from .journaled import announce, settle, undone_by

# A process of the library that lost its mover is gone after half a minute; a call of it takes minutes at most.
_DETACH_WITHIN_S = 600.0
# How long a disk that is still open somewhere is waited for.
_CLOSED_WITHIN_S = 60.0


class DisksStillAttached(LeftBehind):
    """Disks of a snapshot are still hot-added to this machine. Transient: whoever has them open may be leaving."""

    transient = True


@asynccontextmanager
async def hot_added(
    session: VcenterSession, vm: Vm, reader: object, journal: Journal, *, run: str
) -> AsyncIterator[list[object]]:
    """Open disks inside, and put them into the list; they are closed inside too.

    Raises DisksStillAttached, in a group with the body's error when both failed, for what could not be detached.
    """
    opened: list[object] = []
    if not isinstance(reader, AccessReader) or not reader.may_hot_add:
        yield opened
        return
    access = vm_access(session, vm.moref)
    library = library_of(reader, access)
    intent = await announce(session, vm, journal, run, Kind.HOT_ADD, **library)

    async def undo(failed: bool) -> MoverError | None:
        left = None
        if failed or any(isinstance(disk, Attachable) and disk.may_be_attached for disk in opened):
            left = await _undone(session, vm, reader, access)
        return await settle(journal, intent, left)

    async with undone_by(undo):
        yield opened


async def detach(reader: AccessReader, access: VmAccess, vm_name: str, patience_s: float) -> int:
    """Detach what is left of a VM; returns how many disks that were. Raises DisksStillAttached, MoverError."""
    done = 0

    async def once() -> None:
        nonlocal done
        result = await reader.clean_up(access)
        done += result.cleaned
        if result.remaining:
            raise DisksStillAttached(
                f"{result.remaining} disks of {vm_name} are still hot-added to this machine.",
                remedy="The next run or 'vadpipe cleanup' tries again; or remove the disks from this machine in "
                "the vSphere Client, without deleting them, and then the snapshot.",
                vm=vm_name,
                vm_moref=access.vm,
                server=access.server,
            )

    await patiently(once, min(patience_s, _CLOSED_WITHIN_S))
    return done


async def _undone(
    session: VcenterSession, vm: Vm, reader: AccessReader, access: VmAccess
) -> DisksStillAttached | None:
    reason = f"there was no answer within {_DETACH_WITHIN_S:.0f} s"
    with trio.move_on_after(_DETACH_WITHIN_S, shield=True):
        try:
            await detach(reader, access, vm.name, session.settings.patience_s)
            return None
        except DisksStillAttached as exc:
            return exc
        except MoverError as exc:
            reason = str(exc)
    return DisksStillAttached(
        f"Disks of {vm.name} may still be hot-added to this machine: {reason}",
        remedy="The next run or 'vadpipe cleanup' tries again.",
        vm=vm.name,
        vm_moref=vm.moref,
        server=session.server,
    )
