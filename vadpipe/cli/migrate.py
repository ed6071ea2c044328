"""The command migrate: increments of a running VM into a replica, and the cut-over."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import click
import trio

from pipeline.errors import (
    EXIT_ATTENTION,
    EXIT_DONE,
    ConfigError,
    SourceError,
    are_ours,
    failures,
    leaves,
)
from pipeline.events import within
from pipeline.job import JobReceipt
from pipeline.units import UNITS, format_size

from .commands import config_argument, job_option, json_option
from .config import read_config
from .output import echo, error_lines, is_verbose, report, show
from .process import Interrupted, run_async
from .progress import Watch, events_to, show_progress
from .run import receipt_lines

if TYPE_CHECKING:
    from sinks.migrate import Migrate

# Increments in a row that may fail before a loop ends: what fails for so long does not pass by itself.
_FAILURES: Final = 3
# Increments in a row that each have at least nine tenths of the changes of the one before: it will not get less.
_STEADY: Final = 5
_TIMES: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _Duration(click.ParamType[float]):
    """Seconds as a number with a unit: 90s, 10m, 1h."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value))
        if found is None:
            self.fail(f"{value!r} is no time. Write for example 90s, 10m or 1h.", param, ctx)
        return float(found[1]) * _TIMES[found[2]]


