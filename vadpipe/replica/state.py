"""The state of a migration, in a directory of this machine.

    state.json           the VM, its disks with their change ids, the last increments, when it was cut over
    scsi0%3A0.digests    what the replica of a disk holds (see `digests`)
    scsi0%3A0.doubt      the ranges that an increment is writing
    scsi0%3A0.unproved   the ranges that were written since the whole replica was last read back; none: all

Two rules hold at any moment, also after a kill:

1. Outside of the ranges in doubt, the digests describe what is durable on the replica.
2. Outside of the ranges in doubt, the replica differs from the VM at most where change tracking says that something
   changed since the change id.

So the ranges in doubt are durable before anything is written there, and they are taken back when the replica and
its digests are durable. Change ids are replaced last.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

import numpy as np

from pipeline.errors import ConfigError, SinkError
from pipeline.extents import Extents
from vadpipe.files import write_durably

from .digests import digests_size

_VERSION: Final = 1
_STATE: Final = "state.json"
KEPT: Final = 20  # increments whose figures are kept for the estimate


class InUse(SinkError):
    """Another run is at work on the migration."""


@dataclass(frozen=True)
class ReplicaDisk:
    """A disk of the replica.

    `made`: it exists. `change_id`: of the last increment that ended; None: untracked. `seen`: what the file of the
    replica looked like then; empty where that is not known.
    """

    capacity: int
    place: str
    made: bool = False
    change_id: str | None = None
    seen: str = ""


@dataclass(frozen=True)
class Increment:
    """The figures of an increment. `ended` in seconds since 1970; `moving_s`: while disks were read and written.

    Bytes: `read` came from the VM, `touched` had to be looked at (zeros too), `written` went to the replica.
    `full`: everything was looked at.
    """

    number: int
    ended: float
    wall_s: float
    moving_s: float
    read: int
    touched: int
    written: int
    full: bool


@dataclass(frozen=True)
class ProofFigures:
    """The figures of the last proof that found no difference: bytes that were read."""

    read: int
    wall_s: float


@dataclass(frozen=True)
class ReplicaState:
    """The state of a migration. `key` is of the digests, in hex. `cut_over`: when, in ISO 8601; empty before."""

    machine_uuid: str
    machine_name: str
    key: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    disks: Mapping[str, ReplicaDisk] = field(default_factory=dict)
    increments: tuple[Increment, ...] = ()
    proof: ProofFigures | None = None
    cut_over: str = ""

    @property
    def number(self) -> int:
        """Of the last increment that ended; 0 before the first."""
        return self.increments[-1].number if self.increments else 0


@dataclass(frozen=True)
class StateDirectory:
    """Where the state is kept. All methods may wait for files, and raise SinkError."""

    path: Path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory, which is made where there is none."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise self._unusable(exc) from exc
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InUse(
                    f"Another run is at work on the migration of {self.path}.",
                    remedy="Wait until it has ended.",
                ) from None
            except OSError as exc:
                raise self._unusable(exc) from exc
            yield
        finally:
            os.close(descriptor)

    def load(self) -> ReplicaState | None:
        """The state; None before the first increment."""
        path = self.path / _STATE
        try:
            values = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self._unusable(exc) from exc
        except ValueError as exc:
            raise self._damaged(path, exc) from exc
        try:
            if values.pop("version") != _VERSION:
                raise SinkError(
                    f"{path} was written by another version of vadpipe.",
                    remedy="Use that version until the cut-over.",
                )
            values["disks"] = {key: ReplicaDisk(**disk) for key, disk in values["disks"].items()}
            values["increments"] = tuple(Increment(**one) for one in values["increments"])
            values["proof"] = values["proof"] and ProofFigures(**values["proof"])
            state = ReplicaState(**values)
            if len(bytes.fromhex(state.key)) != 32:
                raise ValueError("its key has another length")
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise self._damaged(path, exc) from exc
        return state

    def save(self, state: ReplicaState) -> None:
        """Make the state durable, whole or not at all."""
        content = json.dumps({"version": _VERSION, **asdict(state)}, indent=1).encode()
        try:
            write_durably(self.path / _STATE, content, replace=True)
        except OSError as exc:
            raise self._unusable(exc) from exc

    def digests(self, key: str) -> Path:
        """The file of a disk's digests."""
        return self.path / f"{quote(key, safe='')}.digests"

    def has_digests(self, key: str, capacity: int) -> bool:
        """Whether the digests of a disk are there, as many as it has blocks."""
        try:
            return self.digests(key).stat().st_size == digests_size(capacity)
        except FileNotFoundError:
            return False
        except OSError as exc:
            raise self._unusable(exc) from exc

    def doubt(self, key: str) -> Extents:
        """The ranges of a disk that an increment did not end with."""
        return self._read(self._ranges(key, "doubt")) or Extents.empty()

    def put_in_doubt(self, key: str, extents: Extents) -> None:
        """Make the ranges of a disk durable that are in doubt from now on, in place of the earlier ones."""
        self._write(self._ranges(key, "doubt"), extents)

    def unproved(self, key: str, capacity: int) -> Extents:
        """The ranges of a disk that were written since the whole of it was read back."""
        found = self._read(self._ranges(key, "unproved"))
        return Extents.whole(capacity) if found is None else found

    def keep_unproved(self, key: str, extents: Extents) -> None:
        """Make the ranges of a disk durable that are to be read back, in place of the earlier ones."""
        self._write(self._ranges(key, "unproved"), extents)

    def _read(self, path: Path) -> Extents | None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self._unusable(exc) from exc
        if len(content) % 16:
            raise self._damaged(path, ValueError("it is no whole number of ranges"))
        table = np.frombuffer(content, "<i8").reshape(-1, 2)
        return Extents.from_columns(table[:, 0], table[:, 1])

    def _write(self, path: Path, extents: Extents) -> None:
        table = np.stack([extents.start, extents.length], axis=1).astype("<i8")
        try:
            write_durably(path, table.tobytes(), replace=True)
        except OSError as exc:
            raise self._unusable(exc) from exc

    def _ranges(self, key: str, kind: str) -> Path:
        return self.path / f"{quote(key, safe='')}.{kind}"

    def _damaged(self, path: Path, exc: Exception) -> SinkError:
        return SinkError(
            f"{path} is damaged: {exc}.",
            remedy=f"Remove {self.path} and the replica, and begin the migration again.",
        )

    def _unusable(self, exc: OSError) -> SinkError:
        return SinkError(
            f"The state of the migration in {self.path} cannot be used: {exc.strerror or exc}.",
            remedy="Name a directory that this user may write, with free space.",
            path=str(self.path),
        )


def expect_directory(value: str | Path) -> Path:
    """Raises ConfigError for an empty path."""
    if not str(value):
        raise ConfigError("state= is empty.", remedy="Name a directory, one for each migration.")
    return Path(value)
