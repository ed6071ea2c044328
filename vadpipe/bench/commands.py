"""`vadpipe bench`: throughput."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from pipeline.units import GiB, MiB
from vadpipe.cli.commands import json_option
from vadpipe.cli.output import show

from .images import ext4_image
from .machine import machine_line
from .path import CASES, measure


@click.group()
def bench() -> None:
    """Measure throughput."""


@bench.command()
@click.option("--size", default=12, show_default=True, metavar="GIB", help="Size of the disk image.")
@click.option("--fill", default=3700, show_default=True, metavar="MIB", help="Files in the image.")
@click.option("--seed", default=1, show_default=True, help="Chooses the files.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/bench"),
    show_default=True,
    help="Where images are made and kept.",
)
@click.option("--case", "cases", multiple=True, type=click.Choice(list(CASES)), help="Only this case.")
@click.option("--repeat", default=1, show_default=True, help="Runs of each case.")
@json_option
def path(
    size: int, fill: int, seed: int, directory: Path, cases: tuple[str, ...], repeat: int, as_json: bool
) -> None:
    """The whole path, from memory to nowhere and from a disk image to a repository."""
    image = ext4_image(directory.resolve(), size * GiB, fill * MiB, seed)
    results = [measure(case, image) for case in cases or CASES for _ in range(repeat)]
    about = f"{machine_line()}; ext4 image of {size} GiB with {fill} MiB of files, seed {seed}"
    document = {"about": about, "results": [asdict(result) for result in results]}
    show(document, [about, *(result.line() for result in results)], as_json)
