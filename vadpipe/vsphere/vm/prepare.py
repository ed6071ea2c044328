"""Preparing a VM for application quiescing and for incremental backups.

`disk.EnableUUID` takes effect when the VM starts, so the documented procedure is: power off, set it, power on. Ours
shuts the guest down in order, and waits for VMware Tools at the end, without which nothing is quiesced. Change
tracking needs no restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio
from pyVmomi import vim

from pipeline.errors import ConfigError, SourceError

from ..api.session import VcenterSession
from ..api.tasks import wait_for_task
from ..inventory.lookup import Vm
from ..journal.intents import Journal
from ..journal.power_state import power_state
from ..snapshot.changes import enable_change_tracking
from . import power
from .power import RESTORE_WITHIN_S, SHUTDOWN_WITHIN_S, powered_off

TOOLS_WITHIN_S = 900.0


@dataclass(frozen=True)
class Prepared:
    """What became of a VM. `attention`: what was wanted and is not so (yet)."""

    vm: str
    done: Sequence[str]
    attention: Sequence[str]

    def as_dict(self) -> dict[str, object]:
        return {"vm": self.vm, "done": list(self.done), "attention": list(self.attention)}

    def lines(self) -> list[str]:
        return [
            *(f"{self.vm}: {sentence}" for sentence in self.done),
            *(f"{self.vm}: ATTENTION: {sentence}" for sentence in self.attention),
        ]


async def enable_uuid(
    session: VcenterSession,
    vm: Vm,
    journal: Journal,
    *,
    allow_power_off: bool,
    shutdown_within_s: float = SHUTDOWN_WITHIN_S,
    restore_within_s: float = RESTORE_WITHIN_S,
    tools_within_s: float = TOOLS_WITHIN_S,
) -> Prepared:
    """Set disk.EnableUUID=TRUE, with the VM powered off meanwhile, and as it was before afterwards.

    `journal`: where a restart that is under way is noted, for the case that this process is killed.

    Raises ConfigError without the permission to shut a running guest down, SourceError where it does not shut down
    in time or the server refuses, PowerNotRestored (see `powered_off`).
    """
    if await uuid_enabled(session, vm):
        return Prepared(vm.name, ["disk.EnableUUID was TRUE already."], [])
    if not allow_power_off and await power_state(session, vm.moref) != "poweredOff":
        raise ConfigError(
            f"{vm.name} runs: setting disk.EnableUUID shuts its guest down and starts it again.",
            remedy="Allow that with --allow-power-off, or shut it down by hand first.",
            vm=vm.name,
        )
    async with powered_off(
        session, vm, journal, shutdown_within_s=shutdown_within_s, restore_within_s=restore_within_s
    ) as was_on:
        await _set_uuid(session, vm)
    if not await uuid_enabled(session, vm):
        raise SourceError(
            f"disk.EnableUUID of {vm.name} was set, and is not TRUE now.",
            remedy="See its configuration parameters, and who else changes them.",
            vm=vm.name,
        )
    done = ["disk.EnableUUID is TRUE now."]
    if not was_on:
        return Prepared(vm.name, [*done, "It was off and is off."], [])
    if await _tools_came(session, vm, tools_within_s):
        return Prepared(vm.name, [*done, "Its guest was restarted, and VMware Tools run."], [])
    late = (
        f"Its guest was restarted, and VMware Tools do not run after {tools_within_s:g} s: see its console."
    )
    return Prepared(vm.name, done, [late])


async def track_changes(session: VcenterSession, vm: Vm) -> Prepared:
    """Switch change tracking on; it takes effect at the next snapshot or power cycle. Raises VsphereError."""
    obstacle = await enable_change_tracking(session, vm)
    if obstacle:
        return Prepared(vm.name, [], [obstacle])
    told = "Change tracking is on; it takes effect at the next snapshot or power cycle."
    return Prepared(vm.name, [told], [])


async def uuid_enabled(session: VcenterSession, vm: Vm) -> bool:
    """By the VM's flag, or by the setting where a server does not show one as the other."""
    subject = vm.reference(session)
    paths = ["config.flags.diskUuidEnabled", "config.extraConfig"]
    row = await session.properties(subject, paths)
    settings = {option.key.lower(): str(option.value) for option in row.get("config.extraConfig") or ()}
    return bool(row.get(paths[0])) or settings.get("disk.enableuuid", "").upper() == "TRUE"


async def _set_uuid(session: VcenterSession, vm: Vm) -> None:
    subject = vm.reference(session)
    wanted = vim.vm.ConfigSpec(extraConfig=[vim.option.OptionValue(key="disk.EnableUUID", value="TRUE")])
    task = await session.call("ReconfigVM_Task", lambda: subject.Reconfigure(wanted), changes=True)
    await wait_for_task(session, task, "ReconfigVM_Task")


async def _tools_came(session: VcenterSession, vm: Vm, within_s: float) -> bool:
    subject = vm.reference(session)
    paths = ["guest.toolsRunningStatus"]
    with trio.move_on_after(within_s):
        while True:
            row = await session.properties(subject, paths)
            if row.get("guest.toolsRunningStatus") == "guestToolsRunning":
                return True
            await trio.sleep(power.POLL_S)
    return False
