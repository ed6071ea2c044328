"""How much a store grows by a full backup, by two kinds of changes and by a sibling, and what that costs.

    python bench/growth.py [--size 12] [--seed 1] [--tools ours,restic,borg,borg-fixed] [--level 1]

One disk image is made from files of this machine, chosen by seed, and backed up four times by every tool, in turns:

    full      the image
    blocks    random blocks of 64 KiB of its data rewritten; nothing tells which
    writes    random writes of 4 KiB into its data; our path gets them from change tracking, which tells of the
              64 KiB around each; the other tools find them themselves
    sibling   another image: the same files in other places

The changes of a step are made in the image of the step before. `floor` is what the clusters of 4 KiB that really
changed take when they are compressed together, 1 MiB at a time with zstd level 1: no store can grow by less much.
Growth is the sum of the sizes of the store's files; CPU is user and system time of the process and its children.
`unrefined` is our path without Refine. borg compresses with zstd,1; borg-fixed cuts at 64 KiB.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trio
import zstandard

from pipeline import (
    CLUSTER,
    Buffer,
    BufferPool,
    ChangedAreas,
    ConfigError,
    Disk,
    DiskReceipt,
    Extents,
    GiB,
    Job,
    KiB,
    MiB,
    Pipeline,
)
from sinks import IntoRepository, Point, Repository
from stages import (
    ChangedExtents,
    Compress,
    CutChunks,
    Dedupe,
    Digest,
    LocalVm,
    MarkZeros,
    ReadSpans,
    Refine,
    Zstd,
)
from vadpipe.bench.images import ext4_image
from vadpipe.bench.machine import machine_line
from vadpipe.cli.main import keep_freed_memory

BLOCK = 64 * KiB  # what is rewritten, and what change tracking tells apart
TOGETHER = 1 * MiB

Command = list[str | Path]
Commands = Callable[
    [Path, Path, Path | None], list[Command]
]  # of a store, an image and the file of what was written


@dataclass(frozen=True)
class Cost:
    """CPU-seconds, seconds, and bytes that the store grew by."""

    cpu_s: float
    wall_s: float
    growth: int


# ---- the images


def data_of(image: Path) -> Extents:
    """What the image holds, by the file system that it lies in."""
    found: list[tuple[int, int]] = []
    with image.open("rb") as file:
        size, at = image.stat().st_size, 0
        while at < size:
            try:
                data = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end
                break
            at = os.lseek(file.fileno(), data, os.SEEK_HOLE)
            found.append((data, at - data))
    return Extents.of(found)


def places(image: Path, unit: int, count: int, chance: np.random.Generator) -> list[int]:
    """Offsets of different units that hold data, ascending."""
    data = data_of(image)
    first, last = -(-data.start // unit), data.end // unit
    units = np.concatenate([np.arange(low, high) for low, high in zip(first, last, strict=True)])
    if len(units) < count:
        raise ConfigError(f"The image holds {len(units)} pieces of {unit} bytes, {count} are to change.")
    chosen: list[int] = (np.sort(chance.choice(units, count, replace=False)) * unit).tolist()
    return chosen


class Content:
    """New content as guests write it: text and records of a few hundred words, and one piece in four of noise."""

    def __init__(self, chance: np.random.Generator) -> None:
        self._chance = chance
        self._words = [chance.bytes(int(size)).hex().encode() for size in chance.integers(1, 6, 400)]

    def __call__(self, length: int) -> bytes:
        if self._chance.random() < 0.25:
            return self._chance.bytes(length)
        drawn = self._chance.zipf(1.3, length // 3) % len(self._words)
        return b" ".join([self._words[number] for number in drawn.tolist()]).ljust(length, b".")[:length]


def rewrite(image: Path, unit: int, count: int, chance: np.random.Generator) -> list[int]:
    """Write new content at random places. Returns them."""
    new = Content(chance)
    chosen = places(image, unit, count, chance)
    with image.open("r+b") as file:
        for offset in chosen:
            file.seek(offset)
            file.write(new(unit))
    return chosen


def floor_of(image: Path, offsets: Sequence[int], unit: int) -> int:
    """What these pieces take when they are compressed together."""
    compressor = zstandard.ZstdCompressor(level=1)
    pieces: list[bytes] = []
    total = 0
    with image.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            pieces.append(file.read(unit))
            if sum(map(len, pieces)) >= TOGETHER:
                total, pieces = total + len(compressor.compress(b"".join(pieces))), []
    return total + (len(compressor.compress(b"".join(pieces))) if pieces else 0)


# ---- our path


class Tracked:
    """A disk with change tracking: it tells of blocks around `written`, whatever it is asked since."""

    def __init__(self, disk: Disk, written: Extents | None) -> None:
        self._disk = disk
        self._written = written
        self.key, self.label, self.capacity = disk.key, disk.label, disk.capacity
        self.pool: BufferPool = disk.pool
        self.change_id = "tracked"

    async def allocated(self, offset: int, length: int) -> Extents:
        return await self._disk.allocated(offset, length)

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        await self._disk.read(buffer, offset, wanted)

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        await trio.lowlevel.checkpoint()
        length = self.capacity - offset
        written = Extents.whole(length, offset) if self._written is None else self._written
        return ChangedAreas(offset, length, written.within(offset, length))


def back_up(store: Path, image: Path, level: int, refined: bool, written: Extents | None) -> None:
    """One run of our path; `written` is what change tracking tells, None where there is none."""

    def path(disk: Disk, point: Point) -> Pipeline[DiskReceipt]:
        tracked = Tracked(disk, written)
        digested = (
            ChangedExtents(tracked, point.previous(disk) if written is not None else None)
            | ReadSpans(tracked)
            | MarkZeros()
            | CutChunks()
            | Digest(point)
        )
        narrowed = digested | Refine(point, tracked) if refined else digested
        return narrowed | Dedupe(point) | Compress(Zstd(level)) | IntoRepository(point, tracked)

    keep_freed_memory()  # as the command does
    repository = Repository(store)
    if not store.exists():
        repository.init()
    trio.run(Job(LocalVm(image.parent), path, into=repository).run)


# ---- the tools


def ours(level: int, refined: bool) -> Commands:
    def commands(store: Path, image: Path, written: Path | None) -> list[Command]:
        own: Command = [sys.executable, __file__, "--back-up", store, image, "--level", str(level)]
        if not refined:
            own.append("--unrefined")
        if written is not None:
            own += ["--written", written]
        return [own]

    return commands


def restic(store: Path, image: Path, _: Path | None) -> list[Command]:
    made: list[Command] = [] if store.exists() else [["restic", "-q", "-r", store, "init"]]
    return [*made, ["restic", "-q", "-r", store, "backup", "--force", image]]


def borg(*chunker: str) -> Commands:
    def commands(store: Path, image: Path, _: Path | None) -> list[Command]:
        made: list[Command] = [] if store.exists() else [["borg", "init", "-e", "none", store]]
        name = f"{store}::{time.time_ns()}"
        return [*made, ["borg", "create", "-C", "zstd,1", "--files-cache", "disabled", *chunker, name, image]]

    return commands


def tools(level: int) -> dict[str, Commands]:
    return {
        "ours": ours(level, True),
        "unrefined": ours(level, False),
        "restic": restic,
        "borg": borg(),
        "borg-fixed": borg("--chunker-params", "fixed,65536", "--sparse"),
    }


def measure(commands: Sequence[Sequence[str | Path]], store: Path, environment: dict[str, str]) -> Cost:
    """Run commands one after the other. What the children of this process spent meanwhile is theirs."""
    before, begun, spent_s = size_of(store), time.perf_counter(), children_s()
    for command in commands:
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{command[0]} failed: {done.stderr}")
    return Cost(children_s() - spent_s, time.perf_counter() - begun, size_of(store) - before)


def children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def size_of(store: Path) -> int:
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


# ---- the steps


def steps(
    base: Path, sibling: Path, scratch: Path, given: argparse.Namespace
) -> Iterator[tuple[str, Path, int, Path | None]]:
    """Name, image, floor in bytes (0: none) and the file with what change tracking tells, step by step."""
    chance = np.random.default_rng(given.seed)
    image = scratch / "vm" / base.name
    shutil.copytree(
        base.parent, image.parent, ignore=lambda _, names: [name for name in names if name == base.name]
    )
    subprocess.run(["cp", "--sparse=always", base, image], check=True)
    yield "full", image, 0, None
    chosen = rewrite(image, BLOCK, given.blocks, chance)
    yield "blocks", image, floor_of(image, chosen, BLOCK), None
    chosen = rewrite(image, CLUSTER, given.writes, chance)
    written = scratch / "written.npy"
    np.save(written, np.unique(np.array(chosen) // BLOCK) * BLOCK)
    yield "writes", image, floor_of(image, chosen, CLUSTER), written
    yield "sibling", sibling, 0, None


def compare(given: argparse.Namespace) -> None:
    directory = given.directory.resolve()
    size = int(given.size * GiB)
    base = ext4_image(directory, size, given.fill * MiB, given.seed)
    sibling = ext4_image(directory, size, given.fill * MiB, given.seed, layout=1)
    chosen = {name: command for name, command in tools(given.level).items() if name in given.tools}
    print(machine_line())
    print(
        f"ext4 image of {given.size:g} GiB with {given.fill} MiB of files, seed {given.seed}; "
        f"{given.blocks} blocks of 64 KiB, {given.writes} writes of 4 KiB; our zstd level {given.level}"
    )
    print(f"{'step':8} {'tool':10} {'CPU-s':>8} {'wall s':>8} {'growth MiB':>11} {'of the floor':>13}")
    with tempfile.TemporaryDirectory(dir=directory) as made:
        scratch = Path(made)
        environment = {
            **os.environ,
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": f"{scratch}/restic-cache",
            "BORG_BASE_DIR": f"{scratch}/borg-base",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        for step, image, floor, written in steps(base, sibling, scratch, given):
            if floor:
                print(f"{step:8} {'floor':10} {'':8} {'':8} {floor / MiB:11.2f}")
            for name, command in chosen.items():
                store = scratch / name
                cost = measure(command(store, image, written), store, environment)
                ratio = f"{cost.growth / floor:13.3f}" if floor else ""
                print(
                    f"{step:8} {name:10} {cost.cpu_s:8.2f} {cost.wall_s:8.2f} {cost.growth / MiB:11.2f} {ratio}",
                    flush=True,
                )


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--size", type=float, default=12, metavar="GIB", help="of the image (12)")
    arguments.add_argument("--fill", type=int, metavar="MIB", help="of files in it (308 for each GiB)")
    arguments.add_argument("--blocks", type=int, help="of 64 KiB that are rewritten (100 for each GiB)")
    arguments.add_argument("--writes", type=int, help="of 4 KiB (1,667 for each GiB)")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--level", type=int, default=1, help="of our zstd (1)")
    arguments.add_argument(
        "--tools", type=lambda text: text.split(","), default=["ours", "restic", "borg", "borg-fixed"]
    )
    arguments.add_argument(
        "--directory", type=Path, default=Path("build/bench"), help="for images and stores"
    )
    arguments.add_argument("--back-up", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--unrefined", action="store_true", help=argparse.SUPPRESS)
    arguments.add_argument("--written", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.back_up:
        store, image = given.back_up
        written = None
        if given.written:
            blocks = np.load(given.written)
            written = Extents.from_columns(blocks, np.full(len(blocks), BLOCK))
        back_up(store, image, given.level, not given.unrefined, written)
        return
    given.fill = given.fill or round(given.size * 3700 / 12)
    given.blocks = given.blocks or round(given.size * 1200 / 12)
    given.writes = given.writes or round(given.size * 20_000 / 12)
    if unknown := set(given.tools) - set(tools(1)):
        arguments.error(f"unknown tools: {', '.join(sorted(unknown))}; there are {', '.join(tools(1))}")
    for program in ("restic", "borg"):
        if any(name.startswith(program) for name in given.tools) and shutil.which(program) is None:
            arguments.error(f"{program} is not installed; choose others with --tools")
    try:
        compare(given)
    except ConfigError as error:
        arguments.error(str(error))


if __name__ == "__main__":
    main()
