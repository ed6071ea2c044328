"""The lock that keeps Storage vMotion from moving a VM's disks while they are read.

VDDK's PrepareForAccess disables RelocateVM_Task of the VM, and EndAccess, given the same identity, enables it. It
is taken before the snapshot and ended when that is gone. Our identity is our token: nobody else's lock can be ended
by it. Another backup may hold the lock; it is waited for, as the vendor's sample does. A VM that cannot be
locked is backed up all the same, since one that can be moved seldom is; the report then says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import trio
from pyVmomi import vim

from pipeline.errors import LeftBehind, MoverError, VddkError
from vadpipe.vddk.access import VmAccess

from ..api.retry import patiently, pauses
from ..api.session import VcenterSession
from ..inventory.lookup import Vm
from .access import AccessReader, library_of, vm_access
from .intents import Intent, Journal, Kind
from .journaled import announce, settle, undone_by

# What the sample in VDDK's programming guide waits for another holder.
LOCK_WITHIN_S = 600.0
_END_WITHIN_S = 600.0
_ATTEMPTS = 3  # when it fails although nobody holds it
_MOVE = "RelocateVM_Task"


@asynccontextmanager
async def relocation_locked(
    session: VcenterSession, vm: Vm, reader: object, journal: Journal, *, run: str
) -> AsyncIterator[list[str]]:
    """Hold the lock, where `reader` can take one and the server is a vCenter; an ESXi host does not have it.

    The value is a sentence when it could not be had. Raises SourceError; LeftBehind when the lock could not be
    ended, in a group with the body's error when both failed.
    """
    if not isinstance(reader, AccessReader) or not session.is_vcenter:
        yield []
        return
    access = vm_access(session, vm.moref)
    library = library_of(reader, access)
    intent = await announce(session, vm, journal, run, Kind.RELOCATION_LOCK, **library)
    lock = _Lock(session, vm, reader, access, intent, journal)
    async with undone_by(lock.end):
        yield await lock.take()


async def relocation_disabled(session: VcenterSession, vm_moref: str) -> bool:
    """Whether somebody keeps the VM from being moved now."""
    subject = vim.VirtualMachine(vm_moref, session.stub)
    row = await session.properties(subject, ["disabledMethod"])
    return _MOVE in (row.get("disabledMethod") or ())


@dataclass
class _Lock:
    """One intent on its way. `ours`: the lock is, or may be, held by us."""

    session: VcenterSession
    vm: Vm
    reader: AccessReader
    access: VmAccess
    intent: Intent
    journal: Journal
    ours: bool = False

    async def take(self) -> list[str]:
        waits = pauses(LOCK_WITHIN_S)
        attempts = 0
        while True:
            problem = await self._attempt(await self._is_locked())
            if problem is None:
                return []
            reason = problem.problem
            attempts += 1
            if await self._is_locked():
                reason = f"somebody else kept it locked for {LOCK_WITHIN_S:.0f} s. {reason}"
            elif not problem.transient or attempts >= _ATTEMPTS:
                return [self._unlocked(reason)]
            if (pause_s := next(waits, None)) is None:
                return [self._unlocked(reason)]
            await trio.sleep(pause_s)

    async def end(self, failed: bool) -> MoverError | None:
        left = await self._ended() if self.ours else None
        return await settle(self.journal, self.intent, left)

    async def _attempt(self, locked: bool) -> VddkError | None:
        """Take the lock once. A call that failed may have taken it, and may be repeated only without it.

        `locked`: somebody held it before, so a call that was answered with an error has not taken it.
        """
        try:
            await self.reader.prepare_for_access(self.access, self.intent.identity)
        except VddkError as exc:
            was_cut_off = exc.facts.get("code") is None
            were_ours, self.ours = self.ours, True
            if not was_cut_off and (locked or not await self._is_locked()):
                self.ours = were_ours
                return exc
            with suppress(VddkError):
                await self.reader.end_access(self.access, self.intent.identity)
                self.ours = were_ours or was_cut_off
            return exc
        except trio.Cancelled:
            self.ours = True
            raise
        self.ours = True
        return None

    async def _is_locked(self) -> bool:
        return await relocation_disabled(self.session, self.vm.moref)

    async def _ended(self) -> LeftBehind | None:
        reason = f"there was no answer within {_END_WITHIN_S:.0f} s"
        with trio.move_on_after(_END_WITHIN_S, shield=True):
            try:
                await patiently(
                    lambda: self.reader.end_access(self.access, self.intent.identity),
                    self.session.settings.patience_s,
                )
                return None
            except MoverError as exc:
                reason = exc.problem
        return LeftBehind(
            f"The lock of {self.vm.name} against Storage vMotion could not be ended: {reason.rstrip('.')}.",
            remedy="The next run or 'vadpipe cleanup' tries again; until then the VM's disks cannot be moved.",
            vm=self.vm.name,
            vm_moref=self.vm.moref,
            server=self.session.server,
            identity=self.intent.identity,
        )

    def _unlocked(self, reason: str) -> str:
        return (
            f"{self.vm.name} was not locked against Storage vMotion, which could have moved its disks while they "
            f"were read: {reason.rstrip('.')}."
        )
