"""What a run with nothing new costs, as a repository gets restore points.

    python bench/points.py [--points 2000] [--machines 500] [--directory DIR]

One VM is backed up again and again without a change, and between that other VMs once each. CPU-seconds are those of
a whole run of the engine in this process, after start-up: opening the repository, the run, publishing and ending
it. Each figure is the median of the runs around that point.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import process_time

import trio

from pipeline import Job, MiB
from pipeline.testing.fakes import FakeMachine, PatternDisk
from sinks import Repository
from vadpipe.bench.machine import machine_line, peak_rss
from vadpipe.bench.path import incremental_path

AROUND = 9  # runs of a figure


async def cost(repository: Repository, machine: FakeMachine) -> float:
    before = process_time()
    await Job(machine, incremental_path, repository).run()
    return process_time() - before


def machine(number: int) -> FakeMachine:
    """A VM with a disk of 8 MiB."""
    uuid = f"00000000-0000-0000-0000-{number:012}"
    return FakeMachine([PatternDisk(8 * MiB, seed=number)], f"vm{number}", uuid=uuid)


async def measure(directory: Path, points: int, machines: int) -> Sequence[tuple[int, int, float]]:
    """Points of the first VM, other VMs, and CPU-seconds of a run."""
    repository = Repository(directory / "repository")
    repository.init()
    first, costs, others = machine(0), [], 0
    found: list[tuple[int, int, float]] = []
    steps = sorted({10, points // 4, points // 2, points})
    for number in range(1, points + 1):
        while others < machines * number // points:
            others += 1
            await cost(repository, machine(others))
        costs.append(await cost(repository, first))
        if number in steps:
            found.append((number, others, median(costs[-AROUND:])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--machines", type=int, default=500)
    parser.add_argument(
        "--directory", type=Path, help="Where the repository is made; by default a temporary one."
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.directory) as place:
        found = trio.run(measure, Path(place), chosen.points, chosen.machines)
    print(machine_line())
    for points, others, seconds in found:
        print(
            f"{points:6} points of the VM, {others:5} other VMs: {seconds:.4f} CPU-s a run, "
            f"{seconds / found[0][2]:.2f} times the first"
        )
    print(f"most memory {peak_rss() / MiB:.0f} MiB")


if __name__ == "__main__":
    main()
