"""A VM held still by a snapshot: what is checked before, what exists meanwhile, what is undone at the end."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import trio

from pipeline.buffers import BufferPool
from pipeline.errors import MoverError, SourceError, leaves
from pipeline.protocols import MachineId
from vadpipe.exclude import excluded_keys
from vadpipe.vss.fetched import FetchedManifest
from vadpipe.vss.requested import RequestedQuiescing
from vadpipe.words import duration

from ..api.faults import SnapshotError
from ..api.retry import retry
from ..api.session import VcenterSession
from ..guest.expectations import look_inside
from ..inventory.hardware import vm_disks
from ..inventory.lookup import Vm, find_vm
from ..inventory.origin import origin_of
from ..journal.access import vm_access
from ..journal.intents import IntentKind, Journal
from ..journal.journaled import new_run
from ..journal.relocation_lock import relocation_locked
from ..manifest.fetch import ManifestFetcher, fetch_manifest
from ..manifest.locate import DirectoryState, directory_state
from ..snapshot.changes import enable_change_tracking
from ..snapshot.hot_add import HotAdds, hot_added
from ..snapshot.remove import Consolidate
from ..snapshot.snapshot import Snapshot, open_snapshot
from ..snapshot.tree import SnapshotNode, snapshots_left, snapshots_of
from ..snapshot.unmoved import host_of, require_unmoved
from .check import Checked
from .disk import SnapshotDisk
from .sweep import TELLING, Outcome, Swept, sweep

if TYPE_CHECKING:
    from .vm import VsphereVm

log = logging.getLogger(__name__)

_COUNT_S = 30.0
_SWEEP_AT_END_S = 30.0


@dataclass
class VsphereCapture:
    """A VM held still by a snapshot: a `pipeline.protocols.Capture`.

    `left_out`: a sentence for each disk that the snapshot does not hold. `attention`: sentences on what else is not
    as asked for; `remarks`: what else a report should say. `preflight`: the result of the check before the
    snapshot. `snapshots_left`: how many snapshots the VM has, whoever made them; known when the capture has ended.
    """

    machine: MachineId
    disks: Sequence[SnapshotDisk]
    quiescing_asked: str
    configuration: Mapping[str, object]
    documents: Mapping[str, bytes] = field(repr=False)
    left_out: Sequence[str]
    attention: Sequence[str]
    remarks: Sequence[str]
    preflight: Mapping[str, object] | None
    session: VcenterSession = field(repr=False)
    snapshot: Snapshot = field(repr=False)
    directory_before: DirectoryState | None = field(repr=False)
    host_before: str = field(repr=False)
    fetchers: Sequence[ManifestFetcher] = field(repr=False)
    manifest_late_until: float = field(repr=False)
    snapshots_left: int | None = None

    @property
    def quiescing_sent(self) -> RequestedQuiescing:
        """The quiescing that was sent: weaker than asked for when the policy 'try' needed a fallback."""
        sent = self.snapshot.quiesce
        return RequestedQuiescing(sent.kind, sent.backup_type, sent.bootable_system_state, sent.partial_files)

    async def confirm(self) -> None:
        """Raises Moved when the VM or the files of the snapshot were moved while they were read."""
        await require_unmoved(self.session, self.snapshot, self.host_before)

    async def fetch_vss_manifest(self) -> FetchedManifest:
        """The VSS manifest of this snapshot, or why there is none; raises nothing."""
        if self.directory_before is None:
            return FetchedManifest(None, "quiescing was not asked for", None, absent=True)
        return await fetch_manifest(
            self.session,
            self.snapshot,
            self.directory_before,
            self.fetchers,
            late_until=self.manifest_late_until,
        )


@asynccontextmanager
async def captured(settings: VsphereVm) -> AsyncIterator[VsphereCapture]:
    """A snapshot of the machine with its disks open; see `VsphereVm.capture`.

    When it fails, the error gets a note for every sentence that the report would have had.
    """
    journal, run = settings.journal or Journal(), new_run()
    lockable = settings.reader if settings.lock_relocation else None
    async with settings.vcenter.connect() as session:
        vm = await find_vm(session, settings.vm)
        told = _Told()
        capture = None
        try:
            before = await _look_before(settings, session, vm, journal, told)
            async with (
                relocation_locked(session, vm, lockable, journal, run=run) as not_locked,
                open_snapshot(
                    session,
                    vm,
                    settings.quiesce,
                    journal,
                    run=run,
                    remove_within_s=settings.remove_within_s,
                    consolidate=settings.consolidate,
                    excluded=before.excluded,
                ) as snapshot,
                hot_added(session, vm, settings.reader, journal, run=run) as adds,
            ):
                late_until = trio.current_time() + settings.manifest_late_s
                told.attention += [*snapshot.attention, *not_locked]
                told.remarks += snapshot.remarks
                host = await host_of(session, vm)
                origin = await origin_of(session, vm, snapshot.moref)
                told.remarks += origin.remarks
                async with _opened(settings, session, snapshot, adds) as disks:
                    capture = VsphereCapture(
                        machine=MachineId(vm.uuid, vm.name),
                        disks=disks,
                        quiescing_asked=settings.quiesce.kind,
                        configuration={
                            **snapshot.configuration,
                            **before.inside_guest,
                            "origin": origin.facts,
                        },
                        documents=origin.documents,
                        left_out=snapshot.left_out,
                        attention=told.attention,
                        remarks=told.remarks,
                        preflight=before.preflight,
                        session=session,
                        snapshot=snapshot,
                        directory_before=before.directory,
                        host_before=host,
                        fetchers=settings.manifest,
                        manifest_late_until=late_until,
                    )
                    yield capture
        except BaseException as failure:
            told.remarks += await _swept_at_end(session, journal, settings.consolidate)
            told.note_on(failure)
            raise
        else:
            told.remarks += await _swept_at_end(session, journal, settings.consolidate)
        finally:
            if capture is not None:
                await _count_snapshots_left(capture, session, vm)


@dataclass
class _Told:
    """Sentences for the report, as they arise."""

    attention: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def note_on(self, failure: BaseException) -> None:
        """Add them to the first of our errors in `failure`, for the report of a run that has no other."""
        error = next((leaf for leaf in leaves(failure) if isinstance(leaf, MoverError)), None)
        if error is not None:
            known = set(getattr(error, "__notes__", ()))
            for sentence in dict.fromkeys([*self.attention, *self.remarks]):
                if sentence not in known:
                    error.add_note(sentence)


@dataclass(frozen=True)
class _Before:
    """What was seen before the snapshot. `directory`: the VM's files; None when no manifest will be looked for.
    `excluded`: keys of disks."""

    preflight: Mapping[str, object] | None
    inside_guest: Mapping[str, object]
    directory: DirectoryState | None
    excluded: frozenset[str]


async def _look_before(
    settings: VsphereVm, session: VcenterSession, vm: Vm, journal: Journal, told: _Told
) -> _Before:
    """Sweep, and check everything that decides whether the snapshot is worth taking. Raises SourceError."""
    patience_s = session.settings.patience_s
    excluded = await _excluded(settings, session, vm)
    swept = await sweep(session, journal, consolidate=settings.consolidate)
    told.remarks += [f"Left by an earlier run: {one}." for one in swept if one.outcome in TELLING]
    nodes = await snapshots_of(session, vm.moref)
    told.remarks += [_not_removed(vm, node) for node in nodes]
    _require_none_kept(vm, nodes, swept)
    _require_not_mixed(vm, swept)
    checked = Checked({})
    if settings.preflight is not None:
        checked = await settings.preflight.check(session, vm, settings)
        told.attention += checked.attention
        told.remarks += checked.remarks
    if settings.enable_change_tracking:
        obstacle = await retry(partial(enable_change_tracking, session, vm), patience_s)
        told.remarks += [obstacle] if obstacle else []
    looked = await look_inside(session, vm, settings.guest, settings.quiesce)
    told.attention += looked.attention
    told.remarks += looked.remarks
    directory = None
    if settings.quiesce.kind != "none":
        directory = await retry(partial(directory_state, session, vm), patience_s)
    inside = {} if looked.inside is None else {"inside_guest": looked.inside}
    return _Before(checked.document or None, inside, directory, excluded)


async def _excluded(settings: VsphereVm, session: VcenterSession, vm: Vm) -> frozenset[str]:
    """The keys of the disks to leave out. Raises ConfigError before anything is touched."""
    if not settings.exclude:
        return frozenset()
    row = await session.properties(vm.reference(session), ["config.hardware.device"])
    return excluded_keys(vm_disks(row.get("config.hardware.device") or ()), settings.exclude, vm.name)


def _require_none_kept(vm: Vm, nodes: Sequence[SnapshotNode], swept: Sequence[Swept]) -> None:
    """Raises SnapshotError while a snapshot of an earlier run of ours cannot be removed: another would pile up."""
    here = {node.token: node for node in nodes if node.token}
    for one in swept:
        if one.outcome is Outcome.KEPT and one.intent.token in here:
            raise SnapshotError(
                f"{vm.name} still has the snapshot {one.intent.snapshot_name!r} of an earlier run, "
                f"{duration(one.intent.age_s)} old, so no other one is taken. It is kept because {one.reason}",
                remedy="Remove the cause and run 'vadpipe cleanup', or remove the snapshot in the vSphere Client.",
                vm=vm.name,
                snapshot=here[one.intent.token].moref,
                age_s=round(one.intent.age_s),
            )


def _require_not_mixed(vm: Vm, swept: Sequence[Swept]) -> None:
    """Raises SourceError while a restore over this VM is at work or did not end: a backup would hold a mixture."""
    for one in swept:
        mine = one.intent.kind is IntentKind.ROLLBACK and one.intent.vm_uuid == vm.uuid
        if mine and one.outcome in (Outcome.KEPT, Outcome.IN_USE):
            raise SourceError(
                f"{vm.name} is not backed up: {one}.",
                remedy="Complete the restore first: run it again.",
                vm=vm.name,
            )


def _not_removed(vm: Vm, node: SnapshotNode) -> str:
    """A sentence about a snapshot that the sweep did not remove: it is not ours, in use, or kept."""
    maker = "made by another run of vadpipe" if node.token else "not made by vadpipe"
    return f"{vm.name} has the snapshot {node.title}, {maker}; it is left alone."


@asynccontextmanager
async def _opened(
    settings: VsphereVm, session: VcenterSession, snapshot: Snapshot, adds: HotAdds
) -> AsyncIterator[list[SnapshotDisk]]:
    """The snapshot's disks, open, and known to `adds`."""
    pool = BufferPool(settings.pool_size)
    async with AsyncExitStack() as stack:
        disks = []
        for facts in snapshot.disks:
            access = vm_access(session, snapshot.vm.moref).disk(facts.path, snapshot.moref)
            adds.begun, started = True, trio.current_time()
            try:
                reader = await stack.enter_async_context(settings.reader.open(access, pool))
            except MoverError as exc:
                exc.add_note(f"disk {facts.label} ({facts.key})")
                raise
            adds.opened.append(reader)
            seconds = trio.current_time() - started
            transport = getattr(reader, "transport", "its reader")
            log.info("%s: %s opened through %s in %.1f s", snapshot.vm.name, facts.key, transport, seconds)
            disks.append(SnapshotDisk(facts, pool, reader, session, snapshot))
        yield disks


async def _swept_at_end(session: VcenterSession, journal: Journal, consolidate: Consolidate) -> list[str]:
    """Sentences about what other runs left meanwhile, or this one could not undo. Takes a minute at most."""
    if trio.current_effective_deadline() == -math.inf:  # the user wants to leave
        return []
    with trio.move_on_after(2 * _SWEEP_AT_END_S, shield=True), suppress(SourceError):
        found = await sweep(session, journal, consolidate=consolidate, within_s=_SWEEP_AT_END_S)
        return [f"At the end: {swept}." for swept in found if swept.outcome in TELLING]
    return []


async def _count_snapshots_left(capture: VsphereCapture, session: VcenterSession, vm: Vm) -> None:
    """For the report, also of a failed run. An error here is ignored: it would hide what made the run fail."""
    with trio.move_on_after(_COUNT_S, shield=True), suppress(SourceError):
        capture.snapshots_left = await snapshots_left(session, vm)
