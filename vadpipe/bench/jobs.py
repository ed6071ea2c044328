"""The user's own pipeline, measured: to nowhere, into memory or into its own store.

Each run is a process of its own, so that its memory is its own, and runs of different settings take turns: what
slows the machine down for a while slows all of them down. The time is that from the first disk's start until the
point was published; looking for jobs, snapshots and the start of the process are no part of it. CPU-seconds count
the process from there to its end and its child processes, such as the one that VDDK runs in.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import trio

from pipeline.errors import ConfigError
from pipeline.events import Event, observed
from pipeline.job import Job
from pipeline.meters import PipelineReport, StageMeter
from pipeline.protocols import Disk, DiskSize
from pipeline.units import MiB
from sinks.null import Nowhere, NullSink
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.store import Repository

from .machine import cpu_s, peak_rss
from .vary import Settings, undisturbed, with_parts

TARGETS = ("null", "memory", "store")

# Enough points for a plot; when there are more, every second one is dropped and the pause doubles.
_SAMPLES = 200
_FIRST_PAUSE_S = 0.02


@dataclass(frozen=True)
class JobRun:
    """One measured run of a job. Bytes: `read`, `stored`, and `peak_rss` of the process without its children.

    `stages` are those of all disks added up: seconds busy, starved and blocked, and CPU-seconds by kernel.
    `samples` are rows of seconds since the start and the bytes of each stage until then.
    """

    case: str
    settings: Settings
    read: int
    stored: int
    wall_s: float
    cpu_s: float
    mib_per_s: float
    mib_per_cpu_s: float
    peak_rss: int
    limited_by: str
    stages: Sequence[Mapping[str, Any]]
    samples: Sequence[Sequence[float]]


def case_of(settings: Settings) -> str:
    """What a run with these settings is called."""
    return " ".join(f"{name}={value}" for name, value in settings.items()) or "as configured"


class _FirstPart:
    """The first bytes of a disk, as a smaller disk."""

    def __init__(self, disk: Disk, size: int) -> None:
        self.key, self.label, self.pool, self.change_id = disk.key, disk.label, disk.pool, disk.change_id
        self.capacity = min(disk.capacity, size)
        self.allocated, self.changed, self.read = disk.allocated, disk.changed, disk.read


def retargeted(job: Job[Any, Any], to: str, first: int | None = None) -> Job[Any, Any]:
    """The job with another target. Its hooks are not called; its finishers run for its own store only.

    For another target than its own store the VM is only read: not quiesced, and change tracking stays as it is.

    Args:
        job: The user's.
        to: 'null', 'memory' or 'store'.
        first: Of each disk, only so many bytes; not for its own store.

    Raises:
        ConfigError: `first` and its own store, or the path does not fit to the target.
    """
    job = replace(job, on_success=(), on_failure=())
    if to == "store":
        if first is not None:
            raise ConfigError(
                "A part of a disk cannot be stored as a restore point.",
                remedy="Leave out --first, or measure --to null or --to memory.",
            )
        return job
    job = replace(job, machine=undisturbed(job.machine))
    if first is not None:
        path = job.path
        job = replace(job, path=lambda disk, point: path(_FirstPart(disk, first), point))
    if to == "memory":
        memory = Repository(MemoryBackend("memory of the benchmark"))
        memory.init()
        return replace(job, into=memory, finish=())
    return with_parts(replace(job, into=Nowhere(), finish=()), lambda parts: [*parts[:-1], NullSink()])


async def measure_job(job: Job[Any, Any], settings: Settings) -> JobRun:
    """Run a job once, in this process. Raises what a job raises."""
    reports: list[PipelineReport[Any]] = []
    begun: list[float] = []
    ended: list[float] = []
    samples: list[list[float]] = []

    def watch(disk: DiskSize, report: PipelineReport[Any]) -> None:
        reports.append(report)
        if not begun:
            begun.extend((time.perf_counter(), cpu_s()))

    def published(event: Event) -> None:
        if event.kind == "published":
            ended.append(time.perf_counter())

    def take_sample() -> None:
        samples.append([round(time.perf_counter() - begun[0], 4), *(each.bytes for each in _added(reports))])

    async def sample() -> None:
        pause_s = _FIRST_PAUSE_S
        while not ended:
            if begun:
                take_sample()
            if len(samples) > _SAMPLES:
                del samples[1::2]
                pause_s *= 2
            await trio.sleep(pause_s)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sample)
        with observed(published):
            receipt = await job.run(watch)
        nursery.cancel_scope.cancel()
    if not begun:
        raise ConfigError(
            f"{job.title} has no disk to measure.", remedy="See `vadpipe plan` and its exclude=."
        )
    spent_s, wall_s = cpu_s() - begun[1], ended[0] - begun[0]
    take_sample()
    samples[-1][0] = round(wall_s, 4)
    stages = _added(reports)
    read = sum(disk.receipt.read for disk in receipt.disks)
    return JobRun(
        case=case_of(settings),
        settings=dict(settings),
        read=read,
        stored=sum(disk.receipt.stored for disk in receipt.disks),
        wall_s=wall_s,
        cpu_s=spent_s,
        mib_per_s=read / MiB / wall_s,
        mib_per_cpu_s=read / MiB / max(spent_s, 1e-9),
        peak_rss=peak_rss(),
        limited_by=PipelineReport[object](stages).limited_by,
        stages=[
            {**stage.as_dict(), "kernels_cpu_s": {name: round(s, 4) for name, s in stage.kernel_s.items()}}
            for stage in stages
        ],
        samples=samples,
    )


def _added(reports: Sequence[PipelineReport[Any]]) -> list[StageMeter]:
    """The stages of all disks added up, by their name."""
    added: dict[str, StageMeter] = {}
    for meter in (meter for report in reports for meter in report.stages):
        total = added.setdefault(meter.name, StageMeter(meter.name))
        for count in ("items", "bytes", "starved_s", "blocked_s"):
            setattr(total, count, getattr(total, count) + getattr(meter, count))
        total.wall_s += (
            meter.busy_s + meter.starved_s + meter.blocked_s
        )  # so that `busy_s` is the sum of theirs
        for name, spent_s in meter.kernel_s.items():
            total.kernel_s[name] = total.kernel_s.get(name, 0.0) + spent_s
    return list(added.values())


def report_of(stages: Sequence[Mapping[str, Any]]) -> PipelineReport[object]:
    """The stages of a JobRun as a report, whose `wall_s` is the time of all disks together."""
    meters = [
        StageMeter(
            stage["name"],
            items=stage["items"],
            bytes=stage["bytes"],
            starved_s=stage["starved_s"],
            blocked_s=stage["blocked_s"],
            kernel_s=dict(stage["kernels_cpu_s"]),
            wall_s=stage["busy_s"] + stage["starved_s"] + stage["blocked_s"],
        )
        for stage in stages
    ]
    return PipelineReport(meters, max(meter.wall_s for meter in meters))


class RunFailed(Exception):
    """A measured run ended with this exit code; it has said why on standard error. `output`: its document."""

    def __init__(self, code: int, output: str) -> None:
        super().__init__(f"exit code {code}")
        self.code = code
        self.output = output


async def measure_in_turn(
    grid: Sequence[Settings],
    repeat: int,
    command: Callable[[Settings], Sequence[str]],
    tell: Callable[[int, JobRun], None],
) -> list[JobRun]:
    """Measure every combination of settings, A B C A B C, each run in a process of its own.

    Args:
        grid: The combinations.
        repeat: Rounds.
        command: Arguments of `vadpipe` that measure one run in their process and print it last, as a line of JSON.
        tell: Called with the number of the round, from 1, and each run.

    Raises:
        RunFailed: A run failed. A signal ends the run at work in order.
    """
    runs = []
    for round_ in range(1, repeat + 1):
        for settings in grid:
            done = await trio.run_process(
                [sys.executable, "-m", "vadpipe", *command(settings)],
                capture_stdout=True,
                check=False,
                deliver_cancel=_end_in_order,
            )
            if done.returncode:
                raise RunFailed(done.returncode, done.stdout.decode(errors="replace"))
            run = JobRun(**json.loads(done.stdout.splitlines()[-1]))  # the configuration may print, too
            tell(round_, run)
            runs.append(run)
    return runs


async def _end_in_order(process: trio.Process) -> None:
    """A run that is ended removes its snapshot first; trio waits for it."""
    process.send_signal(signal.SIGTERM)
