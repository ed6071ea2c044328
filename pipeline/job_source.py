"""Many jobs from one line of a configuration: what a source of jobs has to offer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from .job import Job


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
