"""The commands of the vSphere room: cleanup."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from pipeline.cli import json_option, run_async, show
from pipeline.commands import config_argument
from pipeline.config import load_jobs
from pipeline.errors import EXIT_ATTENTION, EXIT_DONE

from .vsphere import Consolidate, Journal, Outcome, Swept, Vcenter, VcenterVm, sweep


@click.command()
@config_argument
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@click.option(
    "--consolidate",
    type=click.Choice(get_args(Consolidate)),
    default="ask",
    help="What to do for disks that need it: 'ladder' also makes and removes snapshots of ours.",
)
@json_option
def cleanup(config: Path, dry_run: bool, consolidate: Consolidate, as_json: bool) -> int:
    """Remove what killed runs left on the servers of a configuration: exactly the snapshots that we made."""
    machines = [job.machine for job in load_jobs(config)]
    places = dict.fromkeys(
        (machine.vcenter, machine.journal or Journal())
        for machine in machines
        if isinstance(machine, VcenterVm)
    )
    found = [
        swept
        for server, journal in places
        for swept in run_async(_sweep, server, journal, dry_run, consolidate)
    ]
    lines = [str(swept) for swept in found] or ["Nothing was left behind."]
    show({"swept": [swept.as_dict() for swept in found]}, lines, as_json)
    kept = any(swept.outcome is Outcome.KEPT for swept in found)
    return EXIT_ATTENTION if kept else EXIT_DONE


async def _sweep(server: Vcenter, journal: Journal, dry_run: bool, consolidate: Consolidate) -> list[Swept]:
    async with server.connect() as session:
        return await sweep(session, journal, dry_run=dry_run, consolidate=consolidate)
