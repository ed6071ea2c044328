"""A target of backups whose points can be checked: one file of digests for each."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from trio.abc import ReceiveChannel

from pipeline import (
    Capture,
    Disk,
    DiskReceipt,
    Evidence,
    MachineId,
    Pipeline,
    PreviousDisk,
    Sink,
    Span,
    Unchanged,
    Zeros,
)
from stages import AllocatedExtents, ReadSpans


@dataclass(frozen=True)
class IntoDigest(Sink[Span | Zeros | Unchanged, DiskReceipt]):
    """Spans in; the digest of the whole disk out, as the receipt's root."""

    disk: Disk

    async def run(self, inbox: ReceiveChannel[Span | Zeros | Unchanged]) -> DiskReceipt:
        digest, read = hashlib.sha256(), 0
        async for item in inbox:
            content = np.zeros(item.length, dtype=np.uint8)
            if isinstance(item, Span):
                for offset, length in item.data:
                    content[offset - item.offset :][:length] = item.bytes_of(offset, length)
                    read += length
                item.release()
            digest.update(content.data)
        return DiskReceipt(
            key=self.disk.key,
            label=self.disk.label,
            capacity=self.disk.capacity,
            root=digest.hexdigest(),
            read=read,
            zero_read=0,
            zero_unread=self.disk.capacity - read,
            unchanged=0,
            known=0,
            new=read,
            stored=0,
        )


def path(disk: Disk, point: DirectoryPoint) -> Pipeline[DiskReceipt]:
    """Every allocated byte, into a digest."""
    return AllocatedExtents(disk) | ReadSpans(disk) | IntoDigest(disk)


@dataclass(frozen=True)
class DirectoryPoint:
    """Publishes the roots of the disks as one file."""

    directory: Path

    def previous(self, disk: Disk) -> PreviousDisk | None:
        return None

    async def publish(self, capture: Capture, disks: Sequence[DiskReceipt], evidence: Evidence | None) -> str:
        point = self.directory / f"{uuid.uuid4().hex}.json"
        temporary = point.with_suffix(".new")
        temporary.write_text(json.dumps({disk.key: disk.root for disk in disks}))
        temporary.replace(point)
        return point.stem


@dataclass(frozen=True)
class DirectoryTarget:
    """A directory of points. `points()` are the published ones: the roots of their disks by key."""

    directory: Path

    @asynccontextmanager
    async def open(self) -> AsyncIterator[DirectoryTarget]:
        self.directory.mkdir(parents=True, exist_ok=True)
        yield self

    @asynccontextmanager
    async def begin(self, machine: MachineId) -> AsyncIterator[DirectoryPoint]:
        yield self.planned()

    def planned(self) -> DirectoryPoint:
        return DirectoryPoint(self.directory)

    def effects(self) -> Sequence[str]:
        return [f"Writes points to {os.fspath(self.directory)}."]

    def points(self) -> list[dict[str, str]]:
        return [json.loads(point.read_text()) for point in sorted(self.directory.glob("*.json"))]
