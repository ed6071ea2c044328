"""A VM that is powered off for a moment, as a resource: afterwards it is powered as it was, whatever happened.

It starts from what the server shows, never from what we remember: an answer that was lost, a task that was
cancelled and a guest that goes down only after we gave up on it all end in the same loop, shielded and with a
deadline, which asks for the power state and powers on what is off. A VM that was off before is left off. What is
to be powered on again is in the journal before it is shut down: the next start does it for a run that was killed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from pipeline.errors import MoverError, SourceError

from ..api.faults import ConnectionLost
from ..api.session import VcenterSession
from ..inventory.lookup import Vm
from ..journal.intents import Intent, Journal, Kind
from ..journal.journaled import announce, new_run, settle
from ..journal.power_state import power_on, power_state

# Windows installs its updates on the way down.
SHUTDOWN_WITHIN_S = 900.0
RESTORE_WITHIN_S = 900.0
# A guest that was asked to shut down and has not at the deadline may still do so: it is watched for so long.
LATE_S = 120.0
POLL_S = 1.0


class PowerNotRestored(SourceError):
    """A VM that was on before may be off now. Facts: `vm`, `moref`."""


@asynccontextmanager
async def powered_off(
    session: VcenterSession,
    vm: Vm,
    journal: Journal,
    *,
    shutdown_within_s: float = SHUTDOWN_WITHIN_S,
    restore_within_s: float = RESTORE_WITHIN_S,
    late_s: float = LATE_S,
) -> AsyncIterator[bool]:
    """The VM is off inside, by a shutdown of its guest, never by force. The value tells whether it was on before.

    Raises SourceError when the guest does not shut down in time, or is suspended; PowerNotRestored when the VM
    could not be powered on again, in a group with the body's own error when both failed. Cancelled while the guest
    goes down, it waits for that, as long as it would have waited uncancelled, to power it on again.
    """
    before = await power_state(session, vm.moref)
    if before == "suspended":
        raise SourceError(
            f"{vm.name} is suspended.", remedy="Resume it or shut it down, then run again.", vm=vm.name
        )
    if before == "poweredOff":
        yield False
        return
    intent = await announce(session, vm, journal, new_run(), Kind.POWER)
    watch_until = trio.current_time() + shutdown_within_s + late_s
    going_down = threading.Event()
    try:
        await _ask_to_shut_down(session, vm, going_down)
        await _wait_until_off(session, vm, shutdown_within_s)
        going_down.clear()
        yield True
    except BaseException as failure:
        until = watch_until if going_down.is_set() else -math.inf
        error = await _settled(session, vm, restore_within_s, until, journal, intent)
        if error is not None:
            raise BaseExceptionGroup("The work failed, and so did powering on", [failure, error]) from None
        raise
    error = await _settled(session, vm, restore_within_s, -math.inf, journal, intent)
    if error is not None:
        raise error


async def _ask_to_shut_down(session: VcenterSession, vm: Vm, going_down: threading.Event) -> None:
    """Sets `going_down` when the guest was asked, or may have been. Raises SourceError when it cannot be asked."""
    subject = vm.reference(session)

    def shut_down() -> None:
        going_down.set()
        subject.ShutdownGuest()

    try:
        await session.call("ShutdownGuest", shut_down, changes=True)
    except ConnectionLost:
        return  # the answer was lost: the power state will tell
    except SourceError as exc:
        going_down.clear()
        raise SourceError(
            f"The guest of {vm.name} cannot be asked to shut down: {exc.problem}",
            remedy="Shut it down by hand and run again: a VM that is off is changed without any restart.",
            vm=vm.name,
        ) from exc


async def _wait_until_off(session: VcenterSession, vm: Vm, within_s: float) -> None:
    with trio.move_on_after(within_s) as scope:
        while await power_state(session, vm.moref) != "poweredOff":  # noqa: ASYNC110
            await trio.sleep(POLL_S)
    if scope.cancelled_caught:
        raise SourceError(
            f"The guest of {vm.name} did not shut down within {within_s:g} s.",
            remedy="See what holds it up (updates, an open dialogue); it may still go down by itself.",
            vm=vm.name,
        )


async def _settled(
    session: VcenterSession, vm: Vm, within_s: float, watch_until: float, journal: Journal, intent: Intent
) -> MoverError | None:
    return await settle(journal, intent, await _restored(session, vm, within_s, watch_until))


async def _restored(
    session: VcenterSession, vm: Vm, within_s: float, watch_until: float
) -> PowerNotRestored | None:
    """Power the VM on. Until `watch_until` a VM that is on is watched, because its guest may be going down."""
    last = "the deadline passed."
    watch_s = max(watch_until - trio.current_time(), 0)
    with trio.move_on_after(watch_s + within_s, shield=True):
        while True:
            try:
                if await power_on(session, vm.moref):
                    return None
                if trio.current_time() >= watch_until:
                    return None
            except SourceError as exc:  # whatever it is, a VM that stays off is worse than one more attempt
                last = exc.problem
            await trio.sleep(POLL_S)
    return PowerNotRestored(
        f"{vm.name} was powered on before, and could not be powered on again within {within_s:g} s: {last}",
        remedy="Power it on by hand.",
        vm=vm.name,
        moref=vm.moref,
    )
