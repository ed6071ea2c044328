"""Waiting for a task of the server.

A wait has a property collector of its own: cancelling it leaves the blocked call behind in its thread, and
destroying the collector, from another thread, ends that call at the server at once. A collector dies with the login
it was made in, while tasks live on: when it is gone, the wait begins anew with another one. So it does after a lost
connection: the old call may still wait at the server, and would take the news that the new one waits for.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
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
from .properties import Collector, read
from .session import VcenterSession

_PATHS = ("info.state", "info.error", "info.result")
_DONE = ("success", "error")
_DESTROY_S = 2.0
_AGAIN_S = 0.5


async def wait_for_task(session: VcenterSession, task: vim.Task, name: str) -> object:
    """Wait until the task of the call `name` has ended; returns its result, a pyVmomi value.

    Raises what the task failed with, translated; TaskForgotten when the server does not know it any more.
    Cancelling ends the waiting at once, not the task.
    """
    while True:
        try:
            facts = await _watch(session, task)
        except (ObjectGone, ConnectionLost):  # the collector, or the task as well: the next line tells
            facts = await _look(session, task, name)
        if facts["info.state"] == "error":
            raise translate(facts["info.error"], name, session.server)
        if facts["info.state"] == "success":
            return facts.get("info.result")
        await trio.sleep(_AGAIN_S)


async def _look(session: VcenterSession, task: vim.Task, name: str) -> dict[str, Any]:
    try:
        return await session.call(name, lambda: dict(read(session.content, task, _PATHS).values))
    except ObjectGone:
        raise TaskForgotten(
            f"{session.server} does not know the task of {name} any more: it was restarted.",
            remedy="What it did shows in the object it worked on.",
            server=session.server,
            call=name,
        ) from None


async def _watch(session: VcenterSession, task: vim.Task) -> dict[str, Any]:
    """The task's facts when it has ended."""
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
            f"{server} forgot a task while it was waited for.", server=server, call="WaitForUpdatesEx"
        )
    return {change.name: change.val for updated in updates for change in updated.changeSet}
