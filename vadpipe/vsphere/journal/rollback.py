"""How far a restore over the original VM is, beside its intent: durable before the first byte is written.

Until it is finished, the disks of the VM are neither what they were nor what the point holds. So the record says
which VM and which point, and how much of each disk is done; the same restore goes on from there.

All functions block: call them from a worker thread.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.units import format_size
from vadpipe.files import flush_directory, write_durably

from .intents import Intent, IntentKind, Journal

_SUFFIX = ".rollback.json"


class Phase(StrEnum):
    """What is done of a disk."""

    UNTOUCHED = "untouched"
    BEGUN = "begun"
    WRITTEN = "written"
    PROVEN = "proven"


@dataclass(frozen=True, kw_only=True)
class DiskProgress:
    """A disk of the VM. `position`: every difference before this byte was written and flushed."""

    path: str
    capacity: int
    position: int = 0
    phase: Phase = Phase.UNTOUCHED

    def __str__(self) -> str:
        if self.phase is Phase.BEGUN:
            return f"{format_size(self.position)} of {format_size(self.capacity)} done"
        return "written, not proven" if self.phase is Phase.WRITTEN else self.phase


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """A restore over a VM. `disks`: by key in the point. `tracking`: change tracking was on before it.

    `token`: of its intent. `repository`: the id of the repository, in hex.
    """

    token: str
    repository: str
    point: str
    tracking: bool
    disks: Mapping[str, DiskProgress] = field(default_factory=dict)

    @property
    def mixed(self) -> Mapping[str, DiskProgress]:
        """The disks that hold neither the one nor the other, or are not proven to hold the point."""
        begun = (Phase.BEGUN, Phase.WRITTEN)
        return {key: disk for key, disk in self.disks.items() if disk.phase in begun}

    @property
    def is_mixed(self) -> bool:
        """Whether the VM as a whole is: also when one disk is of the point and another as before."""
        return any(disk.phase is not Phase.UNTOUCHED for disk in self.disks.values())

    def with_disk(self, key: str, **changes: object) -> Rollback:
        """The same with another state of a disk."""
        disk = replace(self.disks[key], **changes)  # type: ignore[arg-type]  # fields of DiskProgress
        return replace(self, disks={**self.disks, key: disk})

    def __str__(self) -> str:
        disks = ", ".join(f"{key} ({disk})" for key, disk in self.disks.items())
        return f"to point {self.point}: {disks}"


def write_rollback(journal: Journal, rollback: Rollback) -> None:
    """Write or replace the record; durable when this returns. Raises SourceError."""
    path = _path(journal, rollback.token)
    try:
        journal.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durably(path, json.dumps(asdict(rollback), indent=1).encode(), replace=True)
    except OSError as exc:
        raise SourceError(
            f"The journal {journal.directory} cannot be written: {exc.strerror or exc}.",
            remedy="Make the directory writable, or give another one with Journal(directory).",
            directory=str(journal.directory),
        ) from exc


def remove_rollback(journal: Journal, token: str) -> None:
    """Remove the record, if there is one. Raises SourceError."""
    try:
        _path(journal, token).unlink(missing_ok=True)
        flush_directory(journal.directory)
    except OSError as exc:
        raise SourceError(
            f"{_path(journal, token)} cannot be removed: {exc.strerror or exc}.",
            remedy="Remove it by hand: the restore that it stands for has ended.",
        ) from exc


def read_rollback(journal: Journal, token: str) -> Rollback | None:
    """The record of the intent with this token; None when it has none. Raises SourceError."""
    path = _path(journal, token)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        disks = {
            key: DiskProgress(**{**disk, "phase": Phase(disk["phase"])})
            for key, disk in document.pop("disks").items()
        }
        return Rollback(**document, disks=disks)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise SourceError(
            f"The journal entry {path} cannot be read: {exc}.",
            remedy="It stands for a restore over a VM that did not end: restore that VM again from its point, then "
            "remove the file.",
        ) from exc


def rollbacks_of(journal: Journal, server_id: str, vm_uuid: str) -> list[Intent]:
    """The intents of restores over this VM, oldest first. Raises SourceError."""
    return [
        intent
        for intent in journal.intents()
        if (intent.kind, intent.server_id, intent.vm_uuid) == (IntentKind.ROLLBACK, server_id, vm_uuid)
    ]


def mixed(journal: Journal, intent: Intent) -> str:
    """What a restore over a VM that did not end left; empty: it wrote nothing. Raises SourceError."""
    rollback = read_rollback(journal, intent.token)
    if rollback is None or not rollback.is_mixed:
        return ""
    return (
        f"it did not end, and the VM is neither what it was nor what the point holds; {rollback}. Do not power it "
        "on: run the same restore again, and it goes on"
    )


def _path(journal: Journal, token: str) -> Path:
    return journal.directory / f"{token}{_SUFFIX}"
