"""Proving a disk that was written: it is read back and compared with the hash tree of its restore point.

Root, page list, map pages, chunk tables and chunk digests prove each other. So the digest of what the disk reads is
compared with the digest that the tree holds for it, and the data of the point is not read a second time; only where
the map uses a part of a chunk are stored bytes compared. Everywhere else the disk must not be allocated, or must
read as zero. `Differences` compares; the proof is that it finds none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from trio.abc import ReceiveChannel

from pipeline import SPAN, Disk, Extents, IntegrityError, Sink, Span, TransferFailed, Unchanged, format_size
from pipeline.errors import leaves
from stages.differences import Differences, DifferencesReceipt
from vadpipe.repository.format.restore_point import RestorePoint, StoredDisk
from vadpipe.repository.maintenance.verify import Budget
from vadpipe.repository.reader import RepositoryReader

WORKERS = 2


@dataclass(frozen=True)
class DiskProof:
    """A disk that has the content of its point.

    `read`: bytes that were read and compared. `of`: bytes that a whole proof reads; more than `read` for a sample.
    `allocated`: bytes that the disk takes, as far as its reader can tell. `seed`: of the sample; None: all was
    read.
    """

    read: int
    of: int
    allocated: int
    seed: int | None = None

    def __str__(self) -> str:
        if self.seed is None:
            return f"all {format_size(self.read)} read back and proved"
        share = f"{format_size(self.read)} of {format_size(self.of)}"
        return f"a sample of {share} read back and proved (seed {self.seed})"


async def prove_disk(
    reader: RepositoryReader,
    point: RestorePoint,
    disk: StoredDisk,
    opened: Disk,
    *,
    budget: Budget | None = None,
    workers: int = WORKERS,
) -> DiskProof:
    """Read a disk and compare it with a disk of a point.

    Args:
        reader: The repository.
        point: The point.
        disk: The disk of the point.
        opened: The disk to prove. At most `workers` + 2 buffers of its pool are used.
        budget: How much to read, spread at random over the disk; None: all.
        workers: Spans that are read and compared at once.

    Raises:
        IntegrityError: The disk reads other bytes, or the point itself is damaged there.
        MoverError: The disk cannot be read.
    """
    if opened.capacity != disk.capacity:
        raise IntegrityError(
            f"Disk {disk.key} has {opened.capacity} bytes; in point {point.id} it has {disk.capacity}.",
            disk=disk.key,
        )
    differences = Differences(reader, point, disk.key, opened, workers=workers)
    of = seed = None
    if budget is not None:
        sizes = await differences.bytes_to_compare()
        differences = replace(differences, within=_drawn(sizes, budget))
        of, seed = int(sizes.sum()), budget.seed
    try:
        report = await (differences | _NoDifference(disk.key)).measure()
    except TransferFailed as failed:
        raise leaves(failed)[0] from None
    compared = report.source_receipt
    assert isinstance(compared, DifferencesReceipt)
    return DiskProof(compared.read, compared.read if of is None else of, compared.allocated, seed)


def _drawn(sizes: NDArray[np.int64], budget: Budget) -> Extents:
    """The spans to read: at random, until the budget is spent, at least one."""
    numbers = np.random.default_rng(budget.seed).permutation(np.flatnonzero(sizes))
    before = np.cumsum(sizes[numbers]) - sizes[numbers]
    chosen = numbers[: max(int(np.searchsorted(before, budget.of(int(sizes.sum())))), 1)]
    return Extents.from_columns(chosen * SPAN, np.full(len(chosen), SPAN))


@dataclass(frozen=True)
class _NoDifference(Sink[Span | Unchanged, None]):
    """Differences of a disk in; the first is an IntegrityError."""

    key: str

    async def run(self, inbox: ReceiveChannel[Span | Unchanged]) -> None:
        async for item in inbox:
            if isinstance(item, Span):
                error = self._differs(item)
                item.release()
                raise error

    def _differs(self, span: Span) -> IntegrityError:
        offset, length = next(iter(span.data | span.zeros))
        expected = (
            "the point has other bytes" if len(span.data.within(offset, 1)) else "it is zero in the point"
        )
        return IntegrityError(
            f"Disk {self.key} reads back wrong at bytes {offset} to {offset + length}: {expected}.",
            remedy="Restore again, to another datastore or through another transport.",
            disk=self.key,
            offset=offset,
            length=length,
        )
