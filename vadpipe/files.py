"""What every room that keeps files needs: to make them durable, and a place for its state."""

from __future__ import annotations

import os
from pathlib import Path


def flush_directory(directory: Path) -> None:
    """Make renames, new files and removals in the directory durable (Windows does it without being asked).

    Raises OSError.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def state_directory() -> Path:
    """`$XDG_STATE_HOME/vadpipe`, else `~/.local/state/vadpipe` (XDG base directory specification)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state") / "vadpipe"
