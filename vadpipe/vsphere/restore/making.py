"""A new VM by CreateVM_Task: made without disks, then given its disks one by one. See `made` for how it goes again.

A creation whose answer was lost may have happened: the VM is looked for before it is repeated. The same holds for
each disk, which is looked for at its place on its controller. Names of files and keys of devices are the server's
choice and are read back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio
from pyVmomi import vim

from pipeline.errors import ConfigError, MoverError, SourceError

from ..api.faults import ObjectGone
from ..api.retry import retry
from ..api.session import VcenterSession
from ..api.tasks import wait_for_task
from ..inventory.hardware import VmDisk, vm_controllers, vm_disks
from ..journal.intents import Journal
from ..plan.values import PlannedDisk, RestorePlan
from ..vm.new import find_new_vm
from .made import DEVICES, LOOK_S, MadeVm, Making, disk_key, making, step


@asynccontextmanager
async def new_vm(
    session: VcenterSession, plan: RestorePlan, journal: Journal, *, run: str, point: str
) -> AsyncIterator[MadeVm]:
    """Make the VM of a plan with empty disks. It is destroyed at the end unless it was declared whole inside.

    Args:
        session: The session.
        plan: A plan without problems.
        journal: Where the intent is kept.
        run: Identity of the run.
        point: The id of the point, for the intent.

    Raises:
        ConfigError: The name was taken meanwhile.
        SourceError: The VM or a disk of it cannot be made.
        NewVmLeft: It is not whole and could not be destroyed; in a group with the error of the body.
    """
    begun = making(_Creating, session, plan, journal, run=run, point=point, phase="creating")
    async with begun as creating:
        yield await creating.make()


@dataclass
class _Creating(Making):
    """`task`: one that may be running. `tried`: the keys of the disks that an attempt was made to add."""

    task: vim.Task | None = None
    tried: set[str] = field(default_factory=set)

    async def make(self) -> MadeVm:
        session, plan = self.session, self.plan
        step(plan.name, "creating the VM")
        moref = await retry(self._create_or_find, session.settings.patience_s)
        made = await self.exists(moref, "adding disks")
        disks: dict[str, VmDisk] = {}
        for planned in plan.disks:
            step(plan.name, f"adding disk {disk_key(planned)}")
            add = partial(self._add_or_find, made.reference, planned)
            disks[planned.key] = await retry(add, session.settings.patience_s)
        made.disks = disks
        return made

    async def _create_or_find(self) -> str:
        if self.in_doubt and (row := await find_new_vm(self.session, self.intent)):
            self.in_doubt = False
            return row.moref
        doubted, self.task = self.in_doubt, None
        try:
            created = await self._create()
        except MoverError as exc:
            if exc.facts.get("fault") == "DuplicateName":
                # By an earlier attempt of ours, whose answer was lost, or by somebody else.
                if doubted and (row := await find_new_vm(self.session, self.intent)):
                    self.in_doubt = False
                    return row.moref
                self.in_doubt = doubted
                raise self._name_taken() from exc
            raise
        self.in_doubt = False
        return created

    async def _create(self) -> str:
        session, plan = self.session, self.plan
        assert plan.folder is not None
        assert plan.pool is not None
        folder = vim.Folder(plan.folder.moref, session.stub)
        pool = vim.ResourcePool(plan.pool.moref, session.stub)
        host = vim.HostSystem(plan.host.moref, session.stub) if plan.host else None
        spec = self.spec()

        def create() -> vim.Task:
            self.in_doubt = True
            return folder.CreateVm(spec, pool, host)

        self.task = await session.call("CreateVM_Task", create, changes=True)
        created = await self._wait("CreateVM_Task")
        if isinstance(created, vim.VirtualMachine):
            return str(created._moId)
        if row := await find_new_vm(session, self.intent):
            return row.moref
        raise SourceError(
            f"{plan.name} was created, but {session.server} does not show it.",
            remedy="Look at the recent tasks.",
            vm=plan.name,
        )

    def _name_taken(self) -> ConfigError:
        assert self.plan.folder is not None
        return ConfigError(
            f"{self.plan.folder.path} got something else called {self.plan.name!r} meanwhile.",
            remedy="Give the new VM another name.",
            what="name taken",
        )

    async def _add_or_find(self, subject: vim.VirtualMachine, planned: PlannedDisk) -> VmDisk:
        """Add a disk, unless it is there already because the answer to an earlier attempt was lost."""
        session, key = self.session, disk_key(planned)
        devices = (await session.properties(subject, [DEVICES])).get(DEVICES) or ()
        if (found := _disk_at(key, devices)) is None:
            controller = _controller_keys(devices).get(planned.controller)
            if controller is None:
                raise SourceError(
                    f"{self.plan.name} was created without the controller {planned.controller} of disk {key}.",
                    remedy="Look at its hardware: the server may not support that controller.",
                    vm=self.plan.name,
                    disk=key,
                )
            spec = vim.vm.ConfigSpec(deviceChange=[planned.spec(controller)])
            change = partial(subject.Reconfigure, spec)
            doubted = key in self.tried
            self.tried.add(key)
            failed: MoverError | None = None
            try:
                self.task = await session.call("ReconfigVM_Task", change, changes=True)
                await self._wait("ReconfigVM_Task")
            except MoverError as exc:
                exc.add_note(f"adding disk {planned.label} ({key}) on datastore {planned.datastore}")
                if exc.transient or not doubted:
                    raise
                failed = exc
            devices = (await session.properties(subject, [DEVICES])).get(DEVICES) or ()
            found = _disk_at(key, devices)
            if failed and not found:
                raise failed
            # The earlier attempt had been at work when the devices were read first, and this one came too late.
        if found is None or found.capacity != planned.capacity:
            raise SourceError(
                f"{session.server} made disk {key} of {self.plan.name} with "
                f"{found.capacity if found else 'no'} bytes instead of {planned.capacity}.",
                remedy="Look at the recent tasks of the VM.",
                vm=self.plan.name,
                disk=key,
            )
        return found

    async def _wait(self, name: str) -> object:
        """The result of `task`, which is kept when it may still be at work: when only the wait for it failed."""
        assert self.task is not None
        result = await wait_for_task(self.session, self.task, name)
        self.task = None
        return result

    async def settle(self) -> bool:
        """Wait until `task` has ended, or the server has forgotten it."""
        while self.task is not None:
            try:
                row = await self.session.properties(self.task, ["info.state"])
            except ObjectGone:
                self.task = None
                break
            if row.get("info.state") in ("success", "error"):
                self.task, self.in_doubt = None, False
                break
            await trio.sleep(LOOK_S)
        return False


def _disk_at(key: str, devices: Sequence[vim.vm.device.VirtualDevice]) -> VmDisk | None:
    return next((disk for disk in vm_disks(devices) if disk.key == key), None)


def _controller_keys(devices: Sequence[vim.vm.device.VirtualDevice]) -> dict[str, int]:
    """The device key of each controller by its bus and number."""
    return {one.key: device.key for device in devices for one in vm_controllers([device])}
