"""A transport alone: latency and throughput of reads, by how many are in flight and by their size.

Requests go to the reader of the user's machine as a pipeline's do, one after the other over what the disk has
allocated, never twice the same place while there are others. The latency is what a caller waits, so it has the
reader's own share. Depth x size / latency takes the mean latency at the smallest depth of the same round: what the
transport would reach if more requests in flight did not slow each other down.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import trio

from pipeline.errors import ConfigError
from pipeline.extents import Extents
from pipeline.protocols import Disk, Machine
from pipeline.units import CLUSTER, SPAN, GiB, MiB, format_size

from .vary import with_machine_setting

# Places are looked for in so much of the disk at most: as much as VDDK answers in one query of allocated blocks.
_LOOKED_AT = 32 * GiB


async def measure_source(
    machine: Machine[Any],
    key: str | None,
    depths: Sequence[int],
    sizes: Sequence[int],
    amount: int,
    repeat: int,
) -> list[dict[str, object]]:
    """Rows of a document: each size with each depth, in turns, in one capture of the machine.

    Args:
        machine: The user's; its reader is allowed the largest depth and size.
        key: Key of the disk; None for the largest one.
        depths: Requests in flight.
        sizes: Bytes of a request: whole clusters, at most SPAN.
        amount: Bytes to read in each measurement; at least two requests for each in flight are made.
        repeat: Rounds.

    Raises:
        ConfigError: A size or a depth is impossible, or there is no such disk.
        SourceError: The machine cannot be captured or read.
    """
    for size in sizes:
        if size % CLUSTER or not CLUSTER <= size <= SPAN:
            raise ConfigError(
                f"Requests of {size} bytes are impossible.",
                remedy=f"A size is a multiple of {CLUSTER} of at most {SPAN}, e.g. 256KiB.",
            )
    pool_size = max(depths) * SPAN
    for name, value in (("depth", max(depths)), ("request", max(sizes)), ("pool_size", pool_size)):
        machine = with_machine_setting(machine, name, value)
    rows: list[dict[str, object]] = []
    async with machine.capture() as capture:
        disk = _chosen(capture.disks, key)
        if disk.pool.size < pool_size:
            raise ConfigError(
                f"The disk {disk.key} has buffers for {disk.pool.size // SPAN} reads in flight.",
                remedy=f"Give the machine a pool_size of {pool_size}, or ask for smaller --depths.",
            )
        allocated = await disk.allocated(0, min(_LOOKED_AT, disk.capacity))
        places = {size: _places(allocated, size, disk) for size in sizes}
        for _ in range(repeat):
            for size in sizes:
                alone_s = None
                for depth in sorted(depths):
                    count = max(2 * depth, amount // size)
                    taken_s, wall_s = await _read(disk, places[size], size, depth, count)
                    alone_s = alone_s or statistics.mean(taken_s)
                    rows.append(
                        {
                            "case": f"{format_size(size)}, depth {depth}",
                            "size": size,
                            "depth": depth,
                            "mib_per_s": count * size / MiB / wall_s,
                            "latency_ms": statistics.median(taken_s) * 1000,
                            "latency_99_ms": float(np.percentile(taken_s, 99)) * 1000,
                            "ideal_mib_per_s": depth * size / MiB / alone_s,
                        }
                    )
    return rows


def _chosen(disks: Sequence[Disk], key: str | None) -> Disk:
    found = [disk for disk in disks if key in (None, disk.key, disk.label)]
    if not found:
        raise ConfigError(
            f"The VM has no disk {key}." if key else "The VM has no disk.",
            remedy=f"It has: {', '.join(disk.key for disk in disks)}.",
        )
    return max(found, key=lambda disk: disk.capacity)


def _places(allocated: Extents, size: int, disk: Disk) -> Iterator[int]:
    """Offsets of requests, ascending, from the beginning again at the end: where everything is allocated."""
    inside = zip((-(-allocated.start // size)).tolist(), (allocated.end // size).tolist(), strict=True)
    offsets = [place * size for low, high in inside for place in range(low, high)]
    if not offsets:
        raise ConfigError(
            f"The disk {disk.key} has no {format_size(size)} of data side by side.",
            remedy="Ask for smaller --sizes, or name another disk with --disk.",
        )
    while True:
        yield from offsets


async def _read(
    disk: Disk, places: Iterator[int], size: int, depth: int, count: int
) -> tuple[list[float], float]:
    """Read `count` requests with `depth` of them in flight; seconds that each took, and all together."""
    taken_s: list[float] = []
    left = iter(range(count))

    async def reader() -> None:
        for _ in left:
            offset = next(places)
            buffer = await disk.pool.acquire()
            begun = time.perf_counter()
            await disk.read(buffer, offset, Extents.whole(size, offset))
            taken_s.append(time.perf_counter() - begun)
            buffer.release()

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(depth):
            nursery.start_soon(reader)
    return taken_s, time.perf_counter() - begun
