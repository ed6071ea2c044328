"""Waiting for a task of the server.

Each wait has its own property collector. A cancelled wait leaves its blocked call behind in the thread; destroying
the collector from another thread ends that call at the server at once. A collector ends with its login, while tasks
continue, so a wait whose collector is gone continues with a new one. It does the same after a lost connection: the
old call can still wait at the server, and would receive the updates that the new one waits for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, repeat
from typing import Any

import trio
from pyVmomi import vim

from .faults import (
    ConnectionLost,
    ObjectGone,
    TaskForgotten,
    VsphereError,
    translate,
)
from .http import SOCKET_TIMEOUT_S
from .properties import Collector, Row, read, read_each
from .session import VcenterSession

log = logging.getLogger(__name__)

_PATHS = ("info.state", "info.error", "info.result")
_DONE = ("success", "error")
_DESTROY_S = 2.0
_AGAIN_S = 0.5
_LOOKS_S = (0.05, 0.1, 0.2, 0.5, 1.0)


async def wait_for_task(session: VcenterSession, task: vim.Task, name: str) -> object:
    """Wait until a task has ended. Cancelling ends the wait at once, not the task.

    Args:
        session: The session.
        task: The task.
        name: The call that started it, for logs and errors.

    Returns:
        Its result, a pyVmomi value.

    Raises:
        MoverError: The error of the task.
        TaskForgotten: The server no longer knows it.
    """
    started = time.monotonic()
    while True:
        try:
            facts = await _watch(session, task)
        except (ObjectGone, ConnectionLost):  # of the collector; `_look` shows whether the task is gone too
            log.info("%s: waiting for %s (%s) again", session.server, name, task._moId)
            facts = await _look(session, task, name)
        if facts["info.state"] in _DONE:
            waited_s = time.monotonic() - started
            log.debug("%s: %s: %s after %.1f s", session.server, name, facts["info.state"], waited_s)
        if facts["info.state"] == "error":
            raise translate(facts["info.error"], name, session.server)
        if facts["info.state"] == "success":
            return facts.get("info.result")
        await trio.sleep(_AGAIN_S)


async def wait_for_tasks(session: VcenterSession, tasks: Sequence[vim.Task], name: str) -> list[object]:
    """Wait until all of several short tasks have ended, with one call per look; their results in order.

    Raises:
        MoverError: The error of the first task that failed.
        TaskForgotten: The server no longer knows one of them.
    """
    ended: dict[str, Row] = {}
    for pause_s in chain(_LOOKS_S, repeat(_LOOKS_S[-1])):
        pending = [task for task in tasks if task._moId not in ended]
        if not pending:
            break
        await trio.sleep(pause_s)
        look = partial(read_each, session.content, pending, _PATHS, strict=True)
        try:
            rows = await session.call(name, look)
        except ObjectGone:
            raise _forgotten(session, name) from None
        ended |= {row.moref: row for row in rows if row.get("info.state") in _DONE}
    rows = [ended[task._moId] for task in tasks]
    for row in rows:
        if row.get("info.state") == "error":
            raise translate(row.get("info.error"), name, session.server)
    return [row.get("info.result") for row in rows]


async def _look(session: VcenterSession, task: vim.Task, name: str) -> dict[str, Any]:
    try:
        return await session.call(name, lambda: dict(read(session.content, task, _PATHS).values))
    except ObjectGone:
        raise _forgotten(session, name) from None


def _forgotten(session: VcenterSession, name: str) -> TaskForgotten:
    return TaskForgotten(
        f"{session.server} no longer knows the task of {name}: it was restarted.",
        remedy="Its effect is visible in the object that it changed.",
        server=session.server,
        call=name,
    )


async def _watch(session: VcenterSession, task: vim.Task) -> dict[str, Any]:
    """The properties of the task when it has ended."""
    collector = await session.call("CreatePropertyCollector", lambda: _collector(session, task))
    facts: dict[str, Any] = {}
    version = ""
    options = Collector.WaitOptions(maxWaitSeconds=int(SOCKET_TIMEOUT_S / 2))
    try:
        while facts.get("info.state") not in _DONE:
            wait = partial(collector.WaitForUpdatesEx, version, options)
            news = await session.call("WaitForUpdatesEx", wait, repeat=False)
            if news is not None:
                version = news.version
                facts |= _changes(news, session.server)
        return facts
    finally:
        with trio.move_on_after(_DESTROY_S, shield=True), suppress(VsphereError):
            # A collector that cannot be destroyed ends with its session.
            await session.call("DestroyPropertyCollector", collector.Destroy, patience_s=0)


def _collector(session: VcenterSession, task: vim.Task) -> Collector:
    collector = session.content.propertyCollector.CreatePropertyCollector()
    spec = Collector.FilterSpec(
        objectSet=[Collector.ObjectSpec(obj=task)],
        propSet=[Collector.PropertySpec(type=vim.Task, pathSet=list(_PATHS))],
    )
    collector.CreateFilter(spec, True)
    return collector


def _changes(news: Collector.UpdateSet, server: str) -> dict[str, Any]:
    updates = [updated for filtered in news.filterSet for updated in filtered.objectSet]
    if any(updated.kind == "leave" for updated in updates):
        raise ObjectGone(
            f"{server} forgot a task during the wait for it.", server=server, call="WaitForUpdatesEx"
        )
    return {change.name: change.val for updated in updates for change in updated.changeSet}
