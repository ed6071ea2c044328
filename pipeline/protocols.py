"""What the engine asks of a VM, of its disks, and of the place that points are written to.

These are protocols: a reader or a store of another mover takes part by having these methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

from .buffers import Buffer, BufferPool
from .extents import Extents
from .units import CLUSTER


@dataclass(frozen=True)
class ChangedAreas:
    """One page of the changes that change tracking reports: `extents` changed in [offset, offset + length)."""

    offset: int
    length: int
    extents: Extents


class DiskSize(Protocol):
    """The name and the size of a disk; enough to show progress."""

    @property
    def key(self) -> str:
        """Stable identity within the VM, e.g. 'scsi0:0' or the disk's UUID; names the disk in a point."""
        ...

    @property
    def capacity(self) -> int: ...


class Disk(DiskSize, Protocol):
    """An open virtual disk, for reading. Offsets and lengths in bytes."""

    @property
    def label(self) -> str:
        """For people, e.g. 'Hard disk 1'."""
        ...

    @property
    def change_id(self) -> str | None:
        """The change tracking state of this snapshot, to be stored in the point; None when it is not tracked."""
        ...

    @property
    def pool(self) -> BufferPool:
        """Where `read` takes its buffers from."""
        ...

    async def allocated(self, offset: int, length: int) -> Extents:
        """What may hold data in [offset, offset + length); the rest reads as zero.

        Raises SourceError.
        """
        ...

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        """One page, from `offset` on, of what changed between change id `since` and this snapshot.

        Raises ChangeTrackingInvalid when there is no trustworthy answer.
        """
        ...

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        """Read the `wanted` extents; the byte at disk offset `o` goes to `buffer.array[o - offset]`.

        Several reads may run at once. Raises SourceError with disk, offset and length.
        """
        ...


class WritableDisk(Disk, Protocol):
    """An open virtual disk, for writing and reading. What was written is safe after `flush` and an orderly end."""

    async def write(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        """Write the `wanted` extents; the byte at disk offset `o` is `buffer.array[o - offset]`.

        They are whole clusters of 4 KiB, except at the end of the disk, and lie in [offset, offset + SPAN);
        `offset` is a multiple of 4 KiB. The buffer belongs to the disk's pool, and is free again when this returns
        or raises. Several writes may run at once, but not over the same range. Raises SourceError with disk, offset
        and length.
        """
        ...

    async def flush(self) -> None:
        """Return when everything that was written before is on the disk. Raises SourceError when it is not."""
        ...


@dataclass(frozen=True)
class MachineId:
    """Identifies a VM: `uuid` survives renames, `name` is for people and may be ambiguous."""

    uuid: str
    name: str


class Capture(Protocol):
    """A VM at one moment: the open disks of a snapshot, and the facts of the VM."""

    @property
    def machine(self) -> MachineId: ...

    @property
    def disks(self) -> Sequence[Disk]: ...

    @property
    def quiescing_asked(self) -> str:
        """'application', 'file-system' or 'none'."""
        ...

    @property
    def configuration(self) -> Mapping[str, object]:
        """What is needed to make the VM again; JSON values only."""
        ...

    @property
    def documents(self) -> Mapping[str, bytes]:
        """Documents of the capture that go into the point, beside those of the finisher, by name."""
        ...

    @property
    def left_out(self) -> Sequence[str]:
        """One sentence for each disk of the VM that is not among `disks`."""
        ...

    @property
    def attention(self) -> Sequence[str]:
        """Other deviations from what was asked for, one sentence each; they cause exit code 3."""
        ...

    @property
    def remarks(self) -> Sequence[str]:
        """Other remarks for the report, one sentence each."""
        ...

    @property
    def preflight(self) -> Mapping[str, object] | None:
        """The findings of preflight as JSON values; None when it did not run."""
        ...

    async def confirm(self) -> None:
        """Confirm, after the last read and before publishing, that the disks did not change meanwhile.

        Raises SourceError when what was read may not be whole.
        """
        ...

    @property
    def snapshots_left(self) -> int | None:
        """How many snapshots the VM has after the capture ended; None for a machine without snapshots."""
        ...


C_co = TypeVar("C_co", bound=Capture, covariant=True)
C_contra = TypeVar("C_contra", bound=Capture, contravariant=True)


class Machine(Protocol[C_co]):
    """A VM that can be captured. Making one does no I/O."""

    @property
    def name(self) -> str: ...

    @property
    def pool_size(self) -> int:
        """Bytes of buffers that a capture's disks share."""
        ...

    def capture(self) -> AbstractAsyncContextManager[C_co]:
        """Open a capture. At its end everything is released; LeftBehind is raised for what could not be."""
        ...

    def effects(self) -> Sequence[str]:
        """What a capture would change outside, one sentence each; for `plan`."""
        ...


@dataclass(frozen=True)
class Evidence:
    """What a finisher found out about a point: the consistency reached, and the documents that prove it.

    `shortfalls`: where that is less than required, a sentence each, when `satisfied` is False.
    """

    reached: str
    satisfied: bool
    reasons: Sequence[str]
    verdict: Mapping[str, object] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)
    shortfalls: Sequence[str] = ()


