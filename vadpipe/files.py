"""What every room that keeps files needs: to make them durable, and a place for its state."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import ConfigError


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
    """`$XDG_STATE_HOME/vadpipe`, else `~/.local/state/vadpipe` (XDG base directory specification).

    Raises:
        ConfigError: There is neither; e.g. in a container whose user has no HOME and no passwd entry.
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    if Path(state).is_absolute():
        return Path(state) / "vadpipe"
    try:
        return Path.home() / ".local" / "state" / "vadpipe"
    except RuntimeError as exc:
        raise ConfigError(
            "There is no place for the state of vadpipe: this user has neither HOME nor a passwd entry.",
            remedy="Set XDG_STATE_HOME to a directory that is kept between runs, e.g. XDG_STATE_HOME=/var/lib.",
        ) from exc
