"""What the VM's events tell about a failed quiesce: the guest's own message, with the VSS error code."""

from __future__ import annotations

import re
from datetime import datetime

from pyVmomi import vim

from pipeline.errors import QuiesceFailed

from .faults import VsphereError
from .lookup import Vm
from .session import VcenterSession

_HRESULT = re.compile(r"0x8004[0-9A-Fa-f]{4}")


async def server_time(session: VcenterSession) -> datetime:
    """The server's clock: events are dated by it, not by ours."""
    service = vim.ServiceInstance("ServiceInstance", session.stub)
    return await session.call("CurrentTime", service.CurrentTime)


async def explained(session: VcenterSession, vm: Vm, failed: QuiesceFailed, since: datetime) -> QuiesceFailed:
    """The same error with the text of the VM's event and the VSS code in it, as facts `event` and `vss_code`."""
    event = await _quiescing_event(session, vm, since)
    if not event:
        return failed
    code = _HRESULT.search(event)
    facts = {**failed.facts, "event": event, "vss_code": code[0].lower() if code else None}
    return QuiesceFailed(
        f"{failed.problem} The guest said: {event.rstrip('.')}.", remedy=failed.remedy, **facts
    )


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
