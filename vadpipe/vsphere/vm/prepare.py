"""Preparing a VM for application quiescing and for incremental backups.

`disk.EnableUUID` takes effect when the VM starts. The documented procedure is: power off, set it, power on. Here
the guest is shut down in order, and VMware Tools are waited for at the end, because nothing is quiesced without
them. Change tracking needs no restart. Each step is logged and emitted as the event "preparing".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyVmomi import vim

from pipeline.errors import ConfigError, SourceError

from ..api.session import VcenterSession
from ..api.tasks import wait_for_task
from ..inventory.lookup import Vm
from ..journal.intents import Journal
from ..snapshot.changes import enable_change_tracking
from .power import RESTORE_WITHIN_S, SHUTDOWN_WITHIN_S, came_true, held_off, power_state, step

TOOLS_WITHIN_S = 900.0


@dataclass(frozen=True)
class Prepared:
    """What was done to a VM. `attention`: what was asked for and is not in effect (yet)."""

    vm: str
    done: Sequence[str]
    attention: Sequence[str]

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
    """Set disk.EnableUUID=TRUE while the VM is off, and power it as it was before.

    Args:
        journal: Where a restart in progress is noted, in case this process is killed.
        allow_power_off: Whether a running guest may be shut down.
        tools_within_s: Seconds for VMware Tools to start after a restart.

    Raises:
        ConfigError: The guest runs, and may not be shut down.
        SourceError: The guest does not shut down in time, or the server refuses.
        PowerNotRestored: See `held_off`.
    """
    if await uuid_enabled(session, vm):
        return Prepared(vm.name, ["disk.EnableUUID was TRUE already."], [])
    if not allow_power_off and await power_state(session, vm.moref) != "poweredOff":
        raise ConfigError(
            f"{vm.name} runs: setting disk.EnableUUID shuts its guest down and starts it again.",
            remedy="Allow that with --allow-power-off, or shut it down by hand first.",
            vm=vm.name,
        )
    async with held_off(
        session, vm, journal, shutdown_within_s=shutdown_within_s, restore_within_s=restore_within_s
    ) as held:
        step(vm, "setting disk.EnableUUID")
        await _set_uuid(session, vm)
    if not await uuid_enabled(session, vm):
        raise SourceError(
            f"disk.EnableUUID of {vm.name} was set to TRUE, but is not TRUE now.",
            remedy="See its configuration parameters, and who else changes them.",
            vm=vm.name,
        )
    done = ["disk.EnableUUID is TRUE now."]
    if not held.was_on:
        return Prepared(vm.name, [*done, "The VM was off and stays off."], [])
    if await _tools_run(session, vm, tools_within_s):
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
    done = "Change tracking is on; it takes effect at the next snapshot or power cycle."
    return Prepared(vm.name, [done], [])


async def uuid_enabled(session: VcenterSession, vm: Vm) -> bool:
    """Whether disk UUIDs are on, by the VM's flag or by its setting: not every server shows one as the other."""
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


async def _tools_run(session: VcenterSession, vm: Vm, within_s: float) -> bool:
    async def they_run() -> bool:
        row = await session.properties(vm.reference(session), ["guest.toolsRunningStatus"])
        return bool(row.get("guest.toolsRunningStatus") == "guestToolsRunning")

    step(vm, f"waiting up to {within_s:g} s for VMware Tools")
    return await came_true(they_run, within_s)
