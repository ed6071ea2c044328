"""`python -m vadpipe.lab.faults.crash_states --states N --seed S`: crashes of the machine, and what they leave.

Backups are played in processes whose file operations are recorded: `init`, runs, two that are killed, one that
fails, sweeps of what these left (once by two sweepers at once), and merges of index segments. Then the machine
crashes before each operation in turn, again and again, each time with another choice of what survives. In every
state all that was published is restored, and the next run has to succeed and to leave nothing behind.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import click
import trio

from ..vddk_build import CompilerMissing
from .history import STEPS, Expected, scratch, small_files, wrong_with
from .operations import Record, State, read_log

_RECORDER = Path(__file__).with_name("recorder.c")


def build_recorder(directory: Path) -> Path:
    """Compile recorder.c into `directory`. Raises CompilerMissing."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise CompilerMissing("recorder.c needs a C compiler (Debian: apt install gcc)")
    library = directory / "recorder.so"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", library, _RECORDER, "-ldl", "-lpthread"], check=True
    )
    return library


def recorded(directory: Path, seed: int) -> Record:
    """Play the history below `directory` and return its record."""
    recorder = build_recorder(directory)
    root, log = directory / "repository", directory / "operations"
    root.mkdir()
    environment = os.environ | {
        "LD_PRELOAD": str(recorder),
        "CRASH_ROOT": str(root),
        "CRASH_LOG": str(log),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for step in range(len(STEPS)):
        command = [sys.executable, "-m", "vadpipe.lab.faults.history", str(root), str(seed), str(step)]
        subprocess.run(command, env=environment, check=True)
    return Record(read_log(log))


def states(record: Record, count: int, seed: int) -> Iterator[tuple[int, str, State]]:
    """Up to `count` different states: the moment, how it was made, and the state.

    First what is left when the process dies and when nothing uncertain survives, at every moment; then drawn ones.
    """
    seen: set[tuple[int, int]] = set()
    moments = range(len(record.operations) + 1)

    def candidates() -> Iterator[tuple[int, str, State]]:
        for moment in moments:
            yield moment, "everything", record.everything(moment)
            yield moment, "certain", record.certain(moment)
        for turn in range(20 * count):
            draw = random.Random(f"{seed}/{turn}")
            moment = draw.choice(moments)
            yield moment, f"drawn {turn}", record.drawn(moment, draw)

    for moment, made, state in candidates():
        if len(seen) >= count:
            return
        key = (len(record.marks_before(moment)), state.key())
        if key not in seen:
            seen.add(key)
            yield moment, made, state


def check(record: Record, moment: int, state: State, seed: int, place: Path | None = None) -> list[str]:
    """What is wrong with a state, as `history.wrong_with` says it."""
    with tempfile.TemporaryDirectory(dir=place) as directory:
        root = Path(directory, "repository")
        root.mkdir()
        state.write(root)
        return trio.run(wrong_with, root, seed, Expected.of(record.marks_before(moment)))


_work: tuple[Record, int] | None = None


def _begin_worker(record: Record, seed: int) -> None:
    global _work  # noqa: PLW0603 - a worker process has one record
    small_files()
    _work = record, seed


def _check_one(job: tuple[int, str, State]) -> tuple[int, str, list[str]]:
    assert _work is not None
    moment, made, state = job
    return moment, made, check(_work[0], moment, state, _work[1], scratch())


def campaign(count: int, seed: int, workers: int) -> tuple[Counter[str], list[str]]:
    """Check `count` states; how many there were by the way they were made, and what is wrong, a line per state."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        record = recorded(Path(directory), seed)
        counts["operations"] = len(record.operations)
        jobs = states(record, count, seed)
        with get_context("spawn").Pool(workers, _begin_worker, (record, seed)) as pool:
            for moment, made, found in pool.imap_unordered(_check_one, jobs, chunksize=4):
                counts[made.split()[0]] += 1
                if found:
                    wrong.append(f"before operation {moment}, {made}: {'; '.join(found)}")
    return counts, wrong


@click.command()
@click.option("--states", "count", default=20_000, show_default=True, help="How many states to check.")
@click.option("--seed", default=1, show_default=True)
@click.option("--workers", default=os.cpu_count() or 1, show_default=True)
def main(count: int, seed: int, workers: int) -> None:
    """Check what crashes of the machine leave of a repository."""
    counts, wrong = campaign(count, seed, workers)
    operations = counts.pop("operations")
    click.echo(f"{operations} file operations recorded, seed {seed}; {counts.total()} crash states checked:")
    click.echo(", ".join(f"{made} {number}" for made, number in sorted(counts.items())))
    for line in wrong:
        click.echo(f"WRONG {line}", err=True)
    click.echo(f"{len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
