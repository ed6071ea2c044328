"""Extents sources: which bytes of a disk to read.

The disk is walked in windows, so that memory does not grow with it. Changed areas are the exception: all pages
are fetched before the first window is sent, because only a complete cover of the disk proves that change
tracking forgot nothing. They cost 16 bytes per extent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from trio.abc import SendChannel

from pipeline import (
    CLUSTER,
    ChangeTrackingInvalid,
    Disk,
    Extents,
    GiB,
    PreviousDisk,
    Source,
    SourceReceipt,
    Window,
)
from pipeline.composition import expect_disk

# As much as one QueryAllocatedBlocks call may ask for: 524288 VDDK chunks of 64 KiB (VDDK programming guide).
WINDOW = 32 * GiB


@dataclass(frozen=True)
class AllocatedExtents(Source[Window]):
    """An open disk in, windows of its allocated extents out.

    Out: windows in ascending order that cover the disk; what is not allocated is `zeros`, nothing is unchanged.
    Memory: one window, at most 16 bytes per 128 KiB of it. Cancel: leaves nothing behind.
    Raises: SourceError.
    """

    disk: Disk

    def __post_init__(self) -> None:
        expect_disk(self, self.disk)

    async def run(self, outbox: SendChannel[Window]) -> SourceReceipt:
        return SourceReceipt("full", "asked for", await _send_allocated(self.disk, outbox))


@dataclass(frozen=True)
class ChangedExtents(Source[Window]):
    """An open disk and what the previous point knows of it in, windows of what changed since out.

    Out: windows in ascending order that cover the disk. Changed and allocated is `data`; changed and not
    allocated is `zeros`; the rest is unchanged. Where change tracking has no trustworthy answer, everything
    allocated is read instead, and the event `extents` says why.
    Memory: 16 bytes per changed extent, and one window. Cancel: leaves nothing behind.
    Raises: SourceError.
    Source: QueryChangedDiskAreas in the vSphere API reference.
    """

    disk: Disk
    previous: PreviousDisk | None

    def __post_init__(self) -> None:
        expect_disk(self, self.disk)

    async def run(self, outbox: SendChannel[Window]) -> SourceReceipt:
        try:
            changed = await changed_since(self.disk, self.previous)
        except ChangeTrackingInvalid as exc:
            return SourceReceipt("full", exc.problem, await _send_allocated(self.disk, outbox))
        allocated = 0
        for offset, length in windows(self.disk.capacity):
            touched = changed.within(offset, length)
            data = zeros = Extents.empty()
            if len(touched):
                inside = (await self.disk.allocated(offset, length)).aligned(CLUSTER, self.disk.capacity)
                allocated += inside.total
                data, zeros = touched & inside, touched - inside
            await outbox.send(Window(offset, length, data, zeros))
        return SourceReceipt("incremental", "change tracking covers the disk", allocated, changed.total)


async def changed_since(disk: Disk, previous: PreviousDisk | None) -> Extents:
    """All areas changed since the previous point, in whole clusters.

    Raises:
        ChangeTrackingInvalid: The answer is missing or does not cover the disk; says why.
    """
    if previous is None:
        raise ChangeTrackingInvalid("There is no previous point of this disk.")
    if previous.change_id is None:
        raise ChangeTrackingInvalid(f"Point {previous.point} was taken without change tracking.")
    if disk.change_id is None:
        raise ChangeTrackingInvalid("Change tracking is off for this disk.")
    if previous.capacity != disk.capacity:
        raise ChangeTrackingInvalid(
            f"The capacity of the disk changed from {previous.capacity} to {disk.capacity} bytes."
        )
    pages = [Extents.empty()]
    offset = 0
    while offset < disk.capacity:
        page = await disk.changed(previous.change_id, offset)
        end = page.offset + page.length
        if page.offset != offset or end <= offset or end > disk.capacity:
            raise ChangeTrackingInvalid(
                f"Change tracking answered for bytes {page.offset} to {end} when asked from {offset} on."
            )
        if page.extents.within(page.offset, page.length) != page.extents:
            raise ChangeTrackingInvalid(f"Change tracking named areas outside of its answer at {offset}.")
        pages.append(page.extents)
        offset = end
    start = np.concatenate([page.start for page in pages])
    length = np.concatenate([page.length for page in pages])
    changed = Extents.from_columns(start, length).aligned(CLUSTER, disk.capacity)
    return (changed | previous.doubtful).aligned(previous.unit, disk.capacity)


def windows(capacity: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the windows of a disk."""
    for offset in range(0, capacity, WINDOW):
        yield offset, min(WINDOW, capacity - offset)


async def _send_allocated(disk: Disk, outbox: SendChannel[Window]) -> int:
    total = 0
    for offset, length in windows(disk.capacity):
        data = (await disk.allocated(offset, length)).aligned(CLUSTER, disk.capacity)
        total += data.total
        await outbox.send(Window(offset, length, data, data.inverted(offset, length)))
    return total
