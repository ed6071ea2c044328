"""Progress of running disks: bars on a terminal, a line now and then in a pipe, JSON lines in a file."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from pipeline.errors import ConfigError
from pipeline.events import Event, observed
from pipeline.job import DiskWatch
from pipeline.meters import PipelineReport
from pipeline.protocols import DiskSize
from pipeline.units import format_size

REFRESH_S = 0.2
LINE_S = 10.0


class _Rate(ProgressColumn):
    """Bytes of data per second, over the whole run of the disk."""

    def render(self, task: Task) -> Text:
        elapsed = task.finished_time or task.elapsed or 0
        data = task.fields["data"]
        return Text(f"{format_size(data)} at {format_size(data / elapsed if elapsed else 0)}/s")


class _Running:
    """A disk on its way."""

    def __init__(self, disk: DiskSize, report: PipelineReport[Any]) -> None:
        self.disk = disk
        self.report = report
        self.begun = trio.current_time()

    @property
    def data(self) -> int:
        """Bytes read so far: what the stage behind the extents source sent."""
        return self.report.stages[min(1, len(self.report.stages) - 1)].bytes

    @property
    def position(self) -> int:
        return self.report.position

    def line(self) -> str:
        elapsed = trio.current_time() - self.begun
        rate = self.data / elapsed if elapsed else 0.0
        share = self.position / self.disk.capacity if self.disk.capacity else 1.0
        left = f", {elapsed / share - elapsed:.0f} s left" if share > 0 else ""
        return (
            f"{self.disk.key}: {share:.0%} of {format_size(self.disk.capacity)}, "
            f"{format_size(self.data)} read at {format_size(rate)}/s{left}"
        )


@asynccontextmanager
async def show_progress(quiet: bool) -> AsyncIterator[DiskWatch | None]:
    """A watch for `Job.run` that shows every disk on standard error, until the block ends."""
    if quiet:
        yield None
        return
    console = Console(stderr=True)
    running: list[_Running] = []

    def watch(disk: DiskSize, report: PipelineReport[Any]) -> None:
        running.append(_Running(disk, report))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_bars if console.is_terminal else _lines, console, running)
        yield watch
        nursery.cancel_scope.cancel()


async def _bars(console: Console, running: list[_Running]) -> None:
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")]
    with Progress(*columns, _Rate(), TimeRemainingColumn(), console=console, transient=True) as progress:
        shown: list[TaskID] = []
        while True:
            shown += [
                progress.add_task(run.disk.key, total=run.disk.capacity, data=0)
                for run in running[len(shown) :]
            ]
            for run, task in zip(running, shown, strict=True):
                progress.update(task, completed=run.position, data=run.data)
            await trio.sleep(REFRESH_S)


async def _lines(console: Console, running: list[_Running]) -> None:
    while True:
        await trio.sleep(LINE_S)
        for run in running:
            if run.position < run.disk.capacity:
                click.echo(run.line(), err=True)


@contextmanager
def events_to(path: Path | None) -> Iterator[None]:
    """Append every event inside the block to a file, one JSON document a line."""
    if path is None:
        yield
        return
    try:
        lines = path.open("a", encoding="utf-8", buffering=1)
    except OSError as exc:
        raise ConfigError(f"The events file {path} cannot be written: {exc.strerror}.") from exc

    def write(event: Event) -> None:
        lines.write(json.dumps(event.as_dict(), default=str) + "\n")

    with lines, observed(write):
        yield
