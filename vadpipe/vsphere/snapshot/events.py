"""What the VM's events tell about a failed quiesce: the guest's own message, with the VSS error code."""

from __future__ import annotations

from datetime import datetime

from pyVmomi import vim

from pipeline.errors import QuiesceFailed

from ..api.advice import (
    Advice,
    advice_for,
    tools_status,
    vss_code,
)
from ..api.faults import VsphereError
from ..api.session import VcenterSession
from ..inventory.lookup import Vm


async def server_time(session: VcenterSession) -> datetime:
    """The server's clock: events are dated by it, not by ours."""
    service = vim.ServiceInstance("ServiceInstance", session.stub)
    return await session.call("CurrentTime", service.CurrentTime)


async def explained(session: VcenterSession, vm: Vm, failed: QuiesceFailed, since: datetime) -> QuiesceFailed:
    """The same error with what the VM's event and the catalogue tell of it.

    Facts: `event`, and the codes found in it or in the fault, `vss_code` and `tools_status`.
    """
    event = await _quiescing_event(session, vm, since)
    told = f"{event} {failed.facts.get('message') or ''}"
    codes = {"vss_code": vss_code(told), "tools_status": tools_status(told)}
    advice = advice_for(codes["vss_code"]) or advice_for(codes["tools_status"])
    problem = failed.problem
    if event:
        problem += f" The guest said: {event.rstrip('.')}."
    if advice is not None:
        problem += f" {advice.code} ({advice.name}): {advice.cause}."
    return QuiesceFailed(
        problem,
        remedy=advice.remedy if advice else failed.remedy,
        **{**failed.facts, **codes, "event": event},
    )


def advice_on(failed: QuiesceFailed) -> Advice | None:
    """The catalogue's entry for the most exact code that is known of a failed quiesce."""
    codes = (failed.facts.get(name) for name in ("vss_code", "tools_status", "fault"))
    return next((advice for code in codes if (advice := advice_for(str(code)))), None)


async def _quiescing_event(session: VcenterSession, vm: Vm, since: datetime) -> str:
    manager = session.content.eventManager
    if manager is None:
        return ""
    wanted = vim.event.EventFilterSpec(
        entity=vim.event.EventFilterSpec.ByEntity(entity=vm.reference(session), recursion="self"),
        time=vim.event.EventFilterSpec.ByTime(beginTime=since),
    )
    try:
        events = await session.call("QueryEvents", lambda: manager.QueryEvents(wanted, None))
    except VsphereError:  # the failed quiesce is the news, not that its details cannot be read
        return ""
    texts = [event.fullFormattedMessage or "" for event in events if event.createdTime >= since]
    return next((" ".join(text.split()) for text in reversed(texts) if "quiesc" in text.lower()), "")
