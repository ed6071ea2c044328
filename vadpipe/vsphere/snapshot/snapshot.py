"""A snapshot as a resource: it exists inside `async with`, and is removed afterwards, whatever happened inside.

The intent is durable before the snapshot is created. A creation whose answer was lost may have happened: it is
looked for, by the token in its description, before it is repeated. Where it is still running unseen, the host
refuses the repetition, and it is looked for again. A cancelled creation goes on at the server: the removal waits
for it. A creation that stays in doubt keeps its intent. A snapshot that cannot be removed keeps its intent too, and
is raised as SnapshotLeaked, beside the error of the body.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio
from pyVmomi import vim

from pipeline.errors import MoverError, leaves
from pipeline.events import emit
from vadpipe.exclude import left_out_on_purpose

from ..api.faults import Busy, ObjectGone, QuiesceFailed, SnapshotError, SnapshotLeaked
from ..api.properties import Row
from ..api.retry import retry
from ..api.session import VcenterSession
from ..api.tasks import wait_for_task
from ..inventory.hardware import VmDisk, configuration, vm_disks
from ..inventory.lookup import Vm
from ..journal.intents import Intent, IntentKind, Journal
from ..journal.journaled import Entry, journaled
from .changes import OUT_OF_ORDER, untracked
from .fallback import (
    GUEST_PATHS,
    Guest,
    explained,
    pause_before_retry_s,
    planned_quiescing,
    remarks_on_ignored_quiescing,
    server_time,
)
from .hot_add import DisksStillAttached
from .quiesce import Quiesce, create_snapshot
from .remove import NEEDED, Consolidate, find_ours, remove_ours
from .tree import Family, description_with, family_of

log = logging.getLogger(__name__)

# A snapshot that grew during a night of writes takes long to consolidate.
REMOVE_WITHIN_S = 3600.0
# What a creation may take beyond the time for quiescing, whose default is 15 minutes.
_CREATE_MARGIN_S = 1800.0
_QUIESCE_MIN = 15


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that exists now.

    `disks`: those that it holds and that are not excluded. `left_out`: a sentence for each disk that it does not
    hold. `quiesce`: the kind that succeeded; `remarks`: what a report should say besides. `family`: morefs of all
    snapshots that the creation made; `attention`: a sentence for each of them that will not be removed.
    """

    moref: str
    vm: Vm
    disks: Sequence[VmDisk]
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
    excluded: frozenset[str] = frozenset(),
) -> AsyncIterator[Snapshot]:
    """Take a snapshot of the VM, and remove it at the end.

    After a body that ended with DisksStillAttached the snapshot is kept: removing it would break the disk that is
    attached.

    Args:
        run: Identity of the run; the snapshot is named after it.
        remove_within_s: Seconds for the removal.
        consolidate: What may be done for disks that need consolidation after the removal.
        excluded: Keys of the disks that are left out on purpose.

    Raises:
        QuiesceFailed: The guest could not be quiesced as required.
        SnapshotError: The snapshot could not be taken.
        SnapshotLeaked: It could not be removed, or only its redo logs remain (ConsolidationNeeded); in a group with
            the error of the body when both failed.
    """
    async with journaled(session, vm, journal, IntentKind.SNAPSHOT, run=run) as entry:
        own = _OwnSnapshot(session, vm, entry, consolidate, excluded)
        entry.undo_with(own.release, within_s=remove_within_s, or_else=own.leaked)
        yield await own.take(quiesce)


