"""The engine's own commands: run and plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .cli import error_lines, exit_code, json_option, run_async, show
from .config import load_jobs
from .errors import EXIT_ATTENTION, EXIT_DONE, EXIT_FAILED, MoverError, leaves
from .job import DiskRun, Job, JobReceipt
from .plan import plan as plan_job
from .progress import events_to, show_progress
from .units import MiB, format_size

config_argument = click.argument("config", type=click.Path(path_type=Path))
job_option = click.option("--job", "only", metavar="NAME", help="Only this job of the configuration.")
events_option = click.option(
    "--events", type=click.Path(path_type=Path), metavar="FILE", help="Append events as JSON lines."
)


@click.command()
@config_argument
@job_option
@events_option
@json_option
def run(config: Path, only: str | None, events: Path | None, as_json: bool) -> int:
    """Run the jobs of a configuration file, one after the other."""
    jobs = load_jobs(config, only)
    outcomes = [_run_job(job, events, as_json) for job in jobs]
    document = {"ok": all(code == EXIT_DONE for code, _ in outcomes), "jobs": [job for _, job in outcomes]}
    show(document, [], as_json)
    codes = {code for code, _ in outcomes}
    if len(codes) == 1:
        return codes.pop()
    return EXIT_FAILED if codes - {EXIT_DONE, EXIT_ATTENTION} else EXIT_ATTENTION


def _run_job(job: Job[Any, Any], events: Path | None, as_json: bool) -> tuple[int, dict[str, object]]:
    """Run one job and tell of it; its failure is no reason to leave out the next."""
    try:
        with events_to(events):
            receipt = run_async(_run_watched, job, as_json)
    except Exception as exc:
        if not _is_ours(exc):
            raise
        for line in error_lines(exc):
            click.echo(f"vadpipe: {job.title}: {line}", err=True)
        return exit_code(exc), {"job": job.title, "exit_code": exit_code(exc), "errors": error_lines(exc)}
    if not as_json:
        show({}, receipt_lines(receipt), False)
    code = EXIT_ATTENTION if receipt.attention else EXIT_DONE
    return code, {**receipt.as_dict(), "exit_code": code}


async def _run_watched(job: Job[Any, Any], quiet: bool) -> JobReceipt:
    async with show_progress(quiet) as watch:
        return await job.run(watch)


def _is_ours(exc: BaseException) -> bool:
    return all(isinstance(leaf, MoverError) for leaf in leaves(exc))


@click.command()
@config_argument
@job_option
@json_option
def plan(config: Path, only: str | None, as_json: bool) -> None:
    """Show the stages, the memory and what the jobs would touch, without touching anything."""
    plans = [plan_job(job) for job in load_jobs(config, only)]
    show(
        {"jobs": [plan.as_dict() for plan in plans]},
        [line for plan in plans for line in plan.lines()],
        as_json,
    )


def receipt_lines(receipt: JobReceipt) -> list[str]:
    """A finished job, for people."""
    evidence = receipt.evidence
    reached = f"reached {evidence.reached}" if evidence else "not verified"
    lines = [
        f"{receipt.job}: point {receipt.point}, {receipt.wall_s:.1f} s, {receipt.cpu_s:.1f} CPU-s",
        f"  quiescing: asked {receipt.quiescing_asked}, {reached}",
    ]
    lines += [f"    {reason}" for reason in (evidence.reasons if evidence else ())]
    if receipt.snapshots_left is not None:
        lines.append(f"  snapshots left: {receipt.snapshots_left}")
    for disk in receipt.disks:
        lines += disk_lines(disk)
    lines += [f"  {remark}" for remark in receipt.remarks]
    lines += [f"  ATTENTION: {sentence}" for sentence in receipt.attention]
    return lines


def disk_lines(run: DiskRun) -> Sequence[str]:
    """One disk of a finished job: what was known of it, what was read, what became of that."""
    disk = run.receipt
    counts = {
        "logical": disk.capacity,
        "allocated": run.allocated,
        "changed": run.changed,
        "read": disk.read,
        "zero": disk.zero_read,
        "known": disk.known,
        "new": disk.new,
        "stored": disk.stored,
    }
    sizes = ", ".join(f"{name} {format_size(size)}" for name, size in counts.items() if size is not None)
    wall_s = run.report.wall_s
    rate = disk.read / MiB / wall_s if wall_s else 0.0
    return [
        f"  disk {disk.key} ({disk.label}): {run.mode}, {run.reason}",
        f"    {sizes}",
        f"    {wall_s:.2f} s, {rate:.0f} MiB/s, limited by {run.report.limited_by}",
    ]
