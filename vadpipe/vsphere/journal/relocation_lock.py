"""The lock that keeps Storage vMotion from moving a VM's disks while they are read.

VDDK's PrepareForAccess disables RelocateVM_Task of the VM; EndAccess with the same identity enables it again. The
lock is taken before the snapshot and ended after its removal. The identity contains the token of our intent, so
that nobody else's lock can be ended by it. Another backup product may hold the lock: it is waited for, as the
vendor's sample does. A VM that cannot be locked is backed up all the same, and the report says so.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import trio
from pyVmomi import vim

from pipeline.errors import LeftBehind
from vadpipe.vddk.access import VmAccess
from vadpipe.vddk.errors import VddkError

from ..api.properties import Row
from ..api.retry import backoff, retry
from ..api.session import VcenterSession
from ..inventory.lookup import Vm
from .access import AccessReader, library_of, vm_access
from .intents import IntentKind, Journal
from .journaled import journaled

log = logging.getLogger(__name__)

# What the sample in VDDK's programming guide waits for another holder.
LOCK_WITHIN_S = 600.0
_END_WITHIN_S = 600.0
_ATTEMPTS = 3  # when it fails although nobody holds the lock
DISABLED = "disabledMethod"
_MOVE = "RelocateVM_Task"


@asynccontextmanager
async def relocation_locked(
    session: VcenterSession, vm: Vm, reader: object, journal: Journal, *, run: str
) -> AsyncIterator[list[str]]:
    """Hold the lock, where `reader` can take one and the server is a vCenter; an ESXi host has no such lock.

    The value is a list: empty, or one sentence for the report that says why the VM was not locked.

    Raises:
        LeftBehind: The lock could not be ended; in a group with the error of the body when both failed.
    """
    if not isinstance(reader, AccessReader) or not session.is_vcenter:
        yield []
        return
    access = vm_access(session, vm.moref)
    library = library_of(reader, access)
    async with journaled(session, vm, journal, IntentKind.RELOCATION_LOCK, run=run, **library) as entry:
        lock = _Lock(session, vm, reader, access, entry.intent.identity)
        entry.undo_with(lock.end, within_s=_END_WITHIN_S, or_else=lock.left)
        yield await lock.take()


async def relocation_disabled(session: VcenterSession, vm_moref: str) -> bool:
    """Whether anybody keeps the VM from being moved now."""
    subject = vim.VirtualMachine(vm_moref, session.stub)
    return is_locked(await session.properties(subject, [DISABLED]))


def is_locked(row: Row) -> bool:
    """As `relocation_disabled`, from the property DISABLED of the VM."""
    return _MOVE in (row.get(DISABLED) or ())


@dataclass
class _Lock:
    """`ours`: we hold the lock, or may hold it."""

    session: VcenterSession
    vm: Vm
    reader: AccessReader
    access: VmAccess
    identity: str
    ours: bool = False

    async def take(self) -> list[str]:
        waits = backoff(LOCK_WITHIN_S)
        started, attempts = trio.current_time(), 0
        while (problem := await self._attempt(await self._is_locked())) is not None:
            reason, attempts = problem.problem, attempts + 1
            if await self._is_locked():
                reason = f"somebody else kept it locked for {LOCK_WITHIN_S:.0f} s. {reason}"
            elif not problem.transient or attempts >= _ATTEMPTS:
                return [self._not_locked(reason)]
            if (pause_s := next(waits, None)) is None:
                return [self._not_locked(reason)]
            log.info("Relocation lock of %s: again in %.1f s: %s", self.vm.name, pause_s, problem.problem)
            await trio.sleep(pause_s)
        log.info("Relocation lock of %s taken in %.1f s", self.vm.name, trio.current_time() - started)
        return []

    async def end(self, _failure: BaseException | None) -> None:
        if not self.ours:
            return
        end = self.reader.end_access
        await retry(lambda: end(self.access, self.identity), self.session.settings.patience_s)
        log.info("Relocation lock of %s ended", self.vm.name)

    def left(self, reason: str) -> LeftBehind:
        return LeftBehind(
            f"The lock of {self.vm.name} against Storage vMotion could not be ended: {reason.rstrip('.')}.",
            remedy="The next run or 'vadpipe cleanup' tries again; until then the VM's disks cannot be moved.",
            vm=self.vm.name,
            vm_moref=self.vm.moref,
            server=self.session.server,
            identity=self.identity,
        )

    async def _attempt(self, locked: bool) -> VddkError | None:
        """Take the lock once. A failed call may have taken it, and may be repeated only after that was undone.

        `locked`: somebody held the lock before, so a call that was answered with an error has not taken it.
        """
        was_ours, self.ours = self.ours, True  # also when this is cancelled: the call may have been made
        try:
            await self.reader.prepare_for_access(self.access, self.identity)
        except VddkError as exc:
            was_cut_off = exc.facts.get("code") is None
            if not was_cut_off and (locked or not await self._is_locked()):
                self.ours = was_ours
                return exc
            with suppress(VddkError):
                await self.reader.end_access(self.access, self.identity)
                self.ours = was_ours or was_cut_off
            return exc
        return None

    async def _is_locked(self) -> bool:
        return await relocation_disabled(self.session, self.vm.moref)

    def _not_locked(self, reason: str) -> str:
        sentence = (
            f"{self.vm.name} was not locked against Storage vMotion, which could have moved its disks while they "
            f"were read: {reason.rstrip('.')}."
        )
        log.warning("%s", sentence)
        return sentence
