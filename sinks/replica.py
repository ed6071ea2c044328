"""A replica of a VM's disks outside of vSphere, brought up to date by increments.

`Replica` is the target of a job like a repository: `begin` an increment, write every disk by a path that ends with
`IntoReplica`, `publish`. What it holds at any moment is described in `vadpipe.replica.state`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import trio
from numpy.typing import NDArray
from trio.abc import ReceiveChannel

from pipeline import (
    Capture,
    ContractError,
    Disk,
    DiskReceipt,
    Evidence,
    Extents,
    GiB,
    MachineId,
    PreviousDisk,
    Sink,
    SinkError,
    Span,
    Unchanged,
    Zeros,
    format_size,
)
from pipeline.composition import expect_disk
from vadpipe.nbd.writer import NbdWriter
from vadpipe.replica.digests import BLOCK, DigestFile, Digests, digest_blocks, extents_of, inside, joined
from vadpipe.replica.state import (
    KEPT,
    Increment,
    InUse,
    ReplicaDisk,
    ReplicaState,
    StateDirectory,
    expect_directory,
)

from .blocks import several_writes
from .replica_places import PlaceText, ReplicaPlace, check_place, need_tools, places_of

log = logging.getLogger("vadpipe." + __name__)

T = TypeVar("T")

CHECKPOINT: Final = 1 * GiB  # bytes written between two flushes: what a crash costs at most to write again

_POLL_S: Final = 1.0
_ZEROS_AT_ONCE: Final = 16 * GiB  # bytes of the disk whose digests are looked at together: 4 MiB


@dataclass(frozen=True)
class Replica:
    """The disks of a VM in another place, as the target of a `Migrate`. Settings only, no I/O.

    Args:
        place: `qcow2:DIR` or `raw:DIR` for images in DIR/VM/, `device:/dev/...`, `nbd://HOST/EXPORT` or settings
            `Nbd(...)`. A device or an export takes one disk: of several disks, a place for each by its key.
        state: A directory of this machine, which is this migration's alone. It is kept from run to run: about
            256 MiB per TiB of data.
        overwrite: Devices and exports may be overwritten; images are always new ones.
        full: Read the VM's disks in full and compare them with what was written, whatever change tracking says.
        wait_s: Seconds to wait for another run that is at work on the replica; 0: it is an error at once.

    Raises:
        ConfigError: A place is none, or holds what may not be overwritten.
    """

    place: PlaceText | Mapping[str, PlaceText]
    state: str | Path
    overwrite: bool = False
    full: bool = False
    wait_s: float = 0.0

    def __post_init__(self) -> None:
        expect_directory(self.state)
        for place in self.place.values() if isinstance(self.place, Mapping) else [self.place]:
            check_place(place, overwrite=self.overwrite)

    @property
    def directory(self) -> StateDirectory:
        return StateDirectory(Path(self.state))

    @property
    def title(self) -> str:
        places = self.place.values() if isinstance(self.place, Mapping) else [self.place]
        return ", ".join(place if isinstance(place, str) else f"nbd {place.server}" for place in places)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[OpenReplica]:
        """The replica with its state, for this run alone. Raises ConfigError, SinkError."""
        need_tools(self.place)
        directory = self.directory
        with ExitStack() as stack:
            await self._lock(directory, stack)
            state = await trio.to_thread.run_sync(directory.load)
            if state is not None and state.cut_over:
                raise SinkError(
                    f"{state.machine_name} was cut over at {state.cut_over}: its replica is in use.",
                    remedy=f"To migrate it again, choose another place and another state than {self.state}.",
                )
            yield OpenReplica(self, directory, state)

    async def _lock(self, directory: StateDirectory, stack: ExitStack) -> None:
        deadline = trio.current_time() + self.wait_s
        while True:
            try:
                await trio.to_thread.run_sync(stack.enter_context, directory.locked())
            except InUse:
                if trio.current_time() >= deadline:
                    raise
                log.info("Another run is at work on the migration of %s; waiting for its end.", self.state)
                await trio.sleep(_POLL_S)
            else:
                return

    def planned(self) -> ReplicaWriter:
        return ReplicaWriter(self, self.directory, ReplicaState("", ""))

    def effects(self) -> Sequence[str]:
        return [
            f"Writes what changed to {self.title}; the first increment writes everything.",
            f"Keeps the state of the migration in {self.state}.",
        ]


@dataclass
class OpenReplica:
    """A replica that this run holds. `state`: None before the first increment."""

    replica: Replica
    directory: StateDirectory
    state: ReplicaState | None

    @asynccontextmanager
    async def begin(self, machine: MachineId) -> AsyncIterator[ReplicaWriter]:
        """Begin an increment; left without `publish`, the next one looks at the same changes again.

        Raises SinkError.
        """
        state = self.state or ReplicaState(machine.uuid, machine.name)
        if state.machine_uuid != machine.uuid:
            raise SinkError(
                f"The replica in {self.replica.state} is of {state.machine_name} ({state.machine_uuid}), "
                f"and this VM is {machine.name} ({machine.uuid}).",
                remedy="Give each VM a state and a place of its own.",
            )
        writer = ReplicaWriter(self.replica, self.directory, state)
        await trio.to_thread.run_sync(writer.look)
        yield writer
        self.state = writer.state


class ReplicaWriter:
    """An increment in the making: what a path gets as its second argument."""

    def __init__(self, replica: Replica, directory: StateDirectory, state: ReplicaState) -> None:
        self.state = state
        self._replica, self._directory = replica, directory
        self._doubt: dict[str, Extents] = {}
        self._forced: dict[str, Extents] = {}
        self._ids: dict[str, str | None] = {}
        self._seen: dict[str, str] = {}
        self._foreign: list[str] = []
        self._gone: list[str] = []
        self._figures: list[DiskFigures] = []
        self._changing = trio.Lock()
        self._begun = time.monotonic()

    def look(self) -> None:
        """Read what earlier increments left in doubt. Waits for files; raises SinkError."""
        for key, disk in self.state.disks.items():
            doubt = self._directory.doubt(key)
            if disk.made and not self._directory.has_digests(key, disk.capacity):
                doubt = Extents.whole(disk.capacity)
                self._directory.put_in_doubt(key, doubt)
            self._doubt[key] = self._forced[key] = doubt

    @property
    def remarks(self) -> Sequence[str]:
        """What the report of the increment says of the replica."""
        again = {key: extents.total for key, extents in self._forced.items() if extents.total}
        return [
            *self._foreign,
            *self._gone,
            *(
                f"Disk {key}: {format_size(size)} were in doubt after an increment that did not end; "
                "they were written again."
                for key, size in again.items()
                if key in self._ids
            ),
        ]

    def previous(self, disk: Disk) -> PreviousDisk | None:
        """What the replica has of this disk; None when everything is to be read."""
        if self._replica.full or disk.key not in self.state.disks:
            return None
        kept = self.state.disks[disk.key]
        if not kept.made or not self.state.number:
            return None
        return PreviousDisk(
            f"increment-{self.state.number}",
            kept.capacity,
            kept.change_id,
            doubtful=self._forced.get(disk.key, Extents.empty()),
            unit=BLOCK,
        )

    async def remember(self, disk: Disk, extents: Extents) -> None:
        """Note durably that an increment writes these ranges. Raises SinkError."""
        async with self._changing:
            await self._know(disk)
            doubt = self._doubt[disk.key] | extents
            if doubt != self._doubt[disk.key]:
                await trio.to_thread.run_sync(self._directory.put_in_doubt, disk.key, doubt)
                self._doubt[disk.key] = doubt

    @asynccontextmanager
    async def opened(self, disk: Disk) -> AsyncIterator[OpenReplicaDisk]:
        """The disk's replica, open for writing. Raises SinkError."""
        place = self._place(disk.key)
        async with self._changing:
            await self._know(disk)
            if not self.state.disks[disk.key].made:
                await self._make(place, disk)
        if place.made_by_us and not await place.exists():
            raise SinkError(
                f"The replica of disk {disk.key}, {place.name}, is gone.",
                remedy=f"Put it back; or remove {self._replica.state} and begin the migration again.",
            )
        await self._look_at(place, disk)
        key = bytes.fromhex(self.state.key)
        async with place.writing(disk.pool, disk.key) as target:
            if target.capacity < disk.capacity:
                raise SinkError(
                    f"{place.name} has {target.capacity} bytes; disk {disk.key} has {disk.capacity}.",
                    remedy="Name a place that is at least as large; nothing was written.",
                )
            with ExitStack() as stack:
                opened = DigestFile.open(self._directory.digests(disk.key), disk.capacity)
                try:
                    digests = await trio.to_thread.run_sync(stack.enter_context, opened)
                except OSError as exc:
                    raise _of_digests(exc) from exc
                yield OpenReplicaDisk(self, disk, target, digests, key, self._forced[disk.key])

    def in_doubt(self, key: str) -> Extents:
        """The ranges of a disk that were remembered and are not settled."""
        return self._doubt[key]

    async def settle(self, key: str, reached: int, capacity: int, wrote: Extents) -> None:
        """Take back the doubt below `reached`: replica and digests are durable there. Raises SinkError.

        `wrote`: what was written since the last call.
        """
        async with self._changing:
            if len(wrote):
                unproved = await trio.to_thread.run_sync(self._directory.unproved, key, capacity)
                await trio.to_thread.run_sync(self._directory.keep_unproved, key, unproved | wrote)
            rest = self._doubt[key].within(reached, capacity - reached)
            await trio.to_thread.run_sync(self._directory.put_in_doubt, key, rest)
            self._doubt[key] = rest

    async def wrote(self, disk: Disk, figures: DiskFigures) -> None:
        """Note that a disk was written to its end, and is closed."""
        self._seen[disk.key] = await self._place(disk.key).seen()
        self._ids[disk.key] = disk.change_id
        self._figures.append(figures)

    async def publish(self, capture: Capture, disks: Sequence[DiskReceipt], evidence: Evidence | None) -> str:
        """Keep the change ids of the capture: the increment has ended. Raises SinkError."""
        missing = [disk.key for disk in capture.disks if disk.key not in self._ids]
        if missing:
            raise ContractError(f"Disk {missing[0]} was not written by IntoReplica.")
        self._gone = [
            f"Disk {key} is in the replica and was not among the VM's disks this time: it stays as it is."
            for key in self.state.disks
            if key not in self._ids
        ]
        increment = Increment(
            number=self.state.number + 1,
            ended=time.time(),
            wall_s=time.monotonic() - self._begun,
            moving_s=max((figures.wall_s for figures in self._figures), default=0.0),
            read=sum(figures.read for figures in self._figures),
            touched=sum(figures.touched for figures in self._figures),
            written=sum(figures.written for figures in self._figures),
            full=any(figures.touched >= figures.capacity for figures in self._figures),
        )
        kept = {
            key: replace(disk, change_id=self._ids[key], seen=self._seen[key]) if key in self._ids else disk
            for key, disk in self.state.disks.items()
        }
        increments = (*self.state.increments, increment)[-KEPT:]
        await self._save(replace(self.state, disks=kept, increments=increments))
        return f"increment-{increment.number}"

    def _place(self, key: str) -> ReplicaPlace:
        return places_of(self._replica.place, self.state.machine_name, key)

    async def _look_at(self, place: ReplicaPlace, disk: Disk) -> None:
        """Find that somebody else wrote to the replica: then nothing of it is proved. Raises SinkError."""
        kept = self.state.disks[disk.key]
        if not kept.seen or kept.seen == await place.seen():
            return
        self._foreign.append(
            f"Disk {disk.key}: {place.name} was changed since increment {self.state.number}, by somebody else or "
            "by an increment that did not end. The cut-over reads it back as a whole."
        )
        whole = Extents.whole(disk.capacity)
        await trio.to_thread.run_sync(self._directory.keep_unproved, disk.key, whole)

    async def _know(self, disk: Disk) -> None:
        """Make sure that the state has the disk, with the size that it has. Raises SinkError."""
        kept = self.state.disks.get(disk.key)
        place = self._place(disk.key)
        if kept is None:
            if any(place.name == other.place for other in self.state.disks.values()):
                raise SinkError(
                    f"Disk {disk.key} and another disk have one place, {place.name}.",
                    remedy="Name a place for each: place={'scsi0:0': ..., 'scsi0:1': ...}.",
                )
            if await place.exists():
                raise SinkError(
                    f"{place.name} exists already, and is no replica that {self._replica.state} knows.",
                    remedy="Choose another place, or remove it; nothing was written.",
                )
            kept = ReplicaDisk(disk.capacity, place.name)
            await self._save(replace(self.state, disks={**self.state.disks, disk.key: kept}))
            self._doubt[disk.key] = self._forced[disk.key] = Extents.empty()
        if kept.capacity != disk.capacity:
            raise SinkError(
                f"Disk {disk.key} had {kept.capacity} bytes when the migration began, and has {disk.capacity}.",
                remedy=f"Begin again: remove {self._replica.state} and {kept.place}.",
            )
        if kept.place != place.name:
            raise SinkError(
                f"The replica of disk {disk.key} is {kept.place}, and the configuration says {place.name}.",
                remedy="Name the same place as before; or begin again, with another state than "
                f"{self._replica.state}.",
            )

    async def _make(self, place: ReplicaPlace, disk: Disk) -> None:
        """A new replica of a disk. What it holds is zeros, or nobody knows. Raises SinkError."""
        await place.make(disk.capacity)
        with suppress(FileNotFoundError):
            await trio.to_thread.run_sync(self._directory.digests(disk.key).unlink)
        if not place.made_by_us:
            whole = Extents.whole(disk.capacity)
            await trio.to_thread.run_sync(self._directory.put_in_doubt, disk.key, whole)
            self._doubt[disk.key] = self._forced[disk.key] = whole
        made = replace(self.state.disks[disk.key], made=True)
        await self._save(replace(self.state, disks={**self.state.disks, disk.key: made}))

    async def _save(self, state: ReplicaState) -> None:
        await trio.to_thread.run_sync(self._directory.save, state)
        self.state = state

    def __repr__(self) -> str:
        return f"Replica({self._replica.title!r})"


