"""What a job would do: its stages, its memory, and what it would touch. Without any I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .buffers import BufferPool
from .errors import ChangeTrackingInvalid, SourceError
from .extents import Extents
from .job import Job
from .job_source import JobSource
from .lift import KernelStage
from .protocols import ChangedAreas
from .units import SPAN, format_size


class PlannedDisk:
    """Stands for each disk of a VM while a path is composed for `plan`."""

    key = label = "each disk"
    capacity = 0
    change_id = None

    def __init__(self) -> None:
        self.pool = BufferPool()

    async def allocated(self, offset: int, length: int) -> Extents:
        raise SourceError("A planned disk cannot be read.")

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        raise ChangeTrackingInvalid("A planned disk has no change tracking.")

    async def read(self, buffer: object, offset: int, wanted: Extents) -> None:
        raise SourceError("A planned disk cannot be read.")

    def __repr__(self) -> str:
        return "disk"


@dataclass(frozen=True)
class Plan:
    """`memory` bounds the bytes of disk data that the job holds at once, in buffers and encoded."""

    job: str
    stages: Sequence[str]
    memory: int
    effects: Sequence[str]

    def as_dict(self) -> dict[str, object]:
        return {
            "job": self.job,
            "stages": list(self.stages),
            "memory": self.memory,
            "effects": list(self.effects),
        }

    def lines(self) -> list[str]:
        return [
            f"job {self.job}",
            *(f"  {'|' if place else ' '} {stage}" for place, stage in enumerate(self.stages)),
            f"  holds at most {format_size(self.memory)} of disk data",
            *(f"  effect: {sentence}" for sentence in self.effects),
        ]


def plan(entry: Job[Any, Any] | JobSource) -> Plan:
    """Describe a job, or those of a source by one that stands for each: its jobs run one after the other.

    The path is composed for a disk that stands for each.
    """
    if isinstance(entry, JobSource):
        each = plan(entry.planned())
        return replace(each, job=entry.title, effects=[*entry.effects(), *each.effects])
    job = entry
    pipeline = job.path(PlannedDisk(), job.into.planned())
    parts = [pipeline.flow.source, *pipeline.flow.stages, pipeline.sink]
    releasing = next(
        (place for place, part in enumerate(parts) if getattr(part, "releases", False)), len(parts)
    )
    encoded = sum(_spans_held(part) for part in parts[releasing:])
    return Plan(
        job=job.title,
        stages=[repr(part) for part in parts],
        memory=job.machine.pool_size + job.disks_at_once * encoded * SPAN,
        effects=[*job.machine.effects(), *job.into.effects()],
    )


def _spans_held(part: object) -> int:
    """How many items a stage has in its hands at most (see lift.run_ordered)."""
    return part.workers + 1 if isinstance(part, KernelStage) else 1
