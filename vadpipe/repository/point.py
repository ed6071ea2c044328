"""A restore point in the making: what a job's path function gets as its second argument."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
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
    SinkError,
    emit,
)
from vadpipe.kernels import Blake3, assign
from vadpipe.words import counted

from .backends.contract import ObjectExists
from .format.config import Config, Keys, Origin
from .format.frames import (
    Kind,
    Record,
    check,
    checked_table,
    chunk_table,
    frame_id,
    object_digest,
    object_record,
    parse_chunks,
    record,
)
from .format.objects import PACKS, Damage, Missing, Objects, stem
from .format.packs import FrameAddress, PackWriter, read_object, read_stored
from .format.restore_point import (
    Document,
    PointsOf,
    Quiescing,
    RestorePoint,
    StoredDisk,
    name_of,
)
from .index.lookup import Index, RunIndex
from .previous import PreviousContent
from .removal import read_removed
from .runs import Run

log = logging.getLogger(__name__)

# Half of the largest frame: a document is cut, so that its pieces need no more memory than a map does.
DOCUMENT_PART: Final = 8 * MiB


@dataclass
class OpenRun:
    """What a point writes with. One task at a time appends to the packs: who holds `turn`."""

    objects: Objects
    config: Config
    origin: Origin
    run: Run
    index: RunIndex
    packs: PackWriter
    points: PointsOf
    parent: RestorePoint | None
    tags: tuple[str, ...] = ()
    turn: trio.Lock = field(default_factory=trio.Lock)
    disks: dict[str, StoredDisk] = field(default_factory=dict)
    rescued: set[bytes] = field(default_factory=set)  # ids of frames that were copied out of packs that go
    published: bool = False

    def index_now(self) -> Index:
        """All that is published by now, to read it: a prune moves what points need before it deletes a pack."""
        removed = read_removed(self.objects, self.config)
        return Index(self.objects, self.config.id, self.config.sealing, removed)


class Point:
    """A point writer and the chunk index of its repository, for one run and all disks of one VM.

    Made by a store's `begin`, or by `Repository.planned` for composing a path that will not run. What is async is
    for the event loop, and does on worker threads whatever waits for a lock or a file; `assign` and `frame_ids` are
    for worker threads.
    """

    def __init__(self, target: str, run: OpenRun | None = None) -> None:
        self._target = target
        self._run = run
        self.remarks: list[str] = []  # what a report should say of the point, one sentence each
        self._planned_key = os.urandom(DIGEST_SIZE)  # names no chunk as any repository would

    def __repr__(self) -> str:
        return f"Point({self._target!r})"

    @property
    def identity(self) -> Identity:
        """How the repository names chunks: `Digest(point)`. That of a planned point equals itself alone."""
        return Blake3(self.key)

    @property
    def key(self) -> bytes:
        """The key of the chunks' digests: 32 bytes, secret."""
        return self._run.config.keys.chunk if self._run else self._planned_key

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

    def previous_content(self, disk: Disk) -> PreviousContent | None:
        """What the previous point holds of the disk, for Refine; None where it has none of this capacity.

        Reads nothing yet. What it gives is for worker threads.
        """
        run, stored = self._run, self.parent_of(disk)
        if run is None or stored is None or stored.capacity != disk.capacity:
            return None
        return PreviousContent(
            run.objects, run.config, run.index, self._load_object, stored, self.remarks.append
        )

    def assign(self, digest: Digests, offset: NDArray[np.int64], length: NDArray[np.int64]) -> Assignment:
        """See pipeline.ChunkIndex. Waits for other threads, and reads files: not for the event loop.

        Raises IntegrityError for a damaged index or a missing frame.
        """
        run = self._opened

        def promise(chunk_length: NDArray[np.int64], chunks: Digests) -> int:
            identity = frame_id(chunk_table(chunk_length, chunks), run.config.keys)
            return run.index.add_frame(chunk_length, chunks, identity)

        with run.index.lock:
            return assign(digest, offset, length, lookup=run.index.lookup, add_frame=promise)

    def frame_ids(self, number: NDArray[np.uint64]) -> Digests:
        """The ids of frames, stored or promised; not for the event loop. Raises ContractError for other numbers."""
        return self._opened.index.frame_ids(number)

    async def are_stored(self, digest: Digests) -> bool:
        """Whether the index knows all these chunks or map pages, wherever they lie."""
        return await trio.to_thread.run_sync(self._are_stored, self._opened.index, digest)

    async def store_frames(self, frames: Sequence[EncodedFrame]) -> int:
        """Write promised frames of disk data. Returns the bytes that the repository grew by.

        Raises ContractError when a frame is not what was promised, SinkError.
        """
        async with self._opened.turn:
            return await trio.to_thread.run_sync(self._store_frames, frames)

    async def store_object(self, kind: Kind, content: bytes | Callable[[], bytes]) -> tuple[bytes, int]:
        """Write a map page or a document unless it is stored already. Returns its digest and the growth.

        Args:
            content: Its bytes, or what makes them on the worker thread.
        """
        async with self._opened.turn:
            return await trio.to_thread.run_sync(self._store_object, kind, content)

    async def load_object(self, digest: bytes, purpose: str) -> memoryview:
        """A map page of an older point. Raises IntegrityError; `purpose` says what it was wanted for."""
        return await trio.to_thread.run_sync(self._load_object, digest, purpose)

    @property
    def removal_waits(self) -> bool:
        """Whether packs are going to be removed. What is shared with the previous point may lie there only: a run
        that did not know of the removal may have published it."""
        return bool(self._opened.index.removed.packs)

    async def rescue(self, identity: Digests, purpose: str) -> int:
        """Copy those of the frames that lie only in packs that are going to be removed. Returns the growth.

        Raises IntegrityError where one is gone; `purpose` says what it was wanted for.
        """
        async with self._opened.turn:
            return await trio.to_thread.run_sync(self._rescue, identity, purpose)

    def keep(self, disk: StoredDisk) -> None:
        """A disk is complete: its map will be part of the point."""
        self._opened.disks[disk.key] = disk

    async def publish(self, capture: Capture, disks: Sequence[DiskReceipt], evidence: Evidence | None) -> str:
        """Packs, then index segments, then the point: each durable before the next. Returns the point's id.

        Raises ContractError when something that was promised is missing, SinkError. Then nothing is visible.
        """
        run = self._opened
        await trio.to_thread.run_sync(self._check_promises, run, disks)
        return await self._publish_as(
            RestorePoint(
                id=run.run.id,
                machine=capture.machine,
                created=self._created(run),
                previous=run.parent.id if run.parent else None,
                disks=tuple(run.disks[receipt.key] for receipt in disks),
                quiescing=_quiescing(capture, evidence),
                configuration=dict(capture.configuration),
                documents=await self._store_documents(_documents(capture, evidence)),
                preflight=None if capture.preflight is None else dict(capture.preflight),
                number=run.parent.number + 1 if run.parent else 1,
                previous_seal=run.parent.seal if run.parent else None,
                tags=run.tags,
            )
        )

    async def publish_copy(
        self, original: RestorePoint, disks: Sequence[DiskReceipt], documents: Mapping[str, bytes]
    ) -> str:
        """Publish a point that says the same of the VM as another repository's. Otherwise as `publish`."""
        run = self._opened
        await trio.to_thread.run_sync(self._check_promises, run, disks)
        return await self._publish_as(
            replace(
                original,
                previous=run.parent.id if run.parent else None,
                disks=tuple(run.disks[receipt.key] for receipt in disks),
                documents=await self._store_documents(documents),
                number=original.number or (run.parent.number + 1 if run.parent else 1),
                previous_seal=run.parent.seal if run.parent else None,
            )
        )

    async def _publish_as(self, point: RestorePoint) -> str:
        run = self._opened
        try:
            content = run.config.encode(name_of(point, run.config), point.as_dict())
        except (TypeError, ValueError) as exc:
            raise ContractError(f"The VM's configuration or the verdict is not JSON: {exc}.") from exc
        async with run.turn:
            await trio.to_thread.run_sync(_publish, run, point, content)
        return point.id

    @property
    def _opened(self) -> OpenRun:
        if self._run is None or self._run.published:
            state = "was published" if self._run else "is only planned"
            raise ContractError(f"This point of {self._target} {state}; it cannot be written.")
        return self._run

    def _created(self, run: OpenRun) -> str:
        """Now, or just after the previous point where the clock is behind it."""
        now = run.origin.timestamp()
        if run.parent is None or run.parent.created < now:
            return now
        self.remarks.append(
            f"The clock of this machine ({now}) is behind the previous point's time ({run.parent.created}); "
            "the point was given the time after that. Correct the clock."
        )
        log.warning("%s", self.remarks[-1])
        emit("clock behind", now=now, previous=run.parent.created)
        after = datetime.fromisoformat(run.parent.created) + timedelta(microseconds=1)
        return after.astimezone(UTC).isoformat(timespec="microseconds")

    def _store_frames(self, frames: Sequence[EncodedFrame]) -> int:
        """On a worker thread: make the records and append them."""
        run = self._opened
        run.run.beat()
        records: list[Record] = []
        for frame in frames:
            table = checked_table(frame.chunk_length, frame.digest)
            identity = run.index.promised(frame.number)
            if frame_id(table, run.config.keys) != identity or frame.length != int(frame.chunk_length.sum()):
                raise ContractError(f"Frame {frame.number} holds other chunks than were promised.")
            records.append(
                record(Kind.DATA, frame.codec, frame.length, table, identity, frame.payload, run.config)
            )
        return self._append([frame.number for frame in frames], records)

    def _store_object(self, kind: Kind, content: bytes | Callable[[], bytes]) -> tuple[bytes, int]:
        """On a worker thread, in turn: nobody else promises an object meanwhile."""
        run = self._opened
        run.run.beat()
        data = content() if callable(content) else content
        digest = object_digest(kind, data, run.config)
        row = _one_row(digest)
        if run.index.lookup(row)[0][0] != NO_FRAME:  # most maps and documents are those of the previous point
            return digest, 0
        new = object_record(kind, data, digest, run.config)
        with run.index.lock:
            number = run.index.add_frame(np.array([len(data)]), row, new.id)
        return digest, self._append([number], [new])

    def _append(self, numbers: Sequence[int], records: Sequence[Record]) -> int:
        """On a worker thread: write, note where the frames lie, and give the memory of full drafts back."""
        run = self._opened
        pack, offsets = run.packs.append(records)
        for number, new, offset in zip(numbers, records, offsets, strict=True):
            run.index.stored(number, pack, offset, new.size)
        for draft in run.index.full():
            run.index.replace(draft, run.index.write(draft))
        return sum(new.size for new in records)

    def _load_object(self, digest: bytes, purpose: str) -> memoryview:
        run, row = self._opened, _one_row(digest)
        with run.index.lock:  # not as a hit of this run: it refers to the page only where it says so later
            number, _ = Index.lookup(run.index, row)
        try:
            if number[0] == NO_FRAME:
                raise IntegrityError(
                    f"{purpose}: the map page {digest.hex()[:16]} is not in the index.",
                    remedy="Run `vadpipe verify`; a full backup does not need the page.",
                ) from Missing()
            (address,) = run.index.addresses(number)
            return read_object(run.objects, run.config, address, digest, purpose)
        except IntegrityError as error:
            if not isinstance(error.__cause__, Missing):
                raise
            now = run.index_now()
            number, _ = now.lookup(row)
            if number[0] == NO_FRAME:
                raise
            (address,) = now.addresses(number)
            return read_object(run.objects, run.config, address, digest, purpose)

    def _rescue(self, identity: Digests, purpose: str) -> int:
        """On a worker thread. A frame is copied as it is stored."""
        run, grown = self._opened, 0
        for frame in identity[run.index.find_frames(identity, staying=True) == NO_FRAME]:
            if (name := frame.tobytes()) in run.rescued:
                continue
            try:
                try:
                    address, content = _stored(run, run.index, frame)
                except Missing:
                    address, content = _stored(run, run.index_now(), frame)
                check(content)
                chunk = parse_chunks(content, name, run.config)
            except Damage as damage:
                raise IntegrityError(
                    f"{purpose}: frame {name.hex()[:16]} cannot be copied out of a pack that is removed: {damage}.",
                    remedy="Run again. If it comes again, run `vadpipe verify`; "
                    "a full backup does not need the frame.",
                ) from damage
            new = run.index.add_frame(chunk["length"].astype(np.int64), chunk["digest"], name)
            grown += self._append([new], [Record(name, address.length, len(chunk), content, b"")])
            run.rescued.add(name)
        return grown

    def _are_stored(self, index: RunIndex, digest: Digests) -> bool:
        number, _ = index.lookup(digest)
        unknown = digest[number == NO_FRAME]
        if len(unknown):  # what the previous point needs may lie in packs that a removal names
            number, _ = index.readable(unknown)
        return not (number == NO_FRAME).any()

    def _check_promises(self, run: OpenRun, disks: Sequence[DiskReceipt]) -> None:
        if run.index.missing():
            raise ContractError(
                f"Promised and not stored: {counted(run.index.missing(), 'frame')}; nothing was published.",
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


def _publish(run: OpenRun, point: RestorePoint, content: bytes) -> None:
    """On a worker thread: the last steps, after which the point exists."""
    run.packs.finish()
    for draft in run.index.last():
        run.index.replace(draft, run.index.write(draft))
    _check_packs(run)
    try:
        run.run.segments += len(run.index.publish(run.run.segments))
        run.objects.backend.put(name_of(point, run.config), [content])
    except ObjectExists as exc:
        raise run.run.was_ended() from exc
    run.published = True
    try:
        run.points.note_newest(point)
    except SinkError as exc:  # it only saves time
        log.info("the newest point of VM %s was not noted: %s", point.machine.name, exc)


def _stored(run: OpenRun, index: Index, identity: NDArray[np.uint8]) -> tuple[FrameAddress, bytes]:
    """A frame as it is stored, in whatever pack. Raises Damage."""
    number = index.find_frames(identity.reshape(1, DIGEST_SIZE))
    if number[0] == NO_FRAME:
        raise Missing
    (address,) = index.addresses(number)
    return address, read_stored(run.objects, address)


def _check_packs(run: OpenRun) -> None:
    """Before anything is visible: all that the maps of this point may lead to is there."""
    needed = run.index.used_packs | run.index.packs()
    missing = sorted(needed - _present(run.objects, needed))
    if missing:
        run.run.require_alive()
        raise SinkError(
            f"Missing, though this point needs them: {counted(len(missing), 'pack')}, "
            f"{run.objects.place(run.objects.pack(missing[0]))} among them; nothing was published.",
            remedy="Something removed them while the run was writing. Run `vadpipe verify`, then run again.",
            path=run.objects.place(run.objects.pack(missing[0])),
        )


# Asking for one object costs about as much as a page of a listing, which has up to 1,000 names.
_ASKED_ONE_BY_ONE: Final = 4


def _present(objects: Objects, packs: Collection[str]) -> set[str]:
    """Those of the packs that are there."""
    present: set[str] = set()
    by_prefix: dict[str, list[str]] = {}
    for pack in packs:
        by_prefix.setdefault(pack[:2], []).append(pack)
    for prefix, wanted in by_prefix.items():
        if len(wanted) <= _ASKED_ONE_BY_ONE:
            present.update(pack for pack in wanted if objects.exists(objects.pack(pack)))
        else:
            listed = set(map(stem, objects.backend.names(f"{PACKS}{prefix}/")))
            present.update(listed.intersection(wanted))
    return present


def _documents(capture: Capture, evidence: Evidence | None) -> dict[str, bytes]:
    """Those of the capture and of the finisher. Raises ContractError when a name is given twice."""
    found = evidence.documents if evidence else {}
    if twice := sorted(set(capture.documents) & set(found)):
        raise ContractError(
            f"The capture and the finisher both have a document {twice[0]!r}; nothing was published.",
            remedy="One of them has to use another name.",
        )
    return {**capture.documents, **found}


def _one_row(digest: bytes) -> Digests:
    return np.frombuffer(digest, np.uint8).reshape(1, DIGEST_SIZE)


def _quiescing(capture: Capture, evidence: Evidence | None) -> Quiescing:
    return Quiescing(
        asked=capture.quiescing_asked,
        reached=evidence.reached if evidence else None,
        satisfied=evidence.satisfied if evidence else True,
        reasons=tuple(evidence.reasons) if evidence else (),
        verdict=dict(evidence.verdict) if evidence else {},
    )
