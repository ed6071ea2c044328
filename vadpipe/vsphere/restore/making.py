"""A new VM as a resource: made without disks, given its disks one by one, destroyed unless it becomes whole.

The intent is durable before the VM is created, and its token is in the settings that the VM is created with. A
creation whose answer was lost may have happened: the VM is looked for before it is repeated. The same holds for
each disk, which is looked for at its place on its controller. Names of files and keys of devices are the server's
choice and are read back.

Until it is whole, the VM is destroyed at the end of the block, whatever happened inside. From then on it stays.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import trio
from pyVmomi import vim

from pipeline.errors import ConfigError, LeftBehind, MoverError, SourceError, leaves
from pipeline.events import emit

from ..api.faults import ObjectGone
from ..api.retry import retry
from ..api.session import VcenterSession
from ..api.tasks import wait_for_task
from ..inventory.hardware import VmDisk, vm_controllers, vm_disks
from ..inventory.lookup import Vm
from ..journal.intents import WHOLE, Intent, IntentKind, Journal
from ..journal.journaled import Entry, journaled
from ..plan.values import PlannedDisk, RestorePlan
from ..snapshot.hot_add import DisksStillAttached
from ..vm.new import TOKEN, destroy_new_vm, find_new_vm

log = logging.getLogger(__name__)

# For destroying a VM whose disk is still being zeroed: the host refuses until that is done.
UNDO_WITHIN_S = 3600.0
_LOOK_S = 0.2
# How long a VM is looked for whose creation failed: a server can refuse a call that it goes on with all the same.
_APPEARS_WITHIN_S = 3.0
_DEVICES = "config.hardware.device"
_MADE_PATHS = (_DEVICES, "config.instanceUuid", "config.files.vmPathName")


class NewVmLeft(LeftBehind):
    """A new VM that is not whole could not be destroyed. Facts: `vm`, `moref`."""


@dataclass
class MadeVm:
    """A new VM that exists. `vmx`: the datastore path of its configuration file; `disks`: by their keys."""

    session: VcenterSession = field(repr=False)
    vm: Vm
    vmx: str
    disks: Mapping[str, VmDisk]
    _entry: Entry = field(repr=False)

    @property
    def reference(self) -> vim.VirtualMachine:
        return self.vm.reference(self.session)

    @property
    def is_whole(self) -> bool:
        return self._entry.intent.phase == WHOLE

    async def reached(self, phase: str) -> None:
        """Note how far the restore is; durable when this returns. Raises SourceError."""
        step(self.vm.name, phase)
        await self._entry.write(phase=phase)

    async def whole(self) -> None:
        """From now on the VM stays. Raises SourceError."""
        await self.reached(WHOLE)


def step(name: str, doing: str) -> None:
    """Report a step of a restore, as a log line and as the event "restoring"."""
    log.info("%s: %s", name, doing)
    emit("restoring", vm=name, step=doing)


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
    plan.require_possible()
    assert plan.folder is not None
    vm = Vm(
        moref="",
        name=plan.name,
        path=f"{plan.folder.path}/{plan.name}",
        datacenter=plan.folder.datacenter,
        uuid=plan.spec.instanceUuid or str(uuid.uuid4()),
    )
    async with journaled(session, vm, journal, IntentKind.NEW_VM, run=run) as entry:
        making = _Making(session, plan, vm, entry)
        entry.undo_with(making.undo, within_s=UNDO_WITHIN_S, or_else=making.left)
        sizes = {disk_key(disk): disk.capacity for disk in plan.disks}
        await entry.write(point=point, phase="creating", disks=sizes)
        yield await making.make()


def disk_key(planned: PlannedDisk) -> str:
    """The key of a planned disk in the new VM, e.g. 'scsi0:0'."""
    return f"{planned.controller}:{planned.unit}"


@dataclass
class _Making:
    """`in_doubt`: the creation may have happened, or still happen, unseen. `task`: one that may be running."""

    session: VcenterSession
    plan: RestorePlan
    vm: Vm
    entry: Entry
    in_doubt: bool = False
    task: vim.Task | None = None

    @property
    def intent(self) -> Intent:
        return self.entry.intent

    async def make(self) -> MadeVm:
        session, plan = self.session, self.plan
        step(plan.name, "creating the VM")
        moref = await retry(self._create_or_find, session.settings.patience_s)
        subject = vim.VirtualMachine(moref, session.stub)
        row = await session.properties(subject, _MADE_PATHS)
        self.vm = Vm(
            moref=moref,
            name=plan.name,
            path=self.vm.path,
            datacenter=self.vm.datacenter,
            uuid=str(row.get("config.instanceUuid") or self.vm.uuid),
        )
        await self.entry.write(vm_moref=moref, vm_uuid=self.vm.uuid, phase="adding disks")
        disks: dict[str, VmDisk] = {}
        for planned in plan.disks:
            step(plan.name, f"adding disk {disk_key(planned)}")
            add = partial(self._add_or_find, subject, planned)
            disks[planned.key] = await retry(add, session.settings.patience_s)
        return MadeVm(session, self.vm, str(row.get("config.files.vmPathName")), disks, self.entry)

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
        spec = self._spec()

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

    def _spec(self) -> vim.vm.ConfigSpec:
        """The planned specification, with what finds the VM again."""
        spec = self.plan.spec
        spec.instanceUuid = self.intent.vm_uuid
        settings = [one for one in spec.extraConfig or () if one.key != TOKEN]
        spec.extraConfig = [*settings, vim.option.OptionValue(key=TOKEN, value=self.intent.token)]
        return spec

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
        devices = (await session.properties(subject, [_DEVICES])).get(_DEVICES) or ()
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
            self.task = await session.call("ReconfigVM_Task", change, changes=True)
            try:
                await self._wait("ReconfigVM_Task")
            except MoverError as exc:
                exc.add_note(f"adding disk {planned.label} ({key}) on datastore {planned.datastore}")
                raise
            devices = (await session.properties(subject, [_DEVICES])).get(_DEVICES) or ()
            found = _disk_at(key, devices)
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

    async def _let_end(self) -> None:
        """Wait until `task` has ended, or the server has forgotten it. Raises MoverError."""
        while self.task is not None:
            try:
                row = await self.session.properties(self.task, ["info.state"])
            except ObjectGone:
                self.task = None
                return
            if row.get("info.state") in ("success", "error"):
                self.task, self.in_doubt = None, False
                return
            await trio.sleep(_LOOK_S)

    async def undo(self, failure: BaseException | None) -> None:
        """Destroy the VM unless it is whole."""
        intent = self.intent
        if intent.phase == WHOLE:
            return
        for leaf in leaves(failure) if failure else ():
            if isinstance(leaf, DisksStillAttached):
                raise self.left("a disk of it is still attached to a VM")
        with suppress(MoverError):  # the intent stays where the creation is still in doubt
            await self._let_end()
        until = trio.current_time() + (_APPEARS_WITHIN_S if self.in_doubt else 0.0)
        while not (there := await destroy_new_vm(self.session, intent)):
            if trio.current_time() >= until:
                break
            await trio.sleep(_LOOK_S)
        if there:
            step(intent.vm_name, "destroyed again")
        elif self.in_doubt:
            self.entry.in_doubt = True
            ours = [leaf for leaf in leaves(failure) if isinstance(leaf, MoverError)] if failure else []
            for error in ours[:1]:
                error.add_note(
                    f"Whether {intent.vm_name} was created is not known. The next run or 'vadpipe cleanup' looks "
                    "for it and destroys it."
                )

    def left(self, reason: str) -> NewVmLeft:
        return NewVmLeft(
            f"The new VM {self.vm.name} ({self.vm.moref or 'unconfirmed'}) is not complete and could not be "
            f"destroyed: {reason.rstrip('.')}.",
            remedy="Do not use it. The next run or 'vadpipe cleanup' tries again; or delete it by hand.",
            vm=self.vm.name,
            moref=self.vm.moref,
        )


def _disk_at(key: str, devices: Sequence[vim.vm.device.VirtualDevice]) -> VmDisk | None:
    return next((disk for disk in vm_disks(devices) if disk.key == key), None)


def _controller_keys(devices: Sequence[vim.vm.device.VirtualDevice]) -> dict[str, int]:
    """The device key of each controller by its bus and number."""
    return {one.key: device.key for device in devices for one in vm_controllers([device])}
