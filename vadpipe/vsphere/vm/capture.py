"""A VM held still by a snapshot: what is looked at before, what stands meanwhile, what is undone at the end."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import trio

from pipeline.buffers import BufferPool
from pipeline.errors import MoverError, SnapshotError, SourceError
from pipeline.protocols import MachineId
from vadpipe.vss.fetched import FetchedManifest
from vadpipe.vss.requested import RequestedQuiescing

from ..api.retry import patiently
from ..api.session import VcenterSession
from ..guest.expectations import look_inside
from ..inventory.lookup import Vm, find_vm
from ..journal.access import vm_access
from ..journal.hot_add import hot_added
from ..journal.intents import Journal
from ..journal.journaled import new_run
from ..journal.relocation_lock import relocation_locked
from ..manifest.fetch import ManifestFetcher, fetch_manifest
from ..manifest.locate import DirectoryState, directory_state
from ..snapshot.changes import enable_change_tracking
from ..snapshot.consolidate import Consolidate
from ..snapshot.quiesce import Quiesce
from ..snapshot.snapshot import Snapshot, open_snapshot
from ..snapshot.tree import snapshots_left, snapshots_of
from ..snapshot.unmoved import host_of, require_unmoved
from .check import Checked
from .disk import SnapshotDisk
from .sweep import TELLING, sweep

if TYPE_CHECKING:
    from .vm import VsphereVm

_COUNT_S = 30.0
_SWEEP_AT_END_S = 30.0


@dataclass
class VsphereCapture:
    """A VM held still by a snapshot: a `pipeline.protocols.Capture`.

    `left_out`: a sentence for each disk of the VM that no snapshot holds. `attention`: what else is not as it was
    asked for; `remarks`: what else a report should say. `preflight`: what the check before the snapshot said.
    `snapshots_left`: how many snapshots the VM has, whoever made them, known once the capture has ended.
    """

    machine: MachineId
    disks: Sequence[SnapshotDisk]
    quiescing_asked: str
    configuration: Mapping[str, object]
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
        """What was asked for in the end, which is weaker where the policy 'try' had to step down."""
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
    """A snapshot of the machine with its disks open; see `VsphereVm.capture`."""
    journal, run = settings.journal or Journal(), new_run()
    lockable = settings.reader if settings.lock_relocation else None
    async with settings.vcenter.connect() as session:
        vm = await find_vm(session, settings.vm)
        before = await _looked_before(settings, session, vm, journal)
        capture = None
        try:
            async with (
                relocation_locked(session, vm, lockable, journal, run=run) as unlocked,
                open_snapshot(
                    session,
                    vm,
                    settings.quiesce,
                    journal,
                    run=run,
                    remove_within_s=settings.remove_within_s,
                    consolidate=settings.consolidate,
                ) as snapshot,
                hot_added(session, vm, settings.reader, journal, run=run) as attachable,
            ):
                late_until = trio.current_time() + settings.manifest_late_s
                host = await patiently(partial(host_of, session, vm), session.settings.patience_s)
                async with _opened(settings, session, snapshot, attachable) as disks:
                    weaker = _weaker(settings.quiesce, snapshot.quiesce)
                    before.remarks += snapshot.remarks
                    capture = VsphereCapture(
                        machine=MachineId(vm.uuid, vm.name),
                        disks=disks,
                        quiescing_asked=settings.quiesce.kind,
                        configuration={**snapshot.configuration, **before.inside_guest},
                        left_out=snapshot.left_out,
                        attention=[*before.attention, *weaker, *snapshot.attention, *unlocked],
                        remarks=before.remarks,
                        preflight=before.preflight,
                        session=session,
                        snapshot=snapshot,
                        directory_before=before.directory,
                        host_before=host,
                        fetchers=settings.manifest,
                        manifest_late_until=late_until,
                    )
                    yield capture
        finally:
            before.remarks += await _swept_at_end(session, journal, settings.consolidate)
            if capture is not None:
                await _count_snapshots_left(capture, session, vm)


@dataclass
class _Before:
    """What was seen before the snapshot. `directory`: the VM's files, None where no manifest will be looked for."""

    remarks: list[str]
    attention: Sequence[str]
    preflight: Mapping[str, object] | None
    inside_guest: Mapping[str, object]
    directory: DirectoryState | None


