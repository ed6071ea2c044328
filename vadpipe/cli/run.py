"""The commands run and plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import click
import trio

from pipeline.errors import EXIT_ATTENTION, EXIT_DONE, EXIT_FAILED, Failure, failures, leaves
from pipeline.events import Event, emit, observed, within
from pipeline.job import DiskRun, Job, JobReceipt, JobSource
from pipeline.meters import PipelineReport
from pipeline.plan import Plan
from pipeline.plan import plan as plan_job
from pipeline.units import MiB, format_size
from vadpipe.fleet.limits import Limits
from vadpipe.vsphere.journal.intents import WHOLE

from . import EXIT_INTERRUPTED
from .commands import config_argument, job_option, json_option
from .config import Entry, limits_of, read_config, resolve
from .findings import quiescing_lines
from .output import echo, error_lines, exit_code, is_verbose, report, report_defect, show, table
from .process import Interrupted, run_async
from .progress import Watch, events_to, show_progress

if TYPE_CHECKING:
    from sinks.restore_job import Restore
    from sinks.restoring import RestoreReceipt

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
    "--per-host",
    type=at_least_one,
    metavar="N",
    help="Of these, at most N of VMs that were on one ESXi host when the run started.",
)
@click.option(
    "--per-datastore",
    type=at_least_one,
    metavar="N",
    help="Of these, at most N of VMs that had files on one datastore when the run started.",
)
@click.option(
    "--events", type=click.Path(path_type=Path), metavar="FILE", help="Append events as JSON lines."
)
@json_option
def run(
    config: Path,
    only: str | None,
    at_once: int,
    per_server: int | None,
    per_host: int | None,
    per_datastore: int | None,
    events: Path | None,
    as_json: bool,
) -> int:
    """Run the jobs of a configuration: one backup or restore each.

    A job that fails does not keep the others from running. A signal stops all of them in order: snapshots are
    removed, what was stored for unfinished points is discarded, and VMs that are not complete are destroyed.

    With --jobs, a job starts when its ESXi host, datastores and server have room for it: see `limits` in
    docs/fleet.md. Jobs that read the most the last time start first.
    """
    entries = read_config(config)  # outside of the event loop: a signal ends it at once
    options = {"server": per_server, "host": per_host, "datastore": per_datastore}
    most_at = {kind: most for kind, most in options.items() if most}
    running = Run(config, at_once, most_at, as_json, limits=limits_of(config))
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
class AtWork:
    """A job while it runs: the snapshot that stands or is being made, and the point that is published.

    Of a restore: the VM that is being made, and whether it is complete. `migrates`: it is an increment of a
    migration. `found`: the facts of the event that says that it failed.
    """

    title: str
    restores: bool = False
    migrates: bool = False
    snapshot: str = ""
    point: str = ""
    vm: str = ""
    whole: bool = False
    found: Mapping[str, Any] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        if event.kind == "published":
            self.point = str(event.facts["point"])
        elif event.kind == "job failed":
            self.found = event.facts
        elif event.kind == "snapshot begun":
            self.snapshot = str(event.facts["snapshot"])
        elif event.kind == "snapshot removed":
            self.snapshot = ""
        elif event.kind == "restoring":
            self.vm = str(event.facts["vm"])
            self.whole = self.whole or event.facts["step"] == WHOLE

    def ending(self) -> str:
        """What remains to be done when a signal ends it."""
        if self.restores:
            return f"{self.title}: {self.fate()}."
        lost = "the next increment goes on" if self.migrates else "what was stored for it is discarded"
        done = f"point {self.point} is published" if self.point else lost
        return f"{self.title}: {done}" + (
            f"; its snapshot {self.snapshot!r} is removed." if self.snapshot else "."
        )

    def fate(self) -> str:
        """What becomes of the VM of a restore that a signal ends."""
        if not self.vm:
            return "what was made is removed"
        return f"the VM {self.vm} is complete and stays" if self.whole else f"the VM {self.vm} is destroyed"


@dataclass
class Run:
    """The jobs of a configuration while they run.

    `most_at`: how many jobs may be at work at one place, by its kind; `limits`: those of hosts and datastores.
    """

    config: Path
    at_once: int
    most_at: Mapping[str, int]
    as_json: bool
    limits: Limits = field(default_factory=Limits)
    id: str = field(default_factory=lambda: uuid4().hex[:12])
    outcomes: list[Outcome] = field(default_factory=list)
    not_run: int = 0
    at_work: list[AtWork] = field(default_factory=list)

    async def work(self, entries: Sequence[Entry], only: str | None) -> None:
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

    async def _run_all(self, jobs: Sequence[Job[Any, Any] | Restore], watch: Watch) -> None:
        """Run the jobs: one after the other, or several at once as the limits allow."""
        if self.at_once == 1 or len(jobs) < 2:
            for job in jobs:
                self.not_run -= 1
                await self._run_job(job, watch)
            return
        from .admission import admission

        admitted = await admission(jobs, self.at_once, self.limits, self.most_at)

        async def run_job(job: Job[Any, Any] | Restore) -> None:
            self.not_run -= 1
            await self._run_job(job, watch)
            start(admitted.ended(job))  # not when it was cancelled: then nothing else starts

        async with trio.open_nursery() as nursery:

            def start(some: Sequence[Job[Any, Any] | Restore]) -> None:
                for job in some:
                    nursery.start_soon(run_job, job)

            start(admitted.begin())

    async def _run_job(self, job: Job[Any, Any] | Restore, watch: Watch) -> None:
        """Run one job and print what became of it. Its failure is raised only when it was cancelled."""
        several = self.at_once > 1
        at_work = AtWork(job.title, restores=not isinstance(job, Job), migrates=hasattr(job, "cut_over"))
        self.at_work.append(at_work)
        try:
            with observed(at_work.take):
                receipt = await job.run(watch.of(job.title if several else ""))
        except BaseException as exc:
            if not all(isinstance(leaf, Exception) for leaf in leaves(exc)):  # it was cancelled
                self.outcomes.append(_stopped(at_work, exc))
                raise
            self.outcomes.append(_failure(job.title, exc, at_work.found))
            return
        finally:
            self.at_work.remove(at_work)
        if not self.as_json:
            for line in job_lines(job.title, receipt, verbose=is_verbose()):
                echo(f"{job.title}: {line}" if several and not line.startswith(f"{job.title}: ") else line)
        code = EXIT_ATTENTION if receipt.attention else EXIT_DONE
        self.outcomes.append(Outcome(code, {**receipt.as_dict(), "exit_code": code}))

    def cleaning(self) -> list[str]:
        """What is cleaned up when a signal ends the jobs at work."""
        return [job.ending() for job in self.at_work]


def _failure(title: str, exc: BaseException, found: Mapping[str, Any]) -> Outcome:
    report_defect(exc)
    for line in [*error_lines(exc), *_sentences(found)]:
        report(f"{title}: {line}")
    return Outcome(exit_code(exc), _document(title, exit_code(exc), failures(exc), found))


def _stopped(job: AtWork, exc: BaseException) -> Outcome:
    """A job that a signal ended, before or after its point was published."""
    told = f"point {job.point} had been published" if job.point else "nothing was published"
    if job.restores:
        told = job.fate()
    ended = Failure(f"Ended by a signal; {told}.", ())
    others = [leaf for leaf in leaves(exc) if isinstance(leaf, Exception)]
    lines = [line for other in others for line in error_lines(other)]
    for line in [ended.text, *lines, *_sentences(job.found)]:
        report(f"{job.title}: {line}")
    errors = [ended, *(failure for other in others for failure in failures(other))]
    return Outcome(EXIT_INTERRUPTED, _document(job.title, EXIT_INTERRUPTED, errors, job.found))


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
    """Show the stages, the memory and what the jobs would touch, without touching anything.

    A repository or a directory of VM files that does not exist is named. A server is asked only for restores into
    VMs: the plan says of every field, setting and device what becomes of it, and what forbids the restore.
    """
    documents: list[object] = []
    lines: list[str] = []
    for entry in read_config(config, only):
        if isinstance(entry, Job | JobSource):
            planned = planned_job(entry)
            documents.append(planned)
            lines += planned.lines()
        else:
            from .restore import restore_plan_lines

            restored = run_async(entry.plan)
            documents.append({"job": entry.title, "plan": restored and restored.as_dict()})
            lines += [f"job {entry.title}", *(f"  effect: {sentence}" for sentence in entry.effects())]
            lines += restore_plan_lines(restored) if restored else []
    show({"jobs": documents}, lines, as_json)


def planned_job(entry: Job[Any, Any] | JobSource) -> Plan:
    """What a job would do, and what is missing for it now. Raises ConfigError."""
    job = entry if isinstance(entry, Job) else entry.planned()
    missing: list[str] = []
    for part in (job.machine, job.into):
        missing += getattr(part, "missing", list)()
    planned = plan_job(entry)
    further: Sequence[str] = getattr(job, "forecast", tuple)()
    return replace(planned, missing=missing, effects=[*planned.effects, *further])


def job_lines(title: str, receipt: JobReceipt | RestoreReceipt, *, verbose: bool = False) -> Sequence[str]:
    """A finished job, for people."""
    if isinstance(receipt, JobReceipt):
        return receipt_lines(receipt, verbose=verbose)
    from .restore import restore_lines

    return [f"{title}: point {receipt.point.id}", *(f"  {line}" for line in restore_lines(receipt))]


def receipt_lines(receipt: JobReceipt, *, verbose: bool = False) -> list[str]:
    """A finished job, for people; with `verbose` also where the time of each stage went."""
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
        if verbose:
            lines += [f"    {line}" for line in stage_lines(disk.report)]
    lines += [f"  {remark}" for remark in receipt.remarks]
    lines += [f"  ATTENTION: {sentence}" for sentence in receipt.attention]
    return lines


def disk_lines(run: DiskRun) -> Sequence[str]:
    """One disk of a finished job: what was known of it, what was read, what became of that."""
    disk = run.receipt
    read = {
        "logical": disk.capacity,
        "allocated": run.allocated,
        "changed": run.changed,
        "read": disk.read,
    }
    found = {
        "zero": disk.zero_read,
        "known": disk.known,
        "new": disk.new,
        "stored": disk.stored,
    }
    wall_s = run.report.wall_s
    rate = disk.read / MiB / wall_s if wall_s else 0.0
    return [
        f"  disk {disk.key} ({disk.label}): {run.mode}, {run.reason}",
        *(
            "    "
            + ", ".join(f"{name} {format_size(size)}" for name, size in sizes.items() if size is not None)
            for sizes in (read, found)
        ),
        f"    {wall_s:.2f} s, {rate:.0f} MiB/s, limited by {run.report.limited_by}",
    ]


def stage_lines(report: PipelineReport[Any]) -> list[str]:
    """Where the time of each stage went: busy, starved (waiting for input), blocked (waiting for its output).

    Beneath a stage that runs kernels on threads stand the CPU-seconds of each.
    """
    wall_s = report.wall_s or 1.0
    shares = ("busy", "starved", "blocked")
    rows = []
    for stage in report.stages:
        shown = [f"{getattr(stage, f'{share}_s') / wall_s:.0%}" for share in shares]
        rows.append([stage.name, *shown, format_size(stage.bytes), ""])
        rows += [[f"  {name}", "", "", "", "", f"{cpu_s:.2f}"] for name, cpu_s in stage.kernel_s.items()]
    right = ["BUSY", "STARVED", "BLOCKED", "DATA", "CPU-S"]
    return table(["STAGE", *right], rows, right=right)
