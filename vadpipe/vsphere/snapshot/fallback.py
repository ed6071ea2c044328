"""The ladder of quiescing: what is asked, asked again, or given up for something weaker.

vSphere ignores a quiesce spec without a word when the VM is off or VMware Tools do not run, and the task succeeds.
So the state of the guest is looked at before and after, and what was not quiesced is never called so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from pipeline.errors import QuiesceFailed
from pipeline.events import emit

from ..api.session import VcenterSession
from ..inventory.lookup import Vm
from .events import advice_on, explained, server_time
from .quiesce import Quiesce, is_windows
from .tree import SnapshotNode

GUEST_PATHS = ("config.guestId", "runtime.powerState", "guest.toolsRunningStatus")


@dataclass(frozen=True)
class Guest:
    """What decides about quiescing: the configured guest id, and whether VMware Tools could do it now."""

    guest_id: str
    power: str
    tools: str

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Guest:
        """From the properties GUEST_PATHS; one that is unset is unknown, and no obstacle."""
        return cls(*(str(values.get(path) or "") for path in GUEST_PATHS))

    @property
    def is_off(self) -> bool:
        return self.power in ("poweredOff", "suspended")

    @property
    def obstacle(self) -> str:
        """Why vSphere would ignore a quiesce spec; empty when nothing speaks against it."""
        if self.is_off:
            return "the VM is not running"
        return "VMware Tools do not run in it" if self.tools == "guestToolsNotRunning" else ""


async def guest_of(session: VcenterSession, vm: Vm) -> Guest:
    """The guest's kind and state. Raises VsphereError."""
    return Guest.of((await session.properties(vm.reference(session), GUEST_PATHS)).values)


@dataclass
class Quiesced:
    """A snapshot that was taken: how it was quiesced in the end, and what a report should say about that."""

    moref: str
    quiesce: Quiesce
    remarks: list[str] = field(default_factory=list)


async def take_quiesced(
    session: VcenterSession,
    vm: Vm,
    asked: Quiesce,
    guest: Guest,
    create: Callable[[Quiesce], Awaitable[str]],
    clear: Callable[[], Awaitable[object]],
) -> Quiesced:
    """Take a snapshot by the policy of `asked`. `create` takes one, `clear` removes what a failed attempt left.

    Raises QuiesceFailed and whatever `create` raises.
    """
    rungs, remarks = _rungs(vm, asked, guest)
    for rung in rungs:
        outcome = await _asked(session, vm, rung, create, clear, remarks)
        if isinstance(outcome, str):
            return Quiesced(outcome, rung, remarks)
        if rung is rungs[-1]:
            raise outcome
        remarks.append(f"{rung.kind} quiescing was given up: {outcome}")
    raise AssertionError("there is always a rung")


async def _asked(
    session: VcenterSession,
    vm: Vm,
    rung: Quiesce,
    create: Callable[[Quiesce], Awaitable[str]],
    clear: Callable[[], Awaitable[object]],
    remarks: list[str],
) -> str | QuiesceFailed:
    """The moref of a snapshot, or why the guest could not be quiesced so, after all attempts that make sense."""
    retries_left = rung.retries
    while True:
        started = await server_time(session)
        try:
            return await create(rung)
        except QuiesceFailed as exc:
            failed = await explained(session, vm, exc, started)
        await clear()
        pause_s = _pause_s(rung, failed)
        if not retries_left or pause_s is None:
            return failed
        retries_left -= 1
        remarks.append(f"Quiescing failed and was tried again: {failed.problem}")
        emit("quiescing retried", vm=vm.name, asked=rung.kind, after_s=pause_s, problem=failed.problem)
        await trio.sleep(pause_s)


async def found_out(
    session: VcenterSession, vm: Vm, taken: Quiesced, guest: Guest, node: SnapshotNode | None
) -> None:
    """Add to the remarks what shows afterwards that the guest was not quiesced; `node` is the snapshot's.

    Raises QuiesceFailed where that is certain and quiescing is required.
    """
    if taken.quiesce.kind == "none":
        return
    if node is not None and not node.quiesced:
        ignored = f"vSphere took the snapshot of {vm.name} without quiescing, and did not say why."
        if taken.quiesce.policy == "require":
            raise QuiesceFailed(ignored, remedy="See whether VMware Tools run in the guest.", vm=vm.name)
        taken.remarks.append(ignored)
    if obstacle := (await guest_of(session, vm)).obstacle:
        taken.remarks.append(
            f"After the snapshot {obstacle}: quiescing may have been ignored; the VSS manifest tells."
        )
    if node is not None and not node.backup_manifest and is_windows(guest.guest_id):
        taken.remarks.append("vSphere names no VSS manifest for the snapshot, which it does after quiescing.")


def _rungs(vm: Vm, asked: Quiesce, guest: Guest) -> tuple[Sequence[Quiesce], list[str]]:
    if asked.kind == "none" or not guest.obstacle:
        return asked.rungs(guest.guest_id), [asked.warning] if asked.warning else []
    said = f"{vm.name} was not quiesced: {guest.obstacle}, so vSphere would ignore it without a word."
    if asked.policy == "require" and not guest.is_off:
        raise QuiesceFailed(
            said,
            remedy="Start VMware Tools in the guest; or use the policy 'try', or Quiesce.none().",
            vm=vm.name,
            fault="ToolsUnavailable",
        )
    return [Quiesce.none()], [said]


def _pause_s(rung: Quiesce, failed: QuiesceFailed) -> float | None:
    """Seconds until another attempt; None: it would fail again."""
    advice = advice_on(failed)
    if advice is None or advice.retry_after_s is None:
        return None
    return advice.retry_after_s if rung.retry_after_s is None else rung.retry_after_s
