"""The VMDK descriptor: a small text that names a disk's extents, its parent and its content id.

Source: VMware technical note "Virtual Disk Format 5.0", section "The Descriptor File".

A line that cannot be understood is an error, not a comment: if it was an extent, ignoring it would shift
everything that follows it on the disk. For the same reason a text that ends before the disk database, which
every product writes behind the extents, counts as cut off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pipeline.errors import SourceError
from pipeline.units import MiB

SECTOR: Final = 512

# A 62 TiB disk, VMware's largest, in extents of 2 GiB has 32 thousand lines of about 60 characters.
MAX_DESCRIPTOR: Final = 4 * MiB

# Beyond every disk (VMware's largest has 62 TiB), and far from the end of the 64-bit integers.
MAX_CAPACITY: Final = 1 << 56

NO_PARENT: Final = 0xFFFF_FFFF

_SIGNATURE = re.compile(rb"(?:\xef\xbb\xbf)?\s*#\s*disk\s+descriptorfile", re.IGNORECASE)
_ENCODING = re.compile(rb'^\s*\.?encoding\s*=\s*"?([\w.:-]+)"?\s*$', re.IGNORECASE | re.MULTILINE)
_EXTENT = re.compile(
    r'(?P<access>RW|RDONLY|NOACCESS)\s+(?P<sectors>\d{1,20})\s+(?P<kind>\w+)(?:\s+"(?P<name>.*)"(?:\s+(?P<first>\d{1,20}))?.*)?',
    re.IGNORECASE,
)
_ENTRY = re.compile(r"(?P<key>[^\s=\"]+)\s*=\s*(?P<value>.*)")
_DATABASE = re.compile(rb"^\s*#\s*DDB", re.IGNORECASE | re.MULTILINE)
_CONTENT_ID = re.compile(r"[0-9a-fA-F]{1,8}")


@dataclass(frozen=True)
class ExtentLine:
    """One extent, in the order of the disk. `length` and `offset` (of its first byte in the file) in bytes.

    `name` is None where no file belongs to it; `line` is its line number in the descriptor.
    """

    access: str
    length: int
    kind: str
    name: str | None
    offset: int
    line: int


@dataclass(frozen=True)
class Descriptor:
    """A parsed descriptor. `content_id` and `parent_content_id` are None where the text has none."""

    create_type: str
    content_id: int | None
    parent_content_id: int | None
    parent_hint: str
    extents: tuple[ExtentLine, ...]
    database: Mapping[str, str]

    @property
    def capacity(self) -> int:
        return sum(extent.length for extent in self.extents)

    @property
    def has_parent(self) -> bool:
        return self.parent_content_id not in (None, NO_PARENT)


def looks_like_descriptor(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a descriptor."""
    return _SIGNATURE.match(head) is not None


def parse_descriptor(content: bytes, file: str) -> Descriptor:
    """Parse a descriptor; what follows the first NUL is padding. Raises SourceError with `file` and line."""
    if len(content) > MAX_DESCRIPTOR:
        raise SourceError(
            f"{file} is no VMDK descriptor: it has {len(content)} bytes, a descriptor at most {MAX_DESCRIPTOR}.",
            remedy="Name the descriptor, the small text file beside the data files.",
            file=file,
        )
    entries: dict[str, str] = {}
    database: dict[str, str] = {}
    extents: list[ExtentLine] = []
    for number, raw in enumerate(decode_text(content.split(b"\0", 1)[0], file).split("\n"), 1):
        line = raw.strip(" \t\r\n\ufeff")
        if not line or line.startswith("#"):
            continue
        if re.match(r"(RW|RDONLY|NOACCESS)\s", line, re.IGNORECASE):
            extents.append(_extent(line, number, file))
        elif entry := _ENTRY.fullmatch(line):
            key, value = entry["key"], _unquoted(entry["value"])
            chosen = database if key.lower().startswith("ddb.") else entries
            chosen.setdefault(key if chosen is database else key.lower(), value)
        else:
            raise _unreadable(file, number, line, "it is neither an extent nor a setting")
    descriptor = Descriptor(
        create_type=entries.get("createtype", ""),
        content_id=_content_id(entries, "cid", file),
        parent_content_id=_content_id(entries, "parentcid", file),
        parent_hint=entries.get("parentfilenamehint", ""),
        extents=tuple(extents),
        database=database,
    )
    _check_whole(descriptor, bool(database) or _DATABASE.search(content) is not None, file)
    return descriptor


def decode_text(content: bytes, file: str) -> str:
    """The text of a descriptor or .vmx, in the encoding that it names itself. Raises SourceError."""
    named = _ENCODING.search(content)
    encoding = named[1].decode("ascii") if named else "utf-8"
    try:
        return content.decode(encoding)
    except LookupError as error:
        raise SourceError(
            f"{file} is said to be encoded in {encoding!r}, which is not known.",
            remedy="Correct its line `encoding`.",
            file=file,
        ) from error
    except ValueError as error:
        if not named:  # older products wrote the code page of their host without saying so
            return content.decode("latin-1")
        raise SourceError(
            f"{file} is not encoded in {encoding}, as it says: {error}.",
            remedy="Correct its line `encoding`, or restore the file.",
            file=file,
        ) from error


def _check_whole(descriptor: Descriptor, has_database: bool, file: str) -> None:
    if not descriptor.extents or not has_database:
        missing = "disk database, which follows the extents" if descriptor.extents else "extents"
        raise SourceError(
            f"{file} has no {missing}.",
            remedy="The descriptor is cut off; restore it.",
            file=file,
        )
    if descriptor.capacity > MAX_CAPACITY:
        raise SourceError(
            f"The extents in {file} add up to {descriptor.capacity} bytes; no disk is that large.",
            remedy="Repair the sizes of its extents, or restore the file.",
            file=file,
        )


def _extent(line: str, number: int, file: str) -> ExtentLine:
    found = _EXTENT.fullmatch(line)
    if found is None:
        raise _unreadable(file, number, line, "an extent is access, sectors, type and a quoted file name")
    kind = found["kind"].upper()
    if found["name"] is None and kind != "ZERO":
        raise _unreadable(file, number, line, f"an extent of type {kind} names a file")
    return ExtentLine(
        access=found["access"].upper(),
        length=int(found["sectors"]) * SECTOR,
        kind=kind,
        name=found["name"],
        offset=int(found["first"] or 0) * SECTOR,
        line=number,
    )


def _content_id(entries: Mapping[str, str], key: str, file: str) -> int | None:
    value = entries.get(key)
    if value is None:
        return None
    if not _CONTENT_ID.fullmatch(value):
        raise SourceError(
            f"{file} has {key}={value!r}, which is no number of eight hexadecimal digits.",
            remedy="Repair that line of the descriptor, or restore the file.",
            file=file,
        )
    return int(value, 16)


def _unquoted(value: str) -> str:
    value = value.strip()
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value


def _unreadable(file: str, number: int, line: str, why: str) -> SourceError:
    return SourceError(
        f"Line {number} of {file} cannot be understood: {line[:80]!r}; {why}.",
        remedy="Repair that line of the descriptor, or restore the file.",
        file=file,
        line=number,
    )
