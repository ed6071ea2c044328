"""A job: one VM, once, from its capture to the published point.

The order matters. The path is composed first and the store is opened next, so that neither a mistake nor a bad
store costs a snapshot. The point is published while the capture still stands, as soon as the data is complete:
releasing a snapshot can take hours and must not decide about a finished backup. A snapshot that stays behind is
reported.

A capture may not be worth reading, because the guest was not quiesced as required. A finisher that is an `Examiner`
finds that out before anything is read. Then the capture is released, and another one is taken if it asks for that.
"""

from __future__ import annotations

import inspect
import logging
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable
from uuid import uuid4

import trio

from .buffers import BufferPool
from .composition import at_least, has_methods, readable, type_arguments, wrong_part
from .contracts import Flow, Pipeline, Sink, Source, expect_trio
from .errors import (
    ChangeTrackingInvalid,
    ConfigError,
    Failure,
    LeftBehind,
    MoverError,
    QuiescingShort,
    SourceError,
    TransferFailed,
    failures,
    leaves,
)
from .events import emit, place, within
from .extents import Extents
from .meters import PipelineReport
from .protocols import (
    Capture,
    ChangedAreas,
    Disk,
    DiskReceipt,
    DiskSize,
    Evidence,
    Examiner,
    Finisher,
    Machine,
    PointWriter,
    SourceReceipt,
    Store,
    Target,
)

C = TypeVar("C", bound=Capture)
P = TypeVar("P", bound=PointWriter)
F = TypeVar("F")

log = logging.getLogger("vadpipe." + __name__)

# A hook sends a message or starts a program. One that hangs must not hold up the next job.
HOOK_WITHIN_S = 60.0

DiskWatch = Callable[[DiskSize, PipelineReport[Any]], None]


