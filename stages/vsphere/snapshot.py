"""A snapshot as a resource: it exists inside `async with`, and is gone afterwards, whatever happened inside.

The order that makes it so: the intent is durable in the journal; then the snapshot is created; at the end, however
it came, our snapshots are removed in a shielded scope with a deadline; then the intent is forgotten. What cannot
be removed keeps its intent for the next sweep and is reported as SnapshotLeaked, beside whatever the body raised.

A creation whose answer was lost may have happened: it is looked for by the token in its description before it is
repeated. A cancelled creation goes on at the server: the removal waits for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio
from pyVmomi import vim

from pipeline.errors import MoverError, QuiesceFailed, SnapshotError, SnapshotLeaked

from .events import explained, server_time
from .faults import ConnectionLost, ObjectGone
from .hardware import DiskFacts, configuration, disk_facts
from .journal import Intent, Journal, new_intent
from .lookup import Vm
from .properties import read
from .quiesce import Quiesce, create_snapshot
from .removal import find_ours, patiently, remove_ours
from .session import VcenterSession
from .snapshot_tree import description_with
from .tasks import wait_for_task

# A snapshot that grew during a night of writes takes its time to consolidate.
REMOVE_WITHIN_S = 3600.0


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that exists now. `disks` are those it holds; `left_out`: a sentence for each that it does not."""

    moref: str
    vm: Vm
    disks: Sequence[DiskFacts]
    left_out: Sequence[str]
    configuration: Mapping[str, object]


@asynccontextmanager
async def open_snapshot(
    session: VcenterSession,
    vm: Vm,
    quiesce: Quiesce,
    journal: Journal,
    *,
    run: str,
    remove_within_s: float = REMOVE_WITHIN_S,
) -> AsyncIterator[Snapshot]:
    """Hold the VM's disks still. `run` is the identity of the run, for the snapshot's name.

    Raises QuiesceFailed, SnapshotError, VsphereError; SnapshotLeaked when the snapshot could not be removed, in a
    group with the body's own error when both failed.
    """
    intent = new_intent(
        server=session.server,
        server_id=session.server_id,
        vm_moref=vm.moref,
        vm_uuid=vm.uuid,
        vm_name=vm.name,
        run=run,
    )
    await trio.to_thread.run_sync(journal.write, intent)
    release = partial(_release, session, vm, intent, journal, remove_within_s)
    moref = None
    try:
        snapshot = await _created(session, vm, quiesce, intent)
        moref = snapshot.moref
        yield snapshot
    except BaseException as failure:
        if (leaked := await release(moref)) is not None:
            raise BaseExceptionGroup("The run failed, and so did its clean-up", [failure, leaked]) from None
        raise
    if (leaked := await release(moref)) is not None:
        raise leaked


async def _created(session: VcenterSession, vm: Vm, quiesce: Quiesce, intent: Intent) -> Snapshot:
    subject = vm.reference(session)
    paths = ["config.guestId", "config.hardware.device"]
    before = await session.call("RetrieveProperties", lambda: read(session.content, subject, paths))
    started = await server_time(session)
    try:
        moref = await _create(session, vm, quiesce, intent, before.get("config.guestId") or "")
    except QuiesceFailed as exc:
        raise await explained(session, vm, exc, started) from exc.__cause__
    return await _described(session, vm, moref, disk_facts(before.get("config.hardware.device") or ()))


async def _create(session: VcenterSession, vm: Vm, quiesce: Quiesce, intent: Intent, guest_id: str) -> str:
    """Create the snapshot once, and find it again when its answer is lost. Returns its moref."""
    create = partial(
        create_snapshot,
        session,
        vm,
        quiesce,
        name=intent.snapshot_name,
        description=description_with(intent.token),
        guest_id=guest_id,
    )
    look = partial(patiently, partial(find_ours, session, vm.moref, intent.token))
    try:
        task = await create()
    except ConnectionLost:
        if (found := await look()) is not None:
            return found
        task = await create()
    try:
        created = await wait_for_task(session, task, "CreateSnapshot_Task")
    except (ConnectionLost, ObjectGone):
        if (found := await look()) is not None:
            return found
        raise
    assert isinstance(created, vim.vm.Snapshot)
    return str(created._moId)


async def _described(session: VcenterSession, vm: Vm, moref: str, had: Sequence[DiskFacts]) -> Snapshot:
    """The snapshot with its disks. `had`: the disks that the VM had before, to account for every one of them."""
    subject = vim.vm.Snapshot(moref, session.stub)
    row = await session.call("RetrieveProperties", lambda: read(session.content, subject, ["config"]))
    config: vim.vm.ConfigInfo | None = row.get("config")
    if config is None:
        raise SnapshotError(
            f"The snapshot {moref} of {vm.name} has no configuration.", vm=vm.name, snapshot=moref
        )
    holds = {facts.device_key: facts for facts in disk_facts(config.hardware.device)}
    missing = [facts for facts in had if facts.device_key not in holds]
    left_out = [
        f"{facts.label} ({facts.key}) is left out: {facts.left_out or 'the snapshot does not hold it'}."
        for facts in [*holds.values(), *missing]
        if facts.left_out or facts in missing
    ]
    disks = [facts for facts in holds.values() if not facts.left_out]
    return Snapshot(moref, vm, disks, left_out, configuration(config, left_out))


async def _release(
    session: VcenterSession,
    vm: Vm,
    intent: Intent,
    journal: Journal,
    within_s: float,
    moref: str | None,
) -> SnapshotLeaked | None:
    """Remove our snapshot and forget the intent; what could not be done comes back as an error, not raised."""
    reason = f"it was not gone after {within_s:.0f} s; the server may still be at it"
    with trio.move_on_after(within_s, shield=True):
        try:
            await patiently(partial(remove_ours, session, vm.moref, intent.token))
            await trio.to_thread.run_sync(journal.remove, intent)
            return None
        except MoverError as exc:
            reason = str(exc)
    leaked = SnapshotLeaked(
        f"The snapshot {intent.snapshot_name!r} ({moref or 'unconfirmed'}) of {vm.name} "
        f"could not be removed: {reason.rstrip('.')}.",
        remedy="The next run or 'vadpipe cleanup' tries again; or remove it in the vSphere Client.",
        vm=vm.name,
        vm_moref=vm.moref,
        snapshot=moref,
        snapshot_name=intent.snapshot_name,
        token=intent.token,
        server=session.server,
    )
    with trio.CancelScope(shield=True):
        try:
            await trio.to_thread.run_sync(journal.abandon, intent)
        except MoverError as exc:
            leaked.add_note(str(exc))
    return leaked
