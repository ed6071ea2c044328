"""The command guest-config: the settings for quiescing inside guests, shown, applied or undone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from pipeline.errors import (
    EXIT_ATTENTION,
    EXIT_DONE,
    ConfigError,
    SourceError,
)
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.guest.change import GuestChange, apply_settings, undo_settings
from vadpipe.vsphere.guest.expectations import inside
from vadpipe.vsphere.inventory.lookup import find_vms
from vadpipe.vsphere.snapshot.fallback import guest_of
from vadpipe.vsphere.vm.vm import VsphereVm, by_server

from .commands import config_argument, job_option, json_option
from .config import load_jobs
from .output import show
from .process import run_async

Action = Literal["show", "apply", "undo"]


@dataclass(frozen=True)
class GuestState:
    """The settings of one guest. `attention`: a sentence for each that is not as its job asks."""

    vm: str
    found: dict[str, object]
    told: Sequence[str]
    attention: Sequence[str]

    def as_dict(self) -> dict[str, object]:
        return {"vm": self.vm, **self.found, "attention": self.attention}

    def lines(self) -> list[str]:
        return [
            *(
                f"{self.vm}: {sentence}"
                for sentence in self.told or ["Nothing is set in it, and no script is there."]
            ),
            *(f"{self.vm}: ATTENTION: {sentence}" for sentence in self.attention),
        ]


@click.command("guest-config")
@config_argument
@job_option
@click.option(
    "--show",
    "action",
    flag_value="show",
    default="show",
    help="Show the settings of the guests; change nothing.",
)
@click.option(
    "--apply", "action", flag_value="apply", help="Change tools.conf in the guests as their jobs ask."
)
@click.option("--undo", "action", flag_value="undo", help="Put tools.conf in the guests back.")
@json_option
def guest_config(config: Path, only: str | None, action: Action, as_json: bool) -> int:
    """Show, apply or undo the settings for quiescing inside the guests of a configuration.

    This is for jobs whose VM has `guest=GuestControl(...)`.

    Exit code 0: done, or all as the jobs ask; 1: failed; 3: a guest is not as its job asks.
    """
    found = [
        one
        for server, there in by_server(_machines(config, only))
        for one in run_async(_each, server, there, action)
    ]
    show({"vms": found}, [line for one in found for line in one.lines()], as_json)
    unlike = any(isinstance(one, GuestState) and one.attention for one in found)
    return EXIT_ATTENTION if unlike else EXIT_DONE


async def _each(
    server: Vcenter, machines: Sequence[VsphereVm], action: Action
) -> list[GuestState | GuestChange]:
    async with server.connect() as session:
        found: list[GuestState | GuestChange] = []
        vms = await find_vms(session, [machine.vm for machine in machines])
        for machine, vm in zip(machines, vms, strict=True):
            control = machine.guest
            assert control is not None  # see _machines
            guest = await guest_of(session, vm)
            if guest.obstacle:
                raise SourceError(
                    f"The guest of {vm.name} cannot be reached: {guest.obstacle}.",
                    remedy="Start it, and VMware Tools in it.",
                    vm=vm.name,
                )
            files = control.files(session, vm, guest.guest_id)
            if action == "apply":
                found.append(await apply_settings(files, control.settings))
            elif action == "undo":
                found.append(await undo_settings(files))
            else:
                seen = await inside(files)
                unlike = [*seen.differences(control), *seen.obstacles(machine.quiesce)]
                found.append(GuestState(vm.name, seen.as_dict(), seen.remarks(), unlike))
        return found


def _machines(config: Path, only: str | None) -> list[VsphereVm]:
    machines = [job.machine for job in load_jobs(config, only)]
    found = [machine for machine in machines if isinstance(machine, VsphereVm) and machine.guest is not None]
    if not found:
        raise ConfigError(
            f"{config} has no job that has an account in its guest.",
            remedy="Give the VM of the job guest=GuestControl(user, password, settings={...}).",
        )
    return found
