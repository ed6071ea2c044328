"""A VM whose disks are written over with those of a point, as a resource.

Before the first byte is written everything is checked, the restore is in the journal with what is done of each
disk, the VM is marked, and its change tracking is off. A restore that ends half way, also by a kill, leaves the
mark and the journal; the same restore goes on where it was. Only when every disk was written and proven, change
tracking is switched on again, the mark is removed, and the journal ends.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import trio

from pipeline.errors import MoverError
from vadpipe.repository.format.restore_point import RestorePoint, StoredDisk
from vadpipe.vddk.access import DiskAccess

from ..api.session import VcenterSession
from ..inventory.hardware import VmDisk
from ..inventory.lookup import Vm
from ..journal.access import vm_access
from ..journal.intents import Intent, IntentKind, Journal
from ..journal.journaled import new_run
from ..journal.relocation_lock import relocation_locked
from ..journal.rollback import (
    DiskProgress,
    Phase,
    Rollback,
    read_rollback,
    remove_rollback,
    rollbacks_of,
    write_rollback,
)
from ..snapshot.hot_add import HotAdds, hot_added
from ..vm.mark import mark, unmark
from ..vm.sweep import TELLING, sweep
from .in_place_check import NotInPlace, Original, check_original, find_original
from .in_place_tracking import begin_tracking, end_tracking

log = logging.getLogger(__name__)

_END_WITHIN_S = 120.0


@dataclass
class OpenOriginal:
    """A VM that is being written over. `disks`: by key in the point.

    `remarks`: sentences for the report; `attention`: those on what is not as asked for.
    """

    session: VcenterSession
    journal: Journal
    original: Original
    rollback: Rollback
    disks: Mapping[str, VmDisk]
    adds: HotAdds
    remarks: list[str]
    attention: Sequence[str] = ()
    finished: bool = False
    _turn: trio.Lock = field(default_factory=trio.Lock)

    @property
    def vm(self) -> Vm:
        return self.original.vm

    def access(self, key: str) -> DiskAccess:
        """How the disk is opened now: for writing, the VM's own file."""
        self.adds.begun = True
        return vm_access(self.session, self.vm.moref).disk(self.disks[key].path, None)

    def progress(self, key: str) -> DiskProgress:
        return self.rollback.disks[key]

    async def advance(self, key: str, **changes: object) -> None:
        """Note what is done of a disk (see `DiskProgress`); durable when this returns. Raises SourceError."""
        async with self._turn:
            self.rollback = self.rollback.with_disk(key, **changes)
            await trio.to_thread.run_sync(write_rollback, self.journal, self.rollback)

    async def finish(self) -> Sequence[str]:
        """Complete the VM: every disk is proven. Returns sentences for the report."""
        if self.rollback.tracking:
            self.remarks.append(await begin_tracking(self.session, self.vm, list(self.disks.values())))
        await unmark(self.session, self.vm.moref)
        self.finished = True
        return self.remarks

    def state(self) -> str:
        """A sentence on what the VM is now, for the report of a failure."""
        name = self.vm.name
        if not self.rollback.is_mixed:
            return f"Nothing of {name} was written."
        return (
            f"{name} is neither what it was nor what the point holds; {self.rollback}. Do not power it on: run the "
            "same restore again, and it goes on."
        )


@asynccontextmanager
async def written_over(
    session: VcenterSession,
    reader: object,
    journal: Journal,
    repository: str,
    point: RestorePoint,
    wanted: Sequence[StoredDisk],
    *,
    onto: Mapping[str, str],
    keep: Sequence[str] = (),
) -> AsyncIterator[OpenOriginal]:
    """The VM of a point, ready to be written over; completed by `finish`.

    Args:
        session: The server that has the VM.
        reader: What opens the disks; locks the VM against Storage vMotion where it can.
        journal: Where the restore is noted.
        repository: Id of the repository, in hex.
        point: The point.
        wanted: Those of its disks that are written.
        onto: See `check_original`; likewise `keep`.

    Raises:
        NotInPlace: It may not be written over; nothing was touched.
        ConfigError: `onto` or `keep` name what there is not.
        LeftBehind: A lock or an attached disk could not be undone at the end.
    """
    swept = await sweep(session, journal)
    vm = await find_original(session, point)
    before = await _begun_before(session, journal, vm)
    original = await check_original(session, vm, point, wanted, onto=onto, keep=keep)
    run = new_run()
    intent = Intent(
        server=session.server,
        server_id=session.server_id,
        vm_moref=vm.moref,
        vm_uuid=vm.uuid,
        vm_name=vm.name,
        run=run,
        kind=IntentKind.ROLLBACK,
    )
    rollback, remark = _continued(intent.token, repository, point, original, list(before.values()))
    told = [one for one in swept if one.outcome in TELLING and one.intent.kind is not IntentKind.ROLLBACK]
    remarks = [f"Left by an earlier run: {one}." for one in told]
    remarks += [*original.remarks, *remark]
    await trio.to_thread.run_sync(_begin, journal, intent, rollback, list(before))
    opened: OpenOriginal | None = None
    try:
        async with AsyncExitStack() as stack:
            not_locked = await stack.enter_async_context(
                relocation_locked(session, vm, reader, journal, run=run)
            )
            await mark(session, vm.moref, point.id)
            disks = await end_tracking(session, vm, original.disks, journal, run=run)
            adds = await stack.enter_async_context(hot_added(session, vm, reader, journal, run=run))
            opened = OpenOriginal(session, journal, original, rollback, disks, adds, remarks, not_locked)
            yield opened
    finally:
        state = opened.rollback if opened is not None else rollback
        finished = opened is not None and opened.finished
        with trio.move_on_after(_END_WITHIN_S, shield=True):
            await _end(session, journal, vm, intent, state, finished=finished)


