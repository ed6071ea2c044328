"""The whole path: from memory to nowhere, and from a disk image to a repository.

Each case runs in a process of its own, so that its memory is its own: `python -m vadpipe.bench.path CASE IMAGE`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import trio

from pipeline import (
    Disk,
    DiskReceipt,
    Flow,
    FramedSpan,
    Gap,
    MachineId,
    MiB,
    Pipeline,
    PipelineReport,
)
from pipeline.testing.fakes import MemoryDisk
from sinks import IntoRepository, NullSink, Point, Repository
from stages import (
    AllocatedExtents,
    ChangedExtents,
    Codec,
    Compress,
    CutChunks,
    Dedupe,
    Digest,
    LocalVm,
    MarkZeros,
    MemoryIndex,
    ReadSpans,
    Refine,
    Uncompressed,
    Zstd,
)
from vadpipe.cli.main import keep_freed_memory

from .kernels import first_data
from .machine import cpu_s, peak_rss

R = TypeVar("R")
Timed = tuple[PipelineReport[Any], float]  # the report of a case, and its CPU-seconds

# Of the image's data, what the cases from memory hold; more shows nothing more.
IN_MEMORY = 512 * MiB


@dataclass(frozen=True)
class Result:
    """One run of a case. `read` bytes; `mib_per_cpu_s` and `mib_per_s` of what was read."""

    case: str
    read: int
    wall_s: float
    cpu_s: float
    peak_rss: int
    limited_by: str

    @property
    def mib_per_cpu_s(self) -> float:
        return self.read / MiB / self.cpu_s

    @property
    def mib_per_s(self) -> float:
        return self.read / MiB / self.wall_s

    def line(self) -> str:
        return (
            f"{self.case:28} {self.read / MiB:7.0f} MiB  {self.mib_per_cpu_s:6.0f} MiB/CPU-s  "
            f"{self.mib_per_s:6.0f} MiB/s  {self.wall_s:6.2f} s  {self.cpu_s:6.2f} CPU-s  "
            f"{self.peak_rss / MiB:5.0f} MiB RSS  limited by {self.limited_by}"
        )


def stored_path(disk: Disk, index: MemoryIndex | Point, codec: Codec) -> Flow[FramedSpan | Gap]:
    """What every case measures: read, mark zeros, cut, digest, refine, dedupe, encode."""
    return (
        AllocatedExtents(disk)
        | ReadSpans(disk)
        | MarkZeros()
        | CutChunks()
        | Digest(index)
        | Refine(index, disk)
        | Dedupe(index)
        | Compress(codec)
    )


def incremental_path(disk: Disk, point: Point) -> Pipeline[DiskReceipt]:
    """A run by change tracking, as the programs in bench/ measure it."""
    return (
        ChangedExtents(disk, point.previous(disk))
        | ReadSpans(disk)
        | MarkZeros()
        | CutChunks()
        | Digest(point)
        | Dedupe(point)
        | Compress()
        | IntoRepository(point, disk)
    )


async def memory_to_null(image: Path, codec: Codec) -> Timed:
    disk = MemoryDisk(await trio.to_thread.run_sync(first_data, image, IN_MEMORY))
    return await _timed(stored_path(disk, MemoryIndex(), codec) | NullSink())


async def image_to_null(image: Path, codec: Codec) -> Timed:
    async with LocalVm(image.parent).capture() as capture:
        [disk] = capture.disks
        return await _timed(stored_path(disk, MemoryIndex(), codec) | NullSink())


async def image_to_repository(image: Path, codec: Codec) -> Timed:
    async with AsyncExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(dir=image.parent.parent))
        repository = Repository(Path(place, "repository"))
        repository.init()
        capture = await stack.enter_async_context(LocalVm(image.parent).capture())
        store = await stack.enter_async_context(repository.open())
        point = await stack.enter_async_context(store.begin(MachineId(capture.machine.uuid, "bench")))
        [disk] = capture.disks
        path = stored_path(disk, point, codec) | IntoRepository(point, disk)
        spent_s = cpu_s()
        report, _ = await _timed(path)
        await point.publish(capture, [report.receipt], None)
        return report, cpu_s() - spent_s


Case = Callable[[Path], Awaitable[Timed]]

CASES: Mapping[str, Case] = {
    "memory-null-stored": lambda image: memory_to_null(image, Uncompressed()),
    "memory-null-zstd1": lambda image: memory_to_null(image, Zstd(1)),
    "image-null-stored": lambda image: image_to_null(image, Uncompressed()),
    "image-null-zstd1": lambda image: image_to_null(image, Zstd(1)),
    "image-repository-zstd1": lambda image: image_to_repository(image, Zstd(1)),
}


def measure(case: str, image: Path) -> Result:
    """Run a case in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "vadpipe.bench.path", case, image],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Result(**json.loads(done.stdout))


def _run(case: str, image: Path) -> Result:
    keep_freed_memory()  # as the command does
    report, spent_s = trio.run(CASES[case], image)
    read = report.stages[1].bytes
    return Result(case, read, report.wall_s, spent_s, peak_rss(), report.limited_by)


async def _timed(pipeline: Pipeline[R]) -> tuple[PipelineReport[R], float]:
    """Run a pipeline; its report and its CPU-seconds. Opening disks and filling memory is not part of it."""
    spent_s = cpu_s()
    report = await pipeline.measure()
    return report, cpu_s() - spent_s


if __name__ == "__main__":
    print(json.dumps(asdict(_run(sys.argv[1], Path(sys.argv[2])))))
