"""A snapshot as a resource: it exists inside `async with`, and is gone afterwards, whatever happened inside.

The order that makes it so: the intent is durable in the journal; then the snapshot is created; at the end, however
it came, our snapshots are removed in a shielded scope with a deadline; then the intent is forgotten. What cannot
be removed keeps its intent for the next sweep and is reported as SnapshotLeaked, beside whatever the body raised.

A creation whose answer was lost may have happened: it is looked for by the token in its description before it is
repeated; and where it is still at work unseen, the host refuses the repetition, and it is looked for again. A
cancelled creation goes on at the server: the removal waits for it. A creation that stays in doubt keeps its intent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import trio
from pyVmomi import vim

from pipeline.errors import (
    MoverError,
    SnapshotError,
    SnapshotLeaked,
    leaves,
)

from ..api.faults import Busy, ObjectGone
from ..api.properties import Row
from ..api.retry import patiently
from ..api.session import VcenterSession
from ..api.tasks import wait_for_task
from ..inventory.hardware import DiskFacts, configuration, disk_facts
from ..inventory.lookup import Vm
from ..journal.hot_add import DisksStillAttached
from ..journal.intents import Intent, Journal, Kind
from ..journal.journaled import announce, settle
from .changes import OUT_OF_ORDER, untracked
from .consolidate import NEEDED, Consolidate
from .fallback import (
    GUEST_PATHS,
    Guest,
    Quiesced,
    found_out,
    take_quiesced,
)
from .family import family_of
from .quiesce import Quiesce, create_snapshot
from .remove import find_ours, remove_ours
from .tree import description_with

# A snapshot that grew during a night of writes takes its time to consolidate.
REMOVE_WITHIN_S = 3600.0
# What a creation may take beyond the time for quiescing, whose default is 15 minutes.
_CREATE_MARGIN_S = 1800.0
_QUIESCE_MIN = 15


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that exists now. `disks` are those it holds; `left_out`: a sentence for each that it does not.

    `quiesce`: what was asked for in the end; `remarks`: what a report should say about the quiescing. `family`: the
    morefs of all that its creation made; `attention`: what of that is not removed with it.
    """

    moref: str
    vm: Vm
    disks: Sequence[DiskFacts]
    left_out: Sequence[str]
    configuration: Mapping[str, object]
    quiesce: Quiesce
    remarks: Sequence[str]
    family: frozenset[str] = frozenset()
    attention: Sequence[str] = ()


@asynccontextmanager
async def open_snapshot(
    session: VcenterSession,
    vm: Vm,
    quiesce: Quiesce,
    journal: Journal,
    *,
    run: str,
    remove_within_s: float = REMOVE_WITHIN_S,
    consolidate: Consolidate = "ask",
) -> AsyncIterator[Snapshot]:
    """Hold the VM's disks still. `run` is the identity of the run, for the snapshot's name.

    `consolidate`: what may be done for disks that still need it after the removal. Raises QuiesceFailed,
    SnapshotError, VsphereError; SnapshotLeaked when the snapshot could not be removed, or ConsolidationNeeded, its
    kind, when only its redo logs remain; in a group with the body's own error when both failed. After a body that
    ended with DisksStillAttached the snapshot stays: removing it would tear the disk from the machine that has it.
    """
    intent = await announce(session, vm, journal, run, Kind.SNAPSHOT)
    held = _Held(session, vm, intent, journal, consolidate)
    try:
        yield await held.take(quiesce)
    except BaseException as failure:
        attached = any(isinstance(leaf, DisksStillAttached) for leaf in leaves(failure))
        leaked = await (held.keep() if attached else held.release(remove_within_s))
        if leaked is not None:
            raise BaseExceptionGroup("The run failed, and so did its clean-up", [failure, leaked]) from None
        raise
    if (leaked := await held.release(remove_within_s)) is not None:
        raise leaked


