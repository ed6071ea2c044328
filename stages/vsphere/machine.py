"""A VM on a vCenter or an ESXi host as a source of backups."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from functools import partial

import trio

from pipeline.buffers import DEFAULT_POOL, BufferPool
from pipeline.disk import MachineId
from pipeline.errors import MoverError, SnapshotError, SourceError
from pipeline.secrets import Secret
from stages.vddk import DiskAccess
from stages.vss.fetched import FetchedManifest

from .changes import enable_change_tracking
from .disk import DiskReader, SnapshotDisk
from .fetch_https import OverHttps
from .fetching import ManifestFetcher
from .hardware import DiskFacts
from .journal import Journal
from .lookup import Vm, find_vm
from .manifest import LATE_S, DirectoryState, directory_state, fetch_manifest
from .patience import patiently
from .quiesce import Quiesce
from .session import Vcenter, VcenterSession
from .snapshot import REMOVE_WITHIN_S, Snapshot, open_snapshot
from .snapshot_tree import snapshots_left, snapshots_of
from .sweep import Outcome, sweep

_COUNT_S = 30.0


@dataclass(frozen=True)
class VcenterVm:
    """A VM to capture: a `pipeline.disk.Machine`. Settings only, no I/O.

    `vm`: name, inventory path, moref or UUID. `reader` opens the disks, e.g. `stages.vddk.Vddk`. `pool_size`: bytes
    of buffers that all its disks share. `journal`: where intents are kept, None for the user's state directory.
    `enable_change_tracking`: switch it on where it is off, which needs a VM without snapshots.
    `remove_within_s`: how long to wait at the end for the snapshot to be gone. `consolidate`: whether disks that
    vSphere leaves in need of it after a removal are consolidated; otherwise it is only named. `manifest`: ways to
    fetch the VSS manifest, tried in this order; `manifest_late_s`: how long after the snapshot it may still come.
    """

    vcenter: Vcenter
    vm: str
    _: KW_ONLY
    reader: DiskReader
    quiesce: Quiesce = field(default_factory=Quiesce.application)
    pool_size: int = DEFAULT_POOL
    journal: Journal | None = None
    enable_change_tracking: bool = False
    remove_within_s: float = REMOVE_WITHIN_S
    consolidate: bool = True
    manifest: Sequence[ManifestFetcher] = (OverHttps(),)
    manifest_late_s: float = LATE_S

    @property
    def name(self) -> str:
        return self.vm

    def capture(self) -> AbstractAsyncContextManager[VsphereCapture]:
        """A snapshot with its disks open. At the end the disks are closed and the snapshot is removed.

        Snapshots that killed runs left are swept first. Raises SourceError and its kinds; SnapshotLeaked, in a
        group with the body's error when both failed.
        """
        return _capture(self)

    def touches(self) -> Sequence[str]:
        where = f"{self.vm} on {self.vcenter.server}"
        quiesced = {"none": "without quiescing"}.get(self.quiesce.kind, f"with {self.quiesce.kind} quiescing")
        sentences = [
            f"Takes a snapshot of {where} {quiesced}, and removes it at the end.",
            f"Removes snapshots on {self.vcenter.server} that killed runs of this machine left behind.",
            f"Notes both in {(self.journal or Journal()).directory}.",
        ]
        if self.quiesce.warning:
            sentences.append(self.quiesce.warning)
        if self.enable_change_tracking:
            sentences.append(f"Enables change tracking of {where} if it is off and the VM has no snapshots.")
        if self.quiesce.kind != "none":
            sentences += [sentence for fetcher in self.manifest for sentence in fetcher.touches()]
        return sentences


@dataclass
class VsphereCapture:
    """A VM held still by a snapshot: a `pipeline.disk.Capture`.

    `left_out`: a sentence for each disk of the VM that no snapshot holds. `attention`: what else is not as it was
    asked for; `remarks`: what else a report should say. `snapshots_left`: how many snapshots the VM has, whoever
    made them, known once the capture has ended.
    """

    machine: MachineId
    disks: Sequence[SnapshotDisk]
    quiescing_asked: str
    configuration: Mapping[str, object]
    left_out: Sequence[str]
    attention: Sequence[str]
    remarks: Sequence[str]
    session: VcenterSession = field(repr=False)
    snapshot: Snapshot = field(repr=False)
    directory_before: DirectoryState | None = field(repr=False)
    fetchers: Sequence[ManifestFetcher] = field(repr=False)
    manifest_late_until: float = field(repr=False)
    snapshots_left: int | None = None

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
async def _capture(settings: VcenterVm) -> AsyncIterator[VsphereCapture]:
    journal = settings.journal or Journal()
    pool = BufferPool(settings.pool_size)
    run = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
    async with settings.vcenter.connect() as session:
        vm = await find_vm(session, settings.vm)
        patience_s = session.settings.patience_s
        remarks = await _swept(session, journal, settings.consolidate)
        remarks += await _not_ours(session, vm)
        if settings.enable_change_tracking:
            obstacle = await patiently(partial(enable_change_tracking, session, vm), patience_s)
            remarks += [obstacle] if obstacle else []
        before = None
        if settings.quiesce.kind != "none":
            before = await patiently(partial(directory_state, session, vm), patience_s)
        capture = None
        try:
            async with open_snapshot(
                session,
                vm,
                settings.quiesce,
                journal,
                run=run,
                remove_within_s=settings.remove_within_s,
                consolidate=settings.consolidate,
            ) as snapshot:
                late_until = trio.current_time() + settings.manifest_late_s
                _require_disks(snapshot)
                async with AsyncExitStack() as opened:  # closed before the snapshot is removed
                    disks = [
                        await _opened(settings, session, snapshot, facts, pool, opened)
                        for facts in snapshot.disks
                    ]
                    capture = VsphereCapture(
                        machine=MachineId(vm.uuid, vm.name),
                        disks=disks,
                        quiescing_asked=settings.quiesce.kind,
                        configuration=snapshot.configuration,
                        left_out=snapshot.left_out,
                        attention=_weaker(settings.quiesce, snapshot.quiesce),
                        remarks=[*remarks, *snapshot.remarks],
                        session=session,
                        snapshot=snapshot,
                        directory_before=before,
                        fetchers=settings.manifest,
                        manifest_late_until=late_until,
                    )
                    yield capture
        finally:
            if capture is not None:
                await _count_snapshots_left(capture, session, vm)


def _require_disks(snapshot: Snapshot) -> None:
    if not snapshot.disks:
        raise SnapshotError(
            f"A snapshot of {snapshot.vm.name} holds none of its disks. {' '.join(snapshot.left_out)}".rstrip(),
            remedy="Back these disks up from inside the guest.",
            vm=snapshot.vm.name,
        )


async def _opened(
    settings: VcenterVm,
    session: VcenterSession,
    snapshot: Snapshot,
    facts: DiskFacts,
    pool: BufferPool,
    opened: AsyncExitStack,
) -> SnapshotDisk:
    access = DiskAccess(
        path=facts.path,
        server=settings.vcenter.server,
        port=settings.vcenter.port,
        user=session.user,
        password=settings.vcenter.password,
        cookie=Secret.from_text(session.cookie) if settings.vcenter.cookie else None,
        thumbprint=session.certificate_sha1,
        vm=snapshot.vm.moref,
        snapshot=snapshot.moref,
    )
    try:
        reader = await opened.enter_async_context(settings.reader.open(access, pool))
    except MoverError as exc:
        exc.add_note(f"disk {facts.label} ({facts.key})")
        raise
    return SnapshotDisk(facts, pool, reader, session, snapshot)


def _weaker(asked: Quiesce, taken: Quiesce) -> list[str]:
    """A sentence when the snapshot was taken with weaker quiescing than asked for."""
    if taken.kind == asked.kind:
        return []
    return [f"The snapshot was taken with quiescing {taken.kind!r}; asked for was {asked.kind!r}."]


async def _swept(session: VcenterSession, journal: Journal, consolidate: bool) -> list[str]:
    """What a report should say of the sweep; other runs at work and intents without a snapshot are no news."""
    telling = (Outcome.REMOVED, Outcome.CONSOLIDATED, Outcome.KEPT)
    return [
        f"Left by an earlier run: {swept}."
        for swept in await sweep(session, journal, consolidate=consolidate)
        if swept.outcome in telling
    ]


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
