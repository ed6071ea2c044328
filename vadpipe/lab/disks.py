"""One virtual disk of a lab VM: real VMDK files, redo logs, change tracking with real content.

    web01.vmdk <-+- web01-000001.vmdk <- web01-000003.vmdk     base <- redo logs; the last is the live leaf
                 +- web01-000002.vmdk                          where VSS writers wrote (first fork)

A snapshot forks the disk: the leaf is frozen and a new redo log becomes the leaf. The snapshot's configuration
names the frozen file or, for an application-quiesced Windows guest, a second redo log on top of it. Removing the
snapshot merges the redo log above the frozen file into that file.

A kill at any moment leaves a usable disk. A fork and the end of a merge each replace the state file atomically. A
merge writes into the parent only data that the redo log above it already shows. `consolidation_needed` reports an
unfinished merge, and `consolidate` finishes it.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal
from uuid import UUID, uuid4

from pipeline.extents import Extents

from .vmdk_chain import (
    Chain,
    create_base,
    create_redo,
    differing_clusters,
    merge_down,
    occupied_grains,
    opened_chain,
)
from .vmdk_descriptor import SECTOR, new_cid, with_field
from .vmdk_files import LabDiskError, opened_raw, pieces_of
from .vmdk_flat import flat_path
from .vmdk_state import DiskFiles, DiskState, ForkState
from .vmdk_tracking import BLOCK

EVERYTHING = "*"

Provisioning = Literal["thin", "flat", "eager"]
"""A sparse file; a flat one whose blocks are zeroed when first written (lazily); one whose blocks all were."""

_LOOKED_AT = 16  # pieces of a disk's data that tell whether it holds any


class ChangeIdError(LabDiskError):
    """No changed areas for this change id: read everything that is allocated instead."""


@dataclass(frozen=True)
class Fork:
    """What one snapshot did to the disk."""

    frozen: Path  # what the snapshot's configuration names; merging another snapshot may move it
    live: Path  # the redo log that took the running VM's writes from then on
    change_id: str | None  # the change tracking state of the frozen image; None: not tracked


class LabDisk:
    """One virtual disk: base VMDK plus redo logs, and its change tracking.

    Everything is on disk: the VMDK files, and `<name>-ctk.json`, `<name>-ctk.npy` beside them. One object at
    a time owns a disk; its methods may be called from any thread. Offsets and lengths in bytes.
    """

    def __init__(self, files: DiskFiles) -> None:
        self.directory = files.directory
        self.name = files.name
        self.capacity = files.state.capacity
        self.uuid = files.state.uuid
        self.base = files.base
        self._files = files  # a value: whoever reads it once has one consistent state, also without the lock
        self._lock = threading.RLock()
        self._modified: Path | None = None  # the leaf that got a new CID for our writes

    @classmethod
    def create(
        cls,
        directory: Path,
        name: str,
        capacity: int,
        *,
        provisioning: Provisioning = "thin",
        uuid: UUID | None = None,
        linked_to: Sequence[Path] = (),
    ) -> LabDisk:
        """Create an empty disk.

        Args:
            linked_to: The chain of a snapshot of another disk, leaf first: the new one is a linked clone of it,
                which shows its bytes; `provisioning` means nothing then.

        Raises:
            LabDiskError: It exists, or the capacity is not a multiple of 512.
        """
        if capacity <= 0 or capacity % SECTOR:
            raise LabDiskError(
                f"Disk {name}: a capacity of {capacity} bytes is not a whole number of sectors.",
                remedy=f"Choose a multiple of {SECTOR}.",
            )
        directory.mkdir(parents=True, exist_ok=True)
        uuid = uuid or UUID(f"6000c29{secrets.token_hex(13)[1:]}")  # the prefix that VMware gives to disks
        below = tuple(os.path.relpath(path, directory) for path in linked_to)
        state = DiskState(capacity, str(uuid), eager=provisioning == "eager", linked_to=below)
        files = DiskFiles(directory, name, state)
        if files.base.exists():
            raise LabDiskError(f"{files.base} exists already.", remedy="Choose another name or directory.")
        if linked_to:
            create_redo(files.base, linked_to[0], capacity, uuid)
        else:
            create_base(files.base, capacity, uuid, "thin" if provisioning == "thin" else "flat")
        return cls(files.committed(files.state))

    def emptied(self) -> LabDisk:
        """A new disk in this one's place, of the same size, kind and identity; this one is no more."""
        provisioning = self.provisioning
        self.delete()
        return self.create(
            self.directory, self.name, self.capacity, provisioning=provisioning, uuid=UUID(self.uuid)
        )

    @classmethod
    def load(cls, directory: Path, name: str) -> LabDisk:
        """Load a disk from its directory. Raises LabDiskError."""
        return cls(DiskFiles.load(directory, name))

    def delete(self) -> None:
        """Delete all files of the disk, those of its snapshots too. May be repeated after a kill."""
        with self._lock:
            files = self._files
            logs = [log for fork in files.state.forks for log in (*fork.redo_logs, fork.map_name)]
            tracking = [files.live_map.path, files.state_path]
            named = [files.base, flat_path(files.base), *(self.directory / log for log in logs)]
            for path in [*files.unreferenced(), *named, *tracking]:
                path.unlink(missing_ok=True)

    @property
    def provisioning(self) -> Provisioning:
        if not flat_path(self.base).exists():
            return "thin"
        return "eager" if self._files.state.eager else "flat"

    @property
    def leaf(self) -> Path:
        """The file that the running VM writes to; what its configuration names."""
        return self.chain[0]

    @property
    def chain(self) -> list[Path]:
        """The files of the running VM's disk, leaf first, base last."""
        return self._files.live_chain

    @property
    def forks(self) -> list[Fork]:
        """One per snapshot, oldest first."""
        files = self._files
        return [
            Fork(files.frozen_chain(index)[0], self.directory / fork.child, fork.change_id)
            for index, fork in enumerate(files.state.forks)
        ]

    def fork_of(self, frozen: Path) -> Fork:
        """The fork of the snapshot whose configuration names `frozen`. Raises LabDiskError."""
        for fork in self.forks:
            if fork.frozen == frozen:
                return fork
        raise LabDiskError(
            f"{frozen} is not the frozen file of a snapshot of disk {self.name}.",
            remedy="Look it up in `forks`: a merge moves what newer snapshots name.",
        )

    def frozen_chain(self, frozen: Path) -> list[Path]:
        """The files of a snapshot's image, leaf first. Raises LabDiskError."""
        with self._lock:
            return self._files.frozen_chain(self._located(frozen)[0])

    @property
    def change_id(self) -> str | None:
        """The change tracking state of the running disk; None: tracking is off."""
        state = self._files.state
        return f"{state.tracking}/{state.sequence}" if state.tracking else None

    @property
    def holds_data(self) -> bool:
        """Whether the disk has a byte that is not zero, as far as the beginning of its data tells."""
        with self._lock, opened_chain(self.chain) as chain:
            pieces = pieces_of(chain.allocated(0, self.capacity))
            return any(any(chain.read(*piece)) for piece in islice(pieces, _LOOKED_AT))

    # -- what the guest does

    def read(self, offset: int, length: int) -> bytes:
        """Read through the live leaf."""
        self._check(offset, length)
        with self._lock, opened_chain(self.chain) as chain:
            return bytes(chain.read(offset, length))

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """A guest's write into the live leaf, recorded by change tracking when that is on."""
        self._check(offset, len(data))
        with self._writing() as chain:
            self._record(Extents.whole(len(data), offset))
            chain.write(offset, data)

    def import_raw(self, raw: Path) -> None:
        """Fill a new disk from a raw image; holes and grains that are all zero stay unallocated."""
        with self._writing() as chain, opened_raw(raw, self.capacity) as image:
            if self.forks or len(chain.allocated(0, self.capacity)):
                raise LabDiskError(f"Disk {self.name} holds data already.", remedy="Import into a new disk.")
            self._copy(image, chain, occupied_grains(image, self.capacity))

    def differences(self, raw: Path) -> Extents:
        """The 4 KiB clusters in which a raw image differs from the live disk."""
        with self._lock, opened_raw(raw, self.capacity) as image, opened_chain(self.chain) as chain:
            return differing_clusters(chain, image, self.capacity)

    def apply_raw_difference(self, raw: Path) -> Extents:
        """Make the live disk equal to a raw image by writing the clusters that differ, and only those."""
        with self._writing() as chain, opened_raw(raw, self.capacity) as image:
            changed = differing_clusters(chain, image, self.capacity)
            self._copy(image, chain, changed)
        return changed

    # -- what snapshots do

    def fork(self, *, quiesced_second: bool) -> Fork:
        """Freeze the leaf for a snapshot and give the running VM a new one.

        `quiesced_second`: the snapshot gets a redo log of its own, for VSS writers to change its image.
        """
        with self._lock:
            files, state = self._files, self._files.state
            logs: list[str] = []
            for _ in range(2 if quiesced_second else 1):
                path = files.free_redo_path()
                create_redo(path, self.leaf, self.capacity, UUID(self.uuid))
                logs.append(path.name)
            second = logs[1] if quiesced_second else None
            fork = ForkState(logs[0], second, state.tracking, state.sequence)
            if state.tracking:
                files.live_map.copy_to(files.map_of(fork).path)
            self._commit(replace(state, forks=(*state.forks, fork), sequence=state.sequence + 1))
            return self.forks[-1]

    def write_frozen(self, frozen: Path, offset: int, data: bytes | bytearray | memoryview) -> None:
        """A VSS writer's change to an application-quiesced image, after the freeze.

        From then on the running disk differs there from what a backup of the snapshot holds, so the
        blocks count as changed in this snapshot, and as changed again in everything newer.
        """
        self._check(offset, len(data))
        with self._lock:
            index, fork = self._located(frozen)
            if fork.second is None:
                raise LabDiskError(
                    f"{frozen} belongs to a snapshot without a redo log for VSS writers; it never changes.",
                    remedy="Fork with quiesced_second.",
                )
            if fork.tracking:
                written = Extents.whole(len(data), offset)
                self._files.map_of(fork).mark(written, fork.sequence)
                for newer in self._files.maps_after(index):
                    newer.mark(written, fork.sequence + 1)
            with opened_chain(self._files.frozen_chain(index), writable=True) as chain:
                chain.write(offset, data)

    def merge(self, frozen: Path) -> dict[Path, Path]:
        """Remove a snapshot: its redo log goes into the frozen file and is deleted, the second one dropped.

        Returns {old: new} for the frozen files of other snapshots that have another name now. A killed merge
        leaves `consolidation_needed`; the same call, or `consolidate`, finishes it.
        """
        with self._lock:
            files, state = self._files, self._files.state
            index, fork = self._located(frozen)
            if state.merging not in (None, fork.child):
                raise LabDiskError(
                    f"Disk {self.name}: the merge of {state.merging} was not finished.",
                    remedy="Consolidate the disk first.",
                )
            before = {fork.live: fork.frozen for fork in self.forks}
            self._commit(replace(state, merging=fork.child))
            merge_down(self.directory / fork.child, files.chain_below(index), files.hanging_on(index))
            forks = state.forks[:index] + state.forks[index + 1 :]
            self._commit(replace(state, merging=None, forks=forks))
            self._delete_unreferenced()
            after = {fork.live: fork.frozen for fork in self.forks}
            return {before[live]: now for live, now in after.items() if before[live] != now}

    @property
    def consolidation_needed(self) -> bool:
        """A fork or a merge was killed half way and left files behind."""
        if not self._lock.acquire(blocking=False):
            return False  # another thread is at work, its files are not leftovers yet
        try:
            return self._files.state.merging is not None or bool(self._files.unreferenced())
        finally:
            self._lock.release()

    def consolidate(self) -> dict[Path, Path]:
        """Finish a fork or merge that was killed half way. Returns the result of `merge`."""
        with self._lock:
            merging = self._files.state.merging
            begun = [fork.frozen for fork in self.forks if fork.live.name == merging]
            moved = self.merge(begun[0]) if begun else {}
            self._delete_unreferenced()
            return moved

    @contextmanager
    def moving(self, directory: Path) -> Iterator[None]:
        """Nobody uses the disk meanwhile; from the end on its files are those of the same names in `directory`."""
        with self._lock:
            yield
            self._files = replace(self._files, directory=directory)
            self.directory, self.base, self._modified = directory, self._files.base, None

    # -- change tracking

    def enable_tracking(self) -> None:
        """Start change tracking, unless it is already on."""
        with self._lock:
            if self.change_id is None:
                self.reset_tracking()

    def disable_tracking(self) -> None:
        """Stop recording. Existing snapshots keep their change tracking state."""
        with self._lock:
            self._commit(replace(self._files.state, tracking=None))
            self._files.live_map.path.unlink(missing_ok=True)

    def reset_tracking(self) -> None:
        """Start change tracking anew with a new UUID, so that older change ids become invalid."""
        with self._lock:
            self.disable_tracking()  # a kill must not leave the old UUID with an empty array
            self._files.live_map.create()
            self._commit(replace(self._files.state, tracking=str(uuid4()), sequence=1))

    def changed_areas(self, change_id: str, frozen: Path) -> list[tuple[int, int]]:
        """(offset, length) of the 64 KiB blocks that changed between `change_id` and this snapshot's image.

        "*": the blocks that hold data in the image. Raises ChangeIdError: the snapshot was not tracked, or
        the change id is of another tracking UUID, from the future, or none at all.
        """
        with self._lock:
            index, fork = self._located(frozen)
            remedy = "Read everything that is allocated."
            if fork.tracking is None:
                raise ChangeIdError(f"{frozen} was frozen without change tracking.", remedy=remedy)
            if change_id == EVERYTHING:
                with opened_chain(self._files.frozen_chain(index)) as chain:
                    return list(chain.allocated(0, self.capacity).aligned(BLOCK, self.capacity))
            uuid, _, sequence = change_id.partition("/")
            if uuid != fork.tracking or not sequence.isdecimal() or int(sequence) > fork.sequence:
                raise ChangeIdError(
                    f"Change id {change_id!r} is not one before {fork.change_id} of {frozen}.", remedy=remedy
                )
            return list(self._files.map_of(fork).changed_since(int(sequence)))

    # -- the parts of the above

    def _located(self, frozen: Path) -> tuple[int, ForkState]:
        index = self.forks.index(self.fork_of(frozen))
        return index, self._files.state.forks[index]

    def _commit(self, state: DiskState) -> None:
        self._files = self._files.committed(state)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or offset + length > self.capacity:
            raise LabDiskError(
                f"Disk {self.name}: {length} bytes at {offset} reach past its {self.capacity} bytes.",
                remedy="Stay inside the disk.",
            )

    def _delete_unreferenced(self) -> None:
        for path in self._files.unreferenced():
            path.unlink()

    @contextmanager
    def _writing(self) -> Iterator[Chain]:
        """The live chain, open for writing. The leaf gets a new CID before the first of our writes to it."""
        with self._lock, opened_chain(self.chain, writable=True) as chain:
            if self._modified != self.leaf:
                leaf = chain.links[0]
                leaf.descriptor = with_field(leaf.descriptor, "CID", new_cid())
                self._modified = self.leaf
            yield chain

    def _record(self, written: Extents) -> None:
        """Record a write before its bytes: a kill in between must not make change tracking miss a block."""
        if self._files.state.tracking:
            self._files.live_map.mark(written, self._files.state.sequence)

    def _copy(self, image: int, chain: Chain, extents: Extents) -> None:
        self._record(extents)
        for offset, length in pieces_of(extents):
            chain.write(offset, os.pread(image, length, offset))
