"""Makes the changes of a plan, and takes them back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from pipeline.errors import MoverError

from .machine import Machine
from .settings import Change
from .undo import start_undo, write_undo

log = logging.getLogger(__name__)


class Undone(Enum):
    """The result of undoing one change. KEPT: somebody else changed the setting after us, so it stays."""

    RESTORED = "restored"
    ALREADY = "was as before"
    KEPT = "kept: changed by somebody else since"


def harden(machine: Machine, changes: Sequence[Change], undo_file: Path) -> Sequence[str]:
    """Make the changes in order, each one read back. The undo file names a change before it is made.

    Returns:
        Remarks for people.

    Raises:
        MoverError: A change failed; a note names the undo file. The changes before it stay.
    """
    remarks: list[str] = []
    start_undo(undo_file)
    for count, change in enumerate(changes, 1):
        try:
            if machine.read(change.setting) != change.former:
                raise MoverError(
                    f"{change.setting.place} changed since the plan was made.", remedy="Look at a new plan."
                )
            write_undo(undo_file, machine.platform, changes[:count])
            remarks += _make(machine, change)
        except MoverError as exc:
            exc.add_note(f"the way back is `vadpipe proxy harden --undo {undo_file}`")
            raise
    return remarks


def undo(machine: Machine, changes: Sequence[Change]) -> Sequence[tuple[Change, Undone, Sequence[str]]]:
    """Take the changes back, the last one first. A setting that was changed since stays. Can be run again.

    Returns:
        Each change with its result and remarks.

    Raises:
        MoverError: A change could not be taken back; those after it were not tried.
    """
    results: list[tuple[Change, Undone, Sequence[str]]] = []
    for change in reversed(changes):
        found = machine.read(change.setting)
        if found == change.former:
            results.append((change, Undone.ALREADY, ()))
        elif found != change.wanted:
            results.append((change, Undone.KEPT, ()))
        else:
            results.append((change, Undone.RESTORED, _make(machine, change.back())))
    return results


def _make(machine: Machine, change: Change) -> Sequence[str]:
    remarks = machine.set(change.setting, change.wanted)
    log.info("changed %s (%s)", change.setting.id, change.setting.place)
    found = machine.read(change.setting)
    if found != change.wanted:
        raise MoverError(
            f"{change.setting.place} was set, but has another value.",
            remedy="Look for what manages it (a group policy, a configuration tool), and change it there.",
            setting=change.setting.id,
        )
    return remarks
