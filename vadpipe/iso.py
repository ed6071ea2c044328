"""Small files as a CD image: ISO 9660 with Joliet names, which Windows shows. Files in, bytes out.

pycdlib writes the image. It stamps the time of day on everything; the stamps are replaced afterwards, so that the
same files give the same image. Source of the places: ECMA-119, sections 8.4, 9.1; Joliet uses the same structures.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from pipeline.errors import ConfigError

MAX_SIZE = 256 << 20  # bytes of all files: the image is made in memory
FIXED_DATE = datetime(2000, 1, 1, tzinfo=UTC)  # of everything on an image, unless another is given

_SECTOR = 2048
_FIRST_DESCRIPTOR = 16  # sector
_PRIMARY, _SUPPLEMENTARY, _TERMINATOR = 1, 2, 255
_ROOT = 156  # in a descriptor: the record of its root directory
_DATES = 813  # in a descriptor: created, changed, expires, in effect from; 17 bytes each
_DIRECTORY = 0x02  # flag of a record
_MAX_DEPTH = 8
_MAX_JOLIET = 64  # characters of a name, as Windows takes them
_NOT_IN_JOLIET = re.compile(r"[\x00-\x1f*/:;?\\]")
_STEM, _EXTENSION = 20, 3  # characters of a name in ISO 9660; level 3 takes 30 in all


def iso_image(files: Mapping[str, bytes], *, label: str = "RESTORE", date: datetime = FIXED_DATE) -> bytes:
    """The files on an image. The same arguments give the same bytes.

    Args:
        files: Contents by path; `/` divides at most seven directories and the name.
        label: The name of the volume: at most 16 capital letters, digits and `_`.
        date: The date of everything on the image.

    Raises:
        ConfigError: A name or the label that does not go onto an image, two names that differ in case alone, or
            more than `MAX_SIZE` bytes.
    """
    import pycdlib  # where it is needed: loading it takes 0.1 s

    _check(files, label)
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, vol_ident=label, sys_ident="", app_ident_str="VADPIPE")
    try:
        names = _Names()
        for path in sorted(files):
            *directories, name = path.split("/")
            parent = ""
            for directory in directories:
                if names.is_new(f"{parent}/{directory}"):
                    place = names.of_directory(parent, directory)
                    image.add_directory(place, joliet_path=f"{parent}/{directory}")
                parent = f"{parent}/{directory}"
            content = files[path]
            image.add_fp(
                io.BytesIO(content), len(content), names.of_file(parent, name), joliet_path=f"{parent}/{name}"
            )
        written = io.BytesIO()
        image.write_fp(written)
    finally:
        image.close()
    stamped = written.getbuffer()
    _stamp(stamped, date)
    stamped.release()
    return written.getvalue()


def _check(files: Mapping[str, bytes], label: str) -> None:
    if not re.fullmatch(r"[A-Z0-9_]{1,16}", label):
        raise ConfigError(f"{label!r} is no name of a CD volume.", remedy="At most 16 of A-Z, 0-9 and _.")
    size = sum(map(len, files.values()))
    if size > MAX_SIZE:
        raise ConfigError(f"{size:,} bytes are too many for a CD image, which takes {MAX_SIZE:,}.")
    seen: dict[str, str] = {}
    for path in files:
        parts = path.split("/")
        if len(parts) > _MAX_DEPTH or not all(map(_fits, parts)):
            raise ConfigError(f"{path!r} cannot be the name of a file on a CD.")
        if other := seen.get(path.lower()):
            raise ConfigError(f"{other!r} and {path!r} are the same name on a CD.")
        seen[path.lower()] = path
    for path in files:
        above = path.lower().rpartition("/")[0]
        while above:
            if other := seen.get(above):
                raise ConfigError(f"{other!r} cannot be a file and a directory.")
            above = above.rpartition("/")[0]


def _fits(name: str) -> bool:
    return name not in ("", ".", "..") and len(name) <= _MAX_JOLIET and not _NOT_IN_JOLIET.search(name)


class _Names:
    """Names in ISO 9660, beside those in Joliet: short, of capital letters, digits and `_`."""

    def __init__(self) -> None:
        self._directories: dict[str, str] = {"": ""}  # by Joliet path
        self._taken: set[str] = set()

    def is_new(self, directory: str) -> bool:
        return directory not in self._directories

    def of_directory(self, parent: str, name: str) -> str:
        found = self._free(self._directories[parent], name, "")
        self._directories[f"{parent}/{name}"] = found
        return found

    def of_file(self, parent: str, name: str) -> str:
        stem, dot, extension = name.rpartition(".")
        extension = _plain(extension, _EXTENSION) if dot else ""
        found = self._free(self._directories[parent], stem if dot else name, f".{extension}")
        return f"{found};1"

    def _free(self, place: str, stem: str, ending: str) -> str:
        stem = _plain(stem, _STEM) or "_"
        number, found = 1, f"{place}/{stem}{ending}"
        while found in self._taken:
            number += 1
            found = f"{place}/{stem}_{number}{ending}"
        self._taken.add(found)
        return found


def _plain(text: str, length: int) -> str:
    return re.sub(r"[^A-Z0-9_]", "_", text.upper())[:length]


def _stamp(image: memoryview, date: datetime) -> None:
    """Replace every date on the image."""
    text = date.strftime("%Y%m%d%H%M%S00").encode() + b"\0"  # at Greenwich
    never = b"0" * 16 + b"\0"
    for descriptor in _descriptors(image):
        dates = text + text + never + text
        image[descriptor + _DATES : descriptor + _DATES + len(dates)] = dates
        for record in _records(image, descriptor + _ROOT):
            short = (date.year - 1900, date.month, date.day, date.hour, date.minute, date.second, 0)
            image[record + 18 : record + 25] = bytes(short)


def _descriptors(image: memoryview) -> Iterator[int]:
    """Where the descriptors with directories are."""
    at = _FIRST_DESCRIPTOR * _SECTOR
    while image[at] != _TERMINATOR:
        if image[at] in (_PRIMARY, _SUPPLEMENTARY):
            yield at
        at += _SECTOR


def _records(image: memoryview, record: int) -> Iterator[int]:
    """Where the records of a directory and of everything below it are, its own included."""
    yield record
    extent, length = struct.unpack_from("<I4xI", image, record + 2)
    at, end = extent * _SECTOR, extent * _SECTOR + length
    number = 0
    while at < end:
        if image[at] == 0:  # no record crosses a sector's end
            at = (at // _SECTOR + 1) * _SECTOR
            continue
        number += 1
        if number > 2 and image[at + 25] & _DIRECTORY:  # the first two are the directory and the one above
            yield from _records(image, at)
        else:
            yield at
        at += image[at]
