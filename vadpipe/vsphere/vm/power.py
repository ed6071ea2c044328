"""The power of a VM, and a VM that is powered off for a while, as a resource: afterwards it is powered as before.

Undoing starts from what the server shows, never from memory. A lost answer, a cancelled task and a guest that goes
down only after its deadline all end in the same loop, which asks for the power state and powers on what is off. A
VM that was off before is left off. The intent is in the journal before the guest is shut down: the next start
powers the VM on for a run that was killed.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from pyVmomi import vim

from pipeline.errors import SourceError
from pipeline.events import emit

from ..api.faults import ConnectionLost
from ..api.session import VcenterSession
from ..api.tasks import wait_for_task
from ..inventory.lookup import Vm
from ..journal.intents import IntentKind, Journal
from ..journal.journaled import journaled, new_run

log = logging.getLogger(__name__)

# Windows installs its updates on the way down.
SHUTDOWN_WITHIN_S = 900.0
RESTORE_WITHIN_S = 900.0
# A guest that was asked to shut down and has not done so at the deadline may still do it; it is watched for so
# long.
LATE_S = 120.0
POLL_S = 1.0
POWER_STATE = "runtime.powerState"


class PowerNotRestored(SourceError):
    """A VM that was on before may be off now. Facts: `vm`, `moref`."""


def step(vm: Vm, doing: str) -> None:
    """Report a step of a change to a VM that takes long, as a log line and as the event "preparing"."""
    log.info("%s: %s", vm.name, doing)
    emit("preparing", vm=vm.name, step=doing)


async def power_state(session: VcenterSession, vm_moref: str) -> str:
    """poweredOn, poweredOff or suspended, as the API says it."""
    row = await session.properties(vim.VirtualMachine(vm_moref, session.stub), [POWER_STATE])
    return str(row.get(POWER_STATE))


async def power_on(session: VcenterSession, vm_moref: str) -> bool:
    """Power a VM on that is off; returns whether it was off. May be repeated after a lost answer."""
    if await power_state(session, vm_moref) != "poweredOff":
        return False
    subject = vim.VirtualMachine(vm_moref, session.stub)
    task = await session.call("PowerOnVM_Task", lambda: subject.PowerOn(None), changes=True)
    await wait_for_task(session, task, "PowerOnVM_Task")
    return True


async def came_true(is_so: Callable[[], Awaitable[bool]], within_s: float) -> bool:
    """Ask again and again, for so many seconds at most; returns whether it came true."""
    with trio.move_on_after(within_s):
        while not await is_so():  # noqa: ASYNC110
            await trio.sleep(POLL_S)
        return True
    return False


@dataclass
class HeldOff:
    """A VM that is off. Where it was on before, it is powered on at the end, unless it is to stay off."""

    session: VcenterSession
    vm: Vm
    was_on: bool
    stays_off: bool = False

    def stay_off(self) -> None:
        """Leave it off at the end."""
        self.stays_off = True

    async def confirm(self) -> None:
        """Raises SourceError when the VM is not off any more."""
        if (state := await power_state(self.session, self.vm.moref)) != "poweredOff":
            raise SourceError(
                f"{self.vm.name} was to be off and is {state}: somebody else powered it on.",
                remedy="See who did (DRS, HA, a schedule, a person), and run again.",
                vm=self.vm.name,
            )


@asynccontextmanager
async def held_off(
    session: VcenterSession,
    vm: Vm,
    journal: Journal,
    *,
    shutdown_within_s: float = SHUTDOWN_WITHIN_S,
    restore_within_s: float = RESTORE_WITHIN_S,
    late_s: float = LATE_S,
) -> AsyncIterator[HeldOff]:
    """The VM is off inside, by a shutdown of its guest, never by force.

    A cancellation while the guest goes down waits until it is down, as long as without the cancellation, and then
    powers it on again.

    Raises:
        SourceError: The guest does not shut down in time, or the VM is suspended.
        PowerNotRestored: The VM could not be powered on again; in a group with the error of the body when both
            failed.
    """
    before = await power_state(session, vm.moref)
    if before == "suspended":
        raise SourceError(
            f"{vm.name} is suspended.", remedy="Resume it or shut it down, then run again.", vm=vm.name
        )
    if before == "poweredOff":
        yield HeldOff(session, vm, was_on=False)
        return
    async with journaled(session, vm, journal, IntentKind.POWER, run=new_run()) as entry:
        down = _ShutDown(session, vm, trio.current_time() + shutdown_within_s + late_s, restore_within_s)
        watched_s = shutdown_within_s + late_s + restore_within_s
        entry.undo_with(down.restore, within_s=watched_s, or_else=down.not_restored)
        await down.ask()
        await down.wait(shutdown_within_s)
        held = HeldOff(session, vm, was_on=True)

        async def restore(failure: BaseException | None) -> None:
            if failure is not None or not held.stays_off:
                await down.restore(failure)

        entry.undo_with(restore, within_s=restore_within_s, or_else=down.not_restored)
        yield held


@dataclass
class _ShutDown:
    """A guest on its way down. `going_down`: it was asked, or may have been, and is not off yet."""

    session: VcenterSession
    vm: Vm
    watch_until: float
    restore_within_s: float
    going_down: threading.Event = field(default_factory=threading.Event)
    last: str = ""

    async def ask(self) -> None:
        subject = self.vm.reference(self.session)

        def shut_down() -> None:
            self.going_down.set()
            subject.ShutdownGuest()

        step(self.vm, "shutting its guest down")
        try:
            await self.session.call("ShutdownGuest", shut_down, changes=True)
        except ConnectionLost:
            return  # the answer was lost: the power state will show
        except SourceError as exc:
            self.going_down.clear()
            raise SourceError(
                f"The guest of {self.vm.name} cannot be asked to shut down: {exc.problem}",
                remedy="Shut it down by hand and run again: a VM that is off is changed without any restart.",
                vm=self.vm.name,
            ) from exc

    async def wait(self, within_s: float) -> None:
        async def is_off() -> bool:
            return await power_state(self.session, self.vm.moref) == "poweredOff"

        if not await came_true(is_off, within_s):
            raise SourceError(
                f"The guest of {self.vm.name} did not shut down within {within_s:g} s.",
                remedy="See what holds it up (updates, an open dialogue); it may still go down by itself.",
                vm=self.vm.name,
            )
        self.going_down.clear()
        step(self.vm, "its guest is down")

    async def restore(self, _failure: BaseException | None) -> None:
        """Power the VM on. A VM that is on is watched as long as its guest may still be going down."""
        until = self.watch_until if self.going_down.is_set() else -math.inf
        while True:
            try:
                if await power_on(self.session, self.vm.moref):
                    step(self.vm, "powered on again")
                    return
                if trio.current_time() >= until:
                    return
            except SourceError as exc:  # whatever it is: a VM that stays off is worse than another attempt
                self.last = exc.problem
            await trio.sleep(POLL_S)

    def not_restored(self, reason: str) -> PowerNotRestored:
        return PowerNotRestored(
            f"{self.vm.name} was powered on before, and could not be powered on again within "
            f"{self.restore_within_s:g} s: {self.last or reason}",
            remedy="Power it on by hand.",
            vm=self.vm.name,
            moref=self.vm.moref,
        )
