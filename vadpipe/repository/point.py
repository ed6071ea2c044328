"""A restore point in the making: what a job's path function gets as its second argument."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import trio
from numpy.typing import NDArray

from pipeline import (
    DIGEST_SIZE,
    NO_FRAME,
    Assignment,
    Capture,
    ContractError,
    Digests,
    Disk,
    DiskReceipt,
    EncodedFrame,
    Evidence,
    Identity,
    IntegrityError,
    MiB,
    PreviousDisk,
)
from vadpipe.kernels import Blake3, assign

from .config import Config, Origin
from .files import publish, sink_errors, write_durably
from .frames import (
    Kind,
    Record,
    checked_table,
    chunk_table,
    frame_id,
    object_record,
    record,
)
from .index import RunIndex
from .keys import Keys
from .layout import Layout
from .objects import read_object
from .packs import PackWriter
from .restore_point import (
    Document,
    Quiescing,
    RestorePoint,
    StoredDisk,
    encode,
)
from .segments import Segment

# Half of the largest frame: a document is cut, so that its pieces need no more memory than a map does.
DOCUMENT_PART: Final = 8 * MiB


@dataclass
class OpenRun:
    """What a point writes with. One task at a time appends to the packs: who holds `turn`."""

    layout: Layout
    config: Config
    origin: Origin
    id: str
    index: RunIndex
    packs: PackWriter
    parent: RestorePoint | None
    turn: trio.Lock = field(default_factory=trio.Lock)
    disks: dict[str, StoredDisk] = field(default_factory=dict)
    published: bool = False


class Point:
    """A point writer and the chunk index of its repository, for one run and all disks of one VM.

    Made by a store's `begin`, or by `Repository.planned` for composing a path that will not run. The index is for
    any thread; everything else is called from the event loop, and its file work happens on worker threads.
    """

    def __init__(self, target: str, run: OpenRun | None = None) -> None:
        self._target = target
        self._run = run
        self._planned_key = os.urandom(DIGEST_SIZE)  # names no chunk as any repository would

    def __repr__(self) -> str:
        return f"Point({self._target!r})"

    @property
    def key(self) -> bytes:
        """The key of the chunks' digests: 32 bytes, secret."""
        return self._run.config.keys.chunk if self._run else self._planned_key

    @property
    def identity(self) -> Identity:
        """See pipeline.ChunkIndex."""
        return Blake3(self.key)

    @property
    def keys(self) -> Keys:
        """All keys of the repository."""
        return self._opened.config.keys

    def previous(self, disk: Disk) -> PreviousDisk | None:
        """The disk with the same key in the newest point of this VM, if there is one."""
        stored, parent = self.parent_of(disk), self._run.parent if self._run else None
        if stored is None or parent is None:
            return None
        return PreviousDisk(parent.id, stored.capacity, stored.change_id)

    def parent_of(self, disk: Disk) -> StoredDisk | None:
        """The same with its map; what `Unchanged` refers to."""
        parent = self._run.parent if self._run else None
        return parent.disk(disk.key) if parent else None

    def assign(self, digest: Digests, offset: NDArray[np.int64], length: NDArray[np.int64]) -> Assignment:
        """See pipeline.ChunkIndex. Raises IntegrityError for a damaged index."""
        index = self._opened.index
        with index.lock:
            return assign(digest, offset, length, lookup=index.lookup, add_frame=self.add_frame)

    def lookup(self, digest: Digests) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Frame number (NO_FRAME when unknown) and byte place, one row per digest."""
        return self._opened.index.lookup(digest)

    def add_frame(self, chunk_length: NDArray[np.int64], digest: Digests) -> int:
        """Plan a frame of unknown, distinct chunks; its number."""
        run = self._opened
        identity = frame_id(chunk_table(chunk_length, digest), run.config.keys)
        return run.index.add_frame(chunk_length, digest, identity)

    def frame_ids(self, number: NDArray[np.uint64]) -> Digests:
        """The ids of frames, stored or promised. Raises ContractError for a number that is neither."""
        return self._opened.index.frame_ids(number)

    async def store_frames(self, frames: Sequence[EncodedFrame]) -> int:
        """Write promised frames of disk data. Returns the bytes that the repository grew by.

        Raises ContractError when a frame is not what was promised, SinkError.
        """
        run = self._opened
        async with run.turn:
            promised = [run.index.promised(frame.number) for frame in frames]
            records = await trio.to_thread.run_sync(self._write_frames, frames, promised)
            return await self._settle([frame.number for frame in frames], *records)

    async def store_object(self, kind: Kind, content: bytes) -> tuple[bytes, int]:
        """Write a map page or a document unless it is stored already. Returns its digest and the growth."""
        run = self._opened
        digest, new = await trio.to_thread.run_sync(object_record, kind, content, run.config.keys)
        row = np.frombuffer(digest, np.uint8).reshape(1, DIGEST_SIZE)
        with run.index.lock:
            if run.index.lookup(row)[0][0] != NO_FRAME:
                return digest, 0
            number = run.index.add_frame(np.array([len(content)]), row, new.id)
        async with run.turn:
            place = await trio.to_thread.run_sync(run.packs.append, [new])
            return digest, await self._settle([number], [new], *place)

    async def load_object(self, digest: bytes, purpose: str) -> memoryview:
        """A map page of an older point. Raises IntegrityError; `purpose` says what it was wanted for."""
        run = self._opened
        number, _ = run.index.lookup(np.frombuffer(digest, np.uint8).reshape(1, DIGEST_SIZE))
        if number[0] == NO_FRAME:
            raise IntegrityError(
                f"{purpose}: the map page {digest.hex()[:16]} is not in the index.",
                remedy="Run `vadpipe verify`; a full backup does not need the page.",
            )
        (address,) = run.index.addresses(number)
        return await trio.to_thread.run_sync(
            read_object, run.layout, address, digest, run.config.keys, purpose
        )

    def keep(self, disk: StoredDisk) -> None:
        """A disk is complete: its map will be part of the point."""
        self._opened.disks[disk.key] = disk

    async def publish(self, capture: Capture, disks: Sequence[DiskReceipt], evidence: Evidence | None) -> str:
        """Packs, then index segments, then the point: each durable before the next. Returns the point's id.

        Raises ContractError when something that was promised is missing, SinkError. Then nothing is visible.
        """
        run = self._opened
        self._check_promises(run, disks)
        documents = await self._store_documents(evidence.documents if evidence else {})
        point = RestorePoint(
            id=run.id,
            machine=capture.machine,
            created=run.origin.timestamp(),
            previous=run.parent.id if run.parent else None,
            disks=tuple(run.disks[receipt.key] for receipt in disks),
            quiescing=_quiescing(capture, evidence),
            configuration=dict(capture.configuration),
            documents=documents,
            preflight=None if capture.preflight is None else dict(capture.preflight),
        )
        try:
            content = encode(point, run.config.keys)
        except (TypeError, ValueError) as exc:
            raise ContractError(f"The VM's configuration or the verdict is not JSON: {exc}.") from exc
        async with run.turn:
            await trio.to_thread.run_sync(run.packs.finish)
            for draft in run.index.last():
                run.index.replace(draft, await trio.to_thread.run_sync(run.index.write, draft))
            await trio.to_thread.run_sync(_publish_files, run, point, content)
        return run.id

    @property
    def _opened(self) -> OpenRun:
        if self._run is None or self._run.published:
            state = "was published" if self._run else "is only planned"
            raise ContractError(f"This point of {self._target} {state}; it cannot be written.")
        return self._run

    def _write_frames(
        self, frames: Sequence[EncodedFrame], promised: Sequence[bytes]
    ) -> tuple[list[Record], int, list[int]]:
        """On a worker thread: make the records and append them."""
        run = self._opened
        records: list[Record] = []
        for frame, identity in zip(frames, promised, strict=True):
            table = checked_table(frame.chunk_length, frame.digest)
            if frame_id(table, run.config.keys) != identity or frame.length != int(frame.chunk_length.sum()):
                raise ContractError(f"Frame {frame.number} holds other chunks than were promised.")
            records.append(record(Kind.DATA, frame.codec, frame.length, table, identity, frame.payload))
        return records, *run.packs.append(records)

    async def _settle(
        self, numbers: Sequence[int], records: Sequence[Record], pack: int, offsets: Sequence[int]
    ) -> int:
        """Note where frames lie; give the memory of full drafts back."""
        index = self._opened.index
        for number, new, offset in zip(numbers, records, offsets, strict=True):
            index.stored(number, pack, offset, new.size)
        for draft in index.full():
            segment: Segment = await trio.to_thread.run_sync(index.write, draft)
            index.replace(draft, segment)
        return sum(new.size for new in records)

    def _check_promises(self, run: OpenRun, disks: Sequence[DiskReceipt]) -> None:
        if run.index.missing():
            raise ContractError(
                f"{run.index.missing()} frames were promised and never came; nothing was published.",
                remedy="A stage between Dedupe and IntoRepository lost them.",
            )
        if [receipt.key for receipt in disks] != list(dict.fromkeys(receipt.key for receipt in disks)):
            raise ContractError("Two disks of the point have the same key; nothing was published.")
        for receipt in disks:
            if receipt.key not in run.disks or run.disks[receipt.key].receipt != receipt:
                raise ContractError(
                    f"Disk {receipt.key} was not written to this point; nothing was published."
                )

    async def _store_documents(self, documents: Mapping[str, bytes]) -> dict[str, Document]:
        stored: dict[str, Document] = {}
        for name, content in documents.items():
            parts: list[str] = []
            for low in range(0, len(content), DOCUMENT_PART):
                digest, _ = await self.store_object(Kind.DOCUMENT, content[low : low + DOCUMENT_PART])
                parts.append(digest.hex())
            stored[name] = Document(len(content), tuple(parts))
        return stored


def _publish_files(run: OpenRun, point: RestorePoint, content: bytes) -> None:
    """On a worker thread: the last steps, after which the point exists."""
    for segment in run.index.written():
        with sink_errors(segment, "publish"):
            publish(segment, run.layout.index / segment.name)
    path = run.layout.point(point.machine.uuid, point.id)
    with sink_errors(path, "write"):
        write_durably(path, run.layout.tmp / f"{run.id}.json", content)
    run.published = True


def _quiescing(capture: Capture, evidence: Evidence | None) -> Quiescing:
    return Quiescing(
        asked=capture.quiescing_asked,
        reached=evidence.reached if evidence else None,
        satisfied=evidence.satisfied if evidence else True,
        reasons=tuple(evidence.reasons) if evidence else (),
        verdict=dict(evidence.verdict) if evidence else {},
    )