@dataclass(frozen=True)
class DiskRun:
    """One disk of a finished job: its receipt, how it was read (see SourceReceipt), and where the time went."""

    receipt: DiskReceipt
    report: PipelineReport[DiskReceipt]
    mode: str
    reason: str
    allocated: int | None
    changed: int | None

    def as_dict(self) -> dict[str, object]:
        return {
            **asdict(self.receipt),
            "mode": self.mode,
            "reason": self.reason,
            "allocated": self.allocated,
            "changed": self.changed,
            "wall_s": round(self.report.wall_s, 3),
            "bottleneck": self.report.limited_by,
            "stages": [stage.as_dict() for stage in self.report.stages],
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
    """A job that failed or was cancelled, with what was found until then.

    `attention` and `remarks` are those of a JobReceipt; they do not repeat the notes of the errors. `point` was
    published all the same; empty when nothing was.
    """

    job: str
    machine: str
    errors: Sequence[Failure]
    attention: Sequence[str] = ()
    remarks: Sequence[str] = ()
    point: str = ""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Job(Generic[C, P]):
    """Backs up one VM.

    Args:
        machine: What to back up, e.g. VcenterVm or LocalVm.
        path: How each disk travels: a function that gets an open disk and the point that is being written, and
            returns a pipeline. It is also called once with a planned disk before anything is touched, so that a
            mistake in it is found then.
        into: Where points go: a Repository, or Nowhere() for a benchmark.
        finish: What runs while the capture stands, e.g. VssManifest(); the evidence of the last one goes into the
            point. One that is an `Examiner` too is asked before anything is read.
        disks_at_once: How many disks are read at the same time.
        name: For messages; the machine's name by default.
        on_success: Hooks that get the receipt of a published point after the capture. A hook is a function,
            which runs on a thread, or a coroutine function. One that fails or takes more than a minute does not
            change the result: it is a sentence in `attention`.
        on_failure: Hooks that get a JobFailure, also when the job was cancelled. One that fails is a note on the
            error.

    Raises:
        ConfigError: A setting is impossible.
    """

    machine: Machine[C]
    path: Callable[[Disk, P], Pipeline[DiskReceipt]]
    into: Target[P]
    finish: Sequence[Finisher[C]] = ()
    disks_at_once: int = 2
    name: str = ""
    on_success: Sequence[Callable[[JobReceipt], object]] = ()
    on_failure: Sequence[Callable[[JobFailure], object]] = ()

    def __post_init__(self) -> None:
        at_least(1, self, "disks_at_once")
        for setting, methods, example in (
            ("machine", ("capture", "effects"), "LocalVm(directory)"),
            ("into", ("open", "planned", "effects"), "Repository(directory)"),
        ):
            value = getattr(self, setting)
            if not has_methods(value, *methods):
                raise ConfigError(
                    f"Job({setting}={readable(value)}) is impossible: it has no {' and no '.join(methods)}.",
                    remedy=f"Give it for example {example}.",
                )
        if not callable(self.path) or isinstance(self.path, type):
            raise ConfigError(
                f"Job(path={readable(self.path)}) is impossible: it is no function.",
                remedy="Write `def path(disk, point)`, which returns the pipeline of a disk.",
            )
        for finisher in self.finish:
            if not has_methods(finisher, "finish"):
                raise wrong_part(finisher, "an object with `finish` in Job(finish=[...])")

    @property
    def title(self) -> str:
        return self.name or self.machine.name

    async def run(self, watch: DiskWatch | None = None) -> JobReceipt:
        """Run the job.

        Args:
            watch: Called when a disk starts, with the disk and its report, which grows while it is read.

        Raises:
            ConfigError: The path is wrong. Raised before the store is opened; where it shows only with a real disk,
                before the first read.
            MoverError, TransferFailed: Nothing was published.
        """
        expect_trio()
        with within(run=place().get("run") or uuid4().hex[:12], job=self.title):
            emit("job started", machine=self.machine.name)
            record = _Record[C]()
            try:
                self.planned()
                receipt = await self._run(record, watch)
            except BaseException as exc:
                failure = self._failed(record, exc)
                emit("job failed", **failure.as_dict())
                for problem in await _called(self.on_failure, failure):
                    leaves(exc)[0].add_note(problem)
                raise
            problems = await _called(self.on_success, receipt)
            receipt = replace(receipt, attention=[*receipt.attention, *problems])
            emit("job finished", **receipt.as_dict())
            return receipt

    def _failed(self, record: _Record[C], exc: BaseException) -> JobFailure:
        errors = failures(exc)
        noted = {note for error in errors for note in error.notes}
        return JobFailure(
            self.title,
            self.machine.name,
            errors,
            attention=[sentence for sentence in record.attention() if sentence not in noted],
            remarks=[sentence for sentence in record.all_remarks() if sentence not in noted],
            point=record.point,
        )

    async def _run(self, record: _Record[C], watch: DiskWatch | None) -> JobReceipt:
        begun, cpu = trio.current_time(), _cpu_s()
        left_behind: list[str] = []
        try:
            async with self.into.open() as store:
                while not await self._published(store, record, watch):
                    pass
        except BaseException as exc:
            if not record.point or not all(isinstance(leaf, LeftBehind) for leaf in leaves(exc)):
                raise _flat(exc) from None
            left_behind = [str(leaf) for leaf in leaves(exc)]
        assert record.capture is not None
        capture = record.capture
        return JobReceipt(
            job=self.title,
            machine=self.machine.name,
            point=record.point,
            disks=record.disks,
            quiescing_asked=capture.quiescing_asked,
            evidence=record.evidence,
            snapshots_left=capture.snapshots_left,
            attention=[*left_behind, *record.attention()],
            remarks=record.all_remarks(),
            wall_s=trio.current_time() - begun,
            cpu_s=_cpu_s() - cpu,
        )

    def planned(self) -> tuple[Pipeline[DiskReceipt] | None, str]:
        """The path as composed for a disk that stands for each, without any I/O.

        Returns:
            The pipeline, and a sentence when the path looks at its disk: other disks may travel otherwise. None
            for the pipeline when it does not compose for the planned disk; it is then checked for real ones only.

        Raises:
            ConfigError: The path is wrong for every disk.
        """
        disk = PlannedDisk()
        try:
            pipeline = compose(self.path, disk, self.into.planned())
        except _PathFailed as exc:
            if disk.looked_at and not isinstance(exc.__cause__, NameError):
                return (
                    None,
                    f"The path depends on the disk, so it cannot be shown for a planned one. {exc.problem}",
                )
            raise
        return (
            pipeline,
            "The path depends on the disk; shown is that of an empty one." if disk.looked_at else "",
        )

    async def _published(self, store: Store[P], record: _Record[C], watch: DiskWatch | None) -> bool:
        """Take a capture and publish its point; False when another capture is to be taken instead."""
        try:
            async with self.machine.capture() as capture:
                record.capture = capture
                record.examined = [
                    await finisher.examine(capture, len(record.given_up))
                    if isinstance(finisher, Examiner)
                    else None
                    for finisher in self.finish
                ]
                record.evidence = next((found for found in reversed(record.examined) if found), None)
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

    async def _transfer(self, capture: C, point: P, record: _Record[C], watch: DiskWatch | None) -> None:
        limiter = trio.CapacityLimiter(self.disks_at_once)
        runs: dict[str, DiskRun] = {}
        pipelines = [
            compose(self.path, disk, point) for disk in capture.disks
        ]  # all, before anything is read

        async def transfer_disk(disk: Disk, pipeline: Pipeline[DiskReceipt]) -> None:
            async with limiter:
                runs[disk.key] = await _transfer_disk(disk, pipeline, watch)

        async with trio.open_nursery() as nursery:
            for disk, pipeline in zip(capture.disks, pipelines, strict=True):
                nursery.start_soon(transfer_disk, disk, pipeline)
        record.disks = [runs[disk.key] for disk in capture.disks]
        for finisher, known in zip(self.finish, record.examined, strict=True):
            record.evidence = known or await finisher.finish(capture)
        await capture.confirm()
        record.point = await point.publish(capture, [run.receipt for run in record.disks], record.evidence)
        record.remarks += getattr(point, "remarks", ())
        emit("published", point=record.point)


@runtime_checkable
class JobSource(Protocol):
    """Jobs that are known only when a command runs, e.g. one for each VM of a folder.

    It stands in `jobs` of a configuration like a job. Making one does no I/O.
    """

    @property
    def title(self) -> str:
        """What a plan and an error call it, e.g. 'each VM of vc01 named web*'."""
        ...

    async def jobs(self) -> Sequence[Job[Any, Any]]:
        """The jobs as of now: at least one, no two alike, always in the same order. Raises MoverError."""
        ...

    def planned(self) -> Job[Any, Any]:
        """A job that stands for each of them, to be described but not run. No I/O."""
        ...

    def effects(self) -> Sequence[str]:
        """Full sentences, for `plan`: what is looked up when the jobs are asked for."""
        ...


class PlannedDisk:
    """Stands for every disk of a VM while a path is composed; notes whether the path looked at its facts."""

    def __init__(self) -> None:
        self.pool = BufferPool()
        self.looked_at = False

    def __getattr__(self, name: str) -> str:
        if name.startswith("_"):
            raise AttributeError(name)
        self.looked_at = True
        if name in ("key", "label"):
            return "each disk"
        raise AttributeError(f"A planned disk has no {name}.")

    @property
    def capacity(self) -> int:
        self.looked_at = True
        return 0

    @property
    def change_id(self) -> None:
        self.looked_at = True

    async def allocated(self, offset: int, length: int) -> Extents:
        raise SourceError("A planned disk cannot be read.")

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        raise ChangeTrackingInvalid("A planned disk has no change tracking.")

    async def read(self, buffer: object, offset: int, wanted: Extents) -> None:
        raise SourceError("A planned disk cannot be read.")

    def __repr__(self) -> str:
        return "disk"


class _PathFailed(ConfigError):
    """The path returned no pipeline for this disk; for another disk it may."""


def compose(path: Callable[[Any, Any], object], disk: object, point: object) -> Pipeline[DiskReceipt]:
    """The pipeline that a path returns for a disk. Raises ConfigError when a job cannot run it."""
    try:
        pipeline = path(disk, point)
    except MoverError:
        raise
    except Exception as exc:
        raise _PathFailed(f"The path failed{_place(path, exc)}: {type(exc).__name__}: {exc}.") from exc
    if inspect.iscoroutine(pipeline):
        pipeline.close()
        raise ConfigError(
            "The path is an async function.", remedy="Write `def path(disk, point)` without async."
        )
    if pipeline is None:
        raise _PathFailed(
            "The path returned None.",
            remedy="Let it return the pipeline: `return ... | sink`. To leave a disk out, name it in the machine's "
            'exclude, e.g. VcenterVm(..., exclude=["scsi0:1"]).',
        )
    if isinstance(pipeline, Source):
        last = type(Flow[Any](pipeline).parts[-1]).__name__
        raise ConfigError(
            f"The path ends with {last}, which is no sink.", remedy="Add one, e.g. `| NullSink()`."
        )
    if not isinstance(pipeline, Pipeline):
        raise ConfigError(f"The path returned {readable(pipeline)}, which is no pipeline.")
    receipt: object = [Any, *type_arguments(type(pipeline.sink), Sink)][-1]
    if isinstance(receipt, type) and not issubclass(receipt, DiskReceipt):
        raise ConfigError(
            f"The sink {type(pipeline.sink).__name__} returns {receipt.__name__}; a job needs a DiskReceipt.",
            remedy="End the path with a sink such as IntoRepository(point, disk).",
        )
    return pipeline


def _place(path: Callable[..., object], exc: Exception) -> str:
    """The line of the path where the exception was raised, for a message."""
    file = inspect.unwrap(path).__code__.co_filename if inspect.isfunction(path) else None
    lines = [frame.lineno for frame in traceback.extract_tb(exc.__traceback__) if frame.filename == file]
    return f" at line {lines[-1]} of {os.path.basename(str(file))}" if lines else ""


async def _transfer_disk(disk: Disk, pipeline: Pipeline[DiskReceipt], watch: DiskWatch | None) -> DiskRun:
    with within(disk=disk.key):
        emit("disk started", label=disk.label, capacity=disk.capacity)
        run = await _measured(disk, pipeline, watch)
        facts = run.as_dict()
        del facts["key"]  # the event says `disk`
        emit("disk finished", **facts)
        return run


async def _measured(disk: Disk, pipeline: Pipeline[DiskReceipt], watch: DiskWatch | None) -> DiskRun:
    try:
        report = await pipeline.measure(None if watch is None else lambda report: watch(disk, report))
    except BaseExceptionGroup as group:
        for leaf in leaves(group):
            if isinstance(leaf, Exception):
                leaf.add_note(f"disk {disk.label} ({disk.key})")
        raise
    receipt, source = report.receipt, report.source_receipt
    if not receipt.key:  # of a sink that was not told which disk it gets
        receipt = replace(receipt, key=disk.key, label=disk.label)
    if not isinstance(source, SourceReceipt):
        source = SourceReceipt("unknown", "The source of the path gave no receipt.")
    return DiskRun(receipt, report, **asdict(source))


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


@dataclass
class _Record(Generic[C]):
    """The state of a running job. `point` is set as soon as it is published.

    `examined` holds the evidence of each finisher before the transfer; `given_up` a sentence for each capture that
    was given up before this one; `remarks` what the point said of itself.
    """

    capture: C | None = None
    examined: list[Evidence | None] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    evidence: Evidence | None = None
    point: str = ""
    disks: list[DiskRun] = field(default_factory=list)

    def attention(self) -> list[str]:
        capture, evidence = self.capture, self.evidence
        if capture is None:
            return []
        sentences = [*capture.left_out, *capture.attention]
        if evidence is not None and not evidence.satisfied:
            sentences += evidence.shortfalls or [
                f"Quiescing reached {evidence.reached}, but {capture.quiescing_asked} was requested."
            ]
        return sentences

    def all_remarks(self) -> list[str]:
        return [*self.given_up, *(self.capture.remarks if self.capture else ()), *self.remarks]


def _flat(exc: BaseException) -> BaseException:
    """Failures of several disks as one TransferFailed; a single MoverError stays itself."""
    found = leaves(exc)
    errors = [leaf for leaf in found if isinstance(leaf, Exception)]
    if len(errors) < len(found) or (len(errors) == 1 and isinstance(exc, MoverError)):
        return exc
    return TransferFailed("The transfer failed; nothing was published.", errors)


def _cpu_s() -> float:
    """CPU-seconds of this process and of its ended children."""
    return sum(os.times()[:4])
