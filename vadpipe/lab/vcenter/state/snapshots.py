"""What snapshot operations do to a VM's disks and files.

A fork is quick and happens under the lock, as the stun of a real VM, so that nobody sees half a snapshot. A
merge takes as long as its data and happens outside. The state is saved when a snapshot leaves the tree, before
its redo logs are merged: a server killed in between comes back with `consolidationNeeded`, as vCenter does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pyVmomi import vim

from ..faults.injection import CONSOLIDATION
from .inventory import SnapshotState, VmState
from .outside import hot_added, note
from .quiescing import QuiesceRequest, QuiesceSpec, Quiescing, guest_quiescing, reached
from .vm_properties import enable_uuid

if TYPE_CHECKING:
    from ..service import Service

OnSnapshot = Callable[[str, list[Path]], None]
"""Called with a VM's moref and its frozen VMDKs, in device order, when a quiesced snapshot was made."""

_VSS_ERROR = (
    "The guest OS has reported an error during quiescing. The error code was: 5 "
    "The error message was: 'VssSyncStart' operation failed: IDispatch error #8449 (0x80042301)"
)
_SCRIPT_ERROR = (
    "The guest OS has reported an error during quiescing. The error code was: 2 "
    "The error message was: Custom quiesce script failed."
)
_MANIFEST = re.compile(r"_manifests?(\d+)\.(?:zip|xml)$")


def create(
    service: Service, vm: VmState, name: str, description: str, spec: QuiesceSpec | None, memory: bool
) -> SnapshotState:
    """Make a snapshot. Raises ApplicationQuiesceFault, having made none.

    A quiesce spec is silently ignored where VMware Tools does not run, as the API documents.
    """
    quiescing = _quiescing(service, vm, spec)
    if spec is None or quiescing is None:
        snapshot = _fork(service, vm, name, description, spec is not None, quiescing, memory)
    else:
        if not service.guests.freeze(vm, older_call=spec.older_call):
            raise _failed(service, vm, _SCRIPT_ERROR)
        try:
            if quiescing == "fault":
                raise _failed(service, vm, _VSS_ERROR)
            snapshot = _fork(service, vm, name, description, True, quiescing, memory)
        finally:
            service.guests.thaw(vm, older_call=spec.older_call)
    if spec is not None and (quiescing == "application" or quiescing == "file-system"):
        _write_manifest(service, vm, snapshot, QuiesceRequest.of(spec, quiescing, vm.name))
    if quiescing is not None:
        frozen = [service.inventory.fork_of(vm, snapshot, key).frozen for key in snapshot.redo_logs]
        for callback in service.on_snapshot:
            callback(vm.moref, frozen)
    return snapshot


def _failed(service: Service, vm: VmState, event: str) -> vim.fault.ApplicationQuiesceFault:
    service.events.warn(vim.VirtualMachine(vm.moref), vm.name, event)
    return vim.fault.ApplicationQuiesceFault(
        msg="An error occurred while saving the snapshot: Failed to quiesce the virtual machine."
    )


def _quiescing(service: Service, vm: VmState, spec: QuiesceSpec | None) -> Quiescing | None:
    """How far quiescing gets; None when none was asked for or Tools cannot be reached."""
    if spec is None or not vm.tools_running:
        return None
    derived = guest_quiescing(vm.guest_id, vm.tools_version, enable_uuid(vm), len(vm.disks))
    vmbackup = service.guests.vmbackup(vm) if vm.guest_id.startswith("win") else {}
    return reached(spec, vm.quiescing or derived, vmbackup)


def _fork(
    service: Service,
    vm: VmState,
    name: str,
    description: str,
    quiesced: bool,
    quiescing: Quiescing | None,
    memory: bool,
) -> SnapshotState:
    with service.changes.lock:
        apply_change_tracking(service, vm)
        forks = {
            key: disk.fork(quiesced_second=quiescing == "application")
            for key, disk in service.inventory.disks_of(vm).items()
        }
        snapshot = SnapshotState(
            number=service.inventory.number(),
            name=name,
            description=description,
            created=datetime.now(UTC).isoformat(),
            # Without memory a snapshot is that of a machine that is off, however it ran.
            power=vm.power if memory else "poweredOff",
            quiesced=quiesced,
            manifest=None,
            redo_logs={key: fork.live.name for key, fork in forks.items()},
        )
        vm.snapshots.append(snapshot)
        if quiescing == "application" and vm.traits.quiesced_form != "one snapshot":
            said = description if vm.traits.quiesced_form == "siblings" else ""
            number = service.inventory.number()
            vm.snapshots.append(replace(snapshot, number=number, description=said, side="writable"))
            snapshot.side = "fixed"
        service.vm_changed(vm)
        note(service.inventory.root, f"CreateSnapshot {vm.moref} {snapshot.moref}")
        return snapshot


def _write_manifest(service: Service, vm: VmState, snapshot: SnapshotState, request: QuiesceRequest) -> None:
    content, traits = service.settings.manifest(request), service.manifests
    if content is None:
        return
    directory = service.inventory.directory_of(vm)
    numbers = [int(found[1]) for path in directory.iterdir() if (found := _MANIFEST.search(path.name))]
    number = max(numbers, default=0) if traits.reuse_numbers else max(numbers, default=0) + 1
    name = traits.file_name.format(vm=vm.files_name, number=number)
    snapshot.manifest = name

    def write() -> None:
        (directory / name).write_bytes(content)
        service.vm_changed(vm)

    if traits.late:
        traits.held.append(write)
    else:
        write()


def apply_change_tracking(service: Service, vm: VmState) -> None:
    """A stun: the VM's setting for change tracking reaches its disks."""
    for disk in service.inventory.disks_of(vm).values():
        if vm.change_tracking:
            disk.enable_tracking()
        else:
            disk.disable_tracking()


def remove(service: Service, vm: VmState, gone: Sequence[SnapshotState], *, consolidate: bool) -> None:
    """Take snapshots out of the tree, with their manifests, and merge their redo logs if `consolidate`."""
    with service.changes.lock:
        vm.snapshots = [snapshot for snapshot in vm.snapshots if snapshot not in gone]
        service.inventory.in_work.add(vm.moref)
        service.vm_changed(vm, *(snapshot.moref for snapshot in gone))
    try:
        for snapshot in gone:
            note(service.inventory.root, f"RemoveSnapshot {vm.moref} {snapshot.moref}")
            if snapshot.manifest:
                (service.inventory.directory_of(vm) / snapshot.manifest).unlink(missing_ok=True)
        if consolidate:
            later = service.injections.before_task_work(CONSOLIDATION)
            _refuse_attached(service, vm)
            merge_forgotten(service, vm)
            service.injections.happen(later)
    finally:
        service.inventory.in_work.discard(vm.moref)
        service.vm_changed(vm)


def _refuse_attached(service: Service, vm: VmState) -> None:
    """A disk that a proxy has hot-added is locked: its redo logs stay, and need consolidation."""
    for file in hot_added(service.inventory.root, vm.moref):
        raise vim.fault.FileLocked(file=vm.datastore_path(file), msg=f"Failed to lock the file {file}.")


def merge_forgotten(service: Service, vm: VmState) -> None:
    """Merge every redo log that no snapshot names, and finish what was killed half way."""
    for disk in service.inventory.disks_of(vm).values():
        disk.consolidate()
    for disk, fork in list(service.inventory.forgotten_forks(vm)):
        # A merge may give the frozen file of a newer snapshot another name, so it is looked up again.
        disk.merge(next(one for one in disk.forks if one.live == fork.live).frozen)
