"""The commands preflight and prepare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from pipeline.errors import (
    EXIT_ATTENTION,
    EXIT_DONE,
    EXIT_FAILED,
    ConfigError,
)
from pipeline.events import Event, observed
from vadpipe.preflight.facts import JobFacts
from vadpipe.preflight.reach import probe
from vadpipe.preflight.report import PreflightReport, job_facts, preflight_all
from vadpipe.preflight.rules import RULES
from vadpipe.vsphere.api.session import Vcenter, VcenterSession
from vadpipe.vsphere.inventory.lookup import find_vms
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.snapshot.remove import most_allowed
from vadpipe.vsphere.vm.prepare import Prepared, enable_uuid, track_changes
from vadpipe.vsphere.vm.sweep import TELLING, Outcome, sweep
from vadpipe.vsphere.vm.vm import VsphereVm, by_server

from .config import load_jobs
from .main import json_option, run_async, show
from .run import config_argument, job_option


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@job_option
@click.option("--rules", "list_rules", is_flag=True, help="List the rules instead; needs no configuration.")
@click.option("--no-network", is_flag=True, help="Do not try the names and ports of hosts.")
@json_option
def preflight(
    config: Path | None, only: str | None, list_rules: bool, no_network: bool, as_json: bool
) -> int:
    """Check every condition of the jobs of a configuration, without changing anything.

    Exit code 0: no error and no warning; 1: a job would fail, or claim what is not so; 3: warnings. What cannot be
    told is listed as unknown and does not count.
    """
    if list_rules:
        show({"rules": [rule.as_dict() for rule in RULES]}, _rule_lines(), as_json)
        return EXIT_DONE
    if config is None:
        raise click.UsageError("Missing argument 'CONFIG'.")
    machines = _machines(config, only)
    reports = [
        report
        for server, there in by_server(machines)
        for report in run_async(_preflight, server, there, no_network)
    ]
    codes = {report.exit_code for report in reports}
    code = next((code for code in (EXIT_FAILED, EXIT_ATTENTION) if code in codes), EXIT_DONE)
    document = {"exit_code": code, "jobs": [report.as_dict() for report in reports]}
    show(document, [line for report in reports for line in report.lines()], as_json)
    return code


@click.command()
@config_argument
@job_option
@click.option(
    "--enable-uuid", "uuid", is_flag=True, help="Set disk.EnableUUID=TRUE, which restarts the guest."
)
@click.option("--allow-power-off", is_flag=True, help="Permit to shut running guests down for it.")
@click.option("--enable-change-tracking", "tracking", is_flag=True, help="Switch change tracking on.")
@json_option
def prepare(
    config: Path, only: str | None, uuid: bool, allow_power_off: bool, tracking: bool, as_json: bool
) -> int:
    """Prepare the VMs of a configuration for application quiescing and for incremental backups.

    Exit code 0: done; 1: failed; 2: a running guest would have to be shut down, and that is not allowed; 3: done,
    but something is not as wanted yet. Each VM is left powered as it was.
    """
    if not uuid and not tracking:
        raise click.UsageError("Nothing to do: give --enable-uuid, --enable-change-tracking, or both.")
    with observed(_show_step):
        prepared = [
            one
            for server, there in by_server(_machines(config, only))
            for one in run_async(_prepare, server, there, uuid, allow_power_off, tracking)
        ]
    show(
        {"vms": [one.as_dict() for one in prepared]},
        [line for one in prepared for line in one.lines()],
        as_json,
    )
    return EXIT_ATTENTION if any(one.attention for one in prepared) else EXIT_DONE


def _show_step(event: Event) -> None:
    """A line per step on standard error: a restart takes minutes."""
    if event.kind == "preparing":
        click.echo(f"{event.facts['vm']}: {event.facts['step']}", err=True)


async def _preflight(
    server: Vcenter, machines: Sequence[VsphereVm], no_network: bool
) -> list[PreflightReport]:
    async with server.connect() as session:
        vms = await find_vms(session, [machine.vm for machine in machines])
        jobs = [(vm.moref, await _wanted(machine)) for vm, machine in zip(vms, machines, strict=True)]
        return await preflight_all(session, jobs, probe_hosts=None if no_network else probe)


async def _wanted(machine: VsphereVm) -> JobFacts:
    return await job_facts(
        machine.quiesce, machine.reader, enable_change_tracking=machine.enable_change_tracking
    )


async def _prepare(
    server: Vcenter, machines: Sequence[VsphereVm], uuid: bool, allow_power_off: bool, tracking: bool
) -> list[Prepared]:
    async with server.connect() as session:
        prepared = await _swept(session, machines)
        vms = await find_vms(session, [machine.vm for machine in machines])
        for machine, vm in zip(machines, vms, strict=True):
            if tracking:  # first: a restart for the other makes it take effect
                prepared.append(await track_changes(session, vm))
            if uuid:
                prepared.append(
                    await enable_uuid(
                        session, vm, machine.journal or Journal(), allow_power_off=allow_power_off
                    )
                )
    return prepared


async def _swept(session: VcenterSession, machines: Sequence[VsphereVm]) -> list[Prepared]:
    """What killed runs left, first of all a VM that one of them shut down."""
    journals = dict.fromkeys(machine.journal or Journal() for machine in machines)
    consolidate = most_allowed(machine.consolidate for machine in machines)
    prepared = []
    for journal in journals:
        for one in await sweep(session, journal, consolidate=consolidate):
            if one.outcome in TELLING:
                lines = [f"Left by an earlier run: {one}."]
                kept = one.outcome is Outcome.KEPT
                prepared.append(Prepared(one.intent.vm_name, [] if kept else lines, lines if kept else []))
    return prepared


def _machines(config: Path, only: str | None) -> list[VsphereVm]:
    machines = [job.machine for job in load_jobs(config, only)]
    found = [machine for machine in machines if isinstance(machine, VsphereVm)]
    if not found:
        raise ConfigError(
            f"{config} has no job for a VM of a vCenter or an ESXi host.",
            remedy="Other machines have no conditions to check and nothing to prepare.",
        )
    return found


def _rule_lines() -> list[str]:
    return [f"{rule.severity.value:8}{rule.id:28}{rule.wanted}" for rule in RULES]
