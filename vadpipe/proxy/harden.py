"""Making the changes of a plan, and taking them back."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from pipeline.errors import MoverError

from .machine import Machine
from .settings import Change
from .undo import start_undo, write_undo


class Undone(Enum):
    """What became of one change. KEPT: somebody else changed it after us, so it was not touched."""

    RESTORED = "restored"
    ALREADY = "was as before"
    KEPT = "kept: changed by somebody else since"


def harden(machine: Machine, changes: Sequence[Change], undo_file: Path) -> Sequence[str]:
    """Make the changes in order, each one read back. The undo file names a change before it is made.

    Returns remarks for people. Raises MoverError at the first change that fails, with a note that names the undo
    file; what came before it stays.
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
    """Take the changes back, the last one first; what is not as we left it stays. Can be run again.

    Returns each change with what became of it, and remarks. Raises MoverError at the first that fails.
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
    found = machine.read(change.setting)
    if found != change.wanted:
        raise MoverError(
            f"{change.setting.place} was set and is not what it was set to.",
            remedy="Look for what manages it (a group policy, a configuration tool), and change it there.",
            setting=change.setting.id,
        )
    return remarks
