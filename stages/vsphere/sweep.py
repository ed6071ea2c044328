"""Removing what killed runs left behind: exactly the snapshots that a dead run's intent names by its token.

A snapshot is ours when two witnesses agree: an intent of the journal, and the token in the snapshot's description.
Other snapshots are never touched, nor those of a run that lives. An intent whose snapshot never came into being is
dropped; one that could not be dealt with stays, and is reported each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import trio

from pipeline.errors import MoverError

from .journal import Intent, Journal
from .lookup import find_vm_by_uuid
from .removal import find_ours, remove_ours
from .session import VcenterSession


class Outcome(Enum):
    """What became of an intent."""

    REMOVED = "removed"
    NEVER_CREATED = "never created"
    WOULD_REMOVE = "would be removed"
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


async def sweep(session: VcenterSession, journal: Journal, *, dry_run: bool = False) -> list[Swept]:
    """Deal with every intent for this server. `dry_run`: look only. Raises SourceError: an unreadable journal."""
    intents = await trio.to_thread.run_sync(journal.intents)
    return [
        await _deal_with(session, journal, intent, dry_run)
        for intent in intents
        if intent.server_id == session.server_id
    ]


async def _deal_with(session: VcenterSession, journal: Journal, intent: Intent, dry_run: bool) -> Swept:
    if intent.is_live():
        return Swept(intent, Outcome.IN_USE, f"process {intent.pid} on {intent.host} may be at work on it")
    try:
        # The moref changes when a VM is registered anew, its instance UUID does not.
        vm_moref = await find_vm_by_uuid(session, intent.vm_uuid)
        if vm_moref is None:
            return Swept(
                intent, Outcome.KEPT, f"{session.server} does not show a VM with UUID {intent.vm_uuid}"
            )
        if dry_run:
            found = await find_ours(session, vm_moref, intent.token)
            return Swept(intent, Outcome.WOULD_REMOVE if found else Outcome.NEVER_CREATED)
        removed = await remove_ours(session, vm_moref, intent.token)
        await trio.to_thread.run_sync(journal.remove, intent)
    except MoverError as exc:
        return Swept(intent, Outcome.KEPT, str(exc))
    return Swept(intent, Outcome.REMOVED if removed else Outcome.NEVER_CREATED)
