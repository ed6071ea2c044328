"""What surrounds a manifest: what VSS was run with, what was sent, and whom the user leaves out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vadpipe.vss.requested import RequestedQuiescing

from .elements import Element
from .guest import Writer

TYPES = ("full", "copy", "differential", "incremental", "log")
_KINDS: tuple[Literal["application", "auto", "file-system", "none"], ...]
_KINDS = ("application", "application", "application", "auto", "file-system", "none")
_UNKNOWN_TYPES = ("", "other", "undefined", "VSS_BT_COPY", "5")
_FLAGS: dict[bool | None, tuple[str, ...]] = {
    True: ("yes", "yes", "Yes"),
    False: ("no", "no", "NO"),
    None: ("", "perhaps", "1"),
}


@dataclass(frozen=True)
class Exclusion:
    """A writer that the user says may be left out, by something of it; without a writer it is nobody's."""

    spelling: str
    writer_id: str = ""
    by: Literal["id", "application", "name"] = "id"


@dataclass(frozen=True)
class Circumstances:
    """`backup_type` and the two flags as the requester's document tells them; empty or None if it does not.

    `written` are these attributes; an empty one is left out of the document.
    """

    backup_type: str
    system_state: bool | None
    partial_files: bool | None
    written: tuple[tuple[str, str], ...] = ()
    sent: RequestedQuiescing | None = None
    exclusions: tuple[Exclusion, ...] = ()

    @property
    def excluded(self) -> tuple[str, ...]:
        return tuple(one.spelling for one in self.exclusions)

    @property
    def name(self) -> str:
        told = " ".join(f"{name}={value!r}" for name, value in self.written)
        return f"run with {told or 'defaults'}, sent {self.sent}, excluded {list(self.excluded)}"

    def write(self, backup: Element) -> None:
        for name, value in self.written:
            if value:
                backup.attributes[name] = value
            else:
                del backup.attributes[name]


DEFAULTS = Circumstances("copy", system_state=True, partial_files=False)


def draw_circumstances(rng: random.Random, writers: Sequence[Writer]) -> Circumstances:
    """VMware's defaults half of the time, and anything else."""
    backup_type = rng.choice(("copy", "copy", "copy", "copy", "", *TYPES))
    system_state = rng.choice((True, True, True, True, False, None))
    partial_files = rng.choice((False, False, False, False, True, None))
    spelled = rng.choice((backup_type, backup_type.title())) if backup_type else rng.choice(_UNKNOWN_TYPES)
    return Circumstances(
        backup_type,
        system_state,
        partial_files,
        (
            ("backupType", spelled),
            ("bootableSystemStateBackup", rng.choice(_FLAGS[system_state])),
            ("partialFileSupport", rng.choice(_FLAGS[partial_files])),
        ),
        _sent(rng, backup_type),
        tuple(_exclusion(rng, writers) for _ in range(rng.choice((0, 0, 0, 1, 1, 2)))),
    )


def _sent(rng: random.Random, backup_type: str) -> RequestedQuiescing | None:
    if rng.random() < 0.3:
        return None  # nobody knows
    return RequestedQuiescing(
        rng.choice(_KINDS),
        rng.choice((backup_type or "copy", backup_type or "copy", *TYPES)),
        bootable_system_state=rng.random() < 0.7,
        partial_files=rng.random() < 0.2,
    )


def _exclusion(rng: random.Random, writers: Sequence[Writer]) -> Exclusion:
    writer = rng.choice(writers)
    match rng.randrange(4):
        case 0:
            spelled = (writer.writer_id, f"{{{writer.writer_id.upper()}}}", f" {writer.writer_id} ")
            return Exclusion(rng.choice(spelled), writer.writer_id)
        case 1 if writer.application:
            spelled = (writer.application, writer.application.upper(), f" {writer.application}")
            return Exclusion(rng.choice(spelled), writer.writer_id, "application")
        case 2:
            return Exclusion(rng.choice((writer.name, writer.name.lower())), writer.writer_id, "name")
        case _:
            return Exclusion(rng.choice(("", " ", "Nobody's Writer", writer.name[:-1], f"{writer.name}s")))
