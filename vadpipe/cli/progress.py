"""Progress of running disks: bars on a terminal, a line now and then in a pipe, events as JSON lines in a file.

Percent and remaining time count the data that is to be read, not the position on the disk: of a thin disk most is
never read. The extents source runs ahead of the reader by one window, so that for most disks the amount is known
at once; of the rest of a larger disk it is estimated from what has been seen.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from pipeline.events import Event, observed
from pipeline.job import DiskWatch
from pipeline.meters import PipelineReport
from pipeline.protocols import DiskSize
from pipeline.secrets import blotted
from pipeline.units import format_size
from vadpipe.logs import open_private
from vadpipe.words import printable

from .output import beside, echo, report, wants_progress

REFRESH_S = 0.2
LINE_S = 10.0
_BAR = 12  # columns of the bar
_BESIDE_NAME = (
    _BAR + len("100 %") + len("1023.9 MiB/s") + len("-:--:--") + 4
)  # the other columns and their gaps


@dataclass
class Running(ABC):
    """Something that is read: bytes done of a total."""

    begun: float = field(default_factory=trio.current_time, init=False)

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def done(self) -> int: ...

    @property
    @abstractmethod
    def total(self) -> int: ...

    @property
    def share(self) -> float:
        """How much is done, from 0 to 1."""
        return self.done / self.total if self.total else 1.0

    @property
    def ended(self) -> bool:
        return self.done >= self.total

    @property
    def rate(self) -> float:
        elapsed = trio.current_time() - self.begun
        return self.done / elapsed if elapsed else 0.0

    def line(self) -> str:
        left = f", {(self.total - self.done) / self.rate:.0f} s left" if self.rate else ""
        return (
            f"{self.name}: {self.share:.0%}, {format_size(self.done)} of {format_size(self.total)} read "
            f"at {format_size(self.rate)}/s{left}"
        )


@dataclass
class RunningVerification(Running):
    """The packs of a repository that are being read."""

    read: int = 0
    to_read: int = 0

    def reached(self, read: int, to_read: int) -> None:
        self.read, self.to_read = read, to_read

    @property
    def name(self) -> str:
        return "packs"

    @property
    def done(self) -> int:
        return self.read

    @property
    def total(self) -> int:
        return self.to_read


@dataclass
class RunningDisk(Running):
    """A disk that is being read. `job` is empty where one job runs at a time."""

    disk: DiskSize
    report: PipelineReport[Any]
    job: str = ""

    @property
    def name(self) -> str:
        return printable(f"{self.job} {self.disk.key}" if self.job else self.disk.key)

    @property
    def done(self) -> int:
        """Bytes read so far: what the stage behind the extents source sent."""
        return self.report.stages[min(1, len(self.report.stages) - 1)].bytes

    @property
    def total(self) -> int:
        """Bytes to read, as far as the extents source came; the rest of the disk is taken to be like that."""
        source = self.report.stages[0]
        if not source.position:
            return self.disk.capacity
        return max(self.done, source.bytes * self.disk.capacity // source.position)

    @property
    def share(self) -> float:
        if self.total or not self.disk.capacity:
            return super().share
        return self.report.position / self.disk.capacity

    @property
    def ended(self) -> bool:
        return self.report.position >= self.disk.capacity


class Watch:
    """What progress is shown of."""

    def __init__(self) -> None:
        self.running: list[Running] = []

    def of(self, job: str = "") -> DiskWatch:
        """A watch for `Job.run`. `job` stands before the disk's name where several jobs run at once."""
        return partial(self._add, job)

    def _add(self, job: str, disk: DiskSize, report: PipelineReport[Any]) -> None:
        self.running.append(RunningDisk(disk, report, job))


@asynccontextmanager
async def show_progress(as_json: bool) -> AsyncIterator[Watch]:
    """Show the disks of a watch on standard error; with --json, -q or --no-progress show nothing."""
    watch = Watch()
    if as_json or not wants_progress():
        yield watch
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_bars if sys.stderr.isatty() else _lines, watch)
        yield watch
        nursery.cancel_scope.cancel()


async def _bars(watch: Watch) -> None:
    # Here, as most runs have no terminal, and loading rich costs 50 ms.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
    from rich.table import Column

    console = Console(stderr=True)
    columns = [
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=_BAR),
        TextColumn("{task.percentage:>3.0f} %", table_column=Column(no_wrap=True, min_width=5)),
        TextColumn("{task.fields[rate]}/s", justify="right", table_column=Column(no_wrap=True, min_width=12)),
        TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
    ]
    bars = Progress(
        *columns,
        console=console,
        transient=True,
        auto_refresh=False,  # no thread of its own
        redirect_stdout=False,
        redirect_stderr=False,
    )
    shown: list[TaskID] = []
    try:
        with beside(bars), bars:
            while True:
                new = len(watch.running) - len(shown)
                shown += [bars.add_task("", total=None, rate="") for _ in range(new)]
                for run, task in zip(watch.running, shown, strict=True):
                    bars.update(
                        task,
                        description=shortened(run.name, max(8, console.width - _BESIDE_NAME)),
                        total=max(run.total, 1),
                        completed=run.done if run.total else run.share,
                        rate=format_size(run.rate),
                        visible=not run.ended,
                    )
                bars.refresh()
                await trio.sleep(REFRESH_S)
    except OSError:  # the terminal is gone
        return


async def _lines(watch: Watch) -> None:
    while True:
        await trio.sleep(LINE_S)
        for run in watch.running:
            if not run.ended:
                echo(run.line(), err=True)


def shortened(name: str, width: int) -> str:
    """The name in at most `width` letters: its beginning and its end, which tell disks of one VM apart."""
    if len(name) <= width:
        return name
    end = (width - 1) // 2
    return f"{name[: width - 1 - end]}…{name[len(name) - end :]}"


@contextmanager
def events_to(path: Path | None) -> Iterator[None]:
    """Append every event inside the block to a file of our own (0600), one JSON document a line.

    Raises:
        ConfigError: The file cannot be opened. Later a full disk ends the events, not the jobs.
    """
    if path is None:
        yield
        return
    lines = open_private(path, "events file")
    broken: list[OSError] = []

    def write(event: Event) -> None:
        if broken:
            return
        try:
            lines.write(blotted(json.dumps(event.as_dict(), default=str)) + "\n")
        except OSError as exc:
            broken.append(exc)
            report(f"Events can no longer be written to {path}: {exc.strerror}.")

    try:
        with observed(write):
            yield
    finally:
        try:
            lines.close()
        except OSError as exc:
            if not broken:
                report(f"The events file {path} is not complete: {exc.strerror}.")
