"""The VMDK descriptor: a small text that names a disk's extents, its parent and its content id.

Source: VMware technical note "Virtual Disk Format 5.0", section "The Descriptor File".

A line that cannot be parsed is an error, not a comment: if it was an extent, ignoring it would shift everything
behind it on the disk. For the same reason a text that ends before the disk database, which every product writes
behind the extents, counts as cut off.
"""

from __future__ import annotations

import codecs
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

# A text of comments and settings that comes to `version`, or says what it is: createvmdk.sh, VirtualBox and makers
# of OVAs spell the first comment in their own ways. How much of a file is looked at for that:
HEAD: Final = 4096
_SIGNATURE = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:[ \t\r]*(?:#[^\n\0]*|\.?encoding[^\n\0]*)?\n)*[ \t]*"
    rb"(?:version[ \t]*=|#\s*disk\s+descriptor\s*file)",
    re.IGNORECASE,
)
_ENCODING = re.compile(rb'^\s*\.?encoding\s*=\s*"?([\w.:-]+)"?\s*$', re.IGNORECASE | re.MULTILINE)
_EXTENT = re.compile(
    r'(?P<access>RW|RDONLY|NOACCESS)\s+(?P<sectors>\d{1,20})\s+(?P<kind>\w+)(?:\s+"(?P<name>.*)"(?:\s+(?P<first>\d{1,20}))?.*)?',
    re.IGNORECASE,
)
_ENTRY = re.compile(r"(?P<key>[^\s=\"]+)\s*=\s*(?P<value>.*)")
_DATABASE = re.compile(rb"^\s*#\s*DDB", re.IGNORECASE | re.MULTILINE)
_CONTENT_ID = re.compile(r"[0-9a-fA-F]{1,8}")


# Character sets by the names that VMware's products write: ICU's names, and names that Windows gives another
# meaning. Windows means its own code page where it says Shift_JIS, Big5, EUC-KR or GB2312: a superset of the
# standard. Source: lib/unicode of open-vm-tools, ICU's convrtrs.txt, observed values in libvmdk's format
# documentation.
_CODE_PAGES: Final = {
    **dict.fromkeys(
        ("shift_jis", "shift-jis", "sjis", "windows-31j", "ibm-943_p15a-2003", "ibm-943"), "cp932"
    ),
    **dict.fromkeys(("gb2312", "gbk", "euc-cn", "windows-936-2000"), "gbk"),
    **dict.fromkeys(("euc-kr", "ks_c_5601-1987", "windows-949-2000"), "cp949"),
    **dict.fromkeys(("big5", "windows-950-2000"), "cp950"),
    "gb18030": "gb18030",
    "big5-hkscs": "big5hkscs",
    "euc-jp-2007": "euc_jp",
    "ibm-5346_p100-1998": "cp1250",
    "ibm-5347_p100-1998": "cp1251",
    "ibm-5348_p100-1997": "cp1252",
    "ibm-5349_p100-1998": "cp1253",
    "ibm-5350_p100-1998": "cp1254",
    "ibm-9447_p100-2002": "cp1255",
    "ibm-9448_x100-2005": "cp1256",
    "ibm-9449_p100-2002": "cp1257",
    "ibm-5354_p100-1998": "cp1258",
    "windows-874-2000": "cp874",
    "us-ascii": "ascii",
}
_NUMBERED = re.compile(r"(?:windows|ibm|cp|ms)-?_?(\d+)(?:[-_]\w+)*", re.IGNORECASE)


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

    @property
    def file_name(self) -> str | None:
        """The file that holds it. A ZERO extent has none, although some writers give it a name."""
        return None if self.kind == "ZERO" else self.name


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
    """Parse a descriptor; everything from the first NUL on is padding. Raises SourceError with `file` and line."""
    if len(content) > MAX_DESCRIPTOR:
        raise SourceError(
            f"{file} is not a VMDK descriptor: it has {len(content)} bytes, a descriptor at most {MAX_DESCRIPTOR}.",
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
    """The text of a descriptor or .vmx, in the encoding that it names itself.

    Args:
        content: The bytes.
        file: For messages.

    Raises:
        SourceError: The encoding is unknown and the text is not plain ASCII, or the text is in another encoding.
    """
    named = _ENCODING.search(content)
    encoding = named[1].decode("ascii") if named else "utf-8"
    if content.isascii():  # the same text in every encoding of these products
        return content.decode("ascii")
    try:
        return content.decode(_codec(encoding))
    except LookupError as error:
        raise SourceError(
            f"{file} names the encoding {encoding!r}, which is unknown.",
            remedy="Correct its line `encoding`.",
            file=file,
        ) from error
    except ValueError as error:
        if not named:  # older products wrote the code page of their host without saying so
            return content.decode("latin-1")
        raise SourceError(
            f"{file} names the encoding {encoding}, but is not written in it: {error}.",
            remedy="Correct its line `encoding`, or restore the file.",
            file=file,
        ) from error


def _codec(encoding: str) -> str:
    """Python's name for an encoding. Raises LookupError."""
    found = _CODE_PAGES.get(encoding.lower())
    if found is None and (numbered := _NUMBERED.fullmatch(encoding)):
        found = f"cp{numbered[1]}"
    return codecs.lookup(found or encoding).name


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
            f"{file} has {key}={value!r}, which is not a number of eight hexadecimal digits.",
            remedy="Repair that line of the descriptor, or restore the file.",
            file=file,
        )
    return int(value, 16)


def _unquoted(value: str) -> str:
    value = value.strip()
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value


def _unreadable(file: str, number: int, line: str, why: str) -> SourceError:
    return SourceError(
        f"Line {number} of {file} cannot be parsed: {line[:80]!r}; {why}.",
        remedy="Repair that line of the descriptor, or restore the file.",
        file=file,
        line=number,
    )
