"""The manifest zip: bytes in, members out, within bounds.

The zip comes out of a guest, so it may be hostile. Its whole directory is checked before a byte is inflated: a zip
that breaks a bound is refused as a whole. Members are then inflated one at a time, so memory holds one document; a
member that is merely damaged becomes a value and does not lose the others. Nothing is ever written under a member's
name.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import SourceError

# The largest writer document seen is 2.1 MB in 8-bit text (System Writer, 18,900 file entries), twice
# that in UTF-16; a set has about a dozen documents, which deflate ten-fold. The bounds leave a factor of
# four and more. Reading the directory takes up to six times the size of the names in it.
MAX_ARCHIVE_SIZE = 8 << 20
MAX_MEMBERS = 512
MAX_NAME = 255  # of a member; NTFS, where these files come from, takes no longer ones
MAX_MEMBER_SIZE = 16 << 20
MAX_TOTAL_SIZE = 64 << 20
# Deflate cannot exceed 1032:1. Lists of file names in UTF-16 reach about 60:1; only crafted data goes beyond this.
MAX_RATIO = 400
RATIO_MATTERS_FROM = 1 << 20

_DIRECTORY_ENTRY = b"PK\x01\x02"
_LOCAL_ENTRY = b"PK\x03\x04"
# Signature, then the lengths of name and extra field (APPNOTE 4.3.7).
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # traditional, strong, masked headers (PKWARE APPNOTE 4.4.4)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DRIVE = re.compile(r"[A-Za-z]:")
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)


class ManifestUnreadable(SourceError):
    """The manifest zip is damaged or breaks a bound. `reason` names the member and the cause."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"The VSS manifest cannot be read: {reason}.",
            remedy="Fetch it again; if that does not help, treat the snapshot's consistency as unknown.",
            reason=reason,
        )


@dataclass(frozen=True, slots=True)
class Member:
    """One document of the zip, inflated and checked against its CRC."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class DamagedMember:
    """A member whose bytes could not be inflated or fail their CRC."""

    name: str
    reason: str


def looks_like_zip(data: bytes) -> bool:
    """True when the bytes begin as a zip does (with a member, or empty)."""
    return data[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def read_members(archive: bytes) -> Iterator[Member | DamagedMember]:
    """Members in directory order, directories left out.

    Raises:
        ManifestUnreadable: The archive is no zip or breaks a bound; raised before the first member.
    """
    if len(archive) > MAX_ARCHIVE_SIZE:
        raise ManifestUnreadable(f"it has {len(archive):,} bytes, more than {MAX_ARCHIVE_SIZE:,}")
    # Counted in the raw bytes, because zipfile builds an object for every entry first.
    if archive.count(_DIRECTORY_ENTRY) > MAX_MEMBERS:
        raise ManifestUnreadable(f"it has more than {MAX_MEMBERS} members")
    try:
        opened = zipfile.ZipFile(io.BytesIO(archive))
    except _ZIP_ERRORS as exc:
        raise ManifestUnreadable(f"it is not a whole zip file ({exc})") from exc
    _check_directory(opened.infolist())
    _check_places(archive, opened.infolist(), opened.start_dir)
    return (_inflate(opened, entry) for entry in opened.infolist() if not entry.is_dir())


def _check_directory(entries: list[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if refusal := _refusal(entry):
            raise ManifestUnreadable(f"member {entry.orig_filename[:MAX_NAME]!a} {refusal}")
        # Windows, where these names come from, does not tell letter cases or separators apart.
        folded = entry.filename.replace("\\", "/").lower()
        if folded in seen:
            raise ManifestUnreadable(f"member {entry.filename!a} is there twice")
        seen.add(folded)
    total = sum(entry.file_size for entry in entries)
    if total > MAX_TOTAL_SIZE:
        raise ManifestUnreadable(f"its members inflate to {total:,} bytes, more than {MAX_TOTAL_SIZE:,}")


def _check_places(archive: bytes, entries: list[zipfile.ZipInfo], directory_offset: int) -> None:
    """Members follow one another: a small zip becomes a large bomb by members that share bytes."""
    end, last = directory_offset, "the directory"
    for entry in sorted(entries, key=lambda entry: entry.header_offset, reverse=True):
        header = archive[entry.header_offset : entry.header_offset + _LOCAL_HEADER.size]
        if entry.header_offset < 0 or len(header) < _LOCAL_HEADER.size:
            raise ManifestUnreadable(f"member {entry.filename!a} lies outside the file")
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        length = _LOCAL_HEADER.size + name_length + extra_length + entry.compress_size
        if signature != _LOCAL_ENTRY:
            raise ManifestUnreadable(f"member {entry.filename!a} is not where the directory says")
        if entry.header_offset + length > end:
            raise ManifestUnreadable(f"member {entry.filename!a} overlaps {last}")
        end, last = entry.header_offset, f"member {entry.filename!a}"


def _refusal(entry: zipfile.ZipInfo) -> str:
    name = entry.orig_filename  # `filename` ends at the first NUL
    if not name:
        return "has no name"
    if len(name) > MAX_NAME:
        return f"has a name of {len(name):,} characters, more than {MAX_NAME}"
    if not name.isprintable():
        return "has control characters in its name"
    if name[:1] in ("/", "\\") or _DRIVE.match(name) or ".." in re.split(r"[/\\]", name):
        return "points outside the archive"
    if entry.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if entry.compress_type not in _METHODS:
        return f"uses compression method {entry.compress_type}, expected stored or deflated"
    if entry.file_size > MAX_MEMBER_SIZE:
        return f"inflates to {entry.file_size:,} bytes, more than {MAX_MEMBER_SIZE:,}"
    if entry.file_size > max(RATIO_MATTERS_FROM, MAX_RATIO * entry.compress_size):
        return f"inflates more than {MAX_RATIO}-fold, as a zip bomb does"
    return ""


def _inflate(opened: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Member | DamagedMember:
    try:
        with opened.open(entry) as stream:
            # zipfile never inflates past the size in the directory, which has been judged.
            data = stream.read()
    except _ZIP_ERRORS as exc:
        return DamagedMember(entry.filename, str(exc) or type(exc).__name__)
    if len(data) != entry.file_size:
        return DamagedMember(entry.filename, f"holds {len(data):,} of {entry.file_size:,} bytes")
    return Member(entry.filename, data)
