"""`python -m vadpipe.lab.campaigns CAMPAIGN --runs N --seed S`: play a campaign, and say what is wrong."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence

import click

from .backups import backups, through_vddk
from .in_place import in_place
from .restores import restores
from .running import Tally

Play = Callable[[Sequence[int], int, int | None], Tally]


@click.group()
def main() -> None:
    """Play runs where everything fails, and check what is left."""


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Those that each campaign has."""
    for option in (
        click.option("--jobs", type=int, help="Runs at a time; two per core by default."),
        click.option("--only", type=int, help="Play one run of this seed again."),
        click.option("--seed", default=0, show_default=True),
        click.option("--runs", default=200, show_default=True),
    ):
        command = option(command)
    return command


@main.command("backups")
@_options
@click.option("--vddk", is_flag=True, help="Only those of the runs that read through VDDK.")
def backups_command(runs: int, seed: int, only: int | None, jobs: int | None, vddk: bool) -> None:
    """Back up a VM."""
    numbers = _numbers(runs, only)
    _play(backups, through_vddk(numbers, seed) if vddk else numbers, seed, jobs)


@main.command("restores")
@_options
def restores_command(runs: int, seed: int, only: int | None, jobs: int | None) -> None:
    """Restore a point into a new VM."""
    _play(restores, _numbers(runs, only), seed, jobs)


@main.command("in-place")
@_options
def in_place_command(runs: int, seed: int, only: int | None, jobs: int | None) -> None:
    """Restore a point over its VM."""
    _play(in_place, _numbers(runs, only), seed, jobs)


def _numbers(runs: int, only: int | None) -> Sequence[int]:
    return range(runs) if only is None else [only]


def _play(play: Play, numbers: Sequence[int], seed: int, jobs: int | None) -> None:
    begun = time.monotonic()
    tally = play(numbers, seed, jobs)
    click.echo(f"{tally.runs} runs in {time.monotonic() - begun:.0f} s, seed {seed}")
    for fact, value in tally.facts.items():
        click.echo(f"{fact}: {value}")
    for title, counts in (("outcomes", tally.outcomes), ("troubles", tally.troubles)):
        click.echo(f"{title}: {', '.join(f'{name} {count}' for name, count in counts.most_common())}")
    for failure in tally.failures:
        click.echo(f"WRONG: {failure}")
    sys.exit(bool(tally.failures))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONFAULTHANDLER", "1")
    main()
