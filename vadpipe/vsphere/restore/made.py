"""A new VM of a restore, however it is made: found again by its token, destroyed unless it becomes whole.

The intent is durable before the VM is made, and its token is in the settings that the VM is made with. Until the VM
is whole it is destroyed at the end of the block, whatever happened inside. From then on it stays.
"""

from __future__ import annotations

import logging
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import trio
from pyVmomi import vim

from pipeline.errors import LeftBehind, MoverError, leaves
from pipeline.events import emit

from ..api.session import VcenterSession
from ..inventory.hardware import VmDisk
from ..inventory.lookup import Vm
from ..journal.intents import WHOLE, Intent, IntentKind, Journal
from ..journal.journaled import Entry, journaled
from ..plan.values import PlannedDisk, RestorePlan
from ..snapshot.hot_add import DisksStillAttached
from ..vm.new import TOKEN, destroy_new_vm

log = logging.getLogger(__name__)

DEVICES = "config.hardware.device"
LOOK_S = 0.2
# For destroying a VM whose disk is still being zeroed: the host refuses until that is done.
_UNDO_WITHIN_S = 3600.0
# How long a VM is looked for whose creation failed: a server can refuse a call that it goes on with all the same.
_APPEARS_WITHIN_S = 3.0
_MADE_PATHS = ("config.instanceUuid", "config.files.vmPathName")


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


def disk_key(planned: PlannedDisk) -> str:
    """The key of a planned disk in the new VM, e.g. 'scsi0:0'."""
    return f"{planned.controller}:{planned.unit}"


@dataclass
class Making(ABC):
    """A VM on its way. `in_doubt`: it may have been made, or may still be made, unseen."""

    session: VcenterSession
    plan: RestorePlan
    vm: Vm
    entry: Entry
    in_doubt: bool = False

    @property
    def intent(self) -> Intent:
        return self.entry.intent

    def spec(self) -> vim.vm.ConfigSpec:
        """The planned specification, with what finds the VM again."""
        spec = self.plan.spec
        spec.instanceUuid = self.intent.vm_uuid
        settings = [one for one in spec.extraConfig or () if one.key != TOKEN]
        spec.extraConfig = [*settings, vim.option.OptionValue(key=TOKEN, value=self.intent.token)]
        return spec

    async def exists(self, moref: str, phase: str) -> MadeVm:
        """Note the VM that exists now, and its next phase."""
        subject = vim.VirtualMachine(moref, self.session.stub)
        row = await self.session.properties(subject, _MADE_PATHS)
        uuid_now = str(row.get("config.instanceUuid") or self.vm.uuid)
        self.vm = Vm(moref, self.plan.name, self.vm.path, self.vm.datacenter, uuid_now)
        await self.entry.write(vm_moref=moref, vm_uuid=uuid_now, phase=phase)
        return MadeVm(self.session, self.vm, str(row.get("config.files.vmPathName")), {}, self.entry)

    @abstractmethod
    async def settle(self) -> bool:
        """End, or wait for, what may still make the VM; returns whether the VM goes with it. Raises MoverError."""

    async def undo(self, failure: BaseException | None) -> None:
        """Destroy the VM unless it is whole."""
        intent = self.intent
        if intent.phase == WHOLE:
            return
        for leaf in leaves(failure) if failure else ():
            if isinstance(leaf, DisksStillAttached):
                raise self.left("a disk of it is still attached to a VM")
        went = False
        with suppress(MoverError):  # the intent stays where the VM is still in doubt
            went = await self.settle()
        until = trio.current_time() + (_APPEARS_WITHIN_S if self.in_doubt else 0.0)
        while not (there := await destroy_new_vm(self.session, intent)):
            if trio.current_time() >= until:
                break
            await trio.sleep(LOOK_S)
        if there or went:
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


_M = TypeVar("_M", bound=Making)


@asynccontextmanager
async def making(
    kind: type[_M],
    session: VcenterSession,
    plan: RestorePlan,
    journal: Journal,
    *,
    run: str,
    point: str,
    phase: str,
) -> AsyncIterator[_M]:
    """The intent for the VM of a plan; inside, it is made. It is destroyed at the end unless it is whole.

    Args:
        kind: How it is made.
        session: The session.
        plan: A plan without problems.
        journal: Where the intent is kept.
        run: Identity of the run.
        point: The id of the point, for the intent.
        phase: The first phase.
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
        work = kind(session, plan, vm, entry)
        entry.undo_with(work.undo, within_s=_UNDO_WITHIN_S, or_else=work.left)
        sizes = {disk_key(disk): disk.capacity for disk in plan.disks}
        await entry.write(point=point, phase=phase, disks=sizes)
        yield work
