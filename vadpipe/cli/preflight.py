"""The commands preflight and prepare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from pipeline.errors import EXIT_ATTENTION, EXIT_DONE, EXIT_FAILED, ConfigError
from pipeline.events import Event, observed
from vadpipe.preflight.privileges import PURPOSES, Script, role_script
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
from vadpipe.words import counted

from .commands import config_argument, job_option, json_option
from .config import load_jobs
from .findings import counts_line, finding_lines, rule_document, rule_line
from .output import show
from .process import run_async


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@job_option
@click.option("--rules", "list_rules", is_flag=True, help="List the rules instead; needs no configuration.")
@click.option(
    "--privileges", "list_privileges", is_flag=True, help="List the privileges that jobs need instead."
)
@click.option(
    "--role-script",
    "script",
    type=click.Choice(["govc", "powercli"]),
    help="With --privileges: commands for a role.",
)
@click.option("--no-network", is_flag=True, help="Do not try the names and ports of hosts.")
@json_option
def preflight(
    config: Path | None,
    only: str | None,
    list_rules: bool,
    list_privileges: bool,
    script: Script | None,
    no_network: bool,
    as_json: bool,
) -> int:
    """Check every condition of the jobs of a configuration, without changing anything.

    Exit code 0: no error and no warning; 1: at least one error: the job would fail, or report a consistency that it
    did not reach; 3: warnings. Conditions that cannot be checked are listed as unknown and do not count.
    """
    if list_rules:
        rules = [{**rule_document(rule), "about_quiescing": "quiescing" in rule.tags} for rule in RULES]
        show({"rules": rules}, [rule_line(rule) for rule in RULES], as_json)
        return EXIT_DONE
    if script and not list_privileges:
        raise click.UsageError("--role-script needs --privileges.")
    if list_privileges:
        _show_privileges(script, as_json)
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
    lines = [line for report in reports for line in _lines(report)]
    show({"exit_code": code, "jobs": reports}, lines, as_json)
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
    show({"vms": prepared}, [line for one in prepared for line in one.lines()], as_json)
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
        jobs = [(vm, await job_facts(machine)) for vm, machine in zip(vms, machines, strict=True)]
        return await preflight_all(session, jobs, probe_hosts=None if no_network else probe)


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


def _lines(report: PreflightReport) -> Iterator[str]:
    unknown = f", {counted(len(report.unknown), 'condition')} not known" if report.unknown else ""
    yield f"{report.vm.title}: {counts_line(report.findings)}{unknown}"
    yield from finding_lines(report.findings, report.unknown)


def _show_privileges(script: Script | None, as_json: bool) -> None:
    commands = role_script(script) if script else []
    lines = [
        f"{name:50} {'on the ' + purpose.place:16} {purpose.needed}"
        for purpose in PURPOSES
        for name in purpose.names
    ]
    show({"privileges": PURPOSES, "script": commands}, commands or lines, as_json)
