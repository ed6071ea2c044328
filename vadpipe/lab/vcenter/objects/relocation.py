"""Moving a VM: vMotion changes its host, storage vMotion the place of all its files, and what names them.

The files are copied, then the VM runs on the copies, and the old ones are freed. Who still has one of those open
reads zeros from then on, as from blocks that a datastore has given away: nobody tells him. A move happens under the
lock of the server, at once. It is refused while a task is at work on the VM, as vCenter does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from pyVmomi import vim

from ...vmdk_files import copy_sparse
from ..api.managed import Call, Entity, moref_of
from ..state.inventory import VmState
from ..state.outside import relocation_lock

if TYPE_CHECKING:
    from ..service import Service

RELOCATE, MIGRATE = "RelocateVM_Task", "MigrateVM_Task"
_POWER_ON = "PowerOnVM_Task"


def disabled_methods(service: Service, vm: VmState) -> list[str]:
    """What nobody may do with a VM now; a VDDK client that reads it keeps it from being relocated."""
    locked = relocation_lock(service.inventory.root, vm.moref) is not None
    imported = [RELOCATE, _POWER_ON] if service.leases.holds(vm.moref) else []
    return [*vm.disabled_methods, *([RELOCATE] if locked else []), *imported]


def move(
    service: Service,
    vm: VmState,
    *,
    host: str | None = None,
    datastore: str | None = None,
    method: str = RELOCATE,
    in_own_task: bool = False,
) -> None:
    """Move a VM to a host, its files to a datastore, or both.

    in_own_task: the task that is at work on the VM is that of the move. Raises MethodDisabled, TaskInProgress,
    InvalidDatastore.
    """
    with service.changes.lock:
        if method in disabled_methods(service, vm):
            raise vim.fault.MethodDisabled(source="the lab", msg="The method is disabled by the lab.")
        if not in_own_task and (task := service.tasks.at_work_on(vm.moref)) is not None:
            raise vim.fault.TaskInProgress(
                task=task, msg=f"Another task is already in progress on {vm.name}."
            )
        to_host, to_datastore = host or vm.host, datastore or vm.datastore
        if to_host not in service.inventory.hosts_of(to_datastore):
            raise vim.fault.InvalidDatastore(
                name=to_datastore, msg=f"The host {to_host} does not mount the datastore {to_datastore}."
            )
        vm.host = to_host
        if to_datastore != vm.datastore:
            _move_files(service, vm, to_datastore)
        service.vm_changed(vm)


def _move_files(service: Service, vm: VmState, datastore: str) -> None:
    old, root = service.inventory.directory_of(vm), service.inventory.datastore_root(datastore)
    new = free_directory(root, vm.name.replace("/", "_"))
    with ExitStack() as stack:
        for disk in service.inventory.disks_of(vm).values():
            stack.enter_context(disk.moving(new))
        new.mkdir(parents=True)
        files = [path for path in old.iterdir() if path.is_file()]
        for path in files:
            copy_sparse(path, new / path.name)
            (new / path.name).chmod(path.stat().st_mode)
    vm.datastore, vm.directory = datastore, new.relative_to(root).as_posix()
    for path in files:
        _free(path)
    if not any(old.iterdir()):
        old.rmdir()


def free_directory(root: Path, name: str) -> Path:
    """`name`, or `name_1` and so on where that is taken."""
    candidates = (root / (f"{name}_{number}" if number else name) for number in count())
    return next(path for path in candidates if not path.exists())


def _free(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)
    path.unlink()


class Relocatable(Entity):
    """The methods of a VM that move it."""

    state: VmState

    def RelocateVM_Task(
        self, call: Call, spec: vim.vm.RelocateSpec, priority: vim.VirtualMachine.MovePriority | None
    ) -> vim.Task:
        names = {moref: name for name, moref in self.service.inventory.datastores.items()}
        datastore = names[moref_of(spec.datastore)] if spec.datastore else None
        host = moref_of(spec.host) if spec.host else None
        return self._start(call, lambda: self._move(RELOCATE, host, datastore))

    def MigrateVM_Task(
        self,
        call: Call,
        pool: vim.ResourcePool | None,
        host: vim.HostSystem | None,
        priority: vim.VirtualMachine.MovePriority,
        state: vim.VirtualMachine.PowerState | None,
    ) -> vim.Task:
        return self._start(call, lambda: self._move(MIGRATE, moref_of(host) if host else None, None))

    def _move(self, method: str, host: str | None, datastore: str | None) -> None:
        move(self.service, self.state, host=host, datastore=datastore, method=method, in_own_task=True)

    def _start(self, call: Call, work: Callable[[], object]) -> vim.Task:
        return self.service.tasks.start(call, self, work, exclusive=True)
