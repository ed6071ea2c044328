"""Proving a replica: it is read back in full and compared with the digests of what was written.

The digests are those of the bytes that were read from the VM, each block at its last change. So a proof finds what
the target lost, and what somebody else wrote there. It does not read the VM again: what change tracking did not
report is found by an increment in full (`Replica(full=True)`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import trio
from trio.abc import ReceiveChannel

from pipeline import (
    BufferPool,
    ChangedAreas,
    ConfigError,
    Extents,
    IntegrityError,
    PreviousDisk,
    Sink,
    Span,
    TransferFailed,
    Unchanged,
    Zeros,
    format_size,
)
from pipeline.buffers import Buffer
from pipeline.errors import leaves
from pipeline.job import DiskWatch
from stages.extents import ChangedExtents
from stages.read import ReadSpans
from stages.zeros import MarkZeros
from vadpipe.nbd.client import NbdDisk
from vadpipe.replica.digests import BLOCK, DigestFile, digest_blocks, extents_of, joined
from vadpipe.replica.state import ProofFigures, ReplicaDisk, ReplicaState

from .replica import Replica
from .replica_places import places_of

_WANTED = "to be read back"
_TOGETHER = 1 << 18  # digests of zeros that are looked at together: 16 GiB of the disk


@dataclass(frozen=True)
class ReplicaProof:
    """A disk of a replica that holds what was written. Bytes.

    `read` of the `looked_at` bytes of `capacity` held data, the others read as zero.
    """

    key: str
    place: str
    capacity: int
    looked_at: int
    read: int
    wall_s: float

    def __str__(self) -> str:
        size, part = format_size(self.read), format_size(self.looked_at)
        proved = (
            f"all {size} of data"
            if self.looked_at == self.capacity
            else f"{part} written since the last proof"
        )
        return f"disk {self.key}: {self.place}, {proved} read back and proved in {self.wall_s:.1f} s"


async def prove_replica(
    replica: Replica, watch: DiskWatch | None = None, *, whole: bool = True
) -> Sequence[ReplicaProof]:
    """Read every disk of a replica and compare it with what was written.

    Args:
        whole: Read everything; otherwise what was written since the whole was last proved.

    Raises:
        ConfigError: There was no increment.
        IntegrityError: The replica holds other bytes. They are in doubt from now on: the next increment writes them
            again.
        MoverError: It cannot be read.
    """
    async with replica.open() as opened:
        state = opened.state
        if state is None or not state.number:
            raise ConfigError(
                f"The replica in {replica.state} has no increment yet.",
                remedy="Run `vadpipe migrate CONFIG.py` first.",
            )
        pool = BufferPool()
        proofs = [
            await _prove(replica, state, key, disk, pool, watch, whole=whole)
            for key, disk in state.disks.items()
        ]
        if all(proof.looked_at == proof.capacity for proof in proofs):
            figures = ProofFigures(sum(proof.read for proof in proofs), sum(proof.wall_s for proof in proofs))
            opened.state = replace(state, proof=figures)
            await trio.to_thread.run_sync(opened.directory.save, opened.state)
        return proofs


async def _prove(
    replica: Replica,
    state: ReplicaState,
    key: str,
    kept: ReplicaDisk,
    pool: BufferPool,
    watch: DiskWatch | None,
    *,
    whole: bool,
) -> ReplicaProof:
    directory = replica.directory
    doubt = await trio.to_thread.run_sync(directory.doubt, key)
    if len(doubt) or not kept.made:
        raise IntegrityError(
            f"The last increment of disk {key} did not end: {format_size(doubt.total)} are in doubt.",
            remedy="Run another increment first.",
            disk=key,
        )
    wanted = Extents.whole(kept.capacity)
    if not whole:
        wanted = await trio.to_thread.run_sync(directory.unproved, key, kept.capacity)
    place = places_of(replica.place, state.machine_name, key)
    with ExitStack() as stack:
        opening = DigestFile.open(directory.digests(key), kept.capacity)
        digests = await trio.to_thread.run_sync(stack.enter_context, opening)
        async with place.reading(pool, key) as opened:
            if opened.capacity < kept.capacity:
                raise IntegrityError(
                    f"{place.name} has {opened.capacity} bytes of {kept.capacity}.", disk=key
                )
            disk = _Part(opened, key, kept.capacity, wanted)
            pipeline = (
                ChangedExtents(disk, PreviousDisk("", kept.capacity, _WANTED, unit=BLOCK))
                | ReadSpans(disk)
                | MarkZeros()
                | _Compare(digests, bytes.fromhex(state.key))
            )
            try:
                report = await pipeline.measure(None if watch is None else lambda report: watch(disk, report))
            except TransferFailed as failed:
                raise leaves(failed)[0] from None
    differing = report.receipt
    if len(differing):
        await trio.to_thread.run_sync(directory.put_in_doubt, key, differing)
        await trio.to_thread.run_sync(directory.keep_unproved, key, Extents.whole(kept.capacity))
        offset = int(differing.start[0])
        raise IntegrityError(
            f"The replica of disk {key} holds other bytes than were written to it: {format_size(differing.total)} "
            f"in {len(differing)} ranges, the first at {offset}.",
            remedy="Somebody else wrote to it, or its storage lost it. The next increment writes it again.",
            disk=key,
            offset=offset,
        )
    await trio.to_thread.run_sync(directory.keep_unproved, key, Extents.empty())
    return ReplicaProof(key, place.name, kept.capacity, wanted.total, report.stages[1].bytes, report.wall_s)


@dataclass(frozen=True)
class _Compare(Sink[Span | Zeros | Unchanged, Extents]):
    """Spans of a whole disk in; what differs from its digests out."""

    digests: DigestFile
    key: bytes

    async def run(self, inbox: ReceiveChannel[Span | Zeros | Unchanged]) -> Extents:
        found: list[Extents] = []
        async for item in inbox:
            if isinstance(item, Span):
                try:
                    found.append(await trio.to_thread.run_sync(self._span, item))
                finally:
                    item.release()
            elif isinstance(item, Zeros):
                found.append(await trio.to_thread.run_sync(self._zeros, item.offset, item.length))
        return joined(found)

    def _span(self, span: Span) -> Extents:
        numbers, now = digest_blocks(span, self.key, self.digests.capacity)
        kept = self.digests.read(int(numbers[0]), len(numbers))
        return extents_of(numbers[(kept != now).any(axis=1)], self.digests.capacity)

    def _zeros(self, offset: int, length: int) -> Extents:
        first, end = offset // BLOCK, -(-(offset + length) // BLOCK)
        parts = [np.empty(0, np.int64)]
        for start in range(first, end, _TOGETHER):
            kept = self.digests.read(start, min(_TOGETHER, end - start))
            parts.append(np.flatnonzero(kept.any(axis=1)) + start)
        return extents_of(np.concatenate(parts), self.digests.capacity)


@dataclass(frozen=True)
class _Part:
    """The first bytes of a disk, as a disk of which the wanted ranges have changed."""

    disk: NbdDisk
    key: str
    capacity: int
    wanted: Extents
    change_id: str = _WANTED

    @property
    def label(self) -> str:
        return self.disk.label

    @property
    def pool(self) -> BufferPool:
        return self.disk.pool

    async def allocated(self, offset: int, length: int) -> Extents:
        return await self.disk.allocated(offset, length)

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        await trio.lowlevel.checkpoint()
        length = self.capacity - offset
        return ChangedAreas(offset, length, self.wanted.within(offset, length))

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        await self.disk.read(buffer, offset, wanted)