async def _looked_before(settings: VsphereVm, session: VcenterSession, vm: Vm, journal: Journal) -> _Before:
    """Sweep, and look at everything that decides whether the snapshot is worth taking. Raises SourceError."""
    patience_s = session.settings.patience_s
    remarks = await _swept(session, journal, settings.consolidate)
    remarks += await _not_ours(session, vm)
    checked = Checked({})
    if settings.preflight is not None:
        checked = await settings.preflight.check(session, vm, settings)
        remarks += checked.remarks
    if settings.enable_change_tracking:
        obstacle = await patiently(partial(enable_change_tracking, session, vm), patience_s)
        remarks += [obstacle] if obstacle else []
    looked = await look_inside(session, vm, settings.guest, settings.quiesce)
    remarks += looked.remarks
    directory = None
    if settings.quiesce.kind != "none":
        directory = await patiently(partial(directory_state, session, vm), patience_s)
    inside = {} if looked.inside is None else {"inside_guest": looked.inside}
    attention = [*checked.attention, *looked.attention]
    return _Before(remarks, attention, checked.document or None, inside, directory)


def _require_disks(snapshot: Snapshot) -> None:
    if not snapshot.disks:
        raise SnapshotError(
            f"A snapshot of {snapshot.vm.name} holds none of its disks. {' '.join(snapshot.left_out)}".rstrip(),
            remedy="Back these disks up from inside the guest.",
            vm=snapshot.vm.name,
        )


@asynccontextmanager
async def _opened(
    settings: VsphereVm, session: VcenterSession, snapshot: Snapshot, attachable: list[object]
) -> AsyncIterator[list[SnapshotDisk]]:
    """The snapshot's disks, open. What their reader gave goes into `attachable` too."""
    _require_disks(snapshot)
    pool = BufferPool(settings.pool_size)
    async with AsyncExitStack() as stack:
        disks = []
        for facts in snapshot.disks:
            access = vm_access(session, snapshot.vm.moref).disk(facts.path, snapshot.moref)
            try:
                reader = await stack.enter_async_context(settings.reader.open(access, pool))
            except MoverError as exc:
                exc.add_note(f"disk {facts.label} ({facts.key})")
                raise
            attachable.append(reader)
            disks.append(SnapshotDisk(facts, pool, reader, session, snapshot))
        yield disks


def _weaker(asked: Quiesce, taken: Quiesce) -> list[str]:
    """A sentence when the snapshot was taken with weaker quiescing than asked for."""
    if taken.kind == asked.kind:
        return []
    return [f"The snapshot was taken with quiescing {taken.kind!r}; asked for was {asked.kind!r}."]


async def _swept(session: VcenterSession, journal: Journal, consolidate: Consolidate) -> list[str]:
    """What a report should say of the sweep; other runs at work and intents of nothing are no news."""
    return [
        f"Left by an earlier run: {swept}."
        for swept in await sweep(session, journal, consolidate=consolidate)
        if swept.outcome in TELLING
    ]


async def _swept_at_end(session: VcenterSession, journal: Journal, consolidate: Consolidate) -> list[str]:
    """The same for what other runs left meanwhile, and what this one gave up on; nobody waits long for it."""
    if trio.current_effective_deadline() == -math.inf:  # the user wants to leave
        return []
    with trio.move_on_after(2 * _SWEEP_AT_END_S, shield=True), suppress(SourceError):
        found = await sweep(session, journal, consolidate=consolidate, within_s=_SWEEP_AT_END_S)
        return [f"At the end: {swept}." for swept in found if swept.outcome in TELLING]
    return []


async def _not_ours(session: VcenterSession, vm: Vm) -> list[str]:
    """A sentence for each snapshot that the VM has; what is not ours, or not of this machine, is left alone."""
    return [
        f"{vm.name} has the snapshot {node.name!r} ({node.moref}), "
        + ("made by vadpipe elsewhere" if node.token else "not made by vadpipe")
        + "; it is left alone."
        for node in await snapshots_of(session, vm.moref)
    ]


async def _count_snapshots_left(capture: VsphereCapture, session: VcenterSession, vm: Vm) -> None:
    """For the report, also of a run that failed; what made it fail is the news, not a count that cannot be had."""
    with trio.move_on_after(_COUNT_S, shield=True), suppress(SourceError):
        capture.snapshots_left = await snapshots_left(session, vm)
