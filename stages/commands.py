"""The commands of the vSphere room: cleanup."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import json_option, run_async, show
from pipeline.commands import config_argument
from pipeline.config import load_jobs
from pipeline.errors import EXIT_ATTENTION, EXIT_DONE

from .vsphere import Journal, Outcome, Swept, Vcenter, VcenterVm, sweep


@click.command()
@config_argument
@click.option("--dry-run", is_flag=True, help="Only tell what would be undone.")
@json_option
def cleanup(config: Path, dry_run: bool, as_json: bool) -> int:
    """Undo what killed runs left on the servers of a configuration, and nothing else.

    Hot-added disks are detached, snapshots removed, locks against Storage vMotion ended, VMs that were shut down
    powered on. Disks are consolidated unless every job of their server has consolidate=False. Exit code 3:
    something could not be undone.
    """
    places: dict[tuple[Vcenter, Journal], bool] = {}
    for job in load_jobs(config):
        if isinstance(machine := job.machine, VcenterVm):
            place = machine.vcenter, machine.journal or Journal()
            places[place] = places.get(place, False) or machine.consolidate
    found = [
        swept
        for (server, journal), consolidate in places.items()
        for swept in run_async(_sweep, server, journal, dry_run, consolidate)
    ]
    lines = [str(swept) for swept in found] or ["Nothing was left behind."]
    show({"swept": [swept.as_dict() for swept in found]}, lines, as_json)
    kept = any(swept.outcome is Outcome.KEPT for swept in found)
    return EXIT_ATTENTION if kept else EXIT_DONE


async def _sweep(server: Vcenter, journal: Journal, dry_run: bool, consolidate: bool) -> list[Swept]:
    async with server.connect() as session:
        return await sweep(session, journal, dry_run=dry_run, consolidate=consolidate)
