"""Undoing what killed runs left behind: exactly what the intents of dead processes name.

Per VM in the only order that works: hot-added disks are detached, snapshots removed, relocation locks ended, a VM
that was shut down is powered on, and a new VM whose restore did not finish is destroyed. What cannot be undone does
not hold up the rest, with one exception: a snapshot, or a new VM, is kept while a disk of it is attached to a VM.

A snapshot is ours when two witnesses agree: an intent of the journal, and its token in the snapshot's description.
Other snapshots are never touched, nor those of a run that is alive. A lock is ours by its identity, which contains
the token. Of a new VM a setting holds the token; see `new`. An intent without a change is dropped once it is too
old for anybody to be still making the change. An intent that could not be dealt with is kept and reported each
time. A removal that was killed half way may have left redo logs; these are consolidated or reported as well.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

import trio
from pyVmomi import vim
from pyVmomi.VmomiSupport import ManagedObject

from pipeline.errors import MoverError
from vadpipe.vddk.disk import Vddk

from ..api.properties import Row, read_all, read_each
from ..api.retry import retry
from ..api.session import VcenterSession
from ..inventory.lookup import find_vm_by_uuid
from ..journal.access import vm_access
from ..journal.intents import WHOLE, Intent, IntentKind, Journal
from ..journal.relocation_lock import DISABLED, is_locked, relocation_disabled
from ..journal.rollback import mixed, read_rollback, remove_rollback
from ..snapshot.hot_add import detach
from ..snapshot.remove import NEEDED, Consolidate, find_ours, needs_consolidation, remove_ours
from ..snapshot.tree import SNAPSHOT_PATHS, snapshots_in
from .mark import set_tracking, unmark
from .new import destroy_new_vm, find_new_vm, reason_to_keep
from .power import POWER_STATE, power_on

log = logging.getLogger(__name__)

# When nobody can be at work any more on an intent of a dead process. Snapshot: longer than the longest time-out of
# quiescing, 240 minutes, because a restarted vCenter may not show the task. VDDK: its processes outlive their mover
# by half a minute. Power: a guest that was asked to shut down may take a quarter of an hour.
_SETTLED_AFTER_S = {
    IntentKind.HOT_ADD: 300.0,
    IntentKind.SNAPSHOT: 5 * 3600.0,
    IntentKind.RELOCATION_LOCK: 300.0,
    IntentKind.POWER: 3600.0,
    IntentKind.NEW_VM: 900.0,
    IntentKind.ROLLBACK: 0.0,
}
_SEEN = (*SNAPSHOT_PATHS, NEEDED, DISABLED, POWER_STATE)
# For one intent, so that somebody's task that hangs does not hold up a run for ever.
_WITHIN_S = 1800.0


class Outcome(Enum):
    """What became of an intent."""

    REMOVED = "removed"
    CONSOLIDATED = "removed before, its disks consolidated"
    POWERED_ON = "powered on again"
    WHOLE = "complete and proved: it stays"
    NOT_FOUND = "not found: it was never created, or was removed before"
    NOTHING_TO_UNDO = "nothing to undo"
    WOULD_REMOVE = "would be removed"
    WOULD_CONSOLIDATE = "removed before, its disks would be consolidated"
    WOULD_POWER_ON = "would be powered on again"
    WOULD_STAY = "complete and proved: it would stay"
    IN_USE = "in use"
    KEPT = "kept"


# After which nothing is left to undo, and what a report mentions.
_UNDONE = (Outcome.REMOVED, Outcome.POWERED_ON, Outcome.WHOLE)
TELLING = (*_UNDONE, Outcome.CONSOLIDATED, Outcome.KEPT)


@dataclass(frozen=True)
class Swept:
    """One intent and what became of it. `reason`: for IN_USE and KEPT. `str()` is a line for people."""

    intent: Intent
    outcome: Outcome
    reason: str = ""

    def __str__(self) -> str:
        line = f"{self.intent.title}: {self.outcome.value}"
        return f"{line}: {self.reason}" if self.reason else line

    def as_dict(self) -> dict[str, object]:
        """JSON values."""
        return {
            "kind": self.intent.kind.value,
            "vm": self.intent.vm_name,
            "vm_moref": self.intent.vm_moref,
            "snapshot_name": self.intent.snapshot_name,
            "created": self.intent.created,
            "outcome": self.outcome.value,
            "reason": self.reason,
        }


async def sweep(
    session: VcenterSession,
    journal: Journal,
    *,
    consolidate: Consolidate = "ask",
    within_s: float = _WITHIN_S,
) -> list[Swept]:
    """Deal with every intent for this server.

    Args:
        consolidate: What may be done for disks that a removal left in need of consolidation.
        within_s: Seconds for each intent.

    Raises:
        SourceError: The journal cannot be read.
    """
    sweeping, intents = await _begun(session, journal, consolidate)
    found = []
    for intent in intents:
        swept = Swept(intent, Outcome.KEPT, f"it was not dealt with in {within_s:.0f} s")
        with trio.move_on_after(within_s):
            swept = await sweeping.deal_with(intent)
        if intent.kind is IntentKind.HOT_ADD and swept.outcome in (Outcome.KEPT, Outcome.IN_USE):
            sweeping.attached[intent.vm_uuid, intent.run] = swept.reason
        log.log(logging.WARNING if swept.outcome is Outcome.KEPT else logging.INFO, "Sweep: %s", swept)
        found.append(swept)
    return found


async def look_ahead(
    session: VcenterSession, journal: Journal, *, consolidate: Consolidate = "ask"
) -> list[Swept]:
    """What `sweep` would do, from one look at the server, which changes nothing. Raises SourceError."""
    sweeping, intents = await _begun(session, journal, consolidate)
    if not intents:
        return []
    identities: dict[type[ManagedObject], list[str]] = {vim.VirtualMachine: ["config.instanceUuid"]}
    rows = await session.call("RetrieveProperties", lambda: read_all(session.content, identities))
    uuids = {intent.vm_uuid for intent in intents if intent.kind is not IntentKind.NEW_VM}
    morefs = {uuid: row.moref for row in rows if (uuid := row.get("config.instanceUuid")) in uuids}
    subjects = [vim.VirtualMachine(moref, session.stub) for moref in morefs.values()]
    seen = await session.call("RetrieveProperties", lambda: read_each(session.content, subjects, _SEEN))
    vms = {row.moref: row for row in seen}
    return [
        await sweeping.look_ahead_at_new_vm(intent)
        if intent.kind is IntentKind.NEW_VM
        else sweeping.look_ahead(intent, vms.get(morefs.get(intent.vm_uuid, "")))
        for intent in intents
    ]


async def _begun(
    session: VcenterSession, journal: Journal, consolidate: Consolidate
) -> tuple[_Sweep, list[Intent]]:
    """A sweep, and the intents for this server in its order."""
    intents = await trio.to_thread.run_sync(journal.intents)
    busy = {intent.tmp_directory for intent in intents if intent.is_live() and intent.tmp_directory}
    mine = [intent for intent in intents if intent.server_id == session.server_id]
    return _Sweep(session, journal, consolidate, busy), _in_order(mine)


def _in_order(intents: Iterable[Intent]) -> list[Intent]:
    """VM by VM, the one with the oldest intent first; for each VM in the order of undoing."""
    oldest = list(dict.fromkeys(intent.vm_uuid for intent in intents))
    kinds = list(IntentKind)
    return sorted(intents, key=lambda intent: (oldest.index(intent.vm_uuid), kinds.index(intent.kind)))


@dataclass
class _Sweep:
    """One sweep.

    `busy`: VDDK's working directories that live runs use. `attached`: by VM and run, why disks are, or may be,
    attached to a VM.
    """

    session: VcenterSession
    journal: Journal
    consolidate: Consolidate
    busy: set[str]
    attached: dict[tuple[str, str], str] = field(default_factory=dict)

    async def deal_with(self, intent: Intent) -> Swept:
        if intent.is_live():
            return Swept(intent, Outcome.IN_USE, self._holder(intent))
        undo = {
            IntentKind.HOT_ADD: self._detach,
            IntentKind.SNAPSHOT: self._remove,
            IntentKind.RELOCATION_LOCK: self._end_lock,
            IntentKind.POWER: self._power_on,
            IntentKind.ROLLBACK: self._end_rollback,
        }
        try:
            if intent.kind is IntentKind.NEW_VM:
                swept = await self._destroy(intent)
            else:
                # The moref changes when a VM is registered anew, its instance UUID does not.
                vm_moref = await find_vm_by_uuid(self.session, intent.vm_uuid)
                if vm_moref is None:
                    return self._gone(intent)
                swept = await undo[intent.kind](intent, vm_moref)
            if self._is_over(swept):
                await trio.to_thread.run_sync(self.journal.remove, intent)
        except MoverError as exc:
            return Swept(intent, Outcome.KEPT, str(exc))
        return swept

    def look_ahead(self, intent: Intent, row: Row | None) -> Swept:
        """What `deal_with` would do. `row`: the VM's properties _SEEN; None when it is not shown."""
        if intent.is_live():
            return Swept(intent, Outcome.IN_USE, self._holder(intent))
        if row is None:
            return self._gone(intent)
        if intent.kind is IntentKind.HOT_ADD:
            return self._in_use(intent) or Swept(intent, Outcome.WOULD_REMOVE, "where there are any")
        if intent.kind is IntentKind.RELOCATION_LOCK:
            return Swept(intent, Outcome.WOULD_REMOVE if is_locked(row) else Outcome.NOTHING_TO_UNDO)
        if intent.kind is IntentKind.POWER:
            off = row.get(POWER_STATE) == "poweredOff"
            return Swept(intent, Outcome.WOULD_POWER_ON if off else Outcome.NOTHING_TO_UNDO)
        if intent.kind is IntentKind.ROLLBACK:
            reason = mixed(self.journal, intent)
            return Swept(intent, Outcome.KEPT if reason else Outcome.WOULD_REMOVE, reason)
        try:
            ours = any(node.token == intent.token for node in snapshots_in(self.session, row))
        except MoverError as exc:
            return Swept(intent, Outcome.KEPT, str(exc))
        unfinished = row.get(NEEDED) and self.consolidate != "never"
        otherwise = Outcome.WOULD_CONSOLIDATE if unfinished else Outcome.NOT_FOUND
        return Swept(intent, Outcome.WOULD_REMOVE if ours else otherwise)

    async def look_ahead_at_new_vm(self, intent: Intent) -> Swept:
        """What `deal_with` would do to a new VM; two calls."""
        if intent.is_live():
            return Swept(intent, Outcome.IN_USE, self._holder(intent))
        try:
            row = await find_new_vm(self.session, intent)
        except MoverError as exc:
            return Swept(intent, Outcome.KEPT, str(exc))
        if row is None:
            return Swept(intent, Outcome.NOT_FOUND)
        if intent.phase == WHOLE:
            return Swept(intent, Outcome.WOULD_STAY)
        reason = reason_to_keep(row, intent)
        return Swept(intent, Outcome.KEPT if reason else Outcome.WOULD_REMOVE, reason)

    def _gone(self, intent: Intent) -> Swept:
        reason = f"{self.session.server} does not show a VM with UUID {intent.vm_uuid}"
        return Swept(intent, Outcome.KEPT, reason)

    def _in_use(self, intent: Intent) -> Swept | None:
        """For hot-added disks: what to say while a live run uses their directory."""
        if intent.tmp_directory not in self.busy:
            return None
        reason = f"a run that is at work keeps its hot-added disks in {intent.tmp_directory} too"
        return Swept(intent, Outcome.IN_USE, reason)

    def _is_over(self, swept: Swept) -> bool:
        if swept.outcome in (Outcome.KEPT, Outcome.IN_USE):
            return False
        return swept.outcome in _UNDONE or swept.intent.age_s > _SETTLED_AFTER_S[swept.intent.kind]

    def _holder(self, intent: Intent) -> str:
        holder = f"process {intent.pid} on {intent.host} may be at work on it"
        if intent.host == socket.gethostname():
            return holder
        return (
            f"{holder}; run 'vadpipe cleanup' there, or, if that machine is gone for good, undo it by hand and "
            f"remove {self.journal.path(intent)}"
        )

    async def _detach(self, intent: Intent, vm_moref: str) -> Swept:
        if swept := self._in_use(intent):
            return swept
        access = vm_access(self.session, vm_moref)
        detached = await detach(self.session, _vddk(intent), access, intent.vm_name)
        return Swept(intent, Outcome.REMOVED if detached else Outcome.NOTHING_TO_UNDO)

    async def _remove(self, intent: Intent, vm_moref: str) -> Swept:
        session, name, allowed = self.session, intent.vm_name, self.consolidate
        attached = self.attached.get((intent.vm_uuid, intent.run))
        if attached is not None:
            return Swept(intent, Outcome.KEPT, f"its disks may still be hot-added to a VM: {attached}")
        ours = await find_ours(session, vm_moref, intent.token)
        unfinished = await needs_consolidation(session, vm_moref)
        remove = partial(remove_ours, session, vm_moref, name, intent.token, consolidate=allowed)
        await retry(remove, session.settings.patience_s)
        if ours:
            return Swept(intent, Outcome.REMOVED)
        return Swept(intent, Outcome.CONSOLIDATED if unfinished else Outcome.NOT_FOUND)

    async def _end_lock(self, intent: Intent, vm_moref: str) -> Swept:
        if not await relocation_disabled(self.session, vm_moref):
            return Swept(intent, Outcome.NOTHING_TO_UNDO)
        end = partial(_vddk(intent).end_access, vm_access(self.session, vm_moref), intent.identity)
        await retry(end, self.session.settings.patience_s)
        return Swept(intent, Outcome.REMOVED)

    async def _destroy(self, intent: Intent) -> Swept:
        if (reason := self.attached.get((intent.vm_uuid, intent.run))) is not None:
            return Swept(intent, Outcome.KEPT, f"its disks may still be hot-added to a VM: {reason}")
        if intent.phase == WHOLE:
            return Swept(intent, Outcome.WHOLE)
        destroyed = await destroy_new_vm(self.session, intent)
        return Swept(intent, Outcome.REMOVED if destroyed else Outcome.NOT_FOUND)

    async def _power_on(self, intent: Intent, vm_moref: str) -> Swept:
        was_off = await retry(partial(power_on, self.session, vm_moref), self.session.settings.patience_s)
        return Swept(intent, Outcome.POWERED_ON if was_off else Outcome.NOTHING_TO_UNDO)

    async def _end_rollback(self, intent: Intent, vm_moref: str) -> Swept:
        """A restore over a VM is completed by the next one only; one that wrote nothing is undone."""
        reason = await trio.to_thread.run_sync(mixed, self.journal, intent)
        if reason:
            return Swept(intent, Outcome.KEPT, reason)
        rollback = await trio.to_thread.run_sync(read_rollback, self.journal, intent.token)
        if rollback is not None and rollback.tracking:
            await set_tracking(self.session, vm_moref, on=True)
        await unmark(self.session, vm_moref)
        await trio.to_thread.run_sync(remove_rollback, self.journal, intent.token)
        return Swept(intent, Outcome.REMOVED)


def _vddk(intent: Intent) -> Vddk:
    """The library that made the change, with the state that it keeps."""
    return Vddk(intent.libdir, config={"tmpDirectory": intent.tmp_directory})
