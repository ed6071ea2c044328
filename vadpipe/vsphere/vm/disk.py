"""A disk of a snapshot: its bytes through a reader such as VDDK, its changes through vSphere."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.buffers import Buffer, BufferPool
from pipeline.errors import SourceError
from pipeline.extents import Extents
from pipeline.protocols import ChangedAreas
from vadpipe.vddk.access import DiskAccess

from ..api.session import VcenterSession
from ..inventory.hardware import VmDisk
from ..snapshot.changes import changed_areas
from ..snapshot.snapshot import Snapshot


class OpenDisk(Protocol):
    """An open disk: `vadpipe.vddk.VddkDisk`, or another mover's. Offsets and lengths in bytes."""

    @property
    def capacity(self) -> int: ...

    async def allocated(self, offset: int, length: int) -> Extents: ...

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None: ...


class DiskReader(Protocol):
    """Opens disks: `vadpipe.vddk.Vddk`, or another mover's.

    When it is a `journal.access.AccessReader` too, the VM is locked against Storage vMotion, and hot-added disks
    are detached.
    """

    def open(self, access: DiskAccess, pool: BufferPool) -> AbstractAsyncContextManager[OpenDisk]: ...


@dataclass(frozen=True)
class SnapshotDisk:
    """A disk of a snapshot, open for reading; a `pipeline.protocols.Disk`."""

    facts: VmDisk
    pool: BufferPool
    _opened: OpenDisk = field(repr=False)
    _session: VcenterSession = field(repr=False)
    _snapshot: Snapshot = field(repr=False)

    def __post_init__(self) -> None:
        if self._opened.capacity != self.facts.capacity:
            raise SourceError(
                f"vSphere says that {self.facts.label} ({self.facts.key}) has {self.facts.capacity} bytes, "
                f"its reader {self._opened.capacity}.",
                remedy="Run again; if they still differ, the snapshot's disk chain is damaged.",
                disk=self.facts.key,
                path=self.facts.path,
            )

    @property
    def key(self) -> str:
        return self.facts.key

    @property
    def label(self) -> str:
        return self.facts.label

    @property
    def capacity(self) -> int:
        return self.facts.capacity

    @property
    def change_id(self) -> str | None:
        return self.facts.change_id

    async def allocated(self, offset: int, length: int) -> Extents:
        return await self._opened.allocated(offset, length)

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        snapshot = self._snapshot
        return await changed_areas(self._session, snapshot.vm, snapshot.moref, self.facts, since, offset)

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        await self._opened.read(buffer, offset, wanted)
