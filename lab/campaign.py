"""`python -m lab.campaign --runs N --seed S`: backups where everything fails, and what they leave behind.

Each run draws its own trouble from its own seed: faults at calls and in tasks, before and after their effect;
dropped connections, HTTP 503, expired sessions; restarts that forget sessions and tasks; tasks that take long;
consolidation that fails; the VM moved to another host and to another datastore; SIGKILL. Then the lab is calm, and
one more run has to succeed. After it: no snapshot of ours, disks consolidated or named, no foreign snapshot
touched, no point published that is not whole.

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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click

from lab.campaign_run import PROCESSES, Ended, one_run
from lab.campaign_scenario import Scenario
from lab.certificate import load_or_create

# A run waits about as long as it computes.
_JOBS_PER_CORE = 2


@dataclass
class Tally:
    """What the runs met and how they ended."""

    runs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, seed: int, ended: Ended) -> None:
        scenario = Scenario.drawn(seed, ended.number)
        self.runs += 1
        self.outcomes[ended.outcome] += 1
        self.troubles.update(trouble.name for trouble in scenario.troubles)
        self.failures += [f"run {scenario.seed}: {sentence}" for sentence in ended.wrong]


def campaign(runs: range, seed: int, jobs: int | None = None) -> Tally:
    """These runs, `jobs` at a time, each in one of as many processes; None: for all cores."""
    tally = Tally()
    count = min(jobs or _JOBS_PER_CORE * (os.cpu_count() or 1), len(runs))
    with tempfile.TemporaryDirectory(prefix="vadpipe-campaign-") as directory:
        load_or_create(Path(directory), "127.0.0.1")
        with _each(partial(one_run, Path(directory), seed), runs, count) as ended:
            for one in ended:
                tally.add(seed, one)
    return tally


@contextmanager
def _each(work: partial[Ended], runs: range, jobs: int) -> Iterator[Iterator[Ended]]:
    if jobs == 1:
        yield map(work, runs)
        return
    with ProcessPoolExecutor(jobs, mp_context=PROCESSES) as pool:
        yield pool.map(work, runs)


@click.command()
@click.option("--runs", default=300, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--only", type=int, help="Play one run of this seed again.")
@click.option("--jobs", type=int, help="Runs at a time; two per core by default.")
def main(runs: int, seed: int, only: int | None, jobs: int | None) -> None:
    """Back up a VM of the lab again and again while everything fails, and check what is left."""
    begun = time.monotonic()
    tally = campaign(range(runs) if only is None else range(only, only + 1), seed, jobs)
    click.echo(f"{tally.runs} runs in {time.monotonic() - begun:.0f} s, seed {seed}")
    for title, counts in (("outcomes", tally.outcomes), ("troubles", tally.troubles)):
        click.echo(f"{title}: {', '.join(f'{name} {count}' for name, count in counts.most_common())}")
    for failure in tally.failures:
        click.echo(f"WRONG: {failure}")
    sys.exit(bool(tally.failures))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONFAULTHANDLER", "1")
    main()
