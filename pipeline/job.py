"""A job: one VM, once, from its capture to the published point.

The order is what matters. The store is opened first, so that a bad one costs no snapshot. The point is
published while the capture still stands, as soon as the data is complete: releasing a snapshot can take
hours and must not decide about a finished backup. A snapshot that stays behind is then told, not hidden.

A capture may turn out too poor to be worth reading, because the guest was not quiesced as required. A finisher that
can tell so does before anything is read; then the capture is released, and another one taken while it says so.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar
from uuid import uuid4

import trio

from .contracts import Pipeline
from .errors import (
    LeftBehind,
    MoverError,
    QuiescingShort,
    TransferFailed,
    leaves,
)
from .events import Event, emit, observed, place, within
from .meters import PipelineReport
from .protocols import (
    Capture,
    Disk,
    DiskReceipt,
    DiskSize,
    Evidence,
    Examiner,
    Finisher,
    Machine,
    PointWriter,
    Store,
    Target,
)

C = TypeVar("C", bound=Capture)
P = TypeVar("P", bound=PointWriter)
F = TypeVar("F")

log = logging.getLogger("vadpipe.pipeline.job")

# A hook sends a message or starts a program. One that hangs must not hold up the next job.
HOOK_WITHIN_S = 60.0

DiskWatch = Callable[[DiskSize, PipelineReport[Any]], None]


@dataclass(frozen=True)
class DiskRun:
    """One disk of a finished job: its receipt, how it was read, and where the time went.

    `allocated` and `changed` are bytes as the source was told; `changed` is None for a full read.
    """

    receipt: DiskReceipt
    report: PipelineReport[DiskReceipt]
    mode: str
    reason: str
    allocated: int | None
    changed: int | None

    def as_dict(self) -> dict[str, object]:
        return {
            **self.receipt.as_dict(),
            "mode": self.mode,
            "reason": self.reason,
            "allocated": self.allocated,
            "changed": self.changed,
            "wall_s": round(self.report.wall_s, 3),
            "bottleneck": self.report.limited_by,
        }


@dataclass(frozen=True)
class JobReceipt:
    """A published point. `attention` lists what the user should know; empty is exit code 0.

    `remarks` are for the record. `cpu_s` counts this process and its children. `snapshots_left` is None where
    there is no such thing.
    """

    job: str
    machine: str
    point: str
    disks: Sequence[DiskRun]
    quiescing_asked: str
    evidence: Evidence | None
    snapshots_left: int | None
    attention: Sequence[str]
    remarks: Sequence[str]
    wall_s: float
    cpu_s: float

    def as_dict(self) -> dict[str, object]:
        evidence = self.evidence
        return {
            "job": self.job,
            "machine": self.machine,
            "point": self.point,
            "disks": [disk.as_dict() for disk in self.disks],
            "quiescing": {
                "asked": self.quiescing_asked,
                "reached": evidence.reached if evidence else None,
                "reasons": list(evidence.reasons) if evidence else [],
            },
            "snapshots_left": self.snapshots_left,
            "attention": list(self.attention),
            "remarks": list(self.remarks),
            "wall_s": round(self.wall_s, 3),
            "cpu_s": round(self.cpu_s, 3),
        }


@dataclass(frozen=True)
class JobFailure:
    """A job that failed or was cancelled: its title, its machine, and a text for each error."""

    job: str
    machine: str
    errors: Sequence[str]


@dataclass(frozen=True)
class Job(Generic[C, P]):
    """What to back up (`machine`), how each disk travels (`path`), and where to (`into`).

    `path` gets an open disk and the point that is being written. `finish` runs while the capture stands, e.g.
    to fetch the VSS manifest; the last finisher's evidence goes into the point. One that is an `Examiner` too is
    asked before anything is read.

    `on_success` gets the receipt of a published point once the capture has ended; `on_failure` gets a `JobFailure`,
    also when the job was cancelled. A hook is a function, which runs on a thread, or a coroutine function. One that
    fails, or takes more than a minute, never changes what became of the point: after a success it is a sentence in
    `attention`, after a failure a note on the error.
    """

    machine: Machine[C]
    path: Callable[[Disk, P], Pipeline[DiskReceipt]]
    into: Target[P]
    finish: Sequence[Finisher[C]] = ()
    disks_at_once: int = 2
    name: str = ""
    on_success: Sequence[Callable[[JobReceipt], object]] = ()
    on_failure: Sequence[Callable[[JobFailure], object]] = ()

    @property
    def title(self) -> str:
        return self.name or self.machine.name

    async def run(self, watch: DiskWatch | None = None) -> JobReceipt:
        """Run the job. `watch` gets each disk and its growing report when the disk starts.

        Raises TransferFailed or a MoverError; then nothing was published.
        """
        with within(run=place().get("run") or uuid4().hex[:12], job=self.title):
            emit("job started", machine=self.machine.name)
            try:
                receipt = await self._run(watch)
            except BaseException as exc:
                failure = JobFailure(self.title, self.machine.name, [str(leaf) for leaf in leaves(exc)])
                emit("job failed", errors=failure.errors)
                for problem in await _called(self.on_failure, failure):
                    leaves(exc)[0].add_note(problem)
                raise
            problems = await _called(self.on_success, receipt)
            receipt = replace(receipt, attention=[*receipt.attention, *problems])
            emit("job finished", **receipt.as_dict())
            return receipt

    async def _run(self, watch: DiskWatch | None) -> JobReceipt:
        begun, cpu = trio.current_time(), _cpu_s()
        record = _Record[C]()
        attention: list[str] = []
        try:
            async with self.into.open() as store:
                while not await self._published(store, record, watch):
                    pass
        except BaseException as exc:
            if not record.point or not all(isinstance(leaf, LeftBehind) for leaf in leaves(exc)):
                raise _flat(exc) from None
            attention += [str(leaf) for leaf in leaves(exc)]
        assert record.capture is not None
        capture, evidence = record.capture, record.evidence
        attention += [*capture.left_out, *capture.attention]
        if evidence is not None and not evidence.satisfied:
            attention += evidence.shortfalls or [
                f"Quiescing reached {evidence.reached}, asked for was {capture.quiescing_asked}."
            ]
        return JobReceipt(
            job=self.title,
            machine=self.machine.name,
            point=record.point,
            disks=record.disks,
            quiescing_asked=capture.quiescing_asked,
            evidence=evidence,
            snapshots_left=capture.snapshots_left,
            attention=attention,
            remarks=[*record.given_up, *capture.remarks],
            wall_s=trio.current_time() - begun,
            cpu_s=_cpu_s() - cpu,
        )

    async def _published(self, store: Store[P], record: _Record[C], watch: DiskWatch | None) -> bool:
        """One capture, to the published point; or False, when it is time to take another one."""
        try:
            async with self.machine.capture() as capture:
                record.capture = capture
                record.examined = await self._examined(capture, len(record.given_up))
                async with store.begin(capture.machine) as point:
                    await self._transfer(capture, point, record, watch)
        except BaseException as exc:
            [short, *others] = leaves(exc)
            if others or not isinstance(short, QuiescingShort) or short.retry_after_s is None:
                raise
        else:
            return True
        record.given_up.append(f"A snapshot was given up for another one. {short.problem}")
        emit("capture given up", problem=short.problem, again_after_s=short.retry_after_s)
        await trio.sleep(short.retry_after_s)
        return False

    async def _examined(self, capture: C, attempt: int) -> list[Evidence | None]:
        """What each finisher knows already; None for those that are to be asked at the end."""
        return [
            await finisher.examine(capture, attempt) if isinstance(finisher, Examiner) else None
            for finisher in self.finish
        ]

    async def _transfer(self, capture: C, point: P, record: _Record[C], watch: DiskWatch | None) -> None:
        limiter = trio.CapacityLimiter(self.disks_at_once)
        runs: dict[str, DiskRun] = {}

        async def transfer_disk(disk: Disk) -> None:
            async with limiter:
                runs[disk.key] = await self._transfer_disk(disk, point, watch)

        async with trio.open_nursery() as nursery:
            for disk in capture.disks:
                nursery.start_soon(transfer_disk, disk)
        record.disks = [runs[disk.key] for disk in capture.disks]
        for finisher, known in zip(self.finish, record.examined, strict=True):
            record.evidence = known or await finisher.finish(capture)
        await capture.confirm()
        record.point = await point.publish(capture, [run.receipt for run in record.disks], record.evidence)
        emit("published", point=record.point)

    async def _transfer_disk(self, disk: Disk, point: P, watch: DiskWatch | None) -> DiskRun:
        with within(disk=disk.key):
            emit("disk started", label=disk.label, capacity=disk.capacity)
            run = await self._measured(disk, point, watch)
            facts = run.as_dict()
            del facts["key"]  # the event says `disk`
            emit("disk finished", **facts)
            return run

    async def _measured(self, disk: Disk, point: P, watch: DiskWatch | None) -> DiskRun:
        facts: dict[str, object] = {}

        def take(event: Event) -> None:
            if event.kind == "extents":
                facts.update(event.facts)

        with observed(take):
            try:
                report = await self.path(disk, point).measure(
                    None if watch is None else lambda report: watch(disk, report)
                )
            except BaseExceptionGroup as group:
                for leaf in leaves(group):
                    if isinstance(leaf, Exception):
                        leaf.add_note(f"disk {disk.label} ({disk.key})")
                raise
        return DiskRun(
            report.receipt,
            report,
            str(facts.get("mode", "full")),
            str(facts.get("reason", "")),
            _number(facts.get("allocated")),
            _number(facts.get("changed")),
        )


@dataclass
class _Record(Generic[C]):
    """What is known of a job while it runs. `point` is set as soon as it is published.

    `examined`: what the finishers knew before the transfer; `given_up`: a sentence for each capture before it.
    """

    capture: C | None = None
    examined: list[Evidence | None] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    evidence: Evidence | None = None
    point: str = ""
    disks: list[DiskRun] = field(default_factory=list)


async def _called(hooks: Sequence[Callable[[F], object]], told: F) -> list[str]:
    """Call the hooks, also in a cancelled job. Returns a sentence for each that failed."""
    problems = []
    for hook in hooks:
        name = getattr(hook, "__name__", type(hook).__name__)
        try:
            with trio.fail_after(HOOK_WITHIN_S, shield=True):
                if inspect.iscoroutinefunction(hook):
                    await hook(told)
                else:
                    await trio.to_thread.run_sync(hook, told, abandon_on_cancel=True)
        except trio.TooSlowError:
            problems.append(f"The hook {name} was not done after {HOOK_WITHIN_S:.0f} s.")
        except Exception as exc:
            problems.append(f"The hook {name} failed: {type(exc).__name__}: {exc}.")
    for problem in problems:
        log.warning("%s", problem)
    return problems


def _number(fact: object) -> int | None:
    return fact if isinstance(fact, int) else None


def _flat(exc: BaseException) -> BaseException:
    """Failures of several disks as one TransferFailed; a lone error of ours stays itself."""
    found = leaves(exc)
    failures = [leaf for leaf in found if isinstance(leaf, Exception)]
    if len(failures) < len(found):
        return exc
    if len(failures) == 1 and isinstance(exc, MoverError):
        return exc
    return TransferFailed("The transfer failed; nothing was published.", failures)


def _cpu_s() -> float:
    """CPU-seconds of this process and of its ended children."""
    return sum(os.times()[:4])
