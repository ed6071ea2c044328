"""What a point's stored verdict says of writers and applications, for people; and its manifest, written to a file.

The verdict is a document of whatever version made the point, so what is not there, or is of another shape, is
left out.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.errors import SinkError
from pipeline.files import flush_directory

MANIFEST = "vss-manifest.zip"  # the name of the document
_NAMED = 6  # components that are named; the rest is counted


def verdict_lines(verdict: Mapping[str, object]) -> list[str]:
    """Applications and writers with what is shown consistent of them and what is not."""
    lines = [
        f"  application {application.get('name')}: {application.get('level')}{_parts(application)}"
        for application in _documents(verdict.get("applications"))
    ]
    for writer in _documents(verdict.get("writers")):
        whose = f" ({writer['application']})" if writer.get("application") else ""
        lines.append(f"  writer {writer.get('name')}{whose}: {writer.get('coverage')}{_parts(writer)}")
    return [_printable(line) for line in lines]


def _documents(told: object) -> Iterator[Mapping[str, object]]:
    for one in told if isinstance(told, list) else ():
        if isinstance(one, Mapping):
            yield one


def _parts(told: Mapping[str, object]) -> str:
    """`; covered: a, b; not covered: c`."""
    text = ""
    for name, spoken in (("covered", "covered"), ("uncovered", "not covered")):
        parts = told.get(name)
        if isinstance(parts, list) and parts:
            more = f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
            text += f"; {spoken}: {', '.join(map(str, parts[:_NAMED]))}{more}"
    return text


def _printable(text: str) -> str:
    """Names come out of a guest; none of them moves a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def write_new(path: Path, content: bytes) -> None:
    """Write a new file, whole or not at all. Raises SinkError, also when the file exists."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # unlike a rename, never replaces
        finally:
            os.unlink(temporary)
        flush_directory(path.parent)
    except FileExistsError as exc:
        raise SinkError(f"{path} exists.", remedy="Name another file; nothing is overwritten.") from exc
    except OSError as exc:
        raise SinkError(f"{path} cannot be written: {exc.strerror or exc}.") from exc
