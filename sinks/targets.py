"""The targets of a restore by name: KIND:PLACE, as on the command line, with options behind a question mark."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl

from pipeline import ConfigError
from vadpipe.vmdk.stream import LEVEL

from .raw import RawDirectory, StandardOutput
from .restoring import Proof, RestoreTarget
from .vmdk import SPARSE, VmdkDirectory

_OPTIONS = re.compile(r"\?(?P<options>[a-z]+=[^&=?]*(&[a-z]+=[^&=?]*)*)$")


@dataclass(frozen=True)
class _Kind:
    """How a kind of target is written, what options it has, and what makes one."""

    usage: str
    options: frozenset[str]
    make: Callable[[str, Mapping[str, str]], RestoreTarget]


def _number(options: Mapping[str, str], name: str, default: int) -> int:
    value = options.get(name, str(default))
    if not value.isascii() or not value.isdigit():
        raise ConfigError(f"{name}={value!r} is no number.")
    return int(value)


def _raw(place: str, options: Mapping[str, str]) -> RestoreTarget:
    return StandardOutput() if place == "-" else RawDirectory(Path(place))


def _vmdk(place: str, options: Mapping[str, str]) -> RestoreTarget:
    level = _number(options, "level", LEVEL)
    return VmdkDirectory(Path(place), options.get("format", SPARSE), level)


_KINDS: Final[Mapping[str, _Kind]] = {
    "raw": _Kind("raw:DIR or raw:-", frozenset(), _raw),
    "vmdk": _Kind("vmdk:DIR[?format=FORMAT&level=1..9]", frozenset({"format", "level"}), _vmdk),
}


def parse_target(text: str) -> RestoreTarget:
    """A target as it is written on the command line, e.g. `raw:DIRECTORY` or `null:`. Raises ConfigError."""
    if text == "null:":
        return Proof()
    name, _, place = text.partition(":")
    kind = _KINDS.get(name)
    options: dict[str, str] = {}
    if kind is not None and kind.options and (found := _OPTIONS.search(place)):
        place, options = place[: found.start()], dict(parse_qsl(found["options"], keep_blank_values=True))
    if kind is None or not place:
        known = ", ".join(each.usage for each in _KINDS.values())
        raise ConfigError(
            f"{text!r} is no target of a restore.",
            remedy=f"Write {known}, or null: for a proof alone.",
        )
    if unknown := sorted(options.keys() - kind.options):
        raise ConfigError(
            f"A target {name}: has no option {unknown[0]!r}.",
            remedy=f"It has {', '.join(sorted(kind.options))}.",
        )
    return kind.make(place, options)