class _Size(click.ParamType[int]):
    """Bytes as a number with a unit: 512MiB, 1GiB."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]iB|B)", str(value))
        if found is None:
            self.fail(f"{value!r} is no size. Write for example 512MiB or 1GiB.", param, ctx)
        return int(float(found[1]) * UNITS[found[2]])


@click.command()
@config_argument
@job_option
@click.option(
    "--every", type=_Duration(), metavar="TIME", help="Repeat: an increment begins every TIME, e.g. 10m."
)
@click.option(
    "--until-below",
    type=_Size(),
    metavar="SIZE",
    help="Repeat until an increment has less than SIZE of changes, e.g. 1GiB.",
)
@click.option(
    "--cut-over",
    is_flag=True,
    help="Then stop the VM, copy what it wrote last, prove the replica. Without --every and --until-below: now.",
)
@click.option("--full", is_flag=True, help="Read the VM in full and compare, whatever change tracking says.")
@click.option(
    "--prove", is_flag=True, help="Only read the replica back and compare it with what was written."
)
@click.option(
    "--events", type=click.Path(path_type=Path), metavar="FILE", help="Append events as JSON lines."
)
@json_option
def migrate(
    config: Path,
    only: str | None,
    every: float | None,
    until_below: int | None,
    cut_over: bool,
    full: bool,
    prove: bool,
    events: Path | None,
    as_json: bool,
) -> int:
    """Bring the replica of a running VM up to date, and cut over to it.

    Without options one increment is made. The VM runs until the cut-over; there it is shut down, if the
    configuration allows that, and stays off. Every increment may be a command of its own: what was done is kept in
    the state that the configuration names. A loop ends when another command has cut over.
    """
    if prove and (every or until_below or cut_over or full):
        raise click.UsageError("--prove stands alone: it makes no increment.")
    if cut_over and every and not until_below:
        raise click.UsageError("--cut-over with --every needs --until-below, or it would never come.")
    job = _migration(config, only)
    running = Migration(job, every, until_below, cut_over, full, prove, as_json)
    with events_to(events):
        run_async(running.work, cleaning=running.cleaning)
    show({"ok": running.code == EXIT_DONE, **running.document}, running.lines, as_json)
    return running.code


def _migration(config: Path, only: str | None) -> Migrate[Any]:
    """The only migration of a configuration, or the one of that name. Raises ConfigError."""
    from sinks.migrate import Migrate

    found = [entry for entry in read_config(config, only) if isinstance(entry, Migrate)]
    if len(found) != 1:
        titles = ", ".join(entry.title for entry in found)
        raise ConfigError(
            f"{config} has {len(found)} migrations: {titles}." if found else f"{config} has no migration.",
            remedy="Name one with --job." if found else "Assign a sinks.Migrate to the name `job`.",
        )
    return found[0]


@dataclass
class Migration:
    """A run of the command."""

    job: Migrate[Any]
    every: float | None
    until_below: int | None
    cuts_over: bool
    full: bool
    proves: bool
    as_json: bool
    code: int = EXIT_DONE
    document: dict[str, object] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    stopping: bool = False
    _steady: int = 0
    _before: int | None = None
    _increments: list[dict[str, object]] = field(default_factory=list)

    async def work(self) -> None:
        """Raises what ends the command."""
        with within(run=uuid4().hex[:12]):
            async with show_progress(self.as_json) as watch:
                self.document["increments"] = self._increments
                if self.proves:
                    proofs = await self.job.prove(watch.of())
                    self.document["proofs"] = [asdict(proof) for proof in proofs]
                    self.lines += [str(proof) for proof in proofs]
                elif await self._increase(watch) and self.cuts_over:
                    await self._cut_over(watch)

    async def _increase(self, watch: Watch) -> bool:
        """Make increments until there is enough; False when somebody else has cut over."""
        failed = 0
        while True:
            begun = trio.current_time()
            if await self.job.is_cut_over() and (self.every or self.until_below):
                self.lines.append(f"{self.job.title}: another command has cut over.")
                return False
            receipt = None
            try:
                receipt = await self._increment(watch)
                failed = 0
            except Exception as exc:
                failed += 1
                if not self.every or failed >= _FAILURES or not _may_pass(exc):
                    raise
                for line in error_lines(exc):
                    report(f"{self.job.title}: {line}")
                report(f"{self.job.title}: the increment failed; the next one begins in {self.every:.0f} s.")
                self._increments.append({"errors": [failure.text for failure in failures(exc)]})
            if receipt is not None and self._is_enough(receipt):
                return True
            if self.every:
                await trio.sleep(max(0.0, begun + self.every - trio.current_time()))

    async def _increment(self, watch: Watch) -> JobReceipt:
        receipt = await self.job.increment(watch.of(), full=self.full)
        self.full = False
        self._increments.append(receipt.as_dict())
        if receipt.attention:
            self.code = EXIT_ATTENTION
        if not self.as_json:
            for line in receipt_lines(receipt, verbose=is_verbose()):
                echo(line)
        return receipt

    def _is_enough(self, receipt: JobReceipt) -> bool:
        """Whether to stop making increments. Raises SourceError when more of them lead nowhere."""
        if self.until_below is None:
            return self.every is None
        size = changed(receipt)
        steady = self._before is not None and size >= 0.9 * self._before
        self._steady, self._before = (self._steady + 1 if steady else 0), size
        if size >= self.until_below and self.every is None and self._steady >= _STEADY:
            raise SourceError(
                f"{self.job.title} does not get below {format_size(self.until_below)}: its last increments have "
                f"{format_size(size)} each, as it changes as fast as it is copied.",
                remedy="Cut over at a quieter time, give a larger --until-below, or wait with --every 10m.",
            )
        return size < self.until_below

    async def _cut_over(self, watch: Watch) -> None:
        self.stopping = True
        receipt = await self.job.cut_over(watch.of())
        self.document["cut_over"] = receipt.as_dict()
        self.lines += receipt.lines()
        if receipt.attention:
            self.code = EXIT_ATTENTION

    def cleaning(self) -> Sequence[str]:
        """What is cleaned up when a signal ends the command."""
        if self.stopping:
            return [f"{self.job.title}: the cut-over is given up; the VM is powered on again if it was on."]
        return [f"{self.job.title}: its snapshot is removed; the next increment goes on."]


def changed(receipt: JobReceipt) -> int:
    """The bytes of changes that an increment found; of a disk that was read in full, all that was read."""
    return sum(run.receipt.read if run.changed is None else run.changed for run in receipt.disks)


def _may_pass(exc: BaseException) -> bool:
    """Whether another increment may succeed: not after a mistake of the user, a defect, or a signal."""
    return are_ours(exc) and not any(isinstance(leaf, ConfigError | Interrupted) for leaf in leaves(exc))