@dataclass
class _OwnSnapshot:
    """`moref`: once known. `in_doubt`: a creation may have happened, or still happen, without our knowing."""

    session: VcenterSession
    vm: Vm
    entry: Entry
    consolidate: Consolidate
    excluded: frozenset[str]
    moref: str | None = None
    in_doubt: bool = False
    remarks: dict[str, None] = field(default_factory=dict)  # each once, in order

    @property
    def intent(self) -> Intent:
        return self.entry.intent

    async def take(self, asked: Quiesce) -> Snapshot:
        session, vm = self.session, self.vm
        paths = [*GUEST_PATHS, "config.hardware.device", NEEDED]
        before = await session.properties(vm.reference(session), paths)
        guest = Guest.of(before.values)
        kinds, remarks = planned_quiescing(vm, asked, guest)
        self.remarks = dict.fromkeys(remarks)
        moref, used = None, kinds[0]
        for used in kinds:
            moref = await self._create_quiesced(used, guest.guest_id, is_last=used is kinds[-1])
            if moref is not None:
                break
        assert moref is not None  # the last kind raises
        family = await family_of(session, vm, self.intent.token, moref)
        node = family.node if family else None
        self.remarks |= dict.fromkeys(await remarks_on_ignored_quiescing(session, vm, used, guest, node))
        return await self._described(moref, used, family, before)

    async def _create_quiesced(self, asked: Quiesce, guest_id: str, *, is_last: bool) -> str | None:
        """Try one kind of quiescing as often as makes sense. None when a weaker kind has to be tried.

        Raises QuiesceFailed where there is no weaker kind.
        """
        retries_left = asked.retries
        while True:
            since = await server_time(self.session)
            try:
                return await self._create(asked, guest_id)
            except QuiesceFailed as exc:
                failed = await explained(self.session, self.vm, exc, since)
            await self._remove()
            pause_s = pause_before_retry_s(asked, failed)
            if not retries_left or pause_s is None:
                break
            retries_left -= 1
            self.remarks[f"Quiescing failed and was tried again: {failed.problem}"] = None
            emit(
                "quiescing retried",
                vm=self.vm.name,
                asked=asked.kind,
                after_s=pause_s,
                problem=failed.problem,
            )
            log.info("%s: quiescing again in %.0f s: %s", self.vm.name, pause_s, failed.problem)
            await trio.sleep(pause_s)
        if is_last:
            raise failed
        self.remarks[f"{asked.kind} quiescing was given up: {failed}"] = None
        log.info("%s: %s quiescing was given up: %s", self.vm.name, asked.kind, failed)
        return None

    async def _create(self, asked: Quiesce, guest_id: str) -> str:
        """Create the snapshot once, and find it again when its answer is lost. Returns its moref."""
        within_s = _CREATE_MARGIN_S + 60 * (asked.timeout_min or _QUIESCE_MIN)
        started = trio.current_time()
        attempt = partial(self._create_or_find, guest_id, asked)
        emit("snapshot begun", vm=self.vm.name, snapshot=self.intent.snapshot_name)
        try:
            with trio.fail_after(within_s):
                self.moref = await retry(attempt, self.session.settings.patience_s)
        except trio.TooSlowError:
            raise Busy(
                f"The snapshot of {self.vm.name} did not exist after {within_s:.0f} s.",
                remedy="Look at the VM's tasks and at its host.",
                vm=self.vm.name,
            ) from None
        except MoverError as exc:
            self.in_doubt = exc.transient
            raise
        self.in_doubt = False
        seconds = trio.current_time() - started
        log.info("%s: snapshot %s created in %.1f s (%s)", self.vm.name, self.moref, seconds, asked.kind)
        emit("snapshot created", vm=self.vm.name, snapshot=self.intent.snapshot_name, moref=self.moref)
        return self.moref

    async def _create_or_find(self, guest_id: str, asked: Quiesce) -> str:
        token = self.intent.token
        if self.in_doubt and (node := await find_ours(self.session, self.vm.moref, token)):
            return node.moref
        self.in_doubt = True
        task = await create_snapshot(
            self.session,
            self.vm,
            asked,
            name=self.intent.snapshot_name,
            description=description_with(token, self.intent.origin),
            guest_id=guest_id,
            remark=lambda sentence: self.remarks.update({sentence: None}),
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

    async def release(self, failure: BaseException | None) -> None:
        """Remove our snapshot, unless a disk of it is still attached. Raises what prevents that."""
        for leaf in leaves(failure) if failure else ():
            if isinstance(leaf, DisksStillAttached):
                raise self.leaked("a disk of it is still attached to a VM")
        removed = await self._remove()
        if not removed and not self.in_doubt:
            await self._require_gone()
        self.entry.in_doubt = self.in_doubt and not removed
        if not self.entry.in_doubt:
            emit("snapshot removed", vm=self.vm.name, snapshot=self.intent.snapshot_name)

    async def _remove(self) -> int:
        """Remove every snapshot with our token; returns how many there were."""
        vm, token = self.vm, self.intent.token
        remove = partial(remove_ours, self.session, vm.moref, vm.name, token, consolidate=self.consolidate)
        return await retry(remove, self.session.settings.patience_s)

    async def _require_gone(self) -> None:
        """Make sure that somebody else removed a snapshot that the tree does not show. Raises SnapshotLeaked."""
        if self.moref is None:
            return
        try:
            await self.session.properties(vim.vm.Snapshot(self.moref, self.session.stub), ["childSnapshot"])
        except ObjectGone:
            return
        raise self.leaked("the VM's snapshot tree does not show it, though it exists")

    def leaked(self, reason: str) -> SnapshotLeaked:
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

    async def _described(self, moref: str, used: Quiesce, family: Family | None, before: Row) -> Snapshot:
        """The snapshot with its disks. `before`: the VM before it, to account for each of its disks."""
        vm = self.vm
        moref = family.node.moref if family else moref
        row = await self.session.properties(vim.vm.Snapshot(moref, self.session.stub), ["config"])
        config: vim.vm.ConfigInfo | None = row.get("config")
        if config is None:
            raise SnapshotError(
                f"The snapshot {moref} of {vm.name} has no configuration.", vm=vm.name, snapshot=moref
            )
        holds = {facts.device_key: facts for facts in vm_disks(config.hardware.device)}
        had = vm_disks(before.get("config.hardware.device") or ())
        missing = [facts for facts in had if facts.device_key not in holds]
        left_out = [
            f"{facts.label} ({facts.key}) is left out: {facts.left_out or 'the snapshot does not hold it'}."
            for facts in [*holds.values(), *missing]
            if (facts.left_out or facts in missing) and facts.key not in self.excluded
        ]
        on_purpose = [left_out_on_purpose(facts) for facts in had if facts.key in self.excluded]
        disks = [facts for facts in holds.values() if not facts.left_out and facts.key not in self.excluded]
        remarks = [*on_purpose, *self.remarks]
        if before.get(NEEDED):
            disks, remarks = untracked(disks), [*remarks, OUT_OF_ORDER.format(vm=vm.name)]
        return Snapshot(
            moref=moref,
            vm=vm,
            disks=disks,
            left_out=left_out,
            configuration=configuration(config, [*left_out, *on_purpose]),
            quiesce=used,
            remarks=remarks,
            family=family.morefs if family else frozenset(),
            attention=family.attention if family else (),
        )
