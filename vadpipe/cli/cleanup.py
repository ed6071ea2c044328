"""The command cleanup."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import click

from pipeline.errors import EXIT_ATTENTION, EXIT_DONE, MoverError
from pipeline.job import Job, JobSource
from sinks.restore_job import Restore
from sinks.restoring import RestoreTarget
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.inventory.lookup import find_vms
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.snapshot.remove import Consolidate, most_allowed
from vadpipe.vsphere.vm.orphans import Orphan, orphan_candidates
from vadpipe.vsphere.vm.sweep import Outcome, Swept, look_ahead, sweep
from vadpipe.vsphere.vm.vm import VsphereVm, by_server

from .commands import config_argument, json_option
from .config import Entry, read_jobs_and_target, resolve
from .output import show
from .process import run_async


@click.command()
@config_argument
@click.option("--dry-run", is_flag=True, help="Only list what would be undone.")
@click.option(
    "--consolidate",
    type=click.Choice(get_args(Consolidate)),
    help="What may be done for disks that need it, instead of what the jobs say: 'escalate' also makes and removes "
    "snapshots of ours.",
)
@json_option
def cleanup(config: Path, dry_run: bool, consolidate: Consolidate | None, as_json: bool) -> int:
    """Undo what killed runs left on the servers of a configuration.

    It detaches hot-added disks, removes snapshots, ends locks against Storage vMotion, powers on VMs that were shut
    down, and destroys new VMs whose restore did not finish. It consolidates disks as far as any job of their server
    allows. A restore over a VM that did not end is named; only the next one completes it. Disks that no VM refers
    to are listed and never touched. Exit code 3: something could not be undone.
    """
    places = _places(read_jobs_and_target(config))
    found = [
        swept
        for (server, journal), allowed in places.items()
        for swept in run_async(_sweep, server, journal, dry_run, consolidate or allowed)
    ]
    lines = [str(swept) for swept in found] or ["Nothing was left behind."]
    orphans, unknown = run_async(_orphans, config)
    lines += [f"Orphan candidate, never touched: {orphan}." for orphan in orphans] + unknown
    document = {
        "swept": found,
        "orphan_candidates": orphans,
        "orphans_unknown": unknown,
    }
    show(document, lines, as_json)
    kept = any(swept.outcome is Outcome.KEPT for swept in found)
    return EXIT_ATTENTION if kept else EXIT_DONE


def _places(entries: Sequence[Entry | RestoreTarget]) -> dict[tuple[Vcenter, Journal], Consolidate]:
    """The servers of the entries with their journals, and what may be done there for disks.

    The VMs of a source are not looked up: there may be none any more, while their snapshots are left.
    """
    places: dict[tuple[Vcenter, Journal], Consolidate] = {}
    for entry in entries:
        job = entry.planned() if isinstance(entry, JobSource) else entry
        part: object = job
        if isinstance(job, Job | Restore):
            part = job.machine if isinstance(job, Job) else job.into
        allowed = part.consolidate if isinstance(part, VsphereVm) else "never"
        if isinstance(server := getattr(part, "vcenter", None), Vcenter):
            place = server, getattr(part, "journal", None) or Journal()
            places[place] = most_allowed((places.get(place, "never"), allowed))
    return places


async def _orphans(config: Path) -> tuple[list[Orphan], list[str]]:
    """Disks that no VM refers to, and a sentence for each source or server that could not be asked."""
    entries = [entry for entry in read_jobs_and_target(config) if isinstance(entry, Job | JobSource)]
    resolved = await resolve(config, entries=entries)
    unknown = [f"Orphan candidates of {title} are not known: {exc}" for title, exc in resolved.failed]
    backups = [job for job in resolved.jobs if isinstance(job, Job)]
    machines = [job.machine for job in backups if isinstance(job.machine, VsphereVm)]
    orphans: list[Orphan] = []
    for server, there in by_server(machines):
        names = dict.fromkeys(machine.vm for machine in there)
        try:
            async with server.connect() as session:
                orphans += await orphan_candidates(session, await find_vms(session, list(names)))
        except MoverError as exc:
            unknown.append(f"Orphan candidates on {server.server} are not known: {exc.problem}")
    return orphans, unknown


async def _sweep(server: Vcenter, journal: Journal, dry_run: bool, consolidate: Consolidate) -> list[Swept]:
    async with server.connect() as session:
        return await (look_ahead if dry_run else sweep)(session, journal, consolidate=consolidate)
