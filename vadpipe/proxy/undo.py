"""The undo file: it names every change before it is made, with the former value.

The undo file is written anew, durably, before each change. The last entry of a run that was killed may not have
happened, so undoing reads the present value first. It holds ids of settings and their values, no paths and no
commands. JSON, format version 1.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import ConfigError, MoverError
from vadpipe.files import create, write_durably

from .settings import Change, RegistryValue, Setting, Value

FORMAT = "vadpipe proxy undo"
VERSION = 1


def new_undo_path(directory: Path) -> Path:
    """A name in the directory that tells when."""
    return directory / f"proxy-undo-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.json"


def start_undo(path: Path) -> None:
    """Make the file. Raises ConfigError if it is there: it may be the only one that knows the former values."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(create(path))
    except OSError as exc:
        if path.exists():
            raise ConfigError(
                f"{path} exists; it may hold the way back of an earlier run.", remedy="Give another name."
            ) from exc
        raise _unwritable(path, exc) from exc


def write_undo(path: Path, platform: str, changes: Sequence[Change]) -> None:
    """Durable when this returns. Raises MoverError; nothing may be changed then."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "host": socket.gethostname(),
        "platform": platform,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "changes": [
            {"setting": one.setting.id, "former": one.former, "wanted": one.wanted} for one in changes
        ],
    }
    try:
        write_durably(path, f"{json.dumps(document, indent=1)}\n".encode(), replace=True)
    except OSError as exc:
        raise _unwritable(path, exc) from exc


def load_undo(path: Path, platform: str, settings: Mapping[str, Setting]) -> tuple[Change, ...]:
    """The changes, in the order they were made. Raises ConfigError for what is no undo file of this machine."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if (document["format"], document["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {document['format']!r}, version {document['version']!r}")
        origin = (document["host"], document["platform"])
        changes = tuple(
            Change(setting, _value(setting, entry["former"]), _value(setting, entry["wanted"]))
            for entry in document["changes"]
            for setting in (settings[entry["setting"]],)
        )
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror or exc}.") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise ConfigError(
            f"{path} is no undo file for {platform}: {exc}.",
            remedy="Give a file that `vadpipe proxy harden` wrote on this machine.",
        ) from exc
    if origin != (socket.gethostname(), platform):
        raise ConfigError(
            f"{path} was written on {origin[0]} ({origin[1]}).", remedy="Undo it on that machine."
        )
    return changes


def _value(setting: Setting, value: object) -> Value:
    expected = int if isinstance(setting.place, RegistryValue) else str
    if value is None or (isinstance(value, expected) and not isinstance(value, bool)):
        return value
    raise ValueError(f"{setting.id} cannot be {value!r}")


def _unwritable(path: Path, exc: OSError) -> MoverError:
    return MoverError(
        f"The undo file {path} cannot be written: {exc.strerror or exc}. Nothing more was changed.",
        remedy="Run it as root (as administrator on Windows), or give another place with --undo-file.",
    )
