"""What it costs to read a point over NBD, beside a restore of the same point into nothing.

    python bench/serve.py [--gib 3] [--mib 1536] [--points 30] [--rounds 5] [--seed 1] [--reads 1000]

A file system of this machine's own files is backed up once. In turns, each in a process of its own: a restore of
its point that keeps nothing, and nbdcopy of the whole point into nothing. CPU is that of the restore, and of the
server without nbdcopy; throughput is the point's data by wall time. The ratios are medians of the rounds' ratios.

Then a disk that was backed up --points times, 64 pieces of it changed at random each time: how long the command
`vadpipe serve` takes to answer a first read, after it told its address; and how long reads of 4 KiB at random
places of the newest point take, one after the other, with a cache that holds a sixteenth of the disk.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from pipeline import GiB, Job, KiB, MachineId, MiB
from pipeline.testing.fakes import FakeCapture, PatternDisk
from sinks import Proof, Repository, open_repository, restore
from stages import LocalVm
from vadpipe.bench.images import ext4_image
from vadpipe.bench.machine import cpu_s, machine_line
from vadpipe.bench.path import incremental_path
from vadpipe.cli.main import keep_freed_memory
from vadpipe.nbd import Nbd
from vadpipe.nbd.connection import Connection, Request, shake_hands
from vadpipe.nbd.link import Link
from vadpipe.nbd.protocol import Command
from vadpipe.serve import serve_point

CHAIN = 512 * MiB  # the disk with many points
CHANGES = 64  # pieces of 64 KiB between two of them


@dataclass(frozen=True)
class Changing:
    """A VM with one disk."""

    disk: PatternDisk
    name: str = "chain"
    pool_size: int = 0

    @asynccontextmanager
    async def capture(self) -> AsyncIterator[FakeCapture]:
        machine = MachineId("00000000-0000-0000-0000-000000000002", self.name)
        yield FakeCapture(machine, [self.disk], documents={})

    def effects(self) -> Sequence[str]:
        return []


async def back_up_image(place: Path, image: Path) -> None:
    repository = Repository(place)
    repository.init()
    await Job(LocalVm(image.parent), incremental_path, repository).run()


async def back_up_chain(place: Path, points: int, seed: int) -> None:
    repository = Repository(place)
    repository.init()
    drawn = random.Random(seed)
    disk = PatternDisk(CHAIN, seed=seed)
    for number in range(points):
        if number:
            for _ in range(CHANGES):
                disk.write(
                    drawn.randrange(CHAIN // (64 * KiB)) * 64 * KiB, 64 * KiB, seed=drawn.getrandbits(31)
                )
        await Job(Changing(disk), incremental_path, repository).run()


async def restore_once(place: Path) -> dict[str, float]:
    async with open_repository(place) as reader:
        spent, begun = cpu_s(), time.perf_counter()
        receipt = await restore(reader, reader.points[-1], Proof())
        assert not receipt.failures
        data = sum(disk.data for disk in receipt.disks)
        return {"wall_s": time.perf_counter() - begun, "cpu_s": cpu_s() - spent, "data": data}


async def serve_until_told(place: Path, socket: Path) -> dict[str, float]:
    """Serve until standard input ends. Returns the CPU-seconds of that."""
    async with open_repository(place) as reader, serve_point(reader, reader.points[-1], listen=socket):
        print("ready", flush=True)
        spent = cpu_s()
        await trio.to_thread.run_sync(sys.stdin.read)
        return {"cpu_s": cpu_s() - spent}


def again(*words: object) -> list[str]:
    return [sys.executable, __file__, "--one", *map(str, words)]


def copy_once(place: Path, scratch: Path) -> dict[str, float]:
    socket = scratch / "nbd.sock"
    command = again("serve", place, socket)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        begun = time.perf_counter()
        subprocess.run(["nbdcopy", f"nbd+unix:///?socket={socket}", "null:"], check=True)
        wall_s = time.perf_counter() - begun
        process.stdin.close()
        found: dict[str, float] = json.loads(process.stdout.read())
    return {"wall_s": wall_s, **found}


def compare(place: Path, scratch: Path, rounds: int) -> None:
    throughput, cpu = [], []
    for number in range(rounds + 1):
        restored: dict[str, float] = json.loads(subprocess.check_output(again("restore", place, "-")))
        copied = copy_once(place, scratch)
        if not number:  # it reads the files into the cache of the system
            continue
        gib = restored["data"] / GiB
        throughput.append(restored["wall_s"] / copied["wall_s"])
        cpu.append(copied["cpu_s"] / restored["cpu_s"])
        for name, one in (("restore", restored), ("nbdcopy", copied)):
            print(
                f"  {name}  {gib / one['wall_s']:6.2f} GiB/s  {one['cpu_s'] / gib:6.2f} CPU-s/GiB", flush=True
            )
    print(
        f"nbdcopy against a restore into nothing: throughput {statistics.median(throughput):.2f}, CPU of the "
        f"server {statistics.median(cpu):.2f} (medians of {rounds} rounds)",
        flush=True,
    )


class Reader:
    """Reads over one connection, one request after the other."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._target = memoryview(bytearray(4 * KiB))

    @classmethod
    @asynccontextmanager
    async def open(cls, socket: Path) -> AsyncIterator[Reader]:
        link = await Link.open(str(socket), 0)
        connection = Connection(link, await shake_hands(link, "", None, None), Nbd("/").timeout_s)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.receive)
            yield cls(connection)
            await connection.close()
            nursery.cancel_scope.cancel()

    async def read(self, offset: int) -> None:
        asked = Request(offset, len(self._target), self._target)
        await self.connection.run(Command.READ, asked)
        assert asked.received == len(self._target)
        assert not asked.error


