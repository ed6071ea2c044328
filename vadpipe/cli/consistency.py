"""What a point's stored verdict says of writers and applications, for people; and its manifest, written to a file.

The verdict is a document of whatever version made the point, so what is not there, or is of another shape, is
left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.errors import SinkError
from vadpipe.files import write_durably

from .main import printable

MANIFEST = "vss-manifest.zip"  # the name of the document
_NAMED = 6  # components that are named; the rest is counted


def verdict_lines(verdict: Mapping[str, object]) -> list[str]:
    """Applications, and writers of which not all is shown consistent; older verdicts tell of writers only."""
    applications = list(_documents(verdict.get("applications")))
    lines = [
        "  application " + "; ".join([f"{one.get('name')}: {one.get('level')}", *_parts(one)])
        for one in applications
    ]
    for writer in _documents(verdict.get("writers")):
        if applications and writer.get("coverage") == "covered":
            continue
        whose = f" ({writer['application']})" if writer.get("application") else ""
        lines.append(
            f"  writer {writer.get('name')}{whose}: {'; '.join(_parts(writer)) or writer.get('coverage')}"
        )
    return [printable(line) for line in lines]


def _documents(told: object) -> Iterator[Mapping[str, object]]:
    for one in told if isinstance(told, list) else ():
        if isinstance(one, Mapping):
            yield one


def _parts(told: Mapping[str, object]) -> list[str]:
    """'covered: a, b' and 'not covered: c', where there is something of the kind."""
    found = []
    for name, spoken in (("covered", "covered"), ("uncovered", "not covered")):
        parts = told.get(name)
        if isinstance(parts, list) and parts:
            more = f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
            found.append(f"{spoken}: {', '.join(map(str, parts[:_NAMED]))}{more}")
    return found


def write_new(path: Path, content: bytes, *, replace: bool = False) -> None:
    """Write a new file, whole or not at all. Raises SinkError, also when the file exists."""
    try:
        write_durably(path, content, replace=replace)
    except FileExistsError as exc:
        raise SinkError(
            f"{path} exists.", remedy="Name another file, or add --force; nothing is overwritten."
        ) from exc
    except OSError as exc:
        raise SinkError(f"{path} cannot be written: {exc.strerror or exc}.") from exc
