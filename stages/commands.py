"""The commands of the vSphere room: cleanup."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import click

from pipeline.cli import json_option, run_async, show
from pipeline.commands import config_argument
from pipeline.config import load_jobs
from pipeline.errors import EXIT_ATTENTION, EXIT_DONE, MoverError

from .vsphere import (
    Consolidate,
    Journal,
    Orphan,
    Outcome,
    Swept,
    Vcenter,
    VcenterVm,
    find_vm,
    most_allowed,
    orphan_candidates,
    sweep,
)


@click.command()
@config_argument
@click.option("--dry-run", is_flag=True, help="Only tell what would be undone.")
@click.option(
    "--consolidate",
    type=click.Choice(get_args(Consolidate)),
    help="What may be done for disks that need it, instead of what the jobs say: 'ladder' also makes and removes "
    "snapshots of ours.",
)
@json_option
def cleanup(config: Path, dry_run: bool, consolidate: Consolidate | None, as_json: bool) -> int:
    """Undo what killed runs left on the servers of a configuration, and nothing else.

    Hot-added disks are detached, snapshots removed, locks against Storage vMotion ended, VMs that were shut down
    powered on. Disks are consolidated as far as any job of their server allows. Disks that nothing refers to are
    listed, never touched. Exit code 3: something could not be undone.
    """
    machines = [job.machine for job in load_jobs(config)]
    places: dict[tuple[Vcenter, Journal], Consolidate] = {}
    for machine in machines:
        if isinstance(machine, VcenterVm):
            place = machine.vcenter, machine.journal or Journal()
            places[place] = most_allowed((places.get(place, "never"), machine.consolidate))
    found = [
        swept
        for (server, journal), allowed in places.items()
        for swept in run_async(_sweep, server, journal, dry_run, consolidate or allowed)
    ]
    lines = [str(swept) for swept in found] or ["Nothing was left behind."]
    orphans, unknown = _orphans(machines)
    lines += [f"Orphan candidate, never touched: {orphan}." for orphan in orphans] + unknown
    document = {
        "swept": [swept.as_dict() for swept in found],
        "orphan_candidates": [orphan.as_dict() for orphan in orphans],
        "orphans_unknown": unknown,
    }
    show(document, lines, as_json)
    kept = any(swept.outcome is Outcome.KEPT for swept in found)
    return EXIT_ATTENTION if kept else EXIT_DONE


def _orphans(machines: Iterable[object]) -> tuple[list[Orphan], list[str]]:
    """Of all VMs on a server, each disk once; and a sentence for each VM where nobody could look."""
    found: dict[tuple[str, str], Orphan] = {}
    unknown: list[str] = []
    for machine in machines:
        if isinstance(machine, VcenterVm):
            orphans, problem = run_async(_orphans_of, machine)
            unknown += [f"Orphan candidates of {machine.vm} are not known: {problem}"] if problem else []
            found |= {(machine.vcenter.server, orphan.path): orphan for orphan in orphans}
    return list(found.values()), unknown


async def _orphans_of(machine: VcenterVm) -> tuple[list[Orphan], str]:
    async with machine.vcenter.connect() as session:
        try:
            return await orphan_candidates(session, await find_vm(session, machine.vm)), ""
        except MoverError as exc:
            return [], exc.problem


async def _sweep(server: Vcenter, journal: Journal, dry_run: bool, consolidate: Consolidate) -> list[Swept]:
    async with server.connect() as session:
        return await sweep(session, journal, dry_run=dry_run, consolidate=consolidate)
