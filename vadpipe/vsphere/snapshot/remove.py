"""Removing our snapshots from a VM, by their token, and seeing that its disks are consolidated afterwards.

A removal starts from what the server shows, never from memory, so it can be started again at any point: after a
lost answer, a restarted server, a killed process. First it waits until the VM's own snapshot tasks have ended: a
snapshot that is still being made is in no tree yet, and a removal would miss it.

Redo logs may outlive their snapshot (`consolidationNeeded`). The vendor documents three steps of escalation: ask
for consolidation (ConsolidateVMDisks); make a snapshot without quiescing and remove it; the same with quiescing.
The documents say "remove all" in the last two. Here they are taken only when the VM has no other snapshots, so
nothing but our own is removed. Their snapshots carry the token of the removal, whose intent is still in the
journal, so the sweep finds what a killed run leaves.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import trio
from pyVmomi import vim, vmodl

from pipeline.errors import MoverError, SourceError

from ..api.faults import ConnectionLost, SnapshotError, SnapshotLeaked
from ..api.properties import read
from ..api.retry import backoff, retry
from ..api.session import VcenterSession
from ..api.tasks import wait_for_task
from .tree import SnapshotNode, description_with, snapshots_of

log = logging.getLogger(__name__)

Consolidate = Literal["never", "ask", "escalate"]
"""What may be done for disks that need consolidation: report it, ask vSphere for it, all that is documented."""

# How long a host may take after a removal to report that the disks are consolidated.
_SETTLE_S = 30.0
NEEDED = "runtime.consolidationNeeded"


def most_allowed(settings: Iterable[Consolidate]) -> Consolidate:
    """The most permissive of the settings; 'never' when there are none."""
    order: list[Consolidate] = [*get_args(Consolidate)]
    return order[max(map(order.index, settings), default=0)]


class ConsolidationNeeded(SnapshotLeaked):
    """The snapshot is gone from the tree, but its redo logs are not, and they keep growing."""


async def needs_consolidation(session: VcenterSession, vm_moref: str) -> bool:
    """Whether vSphere reports that the VM's disks need consolidation."""
    row = await session.properties(vim.VirtualMachine(vm_moref, session.stub), [NEEDED])
    return bool(row.get(NEEDED))


async def remove_ours(
    session: VcenterSession, vm_moref: str, vm_name: str, token: str, *, consolidate: Consolidate
) -> int:
    """Remove the VM's snapshots with our token, and see that its disks are consolidated.

    Args:
        consolidate: What may be done when the disks are not consolidated by themselves. The intent of the token
            must be in the journal.

    Returns:
        How many snapshots were removed.

    Raises:
        ConsolidationNeeded: The snapshots are removed, but the disks still need consolidation.
        MoverError: The removal failed; when it is transient, it may be tried again.
    """
    removal = _Removal(session, vm_moref, vm_name, token, consolidate)
    removed = await removal.remove()
    await removal.consolidate_disks()
    return removed


