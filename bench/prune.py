"""What a prune costs beside what it removes, as a repository gets restore points.

    python bench/prune.py [--points 500] [--pages 100] [--directory DIR]

One VM is backed up again and again; its disk has so many map pages of 256 MiB, and one block of 64 KiB changes each
time. After half of the backups, and after all of them, one point is removed, and three prunes run: the first one
names what that point alone needed, the second one deletes it, the third one finds nothing to do. CPU-seconds of
this process, from opening the repository on.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from pathlib import Path
from time import process_time

import trio

from pipeline import Job, KiB, MiB
from pipeline.testing.fakes import FakeMachine, PatternDisk
from sinks import Repository
from vadpipe.bench.machine import machine_line, peak_rss
from vadpipe.bench.path import incremental_path
from vadpipe.repository.format.disk_map import PAGE
from vadpipe.repository.format.restore_point import read_points
from vadpipe.repository.maintenance.forgetting import forget
from vadpipe.repository.maintenance.prune import PruneReport, prune

BLOCK = 64 * KiB


async def back_up(repository: Repository, disk: PatternDisk, first: int, last: int) -> None:
    for number in range(first, last):
        disk.write(0, BLOCK, seed=number)
        await Job(FakeMachine([disk]), incremental_path, repository).run()


def timed_prune(repository: Repository) -> tuple[float, PruneReport]:
    gc.collect()
    before = process_time()
    with repository.open_for_maintenance() as (objects, config):
        report = prune(objects, config, repository.origin, rewrite_below=0)
    return process_time() - before, report


def remove_and_prune(repository: Repository) -> list[tuple[str, float, PruneReport]]:
    """Remove the second point, and prune three times."""
    with repository.open_for_maintenance() as (objects, config):
        points, _ = read_points(objects, config)
        forget(objects, config, repository.origin, points[1:2])
    return [(case, *timed_prune(repository)) for case in ("name", "delete", "nothing")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--pages", type=int, default=100)
    parser.add_argument(
        "--directory", type=Path, help="Where the repository is made; by default a temporary one."
    )
    given = parser.parse_args()
    print(machine_line())
    with tempfile.TemporaryDirectory(dir=given.directory) as place:
        repository = Repository(Path(place) / "repository")
        repository.init()
        disk = PatternDisk(given.pages * PAGE, hole_ratio=0.998)
        made = 0
        for points in (given.points // 2, given.points):
            trio.run(back_up, repository, disk, made, points)
            made = points
            for case, cost, report in remove_and_prune(repository):
                print(
                    f"{points:6} points, {case:8}{cost:8.3f} CPU-s; {report.named_packs} packs named, "
                    f"{report.deleted_packs} deleted",
                    flush=True,
                )
    print(f"most memory {peak_rss() / MiB:.0f} MiB")


if __name__ == "__main__":
    main()
