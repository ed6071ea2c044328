"""`vadpipe bench`: throughput."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.errors import EXIT_ATTENTION, EXIT_DONE, ConfigError
from pipeline.units import GiB, MiB
from vadpipe.cli.commands import config_argument, job_option, json_option
from vadpipe.cli.config import load_jobs
from vadpipe.cli.output import echo, is_verbose, report, show, wants_progress
from vadpipe.cli.process import run_async
from vadpipe.cli.run import stage_lines

from .documents import comparison, comparison_lines, median_lines, read_document
from .images import ext4_image
from .jobs import TARGETS, JobRun, RunFailed, case_of, measure_in_turn, measure_job, report_of, retargeted
from .kernels import LEVELS, data_of, kernels_of, measure_kernels, seeded_data
from .machine import machine_line
from .path import CASES, measure
from .source import measure_source
from .vary import parse, sizes_of, undisturbed, varied

if TYPE_CHECKING:
    from pipeline.job import Job

Command = TypeVar("Command", bound=Callable[..., Any])

at_least_one = click.IntRange(min=1)


def repeat_option(default: int) -> Callable[[Command], Command]:
    return click.option(
        "--repeat",
        type=at_least_one,
        default=default,
        show_default=True,
        metavar="N",
        help="Rounds, in which the cases take turns.",
    )


html_option = click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page with plots; needs vadpipe[bench].",
)


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
    rows = [
        {**asdict(result), "mib_per_s": result.mib_per_s, "mib_per_cpu_s": result.mib_per_cpu_s}
        for result in results
    ]
    document = {"kind": "bench path", "about": about, "results": rows}
    show(document, [about, *(result.line() for result in results)], as_json)


@bench.command()
@config_argument
@job_option
@click.option(
    "--to",
    type=click.Choice(TARGETS),
    default="null",
    show_default=True,
    help="Where the data goes: nowhere, a repository in memory, or the job's own store, where each run "
    "publishes a restore point.",
)
@click.option(
    "--vary",
    "axes",
    multiple=True,
    metavar="NAME=V1,V2",
    help="Measure with each of these values of a setting, e.g. level=1,3; several options make a grid.",
)
@click.option(
    "--first", type=at_least_one, metavar="MIB", help="Only the first MIB of each disk; not with --to store."
)
@repeat_option(1)
@click.option("--here", is_flag=True, hidden=True, help="Measure once, in this process.")
@html_option
@json_option
def run(
    config: Path,
    only: str | None,
    to: str,
    axes: tuple[str, ...],
    first: int | None,
    repeat: int,
    here: bool,
    page: Path | None,
    as_json: bool,
) -> int:
    """The pipeline of a job of a configuration, by default to nowhere: nothing is published.

    Each run captures the VM: of a VM on a server it takes a snapshot, and removes it. Hooks are not called. With
    --to store everything else is as in a run of the job. To nowhere and into memory the guest is not quiesced, no
    finisher runs, everything allocated is read and no chunk is known. Memory holds all that is stored: limit it by
    --first.

    With --vary each combination of values is measured in turn: A B C A B C. A name is that of a setting of a stage,
    its codec, the machine or its reader: level, workers, depth, pool_size; or, where that means several,
    Compress.workers.
    """
    grid = parse(axes)
    job = _one_job(config, only)
    targeted = retargeted(job, to, first and first * MiB)
    jobs = [varied(targeted, settings) for settings in grid]  # all, before anything runs
    if here:
        [settings], [one] = grid, jobs
        click.echo(json.dumps(asdict(run_async(measure_job, one, settings))))  # the last line
        return EXIT_DONE
    _expect_page(page)
    words = ["bench", "run", str(config), "--job", job.title, "--to", to]
    words += ["--first", str(first)] if first else []
    effects = [*targeted.machine.effects(), *(job.into.effects() if to == "store" else ())]
    _tell(f"each of {repeat * len(grid)} runs: {sentence}" for sentence in effects)

    def told(round_: int, found: JobRun) -> None:
        rate = f"{found.mib_per_s:.0f} MiB/s, {found.cpu_s:.2f} CPU-s"
        _tell([f"round {round_} of {repeat}: {found.case}: {rate}"])

    try:
        runs = run_async(
            measure_in_turn,
            grid,
            repeat,
            lambda settings: [
                *words,
                *(f"--vary={n}={v}" for n, v in settings.items()),
                "--here",
                "--json",
                "-q",
            ],
            told,
        )
    except RunFailed as failed:
        if as_json:
            click.echo(failed.output, nl=False)
        return failed.code
    part = f", the first {first} MiB of each disk" if first else ""
    document = {
        "kind": "bench run",
        "about": machine_line(),
        "config": str(config),
        "job": job.title,
        "to": to,
        "first_mib": first,
        "results": [asdict(found) for found in runs],
    }
    lines = [machine_line(), f"job {job.title} of {config} to {to}{part}", *median_lines(document)]
    lines += _stored_note(runs) if to == "store" else []
    if is_verbose():
        for settings in grid:
            case = case_of(settings)
            last = [found for found in runs if found.case == case][-1]
            lines += ["", f"{case}, the last round:", *stage_lines(report_of(last.stages))]
    return _show(document, lines, as_json, page)


def _tell(lines: Iterable[str]) -> None:
    if wants_progress():
        for line in lines:
            echo(line, err=True)


def _one_job(config: Path, only: str | None) -> Job[Any, Any]:
    jobs = load_jobs(config, only)
    if len(jobs) == 1:
        return jobs[0]
    raise ConfigError(
        f"{config} has {len(jobs)} backups; a benchmark measures one.",
        remedy=f"Name one with --job: {', '.join(job.title for job in jobs)}."
        if jobs
        else "Write a pipeline.Job.",
    )


def _stored_note(runs: list[JobRun]) -> list[str]:
    stored = [found.stored for found in runs]
    if max(stored) <= 2 * min(stored):
        return []
    return [
        f"note: the runs stored {min(stored) / MiB:.1f} to {max(stored) / MiB:.1f} MiB: in a store, a run finds "
        "what earlier ones stored. Compare settings with --to memory."
    ]


@bench.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--size", type=at_least_one, default=128, show_default=True, metavar="MIB", help="Data to measure with."
)
@click.option("--seed", default=1, show_default=True, help="Makes the data where no FILE is given.")
@click.option(
    "--level",
    "levels",
    multiple=True,
    type=click.IntRange(-7, 22),
    default=LEVELS,
    show_default=True,
    help="Of zstd; can be repeated.",
)
@repeat_option(3)
@html_option
@json_option
def kernels(
    file: Path | None,
    size: int,
    seed: int,
    levels: tuple[int, ...],
    repeat: int,
    page: Path | None,
    as_json: bool,
) -> int:
    """What zero test, cuts, digests, codecs and encryption cost on the data of FILE: MiB per CPU-second.

    FILE is a raw image or any other file; holes are left out. Without it the data is made from a seed.
    """
    _expect_page(page)
    data = seeded_data(size * MiB, seed) if file is None else data_of(file, size * MiB)
    source = f"seed {seed}" if file is None else str(file)
    about = f"{machine_line()}; {len(data) // MiB} MiB of {source}"
    rows = measure_kernels(kernels_of(data, levels), repeat)
    document = {"kind": "bench kernels", "about": about, "results": rows}
    return _show(document, [about, *median_lines(document)], as_json, page)


@bench.command()
@config_argument
@job_option
@click.option("--disk", metavar="KEY", help="Read this disk of the VM; the default is the largest one.")
@click.option("--depths", default="1,2,4,8,16", show_default=True, help="Reads in flight.")
@click.option(
    "--sizes", default="64KiB,256KiB,1MiB", show_default=True, help="Bytes of a read, at most 4MiB."
)
@click.option(
    "--amount",
    type=at_least_one,
    default=64,
    show_default=True,
    metavar="MIB",
    help="Data to read in each measurement.",
)
@repeat_option(3)
@html_option
@json_option
def source(
    config: Path,
    only: str | None,
    disk: str | None,
    depths: str,
    sizes: str,
    amount: int,
    repeat: int,
    page: Path | None,
    as_json: bool,
) -> int:
    """The transport of a job: latency and throughput by reads in flight and their size.

    The VM is captured once: of a VM on a server a snapshot is taken, and removed. Beside the throughput stands
    depth x size / latency, with the latency of the smallest depth. The first reads warm the caches of files and
    servers for the next rounds.
    """
    _expect_page(page)
    job = _one_job(config, only)
    numbers = sizes_of("--depths", depths), sizes_of("--sizes", sizes)
    machine = undisturbed(job.machine)
    _tell(f"the measurement: {sentence}" for sentence in machine.effects())
    rows = run_async(measure_source, machine, disk, *numbers, amount * MiB, repeat)
    about = machine_line()
    document = {
        "kind": "bench source",
        "about": about,
        "config": str(config),
        "job": job.title,
        "results": rows,
    }
    lines = [about, f"source of job {job.title} of {config}", *median_lines(document)]
    return _show(document, lines, as_json, page)


@bench.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@json_option
def compare(first: Path, second: Path, as_json: bool) -> None:
    """The figures of the file SECOND as ratios to those of the file FIRST, round by round.

    Both were written by one benchmark with --json. Only cases that both have are compared.
    """
    document = comparison(read_document(first), read_document(second))
    show(document, comparison_lines(document), as_json)


def _expect_page(page: Path | None) -> None:
    """Find out before anything is measured whether a page can be made. Raises ConfigError."""
    if page is None:
        return
    from .page import expect_plots

    expect_plots()
    if not os.access(page if page.exists() else page.parent, os.W_OK):
        raise ConfigError(
            f"The page {page} cannot be written.", remedy="Name a file in a directory of yours."
        )


def _show(document: Mapping[str, Any], lines: Sequence[str], as_json: bool, page: Path | None) -> int:
    """Print the result, and write the page if one was asked for. Returns the exit code."""
    show(document, lines, as_json)
    if page is None:
        return EXIT_DONE
    from .page import page_of

    try:
        page.write_text(page_of(document), encoding="utf-8")
    except OSError as exc:
        report(f"The page {page} cannot be written: {exc.strerror}.")
        return EXIT_ATTENTION
    return EXIT_DONE
