"""The targets of a restore by name: KIND:PLACE, as on the command line."""

from __future__ import annotations

from pathlib import Path

from pipeline import ConfigError

from .raw import RawDirectory, StandardOutput
from .restoring import Proof, RestoreTarget


def parse_target(text: str) -> RestoreTarget:
    """`raw:DIRECTORY`, `raw:-` or `null:`. Raises ConfigError."""
    kind, _, place = text.partition(":")
    if kind == "raw" and place:
        return StandardOutput() if place == "-" else RawDirectory(Path(place))
    if text == "null:":
        return Proof()
    raise ConfigError(
        f"{text!r} is no target of a restore.",
        remedy="Write raw:DIRECTORY, raw:- for standard output, or null: for a proof alone.",
    )
