"""The runs of a campaign, each in one of several processes, and their tally."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

# A run waits about as long as it computes.
_JOBS_PER_CORE = 2
# Forked from a process that has everything imported: a start takes milliseconds, and no thread is copied.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([f"{__package__}.{name}" for name in ("backups", "restores", "in_place")])


@dataclass(frozen=True)
class Ended:
    """How a run ended, and what is wrong with that or with what it left."""

    number: int
    outcome: str
    wrong: list[str]


@dataclass
class Tally:
    """What the runs met and how they ended. `facts`: what else is to be said of them."""

    runs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    facts: dict[str, int | str] = field(default_factory=dict)


def play(
    one_run: Callable[[int], Ended],
    troubles: Callable[[int], Sequence[str]],
    runs: Sequence[int],
    jobs: int | None,
) -> Tally:
    """These runs, `jobs` at a time; None: two per core. `troubles`: the names of what a run goes through."""
    tally = Tally()
    count = min(jobs or _JOBS_PER_CORE * (os.cpu_count() or 1), len(runs))
    with _each(partial(_silent, one_run), runs, count) as each:
        for ended in each:
            tally.runs += 1
            tally.outcomes[ended.outcome] += 1
            tally.troubles.update(troubles(ended.number))
            tally.failures += [f"run {ended.number}: {sentence}" for sentence in ended.wrong]
    return tally


@contextmanager
def _each(work: Callable[[int], Ended], runs: Sequence[int], jobs: int) -> Iterator[Iterator[Ended]]:
    if jobs <= 1:
        yield map(work, runs)
        return
    with ProcessPoolExecutor(jobs, mp_context=PROCESSES) as pool:
        yield pool.map(work, runs)


def _silent(one_run: Callable[[int], Ended], number: int) -> Ended:
    """A run whose warnings nobody reads: they are expected."""
    log = logging.getLogger("vadpipe")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    return one_run(number)
