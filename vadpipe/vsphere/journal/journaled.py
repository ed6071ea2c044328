"""Announcing what we are about to do, and what becomes of the announcement: the journal's asynchronous side."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import trio

from pipeline.errors import LeftBehind, MoverError

from ..api.session import VcenterSession
from ..inventory.lookup import Vm
from .intents import (
    Intent,
    Journal,
    Kind,
    new_intent,
)


def new_run() -> str:
    """An identity for a run of this process."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"


async def announce(
    session: VcenterSession,
    vm: Vm,
    journal: Journal,
    run: str,
    kind: Kind,
    *,
    libdir: str = "",
    tmp_directory: str = "",
) -> Intent:
    """Write an intent; it is durable when this returns. Raises SourceError."""
    intent = new_intent(
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
    await trio.to_thread.run_sync(journal.write, intent)
    return intent


async def settle(journal: Journal, intent: Intent, left: MoverError | None) -> MoverError | None:
    """Forget an intent that was undone, or leave it to the next sweep because of what is `left`.

    Returns `left`, or that the journal cannot be written.
    """
    with trio.CancelScope(shield=True):
        try:
            await trio.to_thread.run_sync(journal.abandon if left else journal.remove, intent)
        except MoverError as exc:
            if left is None:
                return LeftBehind(exc.problem, remedy=exc.remedy, **exc.facts)
            left.add_note(str(exc))
    return left


@asynccontextmanager
async def undone_by(undo: Callable[[bool], Awaitable[MoverError | None]]) -> AsyncIterator[None]:
    """Run `undo` at the end, whatever happened inside; it is told whether that failed.

    What it returns is what it could not undo: raised, in a group with the body's own error when both failed.
    """
    try:
        yield
    except BaseException as failure:
        if (left := await undo(True)) is not None:
            raise BaseExceptionGroup("The run failed, and so did its clean-up", [failure, left]) from None
        raise
    if (left := await undo(False)) is not None:
        raise left
