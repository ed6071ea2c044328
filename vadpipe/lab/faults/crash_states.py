"""`python -m vadpipe.lab.faults.crash_states --states N --seed S`: crashes of the machine, and what they leave.

Two histories are played in processes whose file operations are recorded: backups, runs that are killed or fail,
merges of index segments, points that are forgotten, prunes that rewrite packs, one that is killed, copies into
another repository, and in a sealed repository key slots that are added and removed and new epochs. Then the machine
crashes before each operation in turn, again and again, each time with another choice of what survives. In every
state all that was published is restored, and a backup and two prunes have to succeed and to leave nothing behind.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path

import click
import trio

from ..vddk_build import CompilerMissing
from .aftermath import Expected, work_in_the_event_loop, wrong_with
from .history import HISTORIES, scratch, small_files, write_keys
from .operations import Record, SharedFiles, State, read_log

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


def recorded(directory: Path, history: str, seed: int) -> Record:
    """Play a history below `directory` and return its record."""
    recorder = build_recorder(directory)
    root, log = directory / "root", directory / "operations"
    root.mkdir()
    write_keys(directory / "keys", seed)
    environment = os.environ | {
        "LD_PRELOAD": str(recorder),
        "CRASH_ROOT": str(root),
        "CRASH_LOG": str(log),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for step in range(len(HISTORIES[history])):
        command = [
            sys.executable,
            "-m",
            "vadpipe.lab.faults.history",
            str(root),
            history,
            str(seed),
            str(step),
        ]
        subprocess.run(command, env=environment, check=True)
    record = Record(read_log(log))
    if record.everything(len(record.operations)) != State.of(root):
        raise AssertionError("recorder.c missed an operation: its record leads to other files than there are")
    return record


def states(record: Record, moments: range, seed: int) -> Iterator[tuple[int, str, State]]:
    """Different states of some moments: the moment, how it was made, and the state.

    What is left when the process dies, what is left when nothing uncertain survives, and two that are drawn, for
    every moment, mixed; then drawn ones, until hardly a draw gives a new one.
    """
    seen: set[tuple[int, int]] = set()
    marks = {moment: len(record.marks_before(moment)) for moment in moments}
    mixed = [(moment, kind) for moment in moments for kind in ("everything", "certain", "drawn", "drawn")]
    random.Random(f"{seed}/{moments.start}").shuffle(mixed)

    def candidates() -> Iterator[tuple[int, str, State]]:
        for turn in count():
            draw = random.Random(f"{seed}/{moments.start}/{turn}")
            moment, kind = mixed[turn] if turn < len(mixed) else (draw.choice(moments), "drawn")
            if kind == "everything":
                yield moment, kind, record.everything(moment)
            elif kind == "certain":
                yield moment, kind, record.certain(moment)
            else:
                yield moment, f"drawn {turn}", record.drawn(moment, draw)

    in_vain = 0
    for moment, made, state in candidates():
        key = marks[moment], state.key()
        if key in seen:
            in_vain += 1
            if in_vain > _IN_VAIN:
                return
            continue
        in_vain = 0
        seen.add(key)
        yield moment, made, state


def check(
    record: Record,
    history: str,
    seed: int,
    moment: int,
    state: State,
    *,
    place: Path | None = None,
    shared: SharedFiles | None = None,
) -> list[str]:
    """What is wrong with a state, as `aftermath.wrong_with` says it."""
    with tempfile.TemporaryDirectory(dir=place) as directory:
        root = Path(directory, "root")
        root.mkdir()
        write_keys(Path(directory, "keys"), seed)
        state.write(root, shared)
        expected = Expected.of(record.marks_before(moment))
        return trio.run(partial(wrong_with, root, history, seed, expected, thorough=moment % _THOROUGH == 0))


@dataclass(frozen=True)
class _Block:
    """Moments of one record that one worker checks: the states from number `start` up to `stop`."""

    history: str
    moments: range
    start: int
    stop: int


# At one of so many moments every point is restored again after the next runs.
_THOROUGH = 8
# Moments of a block. States are different within a block; those of neighbours differ but for their borders.
_MOMENTS = 16
_IN_VAIN = 300

_records: dict[str, tuple[Record, SharedFiles]] = {}
_seed = 0
_place: Path | None = None


def _begin_worker(records: Mapping[str, Record], seed: int, place: Path) -> None:
    global _seed, _place
    logging.disable(logging.WARNING)  # what a crash left is no news here
    small_files()
    work_in_the_event_loop()
    _seed, _place = seed, place
    for history, record in records.items():
        _records[history] = record, SharedFiles(record, Path(tempfile.mkdtemp(dir=place)))


def _check_block(block: _Block) -> tuple[_Block, Counter[str], list[str]]:
    record, shared = _records[block.history]
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for moment, made, state in islice(states(record, block.moments, _seed), block.start, block.stop):
        counts[made.split()[0]] += 1
        found = check(record, block.history, _seed, moment, state, place=_place, shared=shared)
        if found:
            wrong.append(f"{block.history}, before operation {moment}, {made}: {'; '.join(found)}")
    return block, counts, wrong


def _blocks(records: Mapping[str, Record], total: int) -> list[_Block]:
    """Blocks with `total` states together, as many for each moment."""
    cut = [
        (history, range(low, min(low + _MOMENTS, len(record.operations) + 1)))
        for history, record in records.items()
        for low in range(0, len(record.operations) + 1, _MOMENTS)
    ]
    every, reached, blocks = sum(len(moments) for _, moments in cut), 0, list[_Block]()
    for history, moments in cut:
        low, reached = reached * total // every, reached + len(moments)
        blocks.append(_Block(history, moments, 0, reached * total // every - low))
    return blocks


def campaign(total: int, seed: int, workers: int) -> tuple[Counter[str], list[str]]:
    """Check `total` states; how many there were by the way they were made, and what is wrong, a line per state."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(dir=scratch()) as directory:
        records: dict[str, Record] = {}
        for history in HISTORIES:
            place = Path(directory, history)
            place.mkdir()
            records[history] = recorded(place, history, seed)
            counts["operations"] += len(records[history].operations)
        blocks, left = _blocks(records, total), total
        with get_context("spawn").Pool(workers, _begin_worker, (records, seed, Path(directory))) as pool:
            while blocks and left > 0:
                full: list[_Block] = []
                for block, checked, found in pool.imap_unordered(_check_block, blocks):
                    counts += checked
                    left -= checked.total()
                    wrong += found
                    if checked.total() == block.stop - block.start:
                        full.append(block)
                # Some moments have few states: the others make up for that.
                more = -(-left // max(1, len(full)))
                blocks = [replace(block, start=block.stop, stop=block.stop + more) for block in full]
                blocks = sorted(blocks, key=lambda block: (block.history, block.moments.start))[
                    : -(-left // more) if more else 0
                ]
    return counts, wrong


@click.command()
@click.option("--states", "total", default=100_000, show_default=True, help="How many states to check.")
@click.option("--seed", default=1, show_default=True)
@click.option("--workers", default=os.cpu_count() or 1, show_default=True)
def main(total: int, seed: int, workers: int) -> None:
    """Check what crashes of the machine leave of a repository."""
    started = time.monotonic()
    counts, wrong = campaign(total, seed, workers)
    operations = counts.pop("operations")
    click.echo(
        f"{operations} file operations recorded, seed {seed}; {counts.total()} crash states checked in "
        f"{time.monotonic() - started:.0f} s:"
    )
    click.echo(", ".join(f"{made} {number}" for made, number in sorted(counts.items())))
    for line in wrong:
        click.echo(f"WRONG {line}", err=True)
    click.echo(f"{len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
