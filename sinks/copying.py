"""Copying restore points from one repository into another: only what is missing there, in the order of their
chains.

The keys of two repositories differ, so every byte that is copied is proved by the one and named anew by the other.
What a point shares with its previous one is not read again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from pipeline import (
    Buffer,
    BufferPool,
    ChangedAreas,
    ChangeTrackingInvalid,
    ContractError,
    DiskReceipt,
    Extents,
    Pipeline,
    PipelineReport,
)
from stages import Codec, Compress, CutChunks, Dedupe, Digest, Zstd
from vadpipe.repository.format.restore_point import RestorePoint, StoredDisk
from vadpipe.repository.into_repository import IntoRepository
from vadpipe.repository.point import Point
from vadpipe.repository.reader import ReadChanges, ReadPoint, RepositoryReader
from vadpipe.repository.store import Repository, RepositoryStore

Watch = Callable[[StoredDisk, PipelineReport[DiskReceipt]], None]


@dataclass(frozen=True)
class CopyReceipt:
    """What was copied: ids of points, those that were there already, and the bytes that the target grew by."""

    copied: tuple[str, ...]
    present: tuple[str, ...]
    read: int
    stored: int


@dataclass(frozen=True)
class _StoredDisk:
    """A disk of a point, as the sink asks for it: what is written comes from the source, and not by `read`."""

    stored: StoredDisk
    pool: BufferPool = field(default_factory=BufferPool)

    @property
    def key(self) -> str:
        return self.stored.key

    @property
    def label(self) -> str:
        return self.stored.receipt.label

    @property
    def capacity(self) -> int:
        return self.stored.capacity

    @property
    def change_id(self) -> str | None:
        return self.stored.change_id

    async def allocated(self, offset: int, length: int) -> Extents:
        await trio.lowlevel.checkpoint()
        return Extents.whole(length, offset)

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        raise ChangeTrackingInvalid("A point has no change tracking.")

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        raise ContractError("The bytes of a point are read by ReadPoint or ReadChanges.")


async def copy_points(
    source: Repository,
    target: Repository,
    *,
    wanted: Callable[[RestorePoint], bool] = lambda point: True,
    codec: Codec | None = None,
    watch: Watch | None = None,
) -> CopyReceipt:
    """Copy the points that the target does not have.

    Args:
        wanted: Which points of the source; all by default.
        codec: How new frames are compressed.
        watch: Called when a disk starts, with the disk and its report, which grows while it is copied.

    Returns:
        What was copied. Points that were copied before an error stay.

    Raises:
        MoverError, TransferFailed: The source is damaged, or the target cannot be written.
    """
    copied: list[str] = []
    present: list[str] = []
    read = stored = 0
    async with source.read() as reader, target.open() as store:
        there = await trio.to_thread.run_sync(store.point_ids)
        for point in filter(wanted, reader.points):
            if point.id in there:
                present.append(point.id)
                continue
            for receipt in await _copy(reader, point, store, codec or Zstd(), watch):
                read, stored = read + receipt.read, stored + receipt.stored
            copied.append(point.id)
    return CopyReceipt(tuple(copied), tuple(present), read, stored)


async def _copy(
    reader: RepositoryReader,
    original: RestorePoint,
    store: RepositoryStore,
    codec: Codec,
    watch: Watch | None,
) -> Sequence[DiskReceipt]:
    before = next((point for point in reader.points if point.id == original.previous), None)
    async with store.copy_of(original) as point:
        receipts: list[DiskReceipt] = []
        for stored in original.disks:
            path = _path(reader, original, before, stored, point, codec)
            report = await path.measure(None if watch is None else partial(watch, stored))
            receipts.append(report.receipt)
        documents = {name: await reader.document(original, name) for name in original.documents}
        await point.publish_copy(original, receipts, documents)
    return receipts


def _path(
    reader: RepositoryReader,
    original: RestorePoint,
    before: RestorePoint | None,
    stored: StoredDisk,
    point: Point,
    codec: Codec,
) -> Pipeline[DiskReceipt]:
    disk = _StoredDisk(stored)
    earlier = before.disk(stored.key) if before is not None else None
    known = point.parent_of(disk)
    source: ReadChanges | ReadPoint
    if (
        before is not None
        and known is not None
        and earlier is not None
        and earlier.capacity == stored.capacity
    ):
        source = ReadChanges(reader, original, stored.key, before, pool=disk.pool)
    else:
        source = ReadPoint(reader, original, stored.key, pool=disk.pool)
    return (
        source | CutChunks() | Digest(point) | Dedupe(point) | Compress(codec) | IntoRepository(point, disk)
    )
