"""A VM of a vCenter that a restore point becomes: planned, made, and completed, around the writing of its disks."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, overload

from pipeline.buffers import BufferPool
from pipeline.protocols import Disk, WritableDisk
from vadpipe.vddk.access import DiskAccess

from ..api.session import Vcenter, VcenterSession
from ..journal.access import vm_access
from ..journal.intents import SHEET, Journal
from ..journal.journaled import new_run
from ..plan.saved import SavedVm
from ..plan.values import RestorePlan, StoredDiskFacts, Wanted
from ..snapshot.hot_add import HotAdds, hot_added
from ..vm.sweep import TELLING, sweep
from .finishing import Finished, finish, switch_on
from .made import MadeVm, step
from .making import new_vm
from .planning import planned
from .sheet import Sheet, put_sheet

log = logging.getLogger(__name__)


class DiskWriter(Protocol):
    """Opens disks for reading and for writing: `vadpipe.vddk.Vddk`, or another mover's."""

    @overload
    def open(
        self, access: DiskAccess, pool: BufferPool | None = None, *, write: Literal[False] = False
    ) -> AbstractAsyncContextManager[Disk]: ...

    @overload
    def open(
        self, access: DiskAccess, pool: BufferPool | None = None, *, write: Literal[True]
    ) -> AbstractAsyncContextManager[WritableDisk]: ...


@dataclass
class VmBeingRestored:
    """A new VM whose disks are being written.

    `remarks` and `attention`: sentences for the report, as they arise.
    """

    made: MadeVm
    plan: RestorePlan
    session: VcenterSession = field(repr=False)
    writer: DiskWriter = field(repr=False)
    _adds: HotAdds = field(repr=False)
    remarks: list[str] = field(default_factory=list)
    attention: list[str] = field(default_factory=list)

    def path_of(self, key: str) -> str:
        """The datastore path of a disk, by its key in the point."""
        return self.made.disks[key].path

    @asynccontextmanager
    async def writable(self, key: str, pool: BufferPool) -> AsyncIterator[WritableDisk]:
        """A disk of the VM, by its key in the point; it is written when the block ends without an error."""
        async with self.writer.open(self._access(key), pool, write=True) as disk:
            self._adds.opened.append(disk)
            yield disk

    @asynccontextmanager
    async def readable(self, key: str, pool: BufferPool) -> AsyncIterator[Disk]:
        """The same disk for reading."""
        async with self.writer.open(self._access(key), pool) as disk:
            self._adds.opened.append(disk)
            yield disk

    def _access(self, key: str) -> DiskAccess:
        self._adds.begun = True
        return vm_access(self.session, self.made.vm.moref).disk(self.path_of(key), None)

    def step(self, doing: str) -> None:
        """Report a step of the restore."""
        step(self.plan.name, doing)

    async def complete(self, nvram: bytes | None, sheet: Sheet | None = None) -> None:
        """Everything after the data, the restore sheet last; from then on the VM stays. Raises MoverError."""
        await self.made.reached("finishing")
        self._add(await finish(self.made, self.plan.after, nvram))
        if sheet is not None:
            await self.made.reached(SHEET)
            self._add(await put_sheet(self.made, sheet))
        await self.made.whole()

    async def switch_on(self, heartbeat_within_s: float) -> None:
        """Switch a VM on that is whole, where the plan says so and nothing of it is missing."""
        if not self.plan.after.power_on:
            return
        if self.attention:
            self.attention.append(f"{self.plan.name} was not switched on, because it is not as planned.")
            return
        self._add(await switch_on(self.made, heartbeat_within_s=heartbeat_within_s))

    def _add(self, done: Finished) -> None:
        self.remarks += done.remarks
        self.attention += done.attention


async def plan_on(
    vcenter: Vcenter, saved: SavedVm, wanted: Wanted, disks: Sequence[StoredDiskFacts]
) -> RestorePlan:
    """The plan of a restore, without changing anything. Raises MoverError when the server cannot be asked."""
    async with vcenter.connect() as session:
        return await planned(session, saved, wanted, disks)


@asynccontextmanager
async def restored_vm(
    vcenter: Vcenter,
    saved: SavedVm,
    wanted: Wanted,
    disks: Sequence[StoredDiskFacts],
    *,
    point: str,
    writer: DiskWriter,
    journal: Journal | None = None,
) -> AsyncIterator[VmBeingRestored]:
    """Make the VM of a point with empty disks; it stays only if it was completed inside.

    What killed runs left behind on the server is dealt with first.

    Raises:
        ConfigError: The plan has problems; nothing was touched.
        SourceError: The VM cannot be made; nothing of it is left.
        LeftBehind: Something of it is left; in a group with the error of the body when both failed.
    """
    journal, run = journal or Journal(), new_run()
    async with vcenter.connect() as session:
        swept = await sweep(session, journal)
        plan = await planned(session, saved, wanted, disks)
        plan.require_possible()
        async with (
            new_vm(session, plan, journal, run=run, point=point) as made,
            hot_added(session, made.vm, writer, journal, run=run) as adds,
        ):
            restored = VmBeingRestored(made, plan, session, writer, adds)
            left = [f"Left by an earlier run: {one}." for one in swept if one.outcome in TELLING]
            restored.remarks += [*left, *plan.warnings]
            await made.reached("writing")
            yield restored
