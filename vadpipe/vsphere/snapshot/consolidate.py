"""Redo logs that outlived their snapshot: `consolidationNeeded`, and the ladder that vendors document against it.

The rungs are: ask for it (ConsolidateVMDisks); make a snapshot without quiescing and remove it; the same with
quiescing. The documents say "remove all" on the upper two. We make that come true the other way round: they are
climbed only where the tree is empty, so that all there is to remove is ours, and what somebody else takes meanwhile
stays. Their snapshots carry the token of the removal that needs them, whose intent is still in the journal: a run
that is killed on a rung leaves nothing that the sweep does not know.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import trio
from pyVmomi import vim

from pipeline.errors import MoverError, SnapshotError, SnapshotLeaked

from ..api.retry import patiently, pauses
from ..api.session import VcenterSession
from ..api.tasks import wait_for_task
from .tree import description_with, snapshots_of

Consolidate = Literal["never", "ask", "ladder"]
"""What may be done for disks that need consolidation: name it only; ask vSphere for it; all that is documented."""

# How long a host may take to say that the disks are consolidated after a removal has ended.
_SETTLE_S = 30.0
NEEDED = "runtime.consolidationNeeded"


def most_allowed(settings: Iterable[Consolidate]) -> Consolidate:
    """What the most permissive of them allows; 'never' of none."""
    return max(settings, key=get_args(Consolidate).index, default="never")


class ConsolidationNeeded(SnapshotLeaked):
    """The snapshot left the tree, its redo logs did not; the VM goes on growing them."""


@dataclass(frozen=True)
class Rung:
    """One way to consolidate. `climb` raises SnapshotLeaked when it left a snapshot, else what went wrong."""

    name: str
    climb: Callable[[], Awaitable[None]]


def rungs(
    session: VcenterSession,
    vm_moref: str,
    token: str,
    allowed: Consolidate,
    remove: Callable[[], Awaitable[object]],
) -> Sequence[Rung]:
    """The ladder as far as it is `allowed`. `remove` takes every snapshot with `token` out of the tree."""
    if allowed == "never":
        return ()
    asking = Rung("ConsolidateVMDisks", partial(_consolidate, session, vm_moref))
    if allowed != "ladder":
        return (asking,)
    snapshot = partial(_by_snapshot, session, vm_moref, token, remove)
    return (
        asking,
        Rung("a snapshot of ours that was made and removed", partial(snapshot, quiesce=False)),
        Rung("the same with quiescing", partial(snapshot, quiesce=True)),
    )


async def needs_consolidation(session: VcenterSession, vm_moref: str) -> bool:
    """Whether vSphere says that the VM's disks need consolidation."""
    subject = vim.VirtualMachine(vm_moref, session.stub)
    row = await session.properties(subject, [NEEDED])
    return bool(row.get(NEEDED))


async def settle_consolidation(
    session: VcenterSession, vm_moref: str, vm_name: str, ladder: Sequence[Rung]
) -> bool:
    """Wait until the disks need no consolidation; where that does not come by itself, climb the ladder.

    Returns whether it had to be climbed. Raises ConsolidationNeeded, SnapshotLeaked.
    """
    if not await needs_consolidation(session, vm_moref):
        return False
    for pause_s in pauses(min(_SETTLE_S, session.settings.patience_s)):
        await trio.sleep(pause_s)
        if not await needs_consolidation(session, vm_moref):
            return False
    failed: list[str] = []
    for rung in ladder:
        reason, is_full = await _climbed(session, rung)
        if not await needs_consolidation(session, vm_moref):
            return True
        failed.append(f"{rung.name}: {reason}")
        if is_full:  # one more snapshot would only take more of what there is not
            break
    tried = f"tried were {'; '.join(failed)}" if failed else "the configuration allows nothing against it"
    raise ConsolidationNeeded(
        f"The disks of {vm_name} need consolidation: {tried}.",
        remedy=_remedy(ladder),
        vm=vm_name,
        vm_moref=vm_moref,
        server=session.server,
    )


async def _climbed(session: VcenterSession, rung: Rung) -> tuple[str, bool]:
    """Why the rung did not help, if it did not, and whether that was for want of space."""
    try:
        await patiently(rung.climb, session.settings.patience_s)
    except SnapshotLeaked:
        raise
    except MoverError as exc:
        return exc.problem.rstrip("."), exc.facts.get("fault") == "NoDiskSpace"
    return "vSphere still says so afterwards", False


def _remedy(ladder: Sequence[Rung]) -> str:
    further = " with '--consolidate ladder'" if len(ladder) == 1 else ""
    return (
        f"Run 'vadpipe cleanup' again{further}, or consolidate the disks in the vSphere Client before they fill "
        "the datastore."
    )


async def _consolidate(session: VcenterSession, vm_moref: str) -> None:
    if not await needs_consolidation(session, vm_moref):
        return
    subject = vim.VirtualMachine(vm_moref, session.stub)
    task = await session.call("ConsolidateVMDisks_Task", subject.ConsolidateVMDisks_Task, changes=True)
    await wait_for_task(session, task, "ConsolidateVMDisks_Task")


async def _by_snapshot(
    session: VcenterSession,
    vm_moref: str,
    token: str,
    remove: Callable[[], Awaitable[object]],
    *,
    quiesce: bool,
) -> None:
    """Removing a snapshot consolidates everything that hangs on the same disks."""
    await remove()  # one whose answer was lost when this was tried before
    if not await needs_consolidation(session, vm_moref):
        return
    if others := await snapshots_of(session, vm_moref):
        raise SnapshotError(
            f"it is not made while the VM has snapshots of others ({', '.join(node.name for node in others)})."
        )
    subject, said = vim.VirtualMachine(vm_moref, session.stub), description_with(token, "its clean-up")
    try:
        task = await session.call(
            "CreateSnapshot_Task",
            lambda: subject.CreateSnapshot("vadpipe consolidation", said, False, quiesce),
            changes=True,
        )
        await wait_for_task(session, task, "CreateSnapshot_Task")
    finally:
        try:
            await remove()
        except MoverError as exc:
            if exc.transient:
                raise
            raise SnapshotLeaked(
                f"The snapshot that was to consolidate the disks could not be removed: {exc.problem}",
                remedy="The next run or 'vadpipe cleanup' tries again; or remove it in the vSphere Client.",
                vm_moref=vm_moref,
                token=token,
                server=session.server,
            ) from exc
