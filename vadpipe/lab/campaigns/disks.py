"""The lab's own disks, without a child process: a reader, a writer, and what goes wrong at their calls."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import trio

from pipeline import Buffer, BufferPool, ChangedAreas, ChangeTrackingInvalid, Extents, SourceError
from stages import DiskAccess

from ..disks import LabDisk
from ..vmdk_chain import Chain, open_link, opened_chain
from ..vmdk_descriptor import field as descriptor_field
from .troubles import Moment


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
        if descriptor_field(link.descriptor, "parentCID") == "ffffffff":
            return None
        return Path(os.path.normpath(path.parent / descriptor_field(link.descriptor, "parentFileNameHint")))
    finally:
        link.close()


DiskAction = Literal["fails", "loses its effect", "is full"]


@dataclass(frozen=True)
class DiskTrouble:
    """At the `nth` call of the writer: an error, bytes that never arrive, or a full datastore."""

    action: DiskAction
    call: str
    nth: int

    @property
    def name(self) -> str:
        return f"disk {self.call} {self.action}"


@dataclass
class DiskCalls:
    """The calls of the writer in one run, what happens at which of them, and at which this process is killed."""

    troubles: Sequence[DiskTrouble] = ()
    killed: Moment | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def happen(self, call: str, subject: str) -> bool:
        """Count the call; returns whether its effect is lost. Raises SourceError where it fails."""
        self.counts[call] += 1
        nth = self.counts[call]
        if self.killed == (call, nth):
            os.kill(os.getpid(), signal.SIGKILL)
        lost = False
        for one in self.troubles:
            if (one.call, one.nth) == (call, nth):
                if one.action == "loses its effect":
                    lost = True
                else:
                    why = "there is no space left" if one.action == "is full" else "the lab was told to fail"
                    raise SourceError(f"{subject}: {call} failed: {why}.", disk=subject)
        return lost


@dataclass(frozen=True)
class LabWriter:
    """Opens disks below a lab directory's datastores, for writing too; a `DiskWriter` of the restore."""

    root: Path
    calls: DiskCalls = field(default_factory=DiskCalls)

    @asynccontextmanager
    async def open(
        self, access: DiskAccess, pool: BufferPool | None = None, *, write: bool = False
    ) -> AsyncIterator[LabWritableDisk]:
        await trio.lowlevel.checkpoint()
        self.calls.happen("open", access.path)
        datastore, _, path = access.path.removeprefix("[").partition("] ")
        place = self.root / "datastores" / datastore / path
        if not place.exists():
            raise SourceError(f"{access.path} does not exist.", disk=access.path)
        disk = LabDisk.load(place.parent, place.stem)
        yield LabWritableDisk(disk, access.path, pool or BufferPool(), self.calls)
        self.calls.happen("close", access.path)


class LabWritableDisk:
    """One of the lab's disks, open for writing: a `pipeline.WritableDisk`."""

    change_id: None = None

    def __init__(self, disk: LabDisk, key: str, pool: BufferPool, calls: DiskCalls) -> None:
        self._disk = disk
        self._calls = calls
        self.key = self.label = key
        self.pool = pool
        self.capacity = disk.capacity

    async def allocated(self, offset: int, length: int) -> Extents:
        await trio.lowlevel.checkpoint()
        with opened_chain(self._disk.chain) as chain:
            return chain.allocated(offset, length)

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        raise ChangeTrackingInvalid(f"{self.key} has no change tracking.")

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        await trio.lowlevel.checkpoint()
        self._calls.happen("read", self.key)
        for start, length in wanted:
            content = np.frombuffer(self._disk.read(start, length), np.uint8)
            buffer.array[start - offset : start - offset + length] = content

    async def write(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        await trio.lowlevel.checkpoint()
        if not self._calls.happen("write", self.key):
            for start, length in wanted:
                self._disk.write(start, buffer.memory[start - offset : start - offset + length])

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        self._calls.happen("flush", self.key)
