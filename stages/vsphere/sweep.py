"""Removing what killed runs left behind: exactly the snapshots that a dead run's intent names by its token.

A snapshot is ours when two witnesses agree: an intent of the journal, and the token in the snapshot's description.
Other snapshots are never touched, nor those of a run that lives. An intent whose snapshot never came into being is
dropped once it is too old for a host to be still making it; one that could not be dealt with stays, and is reported
each time. A removal that was killed half way may have left redo logs: those are consolidated, or named, as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial

import trio

from pipeline.errors import MoverError

from .consolidation import Consolidate, needs_consolidation
from .journal import Intent, Journal
from .lookup import find_vm_by_uuid
from .patience import patiently
from .removal import find_ours, remove_ours
from .session import VcenterSession

# Longer than the longest time-out of quiescing, 240 minutes: a vCenter that was restarted may not show the task.
_SETTLED_AFTER_S = 5 * 3600.0
# For one intent, so that somebody's task that hangs does not hold up a run for ever.
_WITHIN_S = 1800.0


class Outcome(Enum):
    """What became of an intent."""

    REMOVED = "removed"
    CONSOLIDATED = "removed before, its disks consolidated"
    NEVER_CREATED = "never created"
    WOULD_REMOVE = "would be removed"
    WOULD_CONSOLIDATE = "removed before, its disks would be consolidated"
    IN_USE = "in use"
    KEPT = "kept"


@dataclass(frozen=True)
class Swept:
    """One intent and what became of it; `reason` says why for IN_USE and KEPT. `str()` is a line for people."""

    intent: Intent
    outcome: Outcome
    reason: str = ""

    def __str__(self) -> str:
        line = f"snapshot {self.intent.snapshot_name!r} of {self.intent.vm_name}: {self.outcome.value}"
        return f"{line}: {self.reason}" if self.reason else line

    def as_dict(self) -> dict[str, object]:
        """JSON values."""
        return {
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
    dry_run: bool = False,
    consolidate: Consolidate = "ask",
    within_s: float = _WITHIN_S,
) -> list[Swept]:
    """Deal with every intent for this server, each `within_s` seconds.

    `dry_run`: look only. `consolidate`: what may be done for disks that a removal left in need of it. Raises
    SourceError: an unreadable journal.
    """
    intents = await trio.to_thread.run_sync(journal.intents)
    swept = []
    for intent in intents:
        if intent.server_id == session.server_id:
            outcome = Swept(intent, Outcome.KEPT, f"it was not dealt with in {within_s:.0f} s")
            with trio.move_on_after(within_s):
                outcome = await _deal_with(session, journal, intent, dry_run, consolidate)
            swept.append(outcome)
    return swept


async def _deal_with(
    session: VcenterSession, journal: Journal, intent: Intent, dry_run: bool, consolidate: Consolidate
) -> Swept:
    if intent.is_live():
        return Swept(intent, Outcome.IN_USE, f"process {intent.pid} on {intent.host} may be at work on it")
    try:
        # The moref changes when a VM is registered anew, its instance UUID does not.
        vm_moref = await find_vm_by_uuid(session, intent.vm_uuid)
        if vm_moref is None:
            return Swept(
                intent, Outcome.KEPT, f"{session.server} does not show a VM with UUID {intent.vm_uuid}"
            )
        found = await find_ours(session, vm_moref, intent.token)
        unfinished = await needs_consolidation(session, vm_moref)
        if dry_run:
            would = (
                Outcome.WOULD_CONSOLIDATE if unfinished and consolidate != "never" else Outcome.NEVER_CREATED
            )
            return Swept(intent, Outcome.WOULD_REMOVE if found else would)
        remove = partial(
            remove_ours, session, vm_moref, intent.vm_name, intent.token, consolidate=consolidate
        )
        await patiently(remove, session.settings.patience_s)
        if found or intent.age_s > _SETTLED_AFTER_S:
            await trio.to_thread.run_sync(journal.remove, intent)
    except MoverError as exc:
        return Swept(intent, Outcome.KEPT, str(exc))
    if found:
        return Swept(intent, Outcome.REMOVED)
    return Swept(intent, Outcome.CONSOLIDATED if unfinished else Outcome.NEVER_CREATED)