@dataclass(frozen=True)
class DiskFigures:
    """The figures of a disk's increment; bytes."""

    capacity: int
    read: int
    touched: int
    written: int
    wall_s: float


@dataclass
class OpenReplicaDisk:
    """The replica of a disk, open for writing. `forced`: written whatever the digests say."""

    writer: ReplicaWriter
    disk: Disk
    target: NbdWriter
    digests: DigestFile
    key: bytes
    forced: Extents
    written: int = 0  # bytes that were sent as data
    zeroed: int = 0
    compared: int = 0  # bytes that the replica held already
    _wrote: list[Extents] = field(default_factory=list)

    async def put_span(self, span: Span) -> None:
        """Write the blocks of a span that the replica does not hold. Raises SinkError."""
        self._need_remembered(span.data | span.zeros)
        data, zeros = await _translated(self._differing, span)
        self.compared += span.data.total - (span.data & (data | zeros)).total
        await self.target.write(span.buffer, span.offset, data)
        self.written += data.total
        self._wrote.append(data)
        await self._zero(zeros)

    async def put_zeros(self, offset: int, length: int) -> None:
        """Make a range read as zero, where it does not. Raises SinkError."""
        self._need_remembered(Extents.whole(length, offset))
        for place in range(offset, offset + length, _ZEROS_AT_ONCE):
            size = min(_ZEROS_AT_ONCE, offset + length - place)
            await self._zero(await _translated(self._not_zero, place, size))

    def unchanged(self, offset: int, length: int) -> None:
        """Raises ContractError for a range that must not be left out."""
        if len(self.forced.within(offset, length)):
            raise ContractError(
                f"Disk {self.disk.key}: the path left out a range that an earlier increment may have written half.",
                remedy="Let it begin with ChangedExtents(disk, replica.previous(disk)).",
            )

    async def settle(self, reached: int) -> None:
        """Make everything durable up to `reached`, and take its doubt back. Raises SinkError."""
        await self.target.flush()
        await _translated(self.digests.flush)
        wrote, self._wrote = self._wrote, []
        await self.writer.settle(self.disk.key, reached, self.disk.capacity, joined(wrote))

    async def _zero(self, extents: Extents) -> None:
        for offset, length in extents:
            await self.target.write_zeros(offset, length)
        self.zeroed += extents.total
        self._wrote.append(extents)

    def _need_remembered(self, extents: Extents) -> None:
        missing = extents - self.writer.in_doubt(self.disk.key)
        if len(missing):
            raise ContractError(
                f"Disk {self.disk.key}: bytes at {missing.start[0]} are written without being remembered.",
                remedy="Put RememberRanges(replica, disk) between ChangedExtents and ReadSpans.",
            )

    def _differing(self, span: Span) -> tuple[Extents, Extents]:
        """What of a span is to be written as data, and what as zeros. Its digests are noted."""
        numbers, found = digest_blocks(span, self.key, self.disk.capacity)
        data: list[NDArray[np.int64]] = []
        zeros: list[NDArray[np.int64]] = []
        for low, high in _runs(numbers):
            rows, new = numbers[low:high], found[low:high]
            first = int(rows[0])
            differs = self._differs(first, new) | inside(rows, self.forced)
            is_zero = ~new.any(axis=1)
            data.append(rows[differs & ~is_zero])
            zeros.append(rows[differs & is_zero])
            self.digests.write(first, new)
        capacity = self.disk.capacity
        return extents_of(_joined(data), capacity), extents_of(_joined(zeros), capacity)

    def _not_zero(self, offset: int, length: int) -> Extents:
        """What of a range does not read as zero, or is not known to. Its digests are noted."""
        if offset % BLOCK or ((offset + length) % BLOCK and offset + length != self.disk.capacity):
            raise ContractError(f"Zeros at {offset} with {length} bytes are no whole blocks.")
        first, count = offset // BLOCK, -(-length // BLOCK)
        zero = np.zeros((count, 16), np.uint8)
        rows = np.arange(first, first + count)
        differs = self._differs(first, zero)
        if differs.any():
            self.digests.write(first, zero)
        return extents_of(rows[differs | inside(rows, self.forced)], self.disk.capacity)

    def _differs(self, first: int, new: Digests) -> NDArray[np.bool_]:
        differs: NDArray[np.bool_] = (self.digests.read(first, len(new)) != new).any(axis=1)
        return differs


