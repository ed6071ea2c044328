"""What a job would do: its stages, its memory, and what it would change. Without any I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .composition import readable
from .job import Job, JobSource
from .lift import KernelStage
from .units import SPAN, format_size


@dataclass(frozen=True)
class Plan:
    """What a job would do.

    `memory` bounds the bytes of disk data that the job holds at once, in buffers and encoded; a target that holds
    some until it is sent says so by an attribute `memory`. `unchecked`: a sentence when the path depends on the
    disk, else empty; where it could not be composed for a planned disk there are no stages, and `memory` counts
    buffers only. `missing`: what a run would fail for now, as far as its target and its machine can tell by
    looking.
    """

    job: str
    stages: Sequence[str]
    memory: int
    effects: Sequence[str]
    unchecked: str = ""
    missing: Sequence[str] = ()

    def lines(self) -> list[str]:
        return [
            f"job {self.job}",
            *(f"  {'|' if place else ' '} {stage}" for place, stage in enumerate(self.stages)),
            *([f"  not checked: {self.unchecked}"] if self.unchecked else []),
            f"  holds at most {format_size(self.memory)} of disk data",
            *(f"  effect: {sentence}" for sentence in self.effects),
            *(f"  MISSING: {sentence}" for sentence in self.missing),
        ]


def plan(entry: Job[Any, Any] | JobSource) -> Plan:
    """Describe a job, or the jobs of a source by one that stands for each (they run one after the other).

    Raises:
        ConfigError: The path is wrong.
    """
    if isinstance(entry, JobSource):
        each = plan(entry.planned())
        return replace(each, job=entry.title, effects=[*entry.effects(), *each.effects])
    job = entry
    pipeline, problem = job.planned()
    parts = pipeline.parts if pipeline else []
    releasing = next(
        (place for place, part in enumerate(parts) if getattr(part, "releases", False)), len(parts)
    )
    encoded = sum(_spans_held(part) for part in parts[releasing:])
    return Plan(
        job=job.title,
        stages=[readable(part) for part in parts],
        memory=job.machine.pool_size + job.disks_at_once * encoded * SPAN + getattr(job.into, "memory", 0),
        effects=[*job.machine.effects(), *job.into.effects()],
        unchecked=problem
        and f"{problem} A run checks it for every disk, after the snapshot was taken and before anything is read.",
    )


def _spans_held(part: object) -> int:
    """How many items a stage holds at most (see lift.run_ordered)."""
    return part.workers + 1 if isinstance(part, KernelStage) else 1
