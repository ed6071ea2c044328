"""The commands run and plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
import trio

from pipeline.errors import EXIT_ATTENTION, EXIT_DONE, EXIT_FAILED, Failure, failures, leaves
from pipeline.events import Event, emit, observed, within
from pipeline.job import DiskRun, Job, JobReceipt, JobSource
from pipeline.plan import plan as plan_job
from pipeline.units import MiB, format_size

from . import EXIT_INTERRUPTED
from .commands import config_argument, job_option, json_option
from .config import read_config, resolve
from .output import echo, error_lines, exit_code, report, report_defect, show
from .process import Interrupted, run_async
from .progress import Watch, events_to, show_progress
from .verdict import quiescing_lines

at_least_one = click.IntRange(min=1)


@click.command()
@config_argument
@job_option
@click.option(
    "--jobs",
    "at_once",
    type=at_least_one,
    default=1,
    show_default=True,
    metavar="N",
    help="Jobs that run at the same time.",
)
@click.option(
    "--per-server",
    type=at_least_one,
    metavar="N",
    help="Of these, at most N on one vCenter or ESXi host.",
)
@click.option(
    "--events", type=click.Path(path_type=Path), metavar="FILE", help="Append events as JSON lines."
)
@json_option
def run(
    config: Path, only: str | None, at_once: int, per_server: int | None, events: Path | None, as_json: bool
) -> int:
    """Run the jobs of a configuration: one backup each.

    A job that fails does not keep the others from running. A signal stops all of them in order: snapshots are
    removed, and what was stored for unfinished points is discarded.
    """
    entries = read_config(config)  # outside of the event loop: a signal ends it at once
    running = Run(config, at_once, per_server or at_once, as_json)
    with events_to(events):
        try:
            run_async(running.work, entries, only, cleaning=running.cleaning)
        except Exception as exc:
            interrupted = any(isinstance(leaf, Interrupted) for leaf in leaves(exc))
            if not interrupted or not running.outcomes:
                raise
    codes = [outcome.code for outcome in running.outcomes]
    document = {
        "ok": set(codes) == {EXIT_DONE} and not running.not_run,
        "run": running.id,
        "jobs": [outcome.document for outcome in running.outcomes],
    }
    several = len(codes) + running.not_run > 1
    show(document, [summary(codes, running.not_run)] if several else [], as_json)
    return code_of_all(codes)


@dataclass(frozen=True)
class Outcome:
    """What became of one job."""

    code: int
    document: dict[str, object]


@dataclass
class Run:
    """The jobs of a configuration while they run. `points`: what the jobs at work have published, by title."""

    config: Path
    at_once: int
    per_server: int
    as_json: bool
    id: str = field(default_factory=lambda: uuid4().hex[:12])
    outcomes: list[Outcome] = field(default_factory=list)
    not_run: int = 0
    points: dict[str, str | None] = field(default_factory=dict)

    async def work(self, entries: Sequence[Job[Any, Any] | JobSource], only: str | None) -> None:
        """Find the jobs and run them all."""
        resolved = await resolve(self.config, only, entries)
        with within(run=self.id):
            emit("run started", config=str(self.config), jobs=[job.title for job in resolved.jobs])
            self.outcomes += [_failure(title, exc, {}) for title, exc in resolved.failed]
            self.not_run = len(resolved.jobs)
            try:
                async with show_progress(self.as_json) as watch:
                    await self._run_all(resolved.jobs, watch)
            finally:
                codes = [outcome.code for outcome in self.outcomes]
                emit("run finished", exit_code=code_of_all(codes), not_run=self.not_run)

    async def _run_all(self, jobs: Sequence[Job[Any, Any]], watch: Watch) -> None:
        """Run the jobs in their order, as many at once as the limits allow."""
        waiting = list(jobs)
        at_work: Counter[object] = Counter()
        ended = trio.Event()

        async def worker() -> None:
            nonlocal ended
            while waiting:
                free = (at for at, job in enumerate(waiting) if at_work[_server(job)] < self.per_server)
                if (at := next(free, None)) is None:
                    await ended.wait()
                    continue
                job = waiting.pop(at)
                at_work[_server(job)] += 1
                self.not_run -= 1
                await self._run_job(job, watch)
                at_work[_server(job)] -= 1
                ended.set()
                ended = trio.Event()

        async with trio.open_nursery() as nursery:
            for _ in range(min(self.at_once, len(waiting))):
                nursery.start_soon(worker)

    async def _run_job(self, job: Job[Any, Any], watch: Watch) -> None:
        """Run one job and print what became of it. Its failure is raised only when it was cancelled."""
        several = self.at_once > 1

        found: Mapping[str, Any] = {}

        def take(event: Event) -> None:
            nonlocal found
            if event.kind == "published":
                self.points[job.title] = str(event.facts["point"])
            elif event.kind == "job failed":
                found = event.facts

        self.points[job.title] = None
        try:
            with observed(take):
                receipt = await job.run(watch.of(job.title if several else ""))
        except BaseException as exc:
            if not all(isinstance(leaf, Exception) for leaf in leaves(exc)):  # it was cancelled
                self.outcomes.append(_stopped(job.title, self.points[job.title], exc, found))
                raise
            self.outcomes.append(_failure(job.title, exc, found))
            return
        finally:
            del self.points[job.title]
        if not self.as_json:
            for line in receipt_lines(receipt):
                echo(f"{job.title}: {line}" if several and not line.startswith(f"{job.title}: ") else line)
        code = EXIT_ATTENTION if receipt.attention else EXIT_DONE
        self.outcomes.append(Outcome(code, {**receipt.as_dict(), "exit_code": code}))

    def cleaning(self) -> list[str]:
        """What the end of the jobs at work comes to."""
        return [
            f"{title}: what was stored for it is discarded; its snapshot, if it has one, is removed."
            if point is None
            else f"{title}: point {point} is published; its snapshot, if it has one, is still being removed."
            for title, point in self.points.items()
        ]


def _server(job: Job[Any, Any]) -> object:
    """The server that the VM of a job is on; for one without a server something that no other job has."""
    vcenter = getattr(job.machine, "vcenter", None)
    return id(job) if vcenter is None else vcenter.server


def _failure(title: str, exc: BaseException, found: Mapping[str, Any]) -> Outcome:
    report_defect(exc)
    for line in [*error_lines(exc), *_sentences(found)]:
        report(f"{title}: {line}")
    return Outcome(exit_code(exc), _document(title, exit_code(exc), failures(exc), found))


def _stopped(title: str, point: str | None, exc: BaseException, found: Mapping[str, Any]) -> Outcome:
    """A job that a signal ended, before or after its point was published."""
    told = "nothing was published" if point is None else f"point {point} had been published"
    ended = Failure(f"Ended by a signal; {told}.", ())
    others = [leaf for leaf in leaves(exc) if isinstance(leaf, Exception)]
    lines = [line for other in others for line in error_lines(other)]
    for line in [ended.text, *lines, *_sentences(found)]:
        report(f"{title}: {line}")
    errors = [ended, *(failure for other in others for failure in failures(other))]
    return Outcome(EXIT_INTERRUPTED, _document(title, EXIT_INTERRUPTED, errors, found))


def _sentences(found: Mapping[str, Any]) -> list[str]:
    """What a job had found before it failed, for people."""
    return [*found.get("remarks", ()), *(f"ATTENTION: {one}" for one in found.get("attention", ()))]


def _document(
    title: str, code: int, errors: Sequence[Failure], found: Mapping[str, Any]
) -> dict[str, object]:
    """A job that failed. `found`: the facts of its event; empty when it could not be made."""
    return {
        "job": title,
        "exit_code": code,
        "errors": [asdict(failure) for failure in errors],
        **{name: list(found.get(name, ())) for name in ("attention", "remarks")},
        **({"point": found["point"]} if found.get("point") else {}),
    }


def code_of_all(codes: Sequence[int]) -> int:
    """The exit code of a run: 130 after a signal, 1 when a job failed, 3 when one needs attention."""
    if EXIT_INTERRUPTED in codes or not codes:
        return EXIT_INTERRUPTED
    if len(set(codes)) == 1:
        return codes[0]
    return EXIT_FAILED if set(codes) - {EXIT_DONE, EXIT_ATTENTION} else EXIT_ATTENTION


def summary(codes: Sequence[int], not_run: int) -> str:
    """The last line of a run of several jobs, e.g. '12 jobs: 10 done, 1 needs attention, 1 failed'."""
    done, attention, interrupted = (
        codes.count(code) for code in (EXIT_DONE, EXIT_ATTENTION, EXIT_INTERRUPTED)
    )
    counts = {
        "done": done,
        "need attention" if attention > 1 else "needs attention": attention,
        "failed": len(codes) - done - attention - interrupted,
        "interrupted": interrupted,
        "not run": not_run,
    }
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{len(codes) + not_run} jobs: {told}"


@click.command()
@config_argument
@job_option
@json_option
def plan(config: Path, only: str | None, as_json: bool) -> None:
    """Show the stages, the memory and what the jobs would touch, without touching anything."""
    plans = [plan_job(entry) for entry in read_config(config, only)]
    show({"jobs": plans}, [line for plan in plans for line in plan.lines()], as_json)


def receipt_lines(receipt: JobReceipt) -> list[str]:
    """A finished job, for people."""
    asked, evidence = receipt.quiescing_asked, receipt.evidence
    lines = [f"{receipt.job}: point {receipt.point}, {receipt.wall_s:.1f} s, {receipt.cpu_s:.1f} CPU-s"]
    lines += (
        quiescing_lines(asked, evidence.reached, evidence.reasons, evidence.verdict)
        if evidence
        else quiescing_lines(asked, None, (), {})
    )
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
