"""Over the VM that a point is of: only what differs is written onto its disks, and the whole is proven."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import partial

import trio
from trio.abc import ReceiveChannel

from pipeline import (
    BufferPool,
    ConfigError,
    ContractError,
    Extents,
    GiB,
    IntegrityError,
    MiB,
    MoverError,
    Pipeline,
    Sink,
    Span,
    TransferFailed,
    Unchanged,
    WritableDisk,
)
from pipeline.composition import at_least, expect_disk
from pipeline.errors import leaves
from stages.differences import Differences
from vadpipe.repository.format.restore_point import StoredDisk
from vadpipe.vddk.errors import VddkError
from vadpipe.vsphere.api.retry import backoff
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.journal.rollback import Phase
from vadpipe.vsphere.restore.in_place import OpenOriginal, written_over
from vadpipe.vsphere.restore.target import DiskWriter

from .proving import DiskProof, prove_disk
from .restoring import Contents, OpenTarget

log = logging.getLogger("vadpipe." + __name__)

# How much may be written or looked at again after a kill.
FLUSH_WRITTEN = 256 * MiB
FLUSH_PASSED = 8 * GiB

_ALREADY_LOCKED = 15  # VIX_E_FILE_ALREADY_LOCKED
_LOCKED_WITHIN_S = 60.0  # processes of VDDK outlive their mover by half a minute


@dataclass(frozen=True)
class OverVm:
    """Writes the disks of a point over those of the VM that it is of; the VM is off and has no snapshots.

    Every disk is read and compared with the point, chunk by chunk; only clusters that differ are written. Then it
    is read again and compared as a whole. A restore that ends half way is continued by the next one.

    Args:
        vcenter: The server that has the VM.
        writer: Opens the disks, e.g. `vadpipe.vddk.Vddk`.
        allow: It is permitted to write over VMs of this server.
        onto: By key of a disk in the point, the key of the VM's disk that it is written onto. Only for disks that
            moved on their controllers, or were replaced by others.
        keep: Keys of disks of the VM that the point does not know, and that may stay as they are.
        journal: Where unfinished restores are noted; None for the user's state directory.
    """

    vcenter: Vcenter
    _: KW_ONLY
    writer: DiskWriter
    allow: bool = False
    onto: Mapping[str, str] = field(default_factory=dict)
    keep: Sequence[str] = ()
    journal: Journal | None = None

    @asynccontextmanager
    async def open(self, contents: Contents) -> AsyncIterator[OpenTarget]:
        """Raises NotInPlace before anything is touched; ConfigError without `allow`."""
        if not self.allow:
            raise ConfigError(
                f"The configuration does not permit to write over VMs of {self.vcenter.server}.",
                remedy="Write allow=True in its OverVm(...), or restore into a new VM.",
            )
        async with (
            self.vcenter.connect() as session,
            written_over(
                session,
                self.writer,
                self.journal or Journal(),
                contents.reader.config.id.hex(),
                contents.point,
                contents.disks,
                onto=self.onto,
                keep=self.keep,
            ) as original,
        ):
            yield _OpenOverVm(contents, self.writer, original)

    def effects(self) -> Sequence[str]:
        """What a restore changes outside, one sentence each; for `plan`."""
        return [
            f"Writes over the disks of the VM on {self.vcenter.server} that has the point's UUID.",
            "Marks that VM meanwhile in its notes and in the setting vadpipe.restoring.",
            "Resets its change tracking, and makes and removes a snapshot for that.",
            f"Keeps a recovery journal in {(self.journal or Journal()).directory}.",
        ]


@dataclass(frozen=True)
class _OpenOverVm:
    contents: Contents
    writer: DiskWriter
    original: OpenOriginal

    def place(self, disk: StoredDisk) -> str:
        return self.original.disks[disk.key].path

    @asynccontextmanager
    async def pipeline(self, disk: StoredDisk, pool: BufferPool) -> AsyncIterator[Pipeline[object]]:
        """The disk is written and proven when the block has ended without error."""
        begun = self.original.progress(disk.key).position
        try:
            async with self._writing(disk, pool, begun) as pipeline:
                yield pipeline
            try:
                proof = await self._prove(disk, pool)
            except IntegrityError as differs:
                if not begun:
                    raise
                # What an earlier restore had done was changed meanwhile, e.g. the VM was powered on.
                log.info("%s is compared again from the beginning: %s", disk.key, differs)
                async with self._writing(disk, pool, 0) as pipeline:
                    await pipeline.run()
                proof = await self._prove(disk, pool)
            self.original.remarks.append(f"Disk {disk.key}: {proof}.")
            await self.original.advance(disk.key, phase=Phase.PROVEN)
        except (TransferFailed, MoverError) as failed:
            named = next((leaf for leaf in leaves(failed) if isinstance(leaf, MoverError)), failed)
            named.add_note(self.original.state())
            raise

    async def finish(self) -> Sequence[str]:
        """Complete the VM: every disk is proven."""
        remarks = await self.original.finish()
        done = f"{self.original.vm.name}: disks restored and proven."
        if not self.contents.has_sheet:
            return [done, *remarks]
        show = f"vadpipe show {self.contents.reader.objects.place()} {self.contents.point.id} --restore-sheet DIR"
        return [done, *remarks, f"What its applications need is written by `{show}`."]

    @property
    def attention(self) -> Sequence[str]:
        """Sentences on what is not as asked for."""
        return self.original.attention

    @asynccontextmanager
    async def _writing(
        self, disk: StoredDisk, pool: BufferPool, begin: int
    ) -> AsyncIterator[Pipeline[object]]:
        original, key = self.original, disk.key
        await original.advance(key, position=begin)
        within = Extents.whole(disk.capacity - begin, begin) if begin else None
        async with AsyncExitStack() as stack:
            opened = await self._open(stack, key, pool)
            original.adds.opened.append(opened)
            differences = Differences(self.contents.reader, self.contents.point, key, opened, within=within)
            yield differences | OverDisk(opened, partial(self._begin, key), partial(self._reached, key))
        await original.advance(key, phase=Phase.WRITTEN, position=disk.capacity)

    async def _open(self, stack: AsyncExitStack, key: str, pool: BufferPool) -> WritableDisk:
        """The disk, open for writing. What a killed restore had open is closed only some time after it."""
        waits = backoff(_LOCKED_WITHIN_S)
        while True:
            try:
                opening = self.writer.open(self.original.access(key), pool, write=True)
                return await stack.enter_async_context(opening)
            except VddkError as exc:
                if exc.facts.get("code") != _ALREADY_LOCKED or (pause_s := next(waits, None)) is None:
                    raise
                log.info("%s is open elsewhere, again in %.1f s: %s", key, pause_s, exc.problem)
            await trio.sleep(pause_s)

    async def _begin(self, key: str) -> None:
        await self.original.advance(key, phase=Phase.BEGUN)

    async def _reached(self, key: str, position: int) -> None:
        await self.original.advance(key, position=position)

    async def _prove(self, disk: StoredDisk, pool: BufferPool) -> DiskProof:
        """Read the whole disk again, through a new connection. Raises IntegrityError."""
        contents = self.contents
        async with self.writer.open(self.original.access(disk.key), pool) as opened:
            self.original.adds.opened.append(opened)
            return await prove_disk(contents.reader, contents.point, disk, opened)


async def _nothing() -> None:
    await trio.lowlevel.checkpoint()


async def _nobody(_position: int) -> None:
    await trio.lowlevel.checkpoint()


@dataclass(frozen=True)
class OverDiskReceipt:
    """What was written: `data` and `zeros` bytes; `spans` had something to write."""

    capacity: int
    data: int
    zeros: int
    spans: int


@dataclass(frozen=True)
class OverDisk(Sink[Span | Unchanged, OverDiskReceipt]):
    """Spans of differences in, written onto the disk.

    In: spans and unchanged ranges, ascending, covering [0, capacity). Of a span, `data` and `zeros` are written,
    and nothing else.
    The disk is flushed after every 256 MiB written, and at the end: nothing counts as written before.
    Memory: `ahead` spans. Cancel: waits for writes in flight; the disk is then mixed.
    Raises: the errors of the disk; ContractError when the input does not cover the disk.

    Args:
        disk: The disk; open for writing.
        begin: Is called before the first write, if there is one.
        reached: Is called with a position after everything before it was written and flushed.
        ahead: Spans that are written at once.
    """

    disk: WritableDisk
    begin: Callable[[], Awaitable[None]] = field(default=_nothing, repr=False)
    reached: Callable[[int], Awaitable[None]] = field(default=_nobody, repr=False)
    ahead: int = 2

    def __post_init__(self) -> None:
        expect_disk(self, self.disk)
        at_least(1, self, "ahead")

    async def run(self, inbox: ReceiveChannel[Span | Unchanged]) -> OverDiskReceipt:
        work = _Writing(self.disk, self.reached, trio.Semaphore(self.ahead))
        position, passed, begun = 0, 0, False
        async with trio.open_nursery() as nursery:
            async for item in inbox:
                if not isinstance(item, Span | Unchanged) or item.offset != position:
                    raise ContractError(f"Differences of a whole disk in order are needed; got {item!r}.")
                position += item.length
                passed += item.length
                if isinstance(item, Span):
                    try:
                        if not begun:
                            await self.begin()
                            begun = True
                        await work.turns.acquire()
                    except BaseException:
                        item.release()
                        raise
                    nursery.start_soon(work.write, item)
                    del item
                if work.unflushed >= FLUSH_WRITTEN or passed >= FLUSH_PASSED:
                    await work.settle(self.ahead, position)
                    passed = 0
            if position != self.disk.capacity:
                raise ContractError(f"The disk has {self.disk.capacity} bytes; {position} arrived.")
            await work.settle(self.ahead, position)
        return OverDiskReceipt(position, work.data, work.zeros, work.spans)


@dataclass
class _Writing:
    """The writes of one run. `unflushed`: bytes written since the last flush."""

    disk: WritableDisk
    reached: Callable[[int], Awaitable[None]]
    turns: trio.Semaphore
    unflushed: int = 0
    data: int = 0
    zeros: int = 0
    spans: int = 0

    async def write(self, span: Span) -> None:
        try:
            memory = span.buffer.array
            for offset, length in span.zeros:
                memory[offset - span.offset : offset - span.offset + length] = 0
            await self.disk.write(span.buffer, span.offset, span.data | span.zeros)
        finally:
            span.release()
            self.turns.release()
        self.data += span.data.total
        self.zeros += span.zeros.total
        self.unflushed += span.data.total + span.zeros.total
        self.spans += 1

    async def settle(self, ahead: int, position: int) -> None:
        """Wait for all writes, flush, and report the position."""
        for _ in range(ahead):
            await self.turns.acquire()
        if self.unflushed:
            await self.disk.flush()
        self.unflushed = 0
        await self.reached(position)
        for _ in range(ahead):
            self.turns.release()
