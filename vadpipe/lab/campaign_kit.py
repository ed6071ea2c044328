"""What the campaign backs up with: a reader of the lab's own disks, and a target whose points can be checked."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from trio.abc import ReceiveChannel

from pipeline import (
    Buffer,
    BufferPool,
    Capture,
    Disk,
    DiskReceipt,
    Evidence,
    Extents,
    MachineId,
    Pipeline,
    PreviousDisk,
    Sink,
    SourceError,
    Span,
    Unchanged,
    Zeros,
)
from stages import AllocatedExtents, DiskAccess, ReadSpans

from .vmdk_chain import Chain, open_link, opened_chain
from .vmdk_descriptor import field


@dataclass(frozen=True)
class LabReader:
    """Opens the VMDK chains below a lab directory's datastores; a `vadpipe.vsphere.DiskReader`.

    `before_read`: called before each read, for what has to happen just then.
    """

    root: Path
    before_read: Callable[[], None] | None = None

    @asynccontextmanager
    async def open(self, access: DiskAccess, pool: BufferPool) -> AsyncIterator[LabOpenDisk]:
        datastore, _, path = access.path.removeprefix("[").partition("] ")
        with open_disk(self.root / "datastores" / datastore / path, self.before_read) as disk:
            yield disk


@contextmanager
def open_disk(leaf: Path, before_read: Callable[[], None] | None = None) -> Iterator[LabOpenDisk]:
    """The chain of a leaf, open until the end, wherever its files go meanwhile. Raises SourceError."""
    files = [leaf]
    with ExitStack() as stack:
        try:
            while (parent := _parent(files[-1])) is not None:
                files.append(parent)
            chain = stack.enter_context(opened_chain(files))
        except OSError as exc:
            raise SourceError(f"{files[-1]} cannot be opened: {exc.strerror}.") from exc
        yield LabOpenDisk(chain, before_read)


class LabOpenDisk:
    """One open chain."""

    def __init__(self, chain: Chain, before_read: Callable[[], None] | None) -> None:
        self._chain = chain
        self._before_read = before_read
        self.capacity = chain.links[0].capacity

    async def allocated(self, offset: int, length: int) -> Extents:
        return self._chain.allocated(offset, length)

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        if self._before_read is not None:
            self._before_read()
        for start, length in wanted:
            content = np.frombuffer(self._chain.read(start, length), dtype=np.uint8)
            buffer.array[start - offset : start - offset + length] = content


def _parent(path: Path) -> Path | None:
    link = open_link(path)
    try:
        if field(link.descriptor, "parentCID") == "ffffffff":
            return None
        return Path(os.path.normpath(path.parent / field(link.descriptor, "parentFileNameHint")))
    finally:
        link.close()


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
