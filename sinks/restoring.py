"""Restoring a point: every disk of it, each proved while it is written.

The disks are independent: one whose data is damaged is named, and the others are restored all the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from pipeline import (
    BufferPool,
    ConfigError,
    Pipeline,
    TransferFailed,
    Zeros,
)
from pipeline.contracts import Flow
from pipeline.job import DiskWatch
from pipeline.values import Span
from vadpipe.repository.read_point import ReadPoint
from vadpipe.repository.reader import RepositoryReader
from vadpipe.repository.restore_point import RestorePoint, StoredDisk

from .null import NullSink
from .raw import RawFile

DISKS_AT_ONCE = 2


class RestoreTarget(Protocol):
    """Where the disks of a point go. Making one does no I/O."""

    def place(self, disk: StoredDisk) -> Path | None:
        """The file that the disk becomes; None when nothing is written."""
        ...

    def pipeline(self, flow: Flow[Span | Zeros], disk: StoredDisk) -> Pipeline[object]: ...


@dataclass(frozen=True)
class RawDirectory:
    """One sparse raw image per disk: DIRECTORY/scsi0-0.raw."""

    directory: Path

    def place(self, disk: StoredDisk) -> Path:
        return self.directory / (re.sub(r"[^A-Za-z0-9._-]", "-", disk.key) + ".raw")

    def pipeline(self, flow: Flow[Span | Zeros], disk: StoredDisk) -> Pipeline[object]:
        return flow | RawFile(self.place(disk), disk.capacity)


@dataclass(frozen=True)
class Nowhere:
    """Reads and proves everything and writes nothing: a scheduled proof that a point can be restored."""

    def place(self, disk: StoredDisk) -> None:
        return None

    def pipeline(self, flow: Flow[Span | Zeros], disk: StoredDisk) -> Pipeline[object]:
        return flow | NullSink()


@dataclass(frozen=True)
class RestoredDisk:
    """A disk whose hash tree was proved up to `root` while it was read and written. Bytes, seconds."""

    key: str
    path: Path | None
    capacity: int
    data: int
    root: str
    wall_s: float


@dataclass(frozen=True)
class RestoreReceipt:
    """What became of the disks of a point; `failures` holds what kept the others from being restored."""

    point: RestorePoint
    disks: Sequence[RestoredDisk]
    failures: Sequence[TransferFailed]


def parse_target(text: str) -> RestoreTarget:
    """`raw:DIRECTORY` or `null:`. Raises ConfigError."""
    kind, _, place = text.partition(":")
    if kind == "raw" and place:
        return RawDirectory(Path(place))
    if text == "null:":
        return Nowhere()
    raise ConfigError(
        f"{text!r} is no target of a restore.", remedy="Write raw:DIRECTORY, or null: for a proof alone."
    )


async def restore(
    reader: RepositoryReader,
    point: RestorePoint,
    target: RestoreTarget,
    *,
    keys: Sequence[str] = (),
    watch: DiskWatch | None = None,
) -> RestoreReceipt:
    """Restore the disks of a point, or those named by `keys`. Raises ConfigError for a disk it does not have."""
    for key in keys:
        if point.disk(key) is None:
            known = ", ".join(disk.key for disk in point.disks)
            raise ConfigError(f"Point {point.id} has no disk {key!r}.", remedy=f"It has: {known}.")
    wanted = [disk for disk in point.disks if not keys or disk.key in keys]
    pool = BufferPool()
    limiter = trio.CapacityLimiter(DISKS_AT_ONCE)
    restored: dict[str, RestoredDisk] = {}
    failures: list[TransferFailed] = []

    async def restore_disk(disk: StoredDisk) -> None:
        flow: Flow[Span | Zeros] = Flow(ReadPoint(reader, point, disk.key, pool=pool))
        async with limiter:
            try:
                report = await target.pipeline(flow, disk).measure(
                    None if watch is None else lambda report: watch(disk, report)
                )
            except TransferFailed as failed:
                failures.append(failed)
                return
        restored[disk.key] = RestoredDisk(
            key=disk.key,
            path=target.place(disk),
            capacity=disk.capacity,
            data=report.stages[0].bytes,
            root=disk.receipt.root,
            wall_s=report.wall_s,
        )

    async with trio.open_nursery() as nursery:
        for disk in wanted:
            nursery.start_soon(restore_disk, disk)
    return RestoreReceipt(point, [restored[disk.key] for disk in wanted if disk.key in restored], failures)
