"""What follows from a guest's state and from a failed quiesce: another attempt, a weaker kind, or an error.

vSphere ignores a quiesce spec without an error when the VM is off or VMware Tools do not run: the task succeeds. So
the state of the guest is looked at before and after the snapshot, and a snapshot that was not quiesced is never
called so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from pyVmomi import vim

from ..api.advice import Advice, advice_for, tools_status, vss_code
from ..api.faults import QuiesceFailed, VsphereError
from ..api.session import VcenterSession
from ..inventory.lookup import Vm
from .quiesce import Quiesce, is_windows
from .tree import SnapshotNode

GUEST_PATHS = ("config.guestId", "runtime.powerState", "guest.toolsRunningStatus")


@dataclass(frozen=True)
class Guest:
    """What decides about quiescing: the configured guest id, and whether VMware Tools can do it now."""

    guest_id: str
    power: str
    tools: str

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Guest:
        """From the properties GUEST_PATHS. An unset one is unknown, and no obstacle."""
        return cls(*(str(values.get(path) or "") for path in GUEST_PATHS))

    @property
    def is_off(self) -> bool:
        return self.power in ("poweredOff", "suspended")

    @property
    def obstacle(self) -> str:
        """Why vSphere would ignore a quiesce spec; empty when nothing is known to prevent quiescing."""
        if self.is_off:
            return "the VM is not running"
        return "VMware Tools do not run in it" if self.tools == "guestToolsNotRunning" else ""


async def guest_of(session: VcenterSession, vm: Vm) -> Guest:
    """The guest's kind and state. Raises VsphereError."""
    return Guest.of((await session.properties(vm.reference(session), GUEST_PATHS)).values)


def fallbacks(asked: Quiesce, guest_id: str) -> list[Quiesce]:
    """The kinds of quiescing to try, best first. Only Windows distinguishes applications from file systems."""
    if asked.policy != "try":
        return [asked]
    weaker = replace(asked, kind="file-system", backup_type="copy")
    between = [weaker] if asked.kind in ("application", "auto") and is_windows(guest_id) else []
    return [asked, *between, Quiesce.none()]


def planned_quiescing(vm: Vm, asked: Quiesce, guest: Guest) -> tuple[Sequence[Quiesce], list[str]]:
    """The kinds to try in the guest's present state, and remarks for the report.

    Raises:
        QuiesceFailed: Quiescing is required, the VM runs, and VMware Tools do not.
    """
    if asked.kind == "none" or not guest.obstacle:
        return fallbacks(asked, guest.guest_id), [asked.warning] if asked.warning else []
    problem = f"{vm.name} was not quiesced: {guest.obstacle}, so vSphere would ignore the request."
    if asked.policy == "require" and not guest.is_off:
        raise QuiesceFailed(
            problem,
            remedy="Start VMware Tools in the guest; or use the policy 'try', or Quiesce.none().",
            vm=vm.name,
            fault="ToolsUnavailable",
        )
    return [Quiesce.none()], [problem]


async def remarks_on_ignored_quiescing(
    session: VcenterSession, vm: Vm, used: Quiesce, guest: Guest, node: SnapshotNode | None
) -> list[str]:
    """What the snapshot `node` and the guest show afterwards: that quiescing was, or may have been, ignored.

    Raises:
        QuiesceFailed: The snapshot is not quiesced although that is required.
    """
    if used.kind == "none":
        return []
    remarks = []
    if node is not None and not node.quiesced:
        ignored = f"vSphere took the snapshot of {vm.name} without quiescing, and gave no reason."
        if used.policy == "require":
            raise QuiesceFailed(ignored, remedy="See whether VMware Tools run in the guest.", vm=vm.name)
        remarks.append(ignored)
    if obstacle := (await guest_of(session, vm)).obstacle:
        remarks.append(
            f"After the snapshot {obstacle}: quiescing may have been ignored; the VSS manifest shows whether."
        )
    if node is not None and not node.backup_manifest and is_windows(guest.guest_id):
        remarks.append("vSphere names no VSS manifest for the snapshot, as it does after quiescing Windows.")
    return remarks


async def server_time(session: VcenterSession) -> datetime:
    """The server's clock, which dates its events."""
    service = vim.ServiceInstance("ServiceInstance", session.stub)
    return await session.call("CurrentTime", service.CurrentTime)


async def explained(session: VcenterSession, vm: Vm, failed: QuiesceFailed, since: datetime) -> QuiesceFailed:
    """The same error with what the VM's event and the catalogue of failures add.

    Facts: `event`, the guest's message; and the codes in it or in the fault, `vss_code` and `tools_status`.
    """
    event = await _quiescing_event(session, vm, since)
    text = f"{event} {failed.facts.get('message') or ''}"
    codes = {"vss_code": vss_code(text), "tools_status": tools_status(text)}
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


def pause_before_retry_s(asked: Quiesce, failed: QuiesceFailed) -> float | None:
    """Seconds until another attempt makes sense; None when it would fail again."""
    advice = advice_on(failed)
    if advice is None or advice.retry_after_s is None:
        return None
    return advice.retry_after_s if asked.retry_after_s is None else asked.retry_after_s


async def _quiescing_event(session: VcenterSession, vm: Vm, since: datetime) -> str:
    manager = session.content.eventManager
    if manager is None:
        return ""
    wanted = vim.event.EventFilterSpec(
        entity=vim.event.EventFilterSpec.ByEntity(entity=vm.reference(session), recursion="self"),
        time=vim.event.EventFilterSpec.ByTime(beginTime=since),
    )
    try:
        events = await session.call("QueryEvents", lambda: manager.QueryEvents(wanted, None))  # pyright: ignore
    except VsphereError:  # the failed quiesce is what matters, not its details
        return ""
    texts = [event.fullFormattedMessage or "" for event in events if event.createdTime >= since]
    return next((" ".join(text.split()) for text in reversed(texts) if "quiesc" in text.lower()), "")
