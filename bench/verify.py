"""What it costs to verify a repository, and to restore a point into nothing, beside decoding and digesting alone.

    python bench/verify.py [--size 1] [--seed 1] [--points 500] [--rounds 5] [--directory DIR]

Two repositories. `image`: one backup of a file system with files of this machine. `points`: one small VM that was
backed up many times, one block of 64 KiB and one document changed each time. In turns: `verify` as the command does
it, from opening the repository on; a restore of the newest point that keeps nothing; and their floors, bare loops
that read the packs, decode each frame and digest each chunk: of all packs, and of the frames of that point.
`objects` is verify beside a floor that reads the other objects, too, parses JSON documents and digests all of them.
CPU-seconds of this process, all threads together; a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from struct import Struct
from time import process_time

import numpy as np
import trio
import zstandard
from blake3 import blake3

from pipeline import GiB, Job, KiB, MachineId, MiB
from pipeline.testing.fakes import FakeCapture, PatternDisk
from sinks import NullSink, ReadPoint, Repository, open_repository
from stages import LocalVm
from vadpipe.bench.images import ext4_image
from vadpipe.bench.machine import machine_line
from vadpipe.bench.path import incremental_path
from vadpipe.cli.main import keep_freed_memory
from vadpipe.repository.format.frames import CHUNK, HEADER, HEADER_SIZE, Kind
from vadpipe.repository.maintenance.verify import verify
from vadpipe.repository.reader import DiskContent, RepositoryReader

MACHINE = MachineId("00000000-0000-0000-0000-000000000001", "small")
_CHUNK = Struct("<I32s")
UNCHANGED = bytes(range(256)) * 12  # a document that is the same in all points


@dataclass(frozen=True)
class Small:
    """A VM with one disk, and two documents."""

    disk: PatternDisk
    number: int
    name: str = MACHINE.name
    pool_size: int = 0

    @asynccontextmanager
    async def capture(self) -> AsyncIterator[FakeCapture]:
        documents = {"vm.vmx": UNCHANGED, "manifest.json": f"backup {self.number}".encode() * 100}
        yield FakeCapture(MACHINE, [self.disk], documents=documents)

    def effects(self) -> Sequence[str]:
        return []


async def image(place: Path, directory: Path, size: int, fill: int, seed: int) -> None:
    repository = Repository(place)
    repository.init()
    disk = ext4_image(directory, size, fill, seed)
    await Job(LocalVm(disk.parent), incremental_path, repository).run()


async def points(place: Path, count: int) -> None:
    repository = Repository(place)
    repository.init()
    disk = PatternDisk(8 * MiB)
    for number in range(count):
        disk.write(number * 64 * KiB % disk.capacity, 64 * KiB, seed=number)
        await Job(Small(disk, number), incremental_path, repository).run()


@dataclass(frozen=True)
class Bare:
    """The bare loop: some frames by pack, as (offset, size), and the keys.

    `others`: objects that are read, too.
    """

    frames: Sequence[tuple[Path, Sequence[tuple[int, int]]]]
    keys: dict[int, bytes]
    others: Sequence[Path] = ()

    def __call__(self) -> None:
        self._read_packs()
        for other in self.others:
            content = other.read_bytes()
            if other.suffix == ".json":
                json.loads(content)
            blake3(content).digest()

    def _read_packs(self) -> None:
        decompressor = zstandard.ZstdDecompressor()
        for pack, frames in self.frames:
            content = memoryview(pack.read_bytes())
            for offset, size in frames:
                frame = content[offset : offset + size]
                _, kind, codec, _, length, _, count, _, _ = HEADER.unpack_from(frame)
                end = HEADER_SIZE + count * CHUNK.itemsize
                data = frame[end:]
                if codec:
                    data = memoryview(decompressor.decompress(data, max_output_size=length))
                key, begin = self.keys[kind], 0
                for chunk_length, digest in _CHUNK.iter_unpack(frame[HEADER_SIZE:end]):
                    assert blake3(data[begin : begin + chunk_length], key=key).digest() == digest
                    begin += chunk_length


def floors(reader: RepositoryReader) -> tuple[Bare, Bare]:
    """Of all packs, and of the newest point's frames of disk data."""
    found: dict[str, set[tuple[int, int]]] = {}
    for segment in reader.index.segments:
        for address in segment.addresses(np.arange(segment.frames)):
            found.setdefault(address.pack, set()).add((address.offset, address.size))
    needed: dict[str, set[tuple[int, int]]] = {}
    point = reader.points[-1]
    for disk in point.disks:
        content = DiskContent(reader, point, disk)
        for offset, digest in content.pages():
            for address in filter(None, content.page(offset, digest).addresses):
                needed.setdefault(address.pack, set()).add((address.offset, address.size))
    keys = {int(kind): kind.key(reader.config.keys) for kind in Kind}

    def bare(frames: dict[str, set[tuple[int, int]]]) -> Bare:
        root = Path(reader.objects.place())
        return Bare(
            [(root / reader.objects.pack(pack), sorted(places)) for pack, places in sorted(frames.items())],
            keys,
        )

    return bare(found), bare(needed)


async def verify_all(place: Path) -> None:
    async with open_repository(place) as reader:
        report = await verify(reader)
        assert not report.damages, report.lines()


async def restore_newest(place: Path) -> None:
    async with open_repository(place, wanted="latest") as reader:
        point = reader.points[-1]
        for disk in point.disks:
            await (ReadPoint(reader, point, disk.key) | NullSink()).run()


def cpu_of(call: Callable[[], object]) -> float:
    gc.collect()
    before = process_time()
    call()
    return process_time() - before


def compare(name: str, place: Path, rounds: int) -> Iterable[str]:
    stored = sum(pack.stat().st_size for pack in place.rglob("*.pack"))
    yield f"{name}: {stored / MiB:.1f} MiB in packs"
    whole, newest = floors(RepositoryReader.of(Repository(place).backend()))
    others = [path for path in place.rglob("*") if path.is_file() and path.suffix != ".pack"]
    cases: dict[str, tuple[Callable[[], object], Bare]] = {
        "verify": (lambda: trio.run(verify_all, place), whole),
        "objects": (lambda: trio.run(verify_all, place), replace(whole, others=others)),
        "restore": (lambda: trio.run(restore_newest, place), newest),
    }
    costs: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
    for number in range(rounds + 1):
        for case, (call, floor) in cases.items():
            cost = cpu_of(call), cpu_of(floor)
            if number:  # the first round reads the files into the cache of the system
                costs[case].append(cost)
    for case, measured in costs.items():
        yield (
            f"  {case:8} {median(own for own, _ in measured):8.3f} CPU-s, floor "
            f"{median(floor for _, floor in measured):8.3f} CPU-s: "
            f"{median(own / floor for own, floor in measured):.2f} times"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=float, default=1, metavar="GIB", help="of the image (1)")
    parser.add_argument("--fill", type=int, metavar="MIB", help="of files in it (three quarters of its size)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--directory", type=Path, default=Path("build/bench"), help="for images and repositories"
    )
    given = parser.parse_args()
    keep_freed_memory()  # as the command does
    print(machine_line())
    size = int(given.size * GiB)
    fill = given.fill * MiB if given.fill else size * 3 // 4
    given.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.directory) as made:
        trio.run(image, Path(made, "image"), given.directory.resolve(), size, fill, given.seed)
        trio.run(points, Path(made, "points"), given.points)
        for name in ("image", "points"):
            for line in compare(name, Path(made, name), given.rounds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
