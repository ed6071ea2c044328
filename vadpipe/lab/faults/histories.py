"""`python -m vadpipe.lab.faults.histories --count N --seed S`: VMs live, are backed up, and commands are killed.

Each history draws two VMs and a repository, which is sealed in every other one. Disks are written, zeroed, grown,
exchanged and copied from each other; change tracking is lost now and then. Backups, `forget`, `prune`, copies into
a second repository and changes of keys run to their end or are killed at any moment. What each point has to hold is
kept beside the repositories, as digests of plain arrays. In the end, and now and then before, every point of both
repositories is restored and compared, and they are verified; at last two prunes must leave nothing behind.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import click
import numpy as np
import trio
from numpy.typing import NDArray

from pipeline import (
    BufferPool,
    Disk,
    DiskReceipt,
    Job,
    KiB,
    MiB,
    MoverError,
    Pipeline,
)
from sinks.copying import copy_points
from stages import (
    ChangedExtents,
    Compress,
    CutChunks,
    Dedupe,
    Digest,
    MarkZeros,
    ReadSpans,
    Zstd,
)
from vadpipe.repository import (
    IntoRepository,
    Point,
    Repository,
    RepositoryReader,
)
from vadpipe.repository.format import slot_changes, slots
from vadpipe.repository.format.config import Origin
from vadpipe.repository.maintenance.forgetting import forget

from . import forked
from .expected import Expected, OracleDisk, OracleVm
from .history import (
    HISTORIES,
    key_file,
    make,
    opened,
    path,
    prune_once,
    repository,
    scratch,
    small_files,
    write_keys,
)

# A backup of these disks ends within a second; what takes this long has hung.
HANGS_AFTER_S = 30.0
# A kill comes at a moment up to this; about half of the backups are over by then.
KILLED_WITHIN_S = 0.05

_NAMES = ("main", "copy")
_KILLED = object()


def unrefined_path(disk: Disk, point: Point) -> Pipeline[DiskReceipt]:
    return (
        ChangedExtents(disk, point.previous(disk))
        | ReadSpans(disk)
        | MarkZeros()
        | CutChunks()
        | Digest(point)
        | Dedupe(point)
        | Compress(Zstd(level=-1))
        | IntoRepository(point, disk)
    )


class History:
    """One history, drawn from its seed."""

    def __init__(self, root: Path, history: str, seed: str) -> None:
        self._root = root
        self._history = history
        self._draw = random.Random(seed)
        self._random = np.random.default_rng(self._draw.randrange(1 << 32))
        self._pool = BufferPool()
        self._vms = [OracleVm(f"vm{number}", f"0000000{number}", []) for number in range(2)]
        for vm in self._vms:
            for place in range(self._draw.randint(1, 2)):
                vm.disks.append(self._disk(f"scsi0:{place}"))
        self._expected = Expected()
        self._keys = ["first"]
        self._path = self._draw.choice([path, unrefined_path])
        self.counts: Counter[str] = Counter()

    def _disk(self, key: str) -> OracleDisk:
        capacity = self._draw.choice([MiB // 2, MiB, 3 * MiB // 2, MiB + 512, 700 * KiB + 1536])
        disk = OracleDisk(key, np.zeros(capacity, dtype=np.uint8), self._pool)
        for _ in range(self._draw.randint(0, 4)):
            disk.write(self._draw.randrange(capacity), self._data())
        return disk

    def _data(self) -> NDArray[np.uint8]:
        length = self._draw.choice([1, 512, 4 * KiB, 64 * KiB, 200 * KiB, 600 * KiB])
        match self._draw.randrange(4):
            case 0:
                return np.zeros(length, dtype=np.uint8)
            case 1 if all(vm.disks for vm in self._vms):
                other = self._draw.choice(self._draw.choice(self._vms).disks)
                start = self._draw.randrange(other.capacity) // (4 * KiB) * 4 * KiB
                return other.content[start : start + length].copy()
            case 2:
                return np.resize(self._random.integers(0, 256, 37, dtype=np.uint8), length)
            case _:
                return self._random.integers(0, 256, length, dtype=np.uint8)

    def play(self) -> list[str]:
        """Live through it; what is wrong, empty where nothing is."""
        write_keys(self._root.parent / "keys", 1)
        for name in _NAMES:
            make(self._root, self._history, name)
        for _ in range(self._draw.randint(5, 12)):
            wrong = self._turn()
            if not wrong and self._draw.random() < 0.15:
                wrong = self._wrong()
            if wrong:
                return wrong
        for vm in self._vms:
            wrong = self._back_up(vm, may_be_killed=False)
            if wrong:
                return wrong
        return self._copy(may_be_killed=False) or self._wrong(last=True)

    def _turn(self) -> list[str]:
        """Something happens."""
        drawn = self._draw.random()
        if drawn < 0.5 or not self._expected.published:
            self._live()
            return self._back_up(self._draw.choice(self._vms))
        if drawn < 0.65:
            return self._forget()
        if drawn < 0.85:
            _, wrong = self._run("pruned", lambda: prune_once(self._main()))
            return wrong
        if drawn < 0.95 or self._history == "plain":
            return self._copy()
        return self._change_keys()

    def _main(self) -> Repository:
        return repository(self._root, self._history)

    def _other(self) -> Repository:
        return repository(self._root, self._history, name="copy")

    def _run(
        self, name: str, command: Callable[[], object], *, may_be_killed: bool = True
    ) -> tuple[object, list[str]]:
        """A command in a process of its own: what it returns, or _KILLED, and what is wrong."""
        killed = may_be_killed and self._draw.random() < 0.4
        deadline = self._draw.random() * KILLED_WITHIN_S if killed else HANGS_AFTER_S
        try:
            result = forked.call(command, deadline)
        except forked.Hung as exc:
            self.counts[f"{name}, killed"] += 1
            return _KILLED, [] if killed else [f"{name}: it hangs: {exc}"]
        except RuntimeError as exc:
            return _KILLED, [f"{name}: it fails: {exc}"]
        self.counts[name] += 1
        return result, []

    def _forget(self) -> list[str]:
        some = self._draw.sample(sorted(self._expected.published), 1)

        def remove() -> None:
            main = self._main()
            reader = RepositoryReader.of(main.backend(), main.unlock)
            forget(
                reader.objects, reader.config, Origin(), [each for each in reader.points if each.id in some]
            )

        result, wrong = self._run("forgotten", remove)
        self._expected.forgotten(some, surely=result is not _KILLED)
        return wrong

    def _copy(self, *, may_be_killed: bool = True) -> list[str]:
        async def copy() -> list[str]:
            receipt = await copy_points(self._main(), self._other(), codec=Zstd(level=-1))
            return [*receipt.copied, *receipt.present]

        result, wrong = self._run("copied", lambda: trio.run(copy), may_be_killed=may_be_killed)
        if result is not _KILLED:
            wrong += self._expected.copied_over(cast("list[str]", result))
        return wrong

    def _change_keys(self) -> list[str]:
        """Add the second key, take a new epoch into use, or take the first key away."""
        what = self._draw.choice(["add", "epoch", "remove"])
        if (what == "remove" and "second" not in self._keys) or (what == "add" and "second" in self._keys):
            what = "epoch"

        def change() -> None:
            backend, config, secrets = opened(self._main())
            table = slots.SlotTable.read(backend)
            labels = [slot.label for slot in table.slots]
            if what == "add" and "second" not in labels:
                slot_changes.add_slot(backend, config.id, secrets, key_file(self._root, "second"), "second")
            elif what == "remove" and "first" in labels:
                slot_changes.remove_slot(backend, config.id, secrets, table.named("first"))
            elif what == "epoch":
                slot_changes.new_epoch(backend, config.id, secrets)

        result, wrong = self._run("keys changed", change)
        if what == "add" and result is not _KILLED:
            self._keys.append("second")
        elif what == "remove":
            self._keys = ["second"]
        for key in self._keys:
            try:
                opened(repository(self._root, self._history, [key]))
            except MoverError as exc:
                wrong.append(f"the key {key} opens nothing: {exc}")
        return wrong

    def _live(self) -> None:
        for vm in self._vms:
            for disk in vm.disks:
                for _ in range(self._draw.randint(0, 3)):
                    block = self._draw.choice([1, 512, 4 * KiB])
                    disk.write(self._draw.randrange(disk.capacity) // block * block, self._data())
                if self._draw.random() < 0.1:
                    disk.epoch += 1
                if self._draw.random() < 0.1:
                    grown = np.zeros(
                        disk.capacity + self._draw.choice([512, 64 * KiB, MiB // 2]), dtype=np.uint8
                    )
                    grown[: disk.capacity] = disk.content
                    disk.content = grown
            if self._draw.random() < 0.1:
                place = self._draw.randrange(3)
                vm.disks = [disk for disk in vm.disks if disk.key != f"scsi0:{place}"]
                vm.disks.append(self._disk(f"scsi0:{place}"))
                vm.disks[-1].epoch = self._draw.randrange(1, 1 << 30)

    def _back_up(self, vm: OracleVm, *, may_be_killed: bool = True) -> list[str]:
        async def back_up() -> str:
            return (await Job(vm, self._path, self._main(), disks_at_once=2).run()).point

        result, wrong = self._run("backed up", lambda: trio.run(back_up), may_be_killed=may_be_killed)
        self._expected.backed_up(None if result is _KILLED else str(result), vm.held())
        return wrong

    def _wrong(self, *, last: bool = False) -> list[str]:
        self.counts["checked"] += 1
        try:
            return forked.call(lambda: trio.run(self._check, last), HANGS_AFTER_S)
        except RuntimeError as exc:
            return [f"the check fails: {exc}"]

    async def _check(self, last: bool) -> list[str]:
        wrong: list[str] = []
        for name, where in (("main", self._main()), ("copy", self._other())):
            if last:
                await trio.to_thread.run_sync(prune_once, where)
                await trio.to_thread.run_sync(prune_once, where)
            found = await self._expected.compare(where, copy=name == "copy")
            if last:
                left = [one for room in ("tmp", "runs", "removals") for one in (where.path / room).glob("*")]
                found += [f"left behind: {one.relative_to(where.path)}" for one in left]
            wrong += [f"{name}: {sentence}" for sentence in found]
        return wrong


def _play(job: tuple[int, int]) -> tuple[int, Counter[str], list[str]]:
    seed, number = job
    logging.disable(logging.WARNING)  # what a killed command left is no news here
    small_files()
    with tempfile.TemporaryDirectory(dir=scratch()) as directory:
        kind = list(HISTORIES)[number % len(HISTORIES)]
        history = History(Path(directory, "root"), kind, f"{seed}/{number}")
        return number, history.counts, history.play()


def campaign(count: int, seed: int, workers: int, only: int | None = None) -> tuple[Counter[str], list[str]]:
    """Play `count` histories, or the one with the number `only`; what was done in them, and what is wrong."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    jobs = [(seed, number) for number in (range(count) if only is None else [only])]
    with get_context("spawn").Pool(workers) as pool:
        for number, done, found in pool.imap_unordered(_play, jobs):
            counts += done
            counts["histories"] += 1
            wrong += [f"history {number}: {sentence}" for sentence in found]
    return counts, wrong


@click.command()
@click.option("--count", default=5000, show_default=True, help="How many histories to play.")
@click.option("--seed", default=1, show_default=True)
@click.option("--only", type=int, help="Only the history with this number.")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True)
def main(count: int, seed: int, only: int | None, workers: int) -> None:
    """Back up VMs that live, kill commands, and compare every point with what the VM held."""
    started = time.monotonic()
    counts, wrong = campaign(count, seed, workers, only)
    told = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
    click.echo(f"seed {seed}, {time.monotonic() - started:.0f} s: {told}")
    for line in wrong:
        click.echo(f"WRONG {line}", err=True)
    click.echo(f"{len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