async def _begun_before(session: VcenterSession, journal: Journal, vm: Vm) -> dict[str, Rollback | None]:
    """The restores over this VM that did not end, by the tokens of their intents. Raises NotInPlace."""

    def look() -> tuple[list[Intent], dict[str, Rollback | None]]:
        found = rollbacks_of(journal, session.server_id, vm.uuid)
        return found, {intent.token: read_rollback(journal, intent.token) for intent in found}

    intents, rollbacks = await trio.to_thread.run_sync(look)
    for intent in intents:
        if intent.is_live():
            raise NotInPlace(
                f"{vm.name} is being restored in place by {intent.origin}.",
                remedy=f"Wait until it has ended. If that machine is gone for good, remove {journal.path(intent)}.",
                vm=vm.name,
            )
    return rollbacks


def _continued(
    token: str,
    repository: str,
    point: RestorePoint,
    original: Original,
    before: Sequence[Rollback | None],
) -> tuple[Rollback, list[str]]:
    """The record to begin with: where an earlier restore to the same point was, else at the beginning.

    Raises:
        NotInPlace: An earlier one left disks mixed that this one does not write.
    """
    disks = {
        key: DiskProgress(path=disk.path, capacity=disk.capacity) for key, disk in original.disks.items()
    }
    rollback = Rollback(
        token=token, repository=repository, point=point.id, tracking=original.tracking, disks=disks
    )
    remarks: list[str] = []
    for earlier in before:
        if earlier is None:
            continue
        rollback = replace(rollback, tracking=rollback.tracking or earlier.tracking)
        if not earlier.is_mixed:
            continue
        touched = [key for key, disk in earlier.disks.items() if disk.phase is not Phase.UNTOUCHED]
        missing = [key for key in touched if key not in disks]
        if missing:
            raise NotInPlace(
                f"An earlier restore over {original.vm.name} did not end, and wrote its disks "
                f"{', '.join(missing)}, which are not among those of this one.",
                remedy="Restore all disks, or name these too.",
                vm=original.vm.name,
            )
        same = (earlier.repository, earlier.point) == (repository, point.id)
        remarks.append(
            f"An earlier restore over {original.vm.name} did not end: {earlier}. "
            + ("It goes on." if same else "Its disks are compared from the beginning.")
        )
        for key in touched:
            found = earlier.disks[key]
            kept = same and found.path == disks[key].path and found.phase is Phase.BEGUN
            position = found.position if kept else 0
            rollback = rollback.with_disk(key, phase=Phase.BEGUN, position=position)
    return rollback, remarks


def _begin(journal: Journal, intent: Intent, rollback: Rollback, before: Sequence[str]) -> None:
    """The new record first, then the old ones go: a kill leaves at least one that says what is mixed."""
    write_rollback(journal, rollback)
    journal.write(intent)
    for token in before:
        _forget(journal, token)


def _forget(journal: Journal, token: str) -> None:
    for intent in journal.intents():
        if intent.token == token:
            journal.remove(intent)
    remove_rollback(journal, token)


async def _end(
    session: VcenterSession, journal: Journal, vm: Vm, intent: Intent, rollback: Rollback, *, finished: bool
) -> None:
    """Forget a restore that is complete, or that wrote nothing; leave any other to the next one."""
    try:
        if not finished and not rollback.is_mixed:
            if rollback.tracking:
                await begin_tracking(session, vm, [])
            await unmark(session, vm.moref)
            finished = True
        forget = partial(_forget, journal, intent.token)
        await trio.to_thread.run_sync(forget if finished else partial(journal.abandon, intent))
    except MoverError as exc:
        log.warning("The restore over %s is left in the journal: %s", vm.name, exc)
        await trio.to_thread.run_sync(journal.abandon, intent)
