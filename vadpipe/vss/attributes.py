"""What the attributes of an element say, whatever their producer's spelling."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .documents import Dependency, normalise_file, normalise_guid
from .elements import local_name

MAX_TEXT = 256  # of what is only shown
MAX_NAME = 80  # of a writer; every finding repeats it

_DATABASE_FILES = (".mdf", ".ndf", ".ldf", ".edb")  # SQL Server; Extensible Storage Engine
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def dependency_of(attributes: Mapping[str, str]) -> Dependency | None:
    """The dependency that an element states, None when it states none.

    How a dependency is spelled is not documented; what it has to say is: a writer by its class id, and a
    component by path and name. So any element with these is one, whatever it and its attributes are called.
    """
    told = {local_name(name).lower(): value for name, value in sorted(attributes.items())}
    writer_id = next((one for value in told.values() if _GUID.fullmatch(one := normalise_guid(value))), "")
    name = next((value for key, value in told.items() if key.endswith("name")), "")
    path = next((value for key, value in told.items() if key.endswith("path")), "")
    return Dependency(writer_id, path, name) if writer_id and name else None


def database_file_of(attributes: Mapping[str, str]) -> str | None:
    """The file of a file entry when it holds a database, None for other files and for patterns."""
    filespec = attributes.get("filespec", "").lower()
    if not filespec.endswith(_DATABASE_FILES) or "*" in filespec or "?" in filespec:
        return None
    return normalise_file(attributes.get("path", ""), filespec)


def shown(text: str, length: int = MAX_TEXT) -> str:
    """Text for people: one line, not longer than they would read."""
    return " ".join(text[: 4 * length].split())[:length]


def guid(text: str | None) -> str:
    """A GUID to compare by. Whatever else stands there is cut: findings repeat it."""
    return normalise_guid(shown(text or "", MAX_NAME))


def weight(path: str) -> int:
    """How much a path weighs in memory: a single character outside ASCII may widen all others four-fold."""
    return len(path) if path.isascii() else 4 * len(path)


def yes_or_no(text: str | None) -> bool | None:
    return {"yes": True, "no": False}.get((text or "").strip().lower())


def decimal(text: str | None) -> int:
    """A decimal mask; absent means 0, and so does a spelling that is not a number."""
    digits = (text or "").strip()
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 10 else 0
