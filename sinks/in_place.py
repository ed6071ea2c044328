"""Over the VM that a point is of: only what differs is written, and the whole is proven."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Literal, Protocol, overload

from trio.abc import ReceiveChannel

from pipeline import (
    BufferPool,
    ConfigError,
    ContractError,
    Disk,
    Extents,
    IntegrityError,
    MoverError,
    Pipeline,
    Sink,
    Span,
    TransferFailed,
    Unchanged,
    WritableDisk,
    format_size,
)
from pipeline.errors import leaves
from stages.differences import Differences
from vadpipe.repository.restore_point import StoredDisk
from vadpipe.vddk.access import DiskAccess
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.journal.rollback import Phase
from vadpipe.vsphere.restore.in_place import OpenOriginal, written_over

from .over_disk import OverDisk
from .restoring import Contents, OpenTarget

log = logging.getLogger("vadpipe." + __name__)


class DiskOpener(Protocol):
    """Opens disks for reading and for writing, e.g. `vadpipe.vddk.Vddk`."""

    @overload
    def open(
        self, access: DiskAccess, pool: BufferPool, *, write: Literal[False] = False
    ) -> AbstractAsyncContextManager[Disk]: ...

    @overload
    def open(
        self, access: DiskAccess, pool: BufferPool, *, write: Literal[True]
    ) -> AbstractAsyncContextManager[WritableDisk]: ...


@dataclass(frozen=True)
class OverVm:
    """Writes the disks of a point over those of the VM that it is of; the VM is off and has no snapshots.

    Every disk is read and compared with the point, chunk by chunk; only clusters that differ are written. Then it
    is read again and compared as a whole. A restore that ends half way is continued by the next one.

    Args:
        vcenter: The server that has the VM.
        reader: Opens the disks, e.g. `vadpipe.vddk.Vddk`.
        allow: It is permitted to write over VMs of this server.
        onto: By key of a disk in the point, the key of the VM's disk that it is written onto. Only for disks that
            moved on their controllers, or were replaced by others.
        keep: Keys of disks of the VM that the point does not know, and that may stay as they are.
        journal: Where unfinished restores are noted; None for the user's state directory.
    """

    vcenter: Vcenter
    _: KW_ONLY
    reader: DiskOpener
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
                self.reader,
                self.journal or Journal(),
                contents.reader.config.id.hex(),
                contents.point,
                contents.disks,
                onto=self.onto,
                keep=self.keep,
            ) as original,
        ):
            yield _OpenOverVm(contents, self.reader, original)

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
    reader: DiskOpener
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
            differing = await self._differing(disk, pool)
            if differing and begun:
                # What an earlier restore had done was changed meanwhile, e.g. the VM was powered on.
                log.info("%s is written again from the beginning: %d bytes differ", disk.key, differing)
                async with self._writing(disk, pool, 0) as pipeline:
                    await pipeline.run()
                differing = await self._differing(disk, pool)
            if differing:
                raise IntegrityError(
                    f"{self.place(disk)} was written, and {format_size(differing)} of it differ from disk "
                    f"{disk.key} of the point when it is read again.",
                    remedy="See whether something else writes to the disk, and the storage below it.",
                    disk=disk.key,
                )
            await self.original.advance(disk.key, phase=Phase.PROVEN)
        except (TransferFailed, MoverError) as failed:
            named = next((leaf for leaf in leaves(failed) if isinstance(leaf, MoverError)), failed)
            named.add_note(self.original.state())
            raise

    async def finish(self) -> Sequence[str]:
        return await self.original.finish()

    @asynccontextmanager
    async def _writing(
        self, disk: StoredDisk, pool: BufferPool, begin: int
    ) -> AsyncIterator[Pipeline[object]]:
        original, key = self.original, disk.key
        await original.advance(key, phase=Phase.BEGUN, position=begin)
        within = Extents.whole(disk.capacity - begin, begin) if begin else None
        async with self.reader.open(original.access(key), pool, write=True) as opened:
            original.adds.opened.append(opened)
            differences = Differences(self.contents.reader, self.contents.point, key, opened, within=within)
            yield differences | OverDisk(opened, reached=partial(self._reached, key))
        await original.advance(key, phase=Phase.WRITTEN, position=disk.capacity)

    async def _reached(self, key: str, position: int) -> None:
        await self.original.advance(key, position=position)

    async def _differing(self, disk: StoredDisk, pool: BufferPool) -> int:
        """Read the whole disk again, through a new connection. Returns how many bytes are not the point's."""
        async with self.reader.open(self.original.access(disk.key), pool) as opened:
            self.original.adds.opened.append(opened)
            source = Differences(self.contents.reader, self.contents.point, disk.key, opened)
            return await (source | CountDifferences(disk.capacity)).run()


@dataclass(frozen=True)
class CountDifferences(Sink[Span | Unchanged, int]):
    """Differences of a whole disk in, how many bytes differ out. None proves that the disk is the point's.

    Memory: one span. Cancel: leaves nothing behind. Raises: ContractError when the input does not cover the disk.
    """

    capacity: int

    async def run(self, inbox: ReceiveChannel[Span | Unchanged]) -> int:
        reached = differing = 0
        async for item in inbox:
            if item.offset != reached:
                raise ContractError(f"Differences of a whole disk in order are needed; got {item!r}.")
            reached += item.length
            if isinstance(item, Span):
                differing += item.data.total + item.zeros.total
                item.release()
        if reached != self.capacity:
            raise ContractError(f"The disk has {self.capacity} bytes; {reached} arrived.")
        return differing