@dataclass(frozen=True)
class _Removal:
    session: VcenterSession
    vm_moref: str
    vm_name: str
    token: str
    consolidate: Consolidate

    async def remove(self) -> int:
        """Take the snapshots with our token out of the tree; returns how many there were."""
        await wait_for_snapshot_tasks(self.session, self.vm_moref)
        ours = await ours_of(self.session, self.vm_moref, self.token)
        for node in ours:
            started = trio.current_time()
            try:
                await _remove(self.session, node)
            except ConnectionLost:
                raise
            except MoverError as exc:
                # A removal that failed at the disks, or that somebody else made first, has removed the snapshot.
                if exc.transient or node in await ours_of(self.session, self.vm_moref, self.token):
                    raise
            seconds = trio.current_time() - started
            log.info("%s: snapshot %r (%s) removed in %.1f s", self.vm_name, node.name, node.moref, seconds)
        return len(ours)

    async def consolidate_disks(self) -> None:
        """Wait until the disks need no consolidation, and escalate as far as allowed where they still do."""
        if not await self._is_needed():
            return
        log.info("%s: waiting for its disks to be consolidated", self.vm_name)
        for pause_s in backoff(min(_SETTLE_S, self.session.settings.patience_s)):
            await trio.sleep(pause_s)
            if not await self._is_needed():
                return
        failed: list[str] = []
        for name, step in self._escalation():
            log.info("%s: its disks need consolidation; trying %s", self.vm_name, name)
            reason, is_full = "vSphere reports the same afterwards", False
            try:
                await retry(step, self.session.settings.patience_s)
            except SnapshotLeaked:
                raise
            except MoverError as exc:
                reason, is_full = exc.problem.rstrip("."), exc.facts.get("fault") == "NoDiskSpace"
            if not await self._is_needed():
                return
            failed.append(f"{name} ({reason})")
            if is_full:  # another snapshot would need even more space
                break
        raise self._needed(failed)

    def _escalation(self) -> Sequence[tuple[str, Callable[[], Awaitable[None]]]]:
        steps: list[tuple[str, Callable[[], Awaitable[None]]]] = [("ConsolidateVMDisks", self._ask)]
        if self.consolidate == "escalate":
            steps += [
                ("a snapshot of ours that was made and removed", partial(self._by_snapshot, quiesce=False)),
                ("the same with quiescing", partial(self._by_snapshot, quiesce=True)),
            ]
        return steps if self.consolidate != "never" else ()

    async def _ask(self) -> None:
        if await self._is_needed():
            subject = vim.VirtualMachine(self.vm_moref, self.session.stub)
            name = "ConsolidateVMDisks_Task"
            work = subject.ConsolidateVMDisks_Task
            task = await self.session.call(name, work, changes=True)  # pyright: ignore
            await wait_for_task(self.session, task, name)  # pyright: ignore

    async def _by_snapshot(self, *, quiesce: bool) -> None:
        """Removing a snapshot consolidates everything that depends on the same disks."""
        await self.remove()  # one of an earlier attempt whose answer was lost
        if not await self._is_needed():
            return
        if others := await snapshots_of(self.session, self.vm_moref):
            names = ", ".join(node.name for node in others)
            raise SnapshotError(f"it is not made while the VM has snapshots of others ({names}).")
        subject = vim.VirtualMachine(self.vm_moref, self.session.stub)
        description = description_with(self.token, "its clean-up")
        try:
            task = await self.session.call(
                "CreateSnapshot_Task",
                lambda: subject.CreateSnapshot("vadpipe consolidation", description, False, quiesce),
                changes=True,
            )
            await wait_for_task(self.session, task, "CreateSnapshot_Task")
        finally:
            try:
                await self.remove()
            except MoverError as exc:
                if exc.transient:
                    raise
                raise SnapshotLeaked(
                    f"The snapshot that was to consolidate the disks could not be removed: {exc.problem}",
                    remedy="The next run or 'vadpipe cleanup' tries again; or remove it in the vSphere Client.",
                    vm_moref=self.vm_moref,
                    token=self.token,
                    server=self.session.server,
                ) from exc

    async def _is_needed(self) -> bool:
        return await needs_consolidation(self.session, self.vm_moref)

    def _needed(self, failed: Sequence[str]) -> ConsolidationNeeded:
        tried = f"tried without success: {'; '.join(failed)}" if failed else "consolidate='never' forbids it"
        further = " with '--consolidate escalate'" if self.consolidate == "ask" else ""
        return ConsolidationNeeded(
            f"The disks of {self.vm_name} need consolidation; {tried}.",
            remedy=f"Run 'vadpipe cleanup' again{further}, or consolidate the disks in the vSphere Client before "
            "they fill the datastore.",
            vm=self.vm_name,
            vm_moref=self.vm_moref,
            server=self.session.server,
        )


async def ours_of(session: VcenterSession, vm_moref: str, token: str) -> list[SnapshotNode]:
    """The VM's snapshots with our token, as the tree shows them now."""
    return [node for node in await snapshots_of(session, vm_moref) if node.token == token]


async def find_ours(session: VcenterSession, vm_moref: str, token: str) -> SnapshotNode | None:
    """The snapshot with our token, also one that is being made now; None when there is none."""
    await wait_for_snapshot_tasks(session, vm_moref)
    return next(iter(await ours_of(session, vm_moref, token)), None)


async def wait_for_snapshot_tasks(session: VcenterSession, vm_moref: str) -> None:
    """Wait until nobody is making or removing a snapshot of the VM. How these tasks end does not matter."""
    subject = vim.VirtualMachine(vm_moref, session.stub)

    def unfinished() -> list[vim.Task]:
        tasks = read(session.content, subject, ["recentTask"]).get("recentTask") or ()
        return [task for task in tasks if _is_running_on_snapshots(session, task)]

    for task in await session.call("RetrieveProperties", unfinished):
        log.info("Waiting for a snapshot task of the VM %s", vm_moref)
        try:
            await wait_for_task(session, task, "snapshot task")
        except ConnectionLost:
            raise
        except SourceError:  # its own caller deals with it
            continue


def _is_running_on_snapshots(session: VcenterSession, task: vim.Task) -> bool:
    try:
        facts = read(session.content, task, ["info.descriptionId", "info.state"])
    except vmodl.fault.ManagedObjectNotFound:
        return False
    description = str(facts.get("info.descriptionId")).lower()
    running = facts.get("info.state") in ("queued", "running")
    return running and ("snapshot" in description or "consolidate" in description)


async def _remove(session: VcenterSession, node: SnapshotNode) -> None:
    subject = vim.vm.Snapshot(node.moref, session.stub)
    task = await session.call("RemoveSnapshot_Task", lambda: subject.Remove(False, True), changes=True)
    await wait_for_task(session, task, "RemoveSnapshot_Task")
