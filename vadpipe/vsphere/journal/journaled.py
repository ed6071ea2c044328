"""Changes at a server that are undone again: begin, do, undo, commit. The journal is a write-ahead log.

The intent is durable before the body of `journaled` starts. However the body ends, the change is undone in a
shielded scope with a deadline, and then the intent is removed. A change that could not be undone keeps its intent
for the next sweep, and is raised.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import trio

from pipeline.errors import LeftBehind, MoverError

from ..api.session import VcenterSession
from ..inventory.lookup import Vm
from .intents import Intent, IntentKind, Journal

log = logging.getLogger(__name__)

Undo = Callable[[BaseException | None], Awaitable[None]]
"""Undoes a change. Its argument is the error of the body. Raises a MoverError when it cannot undo the change."""


@dataclass
class Entry:
    """An intent while its change exists. `in_doubt`: the change may still come, so the intent stays."""

    intent: Intent
    journal: Journal
    in_doubt: bool = False
    _undo: Undo | None = None
    _within_s: float = 0.0
    _or_else: Callable[[str], MoverError] = LeftBehind

    async def write(self, **changes: Any) -> None:  # noqa: ANN401  # fields of Intent
        """Make the intent durable, with these fields changed. Raises SourceError."""
        changed = replace(self.intent, **changes)
        await trio.to_thread.run_sync(self.journal.write, changed)
        self.intent = changed

    def undo_with(self, undo: Undo, *, within_s: float, or_else: Callable[[str], MoverError]) -> None:
        """Say how the change is undone, before it is made. May be called again.

        Args:
            within_s: Seconds for undoing.
            or_else: Makes the error from the reason when undoing fails or takes longer.
        """
        self._undo, self._within_s, self._or_else = undo, within_s, or_else

    async def undo(self, failure: BaseException | None) -> MoverError | None:
        """Undo the change; the error when that was not possible."""
        if self._undo is None:
            return None
        started = trio.current_time()
        reason = f"it was not done after {self._within_s:.0f} s; the server may still be at work on it"
        with trio.move_on_after(self._within_s, shield=True):
            try:
                await self._undo(failure)
            except LeftBehind as exc:
                return exc
            except MoverError as exc:
                reason = str(exc)
            else:
                log.debug("Undone in %.1f s: %s", trio.current_time() - started, self.intent.title)
                return None
        return self._or_else(reason)


@asynccontextmanager
async def journaled(
    session: VcenterSession,
    vm: Vm,
    journal: Journal,
    kind: IntentKind,
    *,
    run: str,
    libdir: str = "",
    tmp_directory: str = "",
) -> AsyncIterator[Entry]:
    """Make a change inside that is undone at the end. The intent is durable when the body starts.

    Args:
        run: Identity of the run, see `new_run`.
        libdir: Where VDDK is, for what is undone through it; with `tmp_directory` see `access.library_of`.
        tmp_directory: Where VDDK keeps its state.

    Raises:
        SourceError: The journal cannot be written; nothing was done.
        MoverError: What could not be undone; in a group with the error of the body when both failed.
    """
    intent = Intent(
        server=session.server,
        server_id=session.server_id,
        vm_moref=vm.moref,
        vm_uuid=vm.uuid,
        vm_name=vm.name,
        run=run,
        kind=kind,
        libdir=libdir,
        tmp_directory=tmp_directory,
    )
    entry = Entry(intent, journal)
    await entry.write()
    try:
        yield entry
    except BaseException as failure:
        if (left := await _commit(journal, entry, failure)) is not None:
            raise BaseExceptionGroup("The run failed, and so did its clean-up", [failure, left]) from None
        raise
    if (left := await _commit(journal, entry, None)) is not None:
        raise left


async def _commit(journal: Journal, entry: Entry, failure: BaseException | None) -> MoverError | None:
    left = await entry.undo(failure)
    if left is not None:
        log.warning("Left behind: %s", left)
    with trio.CancelScope(shield=True):
        try:
            finish = journal.abandon if left or entry.in_doubt else journal.remove
            await trio.to_thread.run_sync(finish, entry.intent)
        except MoverError as exc:
            log.warning("%s", exc)
            if left is None:
                return LeftBehind(exc.problem, remedy=exc.remedy, **exc.facts)
            left.add_note(str(exc))
    return left


def new_run() -> str:
    """An identity for a run of this process."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
