"""The commands of the vSphere room: cleanup."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import json_option, run_async, show
from pipeline.commands import config_argument
from pipeline.config import read_config
from pipeline.errors import EXIT_ATTENTION, EXIT_DONE
from pipeline.job import Job

from .vsphere import Journal, Outcome, Swept, Vcenter, VcenterVm, sweep


@click.command()
@config_argument
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@json_option
def cleanup(config: Path, dry_run: bool, as_json: bool) -> int:
    """Remove what killed runs left on the servers of a configuration: exactly the snapshots that we made."""
    # A source's VMs need not be known for this, and may be none any more while their snapshots are left.
    jobs = [entry if isinstance(entry, Job) else entry.planned() for entry in read_config(config)]
    machines = [job.machine for job in jobs]
    places = dict.fromkeys(
        (machine.vcenter, machine.journal or Journal())
        for machine in machines
        if isinstance(machine, VcenterVm)
    )
    found = [swept for server, journal in places for swept in run_async(_sweep, server, journal, dry_run)]
    lines = [str(swept) for swept in found] or ["Nothing was left behind."]
    show({"swept": [swept.as_dict() for swept in found]}, lines, as_json)
    kept = any(swept.outcome is Outcome.KEPT for swept in found)
    return EXIT_ATTENTION if kept else EXIT_DONE


async def _sweep(server: Vcenter, journal: Journal, dry_run: bool) -> list[Swept]:
    async with server.connect() as session:
        return await sweep(session, journal, dry_run=dry_run)
