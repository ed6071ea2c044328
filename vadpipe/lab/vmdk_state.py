"""The state of one disk of a lab VM besides its bytes: its forks, its change tracking, its files.

The state is the file `<name>-ctk.json`. Every change replaces that file, so a change is complete or did not happen.
A redo log that the state does not name was left by a kill.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Self

from .vmdk_files import LabDiskError, replace_text
from .vmdk_tracking import ChangeMap


@dataclass(frozen=True)
class ForkState:
    """The effect of one snapshot on the disk; file names."""

    child: str  # the redo log that took the running VM's writes from then on
    second: str | None  # the redo log for VSS writers
    tracking: str | None  # the tracking UUID of the frozen image; None: not tracked
    sequence: int

    @property
    def change_id(self) -> str | None:
        return f"{self.tracking}/{self.sequence}" if self.tracking else None

    @property
    def redo_logs(self) -> list[str]:
        return [self.child, self.second] if self.second else [self.child]

    @property
    def map_name(self) -> str:
        """The tracking array as it was at the fork."""
        return f"{Path(self.child).stem}-ctk.npy"


@dataclass(frozen=True)
class DiskState:
    """One state of a disk. `forks`: oldest first."""

    capacity: int
    uuid: str
    tracking: str | None = None  # UUID of change tracking; None: off
    sequence: int = 0  # what a write is recorded under
    merging: str | None = None  # the redo log whose merge has begun
    forks: tuple[ForkState, ...] = ()
    eager: bool = False  # a flat disk whose blocks all were zeroed at its creation
    linked_to: tuple[
        str, ...
    ] = ()  # the files of another disk below its base, leaf first, seen from its directory

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError, KeyError or TypeError."""
        values = json.loads(text)
        forks = tuple(ForkState(**fork) for fork in values["forks"])
        return cls(**{**values, "forks": forks, "linked_to": tuple(values.get("linked_to", ()))})


@dataclass(frozen=True)
class DiskFiles:
    """One state of a disk and the files that belong to it.

    The chain is linear: the redo log of each fork hangs on that of the fork before, the first on the base.
    """

    directory: Path
    name: str
    state: DiskState

    @classmethod
    def load(cls, directory: Path, name: str) -> Self:
        """Raises LabDiskError."""
        path = _state_path(directory, name)
        try:
            return cls(directory, name, DiskState.parse(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise LabDiskError(
                f"{path} does not describe a disk of the lab ({exc}).", remedy="Build the lab's VM again."
            ) from exc

    def committed(self, state: DiskState) -> Self:
        """The disk in another state, on disk already."""
        text = json.dumps(asdict(state), indent=1)
        replace_text(_state_path(self.directory, self.name), text + "\n")
        return replace(self, state=state)

    @property
    def state_path(self) -> Path:
        return _state_path(self.directory, self.name)

    @property
    def base(self) -> Path:
        return self.directory / f"{self.name}.vmdk"

    @property
    def live_chain(self) -> list[Path]:
        """Leaf first; the base, or what a linked clone hangs on, last."""
        return self.chain_below(len(self.state.forks))

    def chain_below(self, index: int) -> list[Path]:
        """The chain that the fork of that index found, leaf first."""
        logs = [self.directory / fork.child for fork in reversed(self.state.forks[:index])]
        return [*logs, self.base, *self.linked_to]

    @property
    def linked_to(self) -> list[Path]:
        """The files of another disk that the base of a linked clone hangs on, leaf first."""
        return [Path(os.path.normpath(self.directory / file)) for file in self.state.linked_to]

    def frozen_chain(self, index: int) -> list[Path]:
        """The chain that the snapshot of that fork shows; its first is what the snapshot names."""
        second = self.state.forks[index].second
        return [*([self.directory / second] if second else []), *self.chain_below(index)]

    def hanging_on(self, index: int) -> list[Path]:
        """The redo logs on the one of the fork of that index."""
        return [
            self.directory / log for fork in self.state.forks[index + 1 : index + 2] for log in fork.redo_logs
        ]

    def free_redo_path(self) -> Path:
        """Where the next redo log goes: the lowest free number."""
        numbered = (self.directory / f"{self.name}-{number:06d}.vmdk" for number in count(1))
        return next(path for path in numbered if not path.exists())

    def unreferenced(self) -> list[Path]:
        """Redo logs and their tracking arrays on disk that the state does not name."""
        numbered = re.compile(rf"{re.escape(self.name)}-\d{{6}}(\.vmdk|-ctk\.npy)")
        known = {log for fork in self.state.forks for log in (*fork.redo_logs, fork.map_name)}
        found = (path for path in self.directory.iterdir() if numbered.fullmatch(path.name))
        return sorted(path for path in found if path.name not in known)

    @property
    def live_map(self) -> ChangeMap:
        """The tracking array of the running disk."""
        return ChangeMap(self.directory / f"{self.name}-ctk.npy", self.state.capacity)

    def map_of(self, fork: ForkState) -> ChangeMap:
        """The tracking array as it was at a fork."""
        return ChangeMap(self.directory / fork.map_name, self.state.capacity)

    def maps_after(self, index: int) -> list[ChangeMap]:
        """The tracking arrays that go on where the fork of that index was, of the same tracking UUID."""
        tracking = self.state.forks[index].tracking
        newer = [self.map_of(fork) for fork in self.state.forks[index + 1 :] if fork.tracking == tracking]
        return [*newer, self.live_map] if self.state.tracking == tracking else newer


def _state_path(directory: Path, name: str) -> Path:
    return directory / f"{name}-ctk.json"
