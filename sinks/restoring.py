"""Restoring a point: every disk of it, each proved while it is written.

The disks are independent: one whose data is damaged is named, and the others are restored all the same. The target
decides what becomes of a part: images of whole disks stay, a VM that lacks a disk does not.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

import trio

from pipeline import BufferPool, ConfigError, MoverError, Pipeline, TransferFailed
from pipeline.contracts import Flow
from pipeline.errors import leaves
from pipeline.job import DiskWatch
from pipeline.meters import PipelineReport
from pipeline.values import Span, Zeros
from vadpipe.iso import FIXED_DATE, iso_image
from vadpipe.repository.format.restore_point import RestorePoint, StoredDisk
from vadpipe.repository.reader import ReadPoint, RepositoryReader
from vadpipe.vss.fetched import DOCUMENT_NAMES
from vadpipe.vss.sheet import PointFacts, restore_sheet

from .null import NullSink

log = logging.getLogger("vadpipe." + __name__)

DISKS_AT_ONCE = 2


@dataclass(frozen=True, eq=False)
class Contents:
    """What is restored: `disks` of `point`. `force`: the target may replace what is there already."""

    reader: RepositoryReader
    point: RestorePoint
    disks: Sequence[StoredDisk]
    force: bool = False

    def read(self, disk: StoredDisk, pool: BufferPool) -> Flow[Span | Zeros]:
        """The disk, whole and proved."""
        return Flow(ReadPoint(self.reader, self.point, disk.key, pool=pool))

    async def document(self, name: str) -> bytes | None:
        """A document of the point, proved; None when it has none of that name. Raises IntegrityError."""
        if name not in self.point.documents:
            return None
        return await self.reader.document(self.point, name)

    @property
    def has_sheet(self) -> bool:
        """Whether the point has documents of its applications."""
        return manifest_of(self.point) is not None

    async def sheet(self) -> dict[str, bytes]:
        """As `sheet_of`."""
        return await trio.to_thread.run_sync(sheet_of, self.reader, self.point)

    async def sheet_image(self) -> bytes:
        """The same as a CD image. Raises IntegrityError, ConfigError."""
        return await trio.to_thread.run_sync(sheet_image, await self.sheet(), self.point)


def manifest_of(point: RestorePoint) -> str | None:
    """The name of the document that the guest left in a point; None when there is none."""
    return next((name for name in DOCUMENT_NAMES.values() if name in point.documents), None)


def sheet_of(reader: RepositoryReader, point: RestorePoint) -> dict[str, bytes]:
    """What goes beside the restored machine for its applications: files by relative path. Blocks.

    Raises:
        IntegrityError: A document of the point is damaged.
    """
    name = manifest_of(point)
    quiescing = point.quiescing
    facts = PointFacts(
        machine=point.machine.name,
        point=point.id,
        created=point.created,
        asked=quiescing.asked,
        reached=quiescing.reached,
        reasons=quiescing.reasons,
    )
    return restore_sheet(facts, reader.read_document(point, name) if name else None, quiescing.verdict)


def sheet_image(files: Mapping[str, bytes], point: RestorePoint) -> bytes:
    """The same as a CD image, dated as the point. Raises ConfigError where they do not fit on one."""
    try:
        date = datetime.fromisoformat(point.created).astimezone(UTC)
    except ValueError:
        date = FIXED_DATE
    return iso_image(files, label="RESTORE_SHEET", date=date)


class OpenTarget(Protocol):
    """A place that is ready to take the disks.

    One that takes all disks or none has `needs_all` true: the first failure then ends the restore. `attempts`: how
    often it takes a disk whose failure may pass by itself; 1 where it has none.
    """

    def place(self, disk: StoredDisk) -> str | None:
        """Where the disk goes, for people; None when nothing is written."""
        ...

    def pipeline(self, disk: StoredDisk, pool: BufferPool) -> AbstractAsyncContextManager[Pipeline[object]]:
        """Reads the disk from the point and writes it. It is written when the block has ended without error."""
        ...

    async def finish(self) -> Sequence[str]:
        """Complete the target when every disk was written. Returns sentences for the report.

        A target may have `attention` afterwards: sentences on what is not as planned.
        """
        ...


class RestoreTarget(Protocol):
    """Where the disks of a point go. Making one does no I/O."""

    def open(self, contents: Contents) -> AbstractAsyncContextManager[OpenTarget]:
        """Around the restore of all disks. When it ends without `finish`, a disk is missing.

        Raises MoverError before anything is written when a disk cannot be placed, or is there already.
        """
        ...


@dataclass(frozen=True)
class Proof:
    """Reads and proves everything and writes nothing: a scheduled proof that a point can be restored."""

    @asynccontextmanager
    async def open(self, contents: Contents) -> AsyncIterator[OpenTarget]:
        yield _OpenProof(contents)


@dataclass(frozen=True)
class _OpenProof:
    contents: Contents

    def place(self, disk: StoredDisk) -> None:
        return None

    @asynccontextmanager
    async def pipeline(self, disk: StoredDisk, pool: BufferPool) -> AsyncIterator[Pipeline[object]]:
        yield self.contents.read(disk, pool) | NullSink()

    async def finish(self) -> Sequence[str]:
        return ()


@dataclass(frozen=True)
class RestoredDisk:
    """A disk whose hash tree was proved up to `root` while it was read and written. Bytes, seconds."""

    key: str
    place: str | None
    capacity: int
    data: int
    root: str
    wall_s: float

    def as_dict(self) -> dict[str, object]:
        """JSON values."""
        return {
            "key": self.key,
            "path": self.place,
            "capacity": self.capacity,
            "data": self.data,
            "root": self.root,
            "wall_s": round(self.wall_s, 3),
        }


@dataclass(frozen=True)
class RestoreReceipt:
    """What became of the disks of a point; `failures` holds what kept the others from being restored.

    `attention`: what is not as planned, though all disks are there.
    """

    point: RestorePoint
    disks: Sequence[RestoredDisk]
    failures: Sequence[TransferFailed | MoverError]
    remarks: Sequence[str] = ()
    attention: Sequence[str] = ()

    def as_dict(self) -> dict[str, object]:
        """JSON values, without the failures."""
        return {
            "point": self.point.id,
            "disks": [disk.as_dict() for disk in self.disks],
            "remarks": list(self.remarks),
            "attention": list(self.attention),
        }


def disks_of(point: RestorePoint, keys: Sequence[str]) -> list[StoredDisk]:
    """The disks of a point that have these keys; without keys all. Raises ConfigError for one that it lacks."""
    for key in keys:
        if point.disk(key) is None:
            known = ", ".join(disk.key for disk in point.disks)
            raise ConfigError(f"Point {point.id} has no disk {key!r}.", remedy=f"It has: {known}.")
    return [disk for disk in point.disks if not keys or disk.key in keys]


async def restore(
    reader: RepositoryReader,
    point: RestorePoint,
    target: RestoreTarget,
    *,
    keys: Sequence[str] = (),
    force: bool = False,
    watch: DiskWatch | None = None,
) -> RestoreReceipt:
    """Restore the disks of a point, or those named by `keys`.

    Args:
        force: replace what is there already.

    Raises:
        ConfigError: the point has no such disk.
        MoverError: the target cannot take the disks, e.g. because one is there already; then nothing was written.
    """
    wanted = disks_of(point, keys)
    pool = BufferPool()
    limiter = trio.CapacityLimiter(DISKS_AT_ONCE)
    restored: dict[str, RestoredDisk] = {}
    failures: list[TransferFailed | MoverError] = []

    async def written(target: OpenTarget, disk: StoredDisk) -> PipelineReport[object]:
        observe = None if watch is None else partial(watch, disk)
        left = getattr(target, "attempts", 1)
        while True:
            left -= 1
            try:
                async with target.pipeline(disk, pool) as pipeline:
                    return await pipeline.measure(observe)
            except (TransferFailed, MoverError) as failed:
                if not left or not all(getattr(leaf, "transient", False) for leaf in leaves(failed)):
                    raise
                log.info("Disk %s is restored again from its beginning: %s", disk.key, failed)

    async def restore_disk(nursery: trio.Nursery, target: OpenTarget, disk: StoredDisk) -> None:
        async with limiter:
            try:
                report = await written(target, disk)
            except (TransferFailed, MoverError) as failed:
                failures.append(failed)
                if all_or_none:
                    nursery.cancel_scope.cancel()
                return
            except BaseExceptionGroup as group:  # it failed while it was cancelled
                failed_too, others = group.split((TransferFailed, MoverError))
                if failed_too is None:
                    raise
                failures.extend(
                    one for one in failed_too.exceptions if isinstance(one, TransferFailed | MoverError)
                )
                if others is not None:
                    raise others from None
                return
        restored[disk.key] = RestoredDisk(
            key=disk.key,
            place=target.place(disk),
            capacity=disk.capacity,
            data=report.stages[0].bytes,
            root=disk.receipt.root,
            wall_s=report.wall_s,
        )

    remarks: Sequence[str] = ()
    attention: Sequence[str] = ()
    all_or_none = False
    try:
        async with target.open(Contents(reader, point, wanted, force)) as opened:
            all_or_none = getattr(opened, "needs_all", False)
            async with trio.open_nursery() as nursery:
                for disk in wanted:
                    nursery.start_soon(restore_disk, nursery, opened, disk)
            if not failures:
                remarks = await opened.finish()
                attention = getattr(opened, "attention", ())
    except MoverError as left:
        if not failures:
            raise
        failures.append(left)  # what the target could not take away, after a disk had failed
    if failures and all_or_none:
        restored.clear()
    done = [restored[disk.key] for disk in wanted if disk.key in restored]
    return RestoreReceipt(point, done, failures, remarks, attention)
