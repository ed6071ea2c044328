"""A new VM without VDDK: its disks are sent to an HttpNfcLease as streamOptimized VMDKs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import trio
from trio.abc import ReceiveChannel

from pipeline import BufferPool, Pipeline, Sink
from vadpipe.repository.format.restore_point import StoredDisk
from vadpipe.repository.maintenance.verify import Budget
from vadpipe.vmdk.describe import DiskFacts, adapter_of
from vadpipe.vmdk.stream import StreamPiece, stream_optimized
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.journal.journaled import new_run
from vadpipe.vsphere.plan.saved import SavedVm
from vadpipe.vsphere.plan.values import PlannedDisk, StoredDiskFacts, Wanted
from vadpipe.vsphere.restore.lease import LeasedVm, leased_vm
from vadpipe.vsphere.restore.lease_upload import Upload
from vadpipe.vsphere.restore.planning import IMPORTING, READING, planned
from vadpipe.vsphere.restore.sheet import Sheet
from vadpipe.vsphere.restore.target import DiskWriter, VmBeingRestored
from vadpipe.vsphere.snapshot.hot_add import HotAdds, hot_added
from vadpipe.vsphere.vm.sweep import TELLING, sweep

from .proving import DiskProof, prove_disk
from .restoring import Contents

log = logging.getLogger("vadpipe." + __name__)

SheetPlace: TypeAlias = Literal["folder", "drive", "none"]


@dataclass(frozen=True)
class LeaseReceipt:
    """A disk that a host took: bytes of its stream and their SHA-1."""

    key: str
    sent: int
    sha1: str


@dataclass(frozen=True, repr=False)
class IntoLease(Sink[StreamPiece, LeaseReceipt]):
    """The pieces of a streamOptimized VMDK in, sent to a host.

    Memory: one piece. Cancel: the connection is cut; the lease has to be aborted.
    Raises: CertificateRefused before anything is sent; VsphereError when the host refuses the stream.

    Args:
        vm: The VM whose lease is ready.
        key: The key of the disk in the point.
    """

    vm: LeasedVm
    key: str

    def __repr__(self) -> str:
        return f"IntoLease({self.key!r})"

    async def run(self, inbox: ReceiveChannel[StreamPiece]) -> LeaseReceipt:
        upload: Upload = self.vm.upload(self.key)
        try:
            await trio.to_thread.run_sync(upload.begin, abandon_on_cancel=True)
            async for piece in inbox:
                await trio.to_thread.run_sync(upload.send, piece.content, abandon_on_cancel=True)
                self.vm.positions[self.key] = piece.offset + piece.length
                del piece
            await trio.to_thread.run_sync(upload.end, abandon_on_cancel=True)
        finally:
            upload.close()
        return LeaseReceipt(self.key, upload.sent, upload.sha1)


class LeaseSettings(Protocol):
    """What a restore through a lease needs of its target."""

    @property
    def vcenter(self) -> Vcenter: ...

    @property
    def writer(self) -> DiskWriter | None:
        """Reads the disks back; None: they are not read back."""
        ...

    @property
    def journal(self) -> Journal | None: ...

    @property
    def sheet(self) -> SheetPlace: ...

    @property
    def heartbeat_within_s(self) -> float: ...

    def budget(self) -> Budget | None:
        """How much of each disk is read back; None: all."""
        ...


def wanted_sheet(place: SheetPlace, contents: Contents) -> Sheet | None:
    """What is laid beside a new VM for its applications; None for a point that says nothing of them."""
    if place == "none" or not contents.has_sheet:
        return None
    return Sheet(contents.sheet_image, connect=place == "drive")


@asynccontextmanager
async def open_lease(
    settings: LeaseSettings,
    contents: Contents,
    saved: SavedVm,
    wanted: Wanted,
    disks: Sequence[StoredDiskFacts],
    nvram: bytes | None,
) -> AsyncIterator[OpenLease]:
    """The VM of a point, imported, and ready for its disks. It stays only if it was completed inside.

    Raises:
        ConfigError: The plan has problems; nothing was touched.
        SourceError: The VM cannot be imported; nothing of it is left.
        LeftBehind: Something of it is left.
    """
    journal, run = settings.journal or Journal(), new_run()
    async with settings.vcenter.connect() as session:
        swept = await sweep(session, journal)
        privileges = [*IMPORTING, *(READING if settings.writer is not None else ())]
        plan = await planned(session, saved, wanted, disks, privileges=privileges)
        plan.require_possible()
        async with leased_vm(session, plan, journal, run=run, point=contents.point.id) as leased:
            opened = OpenLease(settings, contents, leased, journal, run, nvram)
            left = [f"Left by an earlier run: {one}." for one in swept if one.outcome in TELLING]
            opened.remarks += [*left, *plan.warnings]
            yield opened


@dataclass
class OpenLease:
    """A VM that takes its disks through a lease. `attention`: sentences on what is not as planned."""

    settings: LeaseSettings
    contents: Contents
    leased: LeasedVm
    journal: Journal
    run: str
    nvram: bytes | None
    remarks: list[str] = field(default_factory=list)
    attention: list[str] = field(default_factory=list)
    needs_all = True

    def place(self, disk: StoredDisk) -> str:
        return f"{self.leased.plan.name} {self._planned(disk.key).controller}:{self._planned(disk.key).unit}"

    @asynccontextmanager
    async def pipeline(self, disk: StoredDisk, pool: BufferPool) -> AsyncIterator[Pipeline[object]]:
        contents = self.contents
        adapter = adapter_of(self._planned(disk.key).controller)
        stream = stream_optimized(contents.read(disk, pool), disk.capacity, facts=DiskFacts(adapter=adapter))
        yield stream | IntoLease(self.leased, disk.key)

    async def finish(self) -> Sequence[str]:
        """End the lease, read the disks back where something can, and complete the VM."""
        name, leased = self.leased.plan.name, self.leased
        self.remarks += await leased.complete()
        writer = self.settings.writer
        if writer is None:
            self.remarks.append(f"The disks of {name} were not read back: there is no reader (writer=).")
        else:
            await self._prove(writer)
        vm = VmBeingRestored(leased.made, leased.plan, leased.session, writer, HotAdds())  # type: ignore[arg-type]
        await vm.complete(self.nvram, wanted_sheet(self.settings.sheet, self.contents))
        await vm.switch_on(self.settings.heartbeat_within_s)
        self.attention += vm.attention
        done = "restored, not read back"
        if writer is not None:
            is_sample = self.settings.budget() is not None
            done = "restored; a sample of each was proven" if is_sample else "restored and proven"
        return [f"{name}: disks {done}.", *self.remarks, *vm.remarks]

    async def _prove(self, writer: DiskWriter) -> None:
        """Read all disks back. Raises IntegrityError."""
        leased, contents, pool = self.leased, self.contents, BufferPool()
        made = leased.made
        async with hot_added(leased.session, made.vm, writer, self.journal, run=self.run) as adds:
            vm = VmBeingRestored(made, leased.plan, leased.session, writer, adds)
            for disk in contents.disks:
                async with vm.readable(disk.key, pool) as opened:
                    proof: DiskProof = await prove_disk(
                        contents.reader, contents.point, disk, opened, budget=self.settings.budget()
                    )
                self.remarks.append(f"Disk {disk.key}: {proof}.")

    def _planned(self, key: str) -> PlannedDisk:
        return next(disk for disk in self.leased.plan.disks if disk.key == key)
