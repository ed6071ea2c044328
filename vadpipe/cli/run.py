"""The engine's own commands: run and plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.errors import (
    EXIT_ATTENTION,
    EXIT_DONE,
    EXIT_FAILED,
    are_ours,
)
from pipeline.job import DiskRun, Job, JobReceipt
from pipeline.plan import plan as plan_job
from pipeline.units import MiB, format_size

from .config import read_config, resolve
from .main import (
    EXIT_INTERRUPTED,
    error_lines,
    exit_code,
    json_option,
    run_async,
    show,
)
from .progress import events_to, show_progress

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
    resolved = run_async(resolve, config, only)
    outcomes = [_told_failure(title, exc) for title, exc in resolved.failed]
    for job in resolved.jobs:
        outcomes.append(_run_job(job, events, as_json))
        if outcomes[-1][0] == EXIT_INTERRUPTED:
            break
    codes = [code for code, _ in outcomes]
    document = {"ok": set(codes) == {EXIT_DONE}, "jobs": [told for _, told in outcomes]}
    not_run = len(resolved.failed) + len(resolved.jobs) - len(codes)
    show(document, [_summary(codes, not_run)] if len(codes) + not_run > 1 else [], as_json)
    return _code_of_all(codes)


def _run_job(job: Job[Any, Any], events: Path | None, as_json: bool) -> tuple[int, dict[str, object]]:
    """Run one job and tell of it; its failure is no reason to leave out the next."""
    try:
        with events_to(events):
            receipt = run_async(_run_watched, job, as_json)
    except Exception as exc:
        if not are_ours(exc):
            raise
        return _told_failure(job.title, exc)
    if not as_json:
        show({}, receipt_lines(receipt), False)
    code = EXIT_ATTENTION if receipt.attention else EXIT_DONE
    return code, {**receipt.as_dict(), "exit_code": code}


def _told_failure(title: str, exc: Exception) -> tuple[int, dict[str, object]]:
    for line in error_lines(exc):
        click.echo(f"vadpipe: {title}: {line}", err=True)
    return exit_code(exc), {"job": title, "exit_code": exit_code(exc), "errors": error_lines(exc)}


def _code_of_all(codes: Sequence[int]) -> int:
    """The exit code of a run; a signal ended it, or some of its jobs failed, or one needs attention."""
    if EXIT_INTERRUPTED in codes:
        return EXIT_INTERRUPTED
    if len(set(codes)) == 1:
        return codes[0]
    return EXIT_FAILED if set(codes) - {EXIT_DONE, EXIT_ATTENTION} else EXIT_ATTENTION


def _summary(codes: Sequence[int], not_run: int) -> str:
    """The last line of a run of several jobs, e.g. '12 jobs: 10 done, 1 needs attention, 1 failed'."""
    done, attention = codes.count(EXIT_DONE), codes.count(EXIT_ATTENTION)
    counts = {
        "done": done,
        "need attention" if attention > 1 else "needs attention": attention,
        "failed": len(codes) - done - attention,
        "not run": not_run,
    }
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{len(codes) + not_run} jobs: {told}"


async def _run_watched(job: Job[Any, Any], quiet: bool) -> JobReceipt:
    async with show_progress(quiet) as watch:
        return await job.run(watch)


@click.command()
@config_argument
@job_option
@json_option
def plan(config: Path, only: str | None, as_json: bool) -> None:
    """Show the stages, the memory and what the jobs would touch, without touching anything."""
    plans = [plan_job(entry) for entry in read_config(config, only)]
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