@dataclass
class _Held:
    """One intent on its way. `moref`: of its snapshot, once known; `in_doubt`: it may come without our knowing."""

    session: VcenterSession
    vm: Vm
    intent: Intent
    journal: Journal
    consolidate: Consolidate
    moref: str | None = None
    in_doubt: bool = False
    told: dict[str, None] = field(default_factory=dict)  # by the creation; each once

    async def take(self, quiesce: Quiesce) -> Snapshot:
        subject = self.vm.reference(self.session)
        paths = [*GUEST_PATHS, "config.hardware.device", NEEDED]
        before = await self.session.properties(subject, paths)
        guest = Guest.of(before.values)
        taken = await take_quiesced(
            self.session, self.vm, quiesce, guest, partial(self._create, guest.guest_id), self._clear
        )
        taken.remarks.extend(self.told)
        family = await family_of(self.session, self.vm, self.intent.token, taken.moref)
        await found_out(self.session, self.vm, taken, guest, family.node if family else None)
        if family is None:
            return await _described(self.session, self.vm, taken, before)
        described = await _described(self.session, self.vm, replace(taken, moref=family.node.moref), before)
        return replace(described, family=family.morefs, attention=family.attention)

    async def release(self, within_s: float) -> SnapshotLeaked | None:
        """Remove our snapshot and forget the intent; what could not be done comes back as an error, not raised."""
        reason = f"it was not gone after {within_s:.0f} s; the server may still be at it"
        leaked: SnapshotLeaked | None = None
        with trio.move_on_after(within_s, shield=True):
            try:
                if await self._clear() or (not self.in_doubt and await self._is_gone()):
                    await trio.to_thread.run_sync(self.journal.remove, self.intent)
                else:
                    await trio.to_thread.run_sync(self.journal.abandon, self.intent)
                return None
            except SnapshotLeaked as exc:
                leaked = exc
            except MoverError as exc:
                reason = str(exc)
        leaked = leaked or self._leaked(reason)
        await settle(self.journal, self.intent, leaked)
        return leaked

    async def keep(self) -> SnapshotLeaked:
        """Leave our snapshot to the next sweep."""
        leaked = self._leaked("a disk of it is still attached to this machine")
        await settle(self.journal, self.intent, leaked)
        return leaked

    async def _create(self, guest_id: str, quiesce: Quiesce) -> str:
        """Create the snapshot once, and find it again when its answer is lost. Returns its moref."""
        within_s = _CREATE_MARGIN_S + 60 * (quiesce.timeout_min or _QUIESCE_MIN)
        attempt = partial(self._create_or_find, guest_id, quiesce)
        try:
            with trio.fail_after(within_s):
                self.moref = await patiently(attempt, self.session.settings.patience_s)
        except trio.TooSlowError:
            raise Busy(
                f"The snapshot of {self.vm.name} was not there after {within_s:.0f} s.",
                remedy="Look at the VM's tasks and at its host.",
                vm=self.vm.name,
            ) from None
        except MoverError as exc:
            self.in_doubt = exc.transient
            raise
        self.in_doubt = False
        return self.moref

    async def _create_or_find(self, guest_id: str, quiesce: Quiesce) -> str:
        token = self.intent.token
        if self.in_doubt and (node := await find_ours(self.session, self.vm.moref, token)):
            return node.moref
        self.in_doubt = True
        task = await create_snapshot(
            self.session,
            self.vm,
            quiesce,
            name=self.intent.snapshot_name,
            description=description_with(token, self.intent.origin),
            guest_id=guest_id,
            tell=lambda sentence: self.told.update({sentence: None}),
        )
        created = await wait_for_task(self.session, task, "CreateSnapshot_Task")
        if isinstance(created, vim.vm.Snapshot):
            return str(created._moId)
        if node := await find_ours(self.session, self.vm.moref, token):
            return node.moref
        raise SnapshotError(
            f"The snapshot of {self.vm.name} succeeded, but {self.session.server} does not show it.",
            remedy="Look at the VM's snapshots and recent tasks.",
            vm=self.vm.name,
        )

    async def _clear(self) -> int:
        """Remove every snapshot with our token; returns how many there were."""
        remove = partial(
            remove_ours,
            self.session,
            self.vm.moref,
            self.vm.name,
            self.intent.token,
            consolidate=self.consolidate,
        )
        return await patiently(remove, self.session.settings.patience_s)

    async def _is_gone(self) -> bool:
        """Whether somebody else removed our snapshot, which the tree does not show. Raises SnapshotLeaked."""
        if self.moref is None:
            return True
        subject = vim.vm.Snapshot(self.moref, self.session.stub)
        try:
            await self.session.properties(subject, ["childSnapshot"])
        except ObjectGone:
            return True
        raise self._leaked("the VM's snapshot tree does not show it, though it exists")

    def _leaked(self, reason: str) -> SnapshotLeaked:
        name = self.intent.snapshot_name
        return SnapshotLeaked(
            f"The snapshot {name!r} ({self.moref or 'unconfirmed'}) of {self.vm.name} "
            f"could not be removed: {reason.rstrip('.')}.",
            remedy="The next run or 'vadpipe cleanup' tries again; or remove it in the vSphere Client.",
            vm=self.vm.name,
            vm_moref=self.vm.moref,
            snapshot=self.moref,
            snapshot_name=name,
            token=self.intent.token,
            server=self.session.server,
        )


async def _described(session: VcenterSession, vm: Vm, taken: Quiesced, before: Row) -> Snapshot:
    """The snapshot with its disks. `before`: the VM as it was, to account for every one of them."""
    subject = vim.vm.Snapshot(taken.moref, session.stub)
    row = await session.properties(subject, ["config"])
    config: vim.vm.ConfigInfo | None = row.get("config")
    if config is None:
        raise SnapshotError(
            f"The snapshot {taken.moref} of {vm.name} has no configuration.",
            vm=vm.name,
            snapshot=taken.moref,
        )
    holds = {facts.device_key: facts for facts in disk_facts(config.hardware.device)}
    had = disk_facts(before.get("config.hardware.device") or ())
    missing = [facts for facts in had if facts.device_key not in holds]
    left_out = [
        f"{facts.label} ({facts.key}) is left out: {facts.left_out or 'the snapshot does not hold it'}."
        for facts in [*holds.values(), *missing]
        if facts.left_out or facts in missing
    ]
    disks = [facts for facts in holds.values() if not facts.left_out]
    remarks = list(taken.remarks)
    if before.get(NEEDED):
        disks, remarks = untracked(disks), [*remarks, OUT_OF_ORDER.format(vm=vm.name)]
    return Snapshot(
        taken.moref,
        vm,
        disks,
        left_out,
        configuration(config, left_out),
        taken.quiesce,
        remarks,
    )