def _joined(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *parts])


def _runs(numbers: NDArray[np.int64]) -> Sequence[tuple[int, int]]:
    """The places of the runs of consecutive numbers."""
    if not len(numbers):
        return []
    cuts = (np.flatnonzero(np.diff(numbers) != 1) + 1).tolist()
    return list(zip([0, *cuts], [*cuts, len(numbers)], strict=True))


async def _translated(function: Callable[..., T], *arguments: object) -> T:
    try:
        return await trio.to_thread.run_sync(partial(function, *arguments))
    except OSError as exc:
        raise _of_digests(exc) from exc


def _of_digests(exc: OSError) -> SinkError:
    return SinkError(
        f"The digests of the migration cannot be kept: {exc.strerror or exc}.",
        remedy="Look at the free space of the directory of its state.",
    )


@dataclass(frozen=True)
class IntoReplica(Sink[Span | Zeros | Unchanged, DiskReceipt]):
    """Spans of a disk in; what the replica does not hold is written to it, flushed, and noted.

    In: spans, zeros and unchanged ranges, ascending, covering [0, capacity), in whole blocks of 64 KiB as
    `ChangedExtents(disk, replica.previous(disk))` makes them.
    A block is written when its digest is another one, or when an earlier increment may have written it half.
    Memory: two spans. Cancel: what was written stays in doubt, and the next increment writes it again.
    Raises: SinkError when the replica cannot be written; ContractError when the input does not cover the disk.
    """

    replica: ReplicaWriter
    disk: Disk
    checkpoint: int = field(default=CHECKPOINT, repr=False)

    def __post_init__(self) -> None:
        expect_disk(self, self.disk)

    async def run(self, inbox: ReceiveChannel[Span | Zeros | Unchanged]) -> DiskReceipt:
        async with AsyncExitStack() as stack:
            opened = await stack.enter_async_context(self.replica.opened(self.disk))
            counts = await _copy(opened, inbox, self.checkpoint)
            await opened.settle(self.disk.capacity)
        written = opened.written + opened.zeroed
        figures = DiskFigures(self.disk.capacity, counts.read, counts.touched, written, counts.wall_s)
        await self.replica.wrote(self.disk, figures)
        return DiskReceipt(
            key=self.disk.key,
            label=self.disk.label,
            capacity=self.disk.capacity,
            root="",
            read=counts.read,
            zero_read=counts.zero_read,
            zero_unread=counts.zeros - counts.zero_read,
            unchanged=counts.unchanged,
            known=opened.compared,
            new=counts.read - counts.zero_read - opened.compared,
            stored=opened.written,
        )