class Finisher(Protocol[C_contra]):
    """A last step of a job, while the snapshot still exists."""

    async def finish(self, capture: C_contra) -> Evidence: ...


@runtime_checkable
class Examiner(Protocol[C_contra]):
    """A finisher that can tell before anything is read whether the capture is good enough."""

    async def examine(self, capture: C_contra, attempt: int) -> Evidence | None:
        """The evidence that `finish` would give, or None to be asked at the end. `attempt` counts earlier captures.

        Raises QuiescingShort: with `retry_after_s` for another capture, without to fail the job.
        """
        ...


@dataclass(frozen=True)
class PreviousDisk:
    """What the previous point knows of a disk.

    `doubtful`: ranges that are read as if they had changed, whatever change tracking says. `unit`: what changed is
    widened to multiples of so many bytes.
    """

    point: str
    capacity: int
    change_id: str | None
    doubtful: Extents = field(default_factory=Extents.empty)
    unit: int = CLUSTER


@dataclass(frozen=True)
class SourceReceipt:
    """How a disk was read; what an extents source returns.

    `mode` is 'full' or 'incremental', and `reason` says why in a sentence. `allocated` and `changed` are bytes as
    the source was told; `changed` is None for a full read, `allocated` where it is not known.
    """

    mode: str
    reason: str
    allocated: int | None = None
    changed: int | None = None


@dataclass(frozen=True)
class DiskReceipt:
    """The result of one disk. All counts are bytes of the disk, except `stored`: bytes added to the store.

    `read` = `zero_read` + `known` + `new`; logical = `read` + `zero_unread` + `unchanged`. `known` is what was read
    and was stored before, as a chunk or at the same place of the previous point; `unchanged` was not read.
    """

    key: str
    label: str
    capacity: int
    root: str
    read: int
    zero_read: int
    zero_unread: int
    unchanged: int
    known: int
    new: int
    stored: int


class PointWriter(Protocol):
    """A restore point in the making. Nothing of it is visible before `publish` returned."""

    def previous(self, disk: Disk) -> PreviousDisk | None:
        """The same disk in the newest point of this VM, if there is one."""
        ...

    async def publish(self, capture: Capture, disks: Sequence[DiskReceipt], evidence: Evidence | None) -> str:
        """Make the point durable and visible, last and atomically. Returns its id."""
        ...


P_co = TypeVar("P_co", bound=PointWriter, covariant=True)


class Store(Protocol[P_co]):
    """An open store that can be written."""

    def begin(self, machine: MachineId) -> AbstractAsyncContextManager[P_co]:
        """Start a point; left without `publish`, nothing of it remains visible."""
        ...


class Target(Protocol[P_co]):
    """Where points go. Making one does no I/O."""

    def open(self) -> AbstractAsyncContextManager[Store[P_co]]: ...

    def planned(self) -> P_co:
        """A point writer that is good for composing and describing a path, not for running it.

        Its identity equals no other, so that a path which names chunks in another way is found when it is composed.
        """
        ...

    def effects(self) -> Sequence[str]:
        """What a job would change there, one sentence each; for `plan`."""
        ...