@contextmanager
def served(place: Path, socket: Path, *options: str) -> Iterator[None]:
    """The command, from the moment on that it has told its address."""
    words = [sys.executable, "-m", "vadpipe", "serve", place, "latest", "--socket", socket, *options]
    command = list(map(str, words))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.terminate()


async def first_byte(place: Path, scratch: Path) -> tuple[float, float]:
    """Milliseconds to the answer of a read: from when the address was told, and from the start of the process."""
    socket = scratch / "first.sock"
    begun = time.perf_counter()
    with served(place, socket):
        told = time.perf_counter()
        async with Reader.open(socket) as reader:
            await reader.read(0)
            answered = time.perf_counter()
    return 1000 * (answered - told), 1000 * (answered - begun)


async def random_reads(place: Path, scratch: Path, reads: int, seed: int) -> list[float]:
    """Milliseconds of each."""
    socket = scratch / "random.sock"
    drawn, found = random.Random(seed), []
    with served(place, socket, "--cache", f"{CHAIN // 16 // MiB}MiB"):
        async with Reader.open(socket) as reader:
            for _ in range(reads):
                begun = time.perf_counter()
                await reader.read(drawn.randrange(CHAIN // (4 * KiB)) * 4 * KiB)
                found.append(1000 * (time.perf_counter() - begun))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=int, default=3, help="of the file system")
    parser.add_argument("--mib", type=int, default=1536, help="of files in it")
    parser.add_argument("--points", type=int, default=30, help="of the chain")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reads", type=int, default=1000, help="at random")
    parser.add_argument(
        "--directory", type=Path, default=Path("build/bench"), help="for images and repositories"
    )
    parser.add_argument("--one", nargs=3, metavar=("CASE", "REPOSITORY", "SOCKET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        case, place, socket = options.one
        keep_freed_memory()  # as the command does
        done = (
            trio.run(restore_once, Path(place))
            if case == "restore"
            else trio.run(serve_until_told, Path(place), Path(socket))
        )
        print(json.dumps(done))
        return
    print(f"{machine_line()}; seed {options.seed}", flush=True)
    options.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.directory) as made:
        scratch = Path(made).resolve()
        image = ext4_image(options.directory.resolve(), options.gib * GiB, options.mib * MiB, options.seed)
        trio.run(back_up_image, scratch / "image", image)
        compare(scratch / "image", scratch, options.rounds)
        trio.run(back_up_chain, scratch / "chain", options.points, options.seed)
        firsts = [trio.run(first_byte, scratch / "chain", scratch) for _ in range(options.rounds)]
        print(
            f"first byte: {statistics.median(first for first, _ in firsts):.1f} ms after the address was told, "
            f"{statistics.median(whole for _, whole in firsts):.0f} ms after the start of the process",
            flush=True,
        )
        taken = sorted(trio.run(random_reads, scratch / "chain", scratch, options.reads, options.seed))
        p50, p99 = taken[len(taken) // 2], taken[min(len(taken) * 99 // 100, len(taken) - 1)]
        print(f"4 KiB at random in a chain of {options.points} points: p50 {p50:.2f} ms, p99 {p99:.2f} ms")


if __name__ == "__main__":
    main()