@dataclass
class _Counts:
    """Bytes of a disk as they went by."""

    reached: int = 0
    data: int = 0
    zeros: int = 0
    zero_read: int = 0
    wall_s: float = 0.0

    @property
    def read(self) -> int:
        return self.data + self.zero_read

    @property
    def touched(self) -> int:
        return self.data + self.zeros

    @property
    def unchanged(self) -> int:
        return self.reached - self.touched

    def take(self, item: Span | Zeros | Unchanged) -> None:
        if item.offset != self.reached or item.length <= 0:
            raise ContractError(f"A replica needs the whole disk in order; got {item!r} at {self.reached}.")
        self.reached += item.length
        if isinstance(item, Span):
            self.data += item.data.total
            self.zeros += item.zeros.total
            self.zero_read += item.zero_read
        elif isinstance(item, Zeros):
            self.zeros += item.length
            self.zero_read += item.read


async def _copy(
    opened: OpenReplicaDisk, inbox: ReceiveChannel[Span | Zeros | Unchanged], checkpoint: int
) -> _Counts:
    """Write what comes; settle every `checkpoint` bytes. Raises SinkError, ContractError."""
    counts, begun = _Counts(), trio.current_time()
    settled = 0

    async def put(item: Span | Zeros) -> None:
        if isinstance(item, Span):
            await opened.put_span(item)
        else:
            await opened.put_zeros(item.offset, item.length)

    async with several_writes(put) as writes:
        async for item in inbox:
            counts.take(item)
            if isinstance(item, Unchanged):
                opened.unchanged(item.offset, item.length)
                continue
            await writes.start(item)
            del item
            if opened.written - settled >= checkpoint:
                async with writes.paused():
                    settled = opened.written
                    await opened.settle(counts.reached)
        if counts.reached != opened.disk.capacity:
            raise ContractError(f"The disk has {opened.disk.capacity} bytes; {counts.reached} arrived.")
    counts.wall_s = trio.current_time() - begun
    return counts
