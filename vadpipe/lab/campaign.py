"""`python -m vadpipe.lab.campaign --runs N --seed S`: backups where everything fails, and what they leave behind.

Each run draws its own trouble from its own seed: faults at calls and in tasks, before and after their effect;
dropped connections, HTTP 503, expired sessions; restarts that forget sessions and tasks; tasks that take long;
consolidation that fails; the VM moved to another host and to another datastore; SIGKILL. One in ten reads through
VDDK, the lab's stand-in, whose calls fail, crash and hang. Then the lab is calm, and one more run has to succeed.
After it: no snapshot, relocation lock or hot-added disk of ours, disks consolidated or named, no snapshot or lock
of others touched, no point published that is not whole, and nothing in the journal that is not over.

`--seed S --only N` plays run N again: the same failures at the same calls of the same methods. A run makes the
calls of one method one after the other, so this is exact, but for two things that the clock decides: how often a
wait for a task is answered (WaitForUpdatesEx), and how often a call is repeated while the server is away.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click

from .campaign_run import PROCESSES, Ended, one_run
from .campaign_scenario import Scenario
from .certificate import load_or_create
from .vddk_build import CompilerMissing, build_vddk

# A run waits about as long as it computes.
_JOBS_PER_CORE = 2


@dataclass
class Tally:
    """What the runs met and how they ended. `through_vddk`: how many read through it, or why none did."""

    runs: int = 0
    through_vddk: int | str = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, seed: int, ended: Ended) -> None:
        scenario = Scenario.drawn(seed, ended.number)
        self.runs += 1
        if isinstance(self.through_vddk, int):
            self.through_vddk += scenario.vddk is not None
        self.outcomes[ended.outcome] += 1
        self.troubles.update(scenario.names)
        self.failures += [f"run {scenario.seed}: {sentence}" for sentence in ended.wrong]


def campaign(runs: Sequence[int], seed: int, jobs: int | None = None) -> Tally:
    """These runs, `jobs` at a time, each in one of as many processes; None: for all cores."""
    tally = Tally()
    count = min(jobs or _JOBS_PER_CORE * (os.cpu_count() or 1), len(runs))
    with tempfile.TemporaryDirectory(prefix="vadpipe-campaign-") as directory:
        load_or_create(Path(directory), "127.0.0.1")
        libdir: Path | None = None
        try:
            if any(Scenario.drawn(seed, number).vddk for number in runs):
                libdir = build_vddk(Path(directory, "vddk"))
        except CompilerMissing as exc:
            tally.through_vddk = f"0, because {exc}"
        with _each(partial(one_run, Path(directory), libdir, seed), runs, count) as ended:
            for one in ended:
                tally.add(seed, one)
    return tally


@contextmanager
def _each(work: partial[Ended], runs: Sequence[int], jobs: int) -> Iterator[Iterator[Ended]]:
    if jobs == 1:
        yield map(work, runs)
        return
    with ProcessPoolExecutor(jobs, mp_context=PROCESSES) as pool:
        yield pool.map(work, runs)


@click.command()
@click.option("--runs", default=300, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--only", type=int, help="Play one run of this seed again.")
@click.option("--vddk", is_flag=True, help="Only those of the runs that read through VDDK.")
@click.option("--jobs", type=int, help="Runs at a time; two per core by default.")
def main(runs: int, seed: int, only: int | None, vddk: bool, jobs: int | None) -> None:
    """Back up a VM of the lab again and again while everything fails, and check what is left."""
    begun = time.monotonic()
    numbers: Sequence[int] = range(runs) if only is None else [only]
    if vddk:
        numbers = [number for number in numbers if Scenario.drawn(seed, number).vddk]
    tally = campaign(numbers, seed, jobs)
    click.echo(f"{tally.runs} runs in {time.monotonic() - begun:.0f} s, seed {seed}")
    click.echo(f"through VDDK: {tally.through_vddk}")
    for title, counts in (("outcomes", tally.outcomes), ("troubles", tally.troubles)):
        click.echo(f"{title}: {', '.join(f'{name} {count}' for name, count in counts.most_common())}")
    for failure in tally.failures:
        click.echo(f"WRONG: {failure}")
    sys.exit(bool(tally.failures))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONFAULTHANDLER", "1")
    main()
