"""The targets of a restore by name: KIND:PLACE, as on the command line."""

from __future__ import annotations

from pathlib import Path

from pipeline import ConfigError

from .raw import RawDirectory
from .restoring import Proof, RestoreTarget


def parse_target(text: str) -> RestoreTarget:
    """`raw:DIRECTORY` or `null:`. Raises ConfigError."""
    kind, _, place = text.partition(":")
    if kind == "raw" and place:
        return RawDirectory(Path(place))
    if text == "null:":
        return Proof()
    raise ConfigError(
        f"{text!r} is no target of a restore.", remedy="Write raw:DIRECTORY, or null: for a proof alone."
    )
