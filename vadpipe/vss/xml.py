"""Bytes of an untrusted XML document to its elements, one after the other, within bounds.

Text. Requesters save these documents from a UTF-16 string in memory, each in its own way: UTF-16 with or without
byte order mark, with the string's trailing NUL, 8-bit, with or without a declaration, and with a copied declaration
that names another encoding. So the bytes decide, and the declaration is read only when they are neither UTF-16 nor
UTF-8. Text is decoded in pieces, because a single character outside Latin-1 makes a whole text two to four times as
large.

Elements. expat says whether the document is well-formed; what it lacks are bounds. The text that it was fed and
has not consumed is one unfinished tag, comment or instruction, so one comparison per piece bounds all of them
before they cost anything: an element with a million attributes would take 400 MiB. Document types are refused,
so there are no entities. Names are taken without their prefix and without regard to namespaces: nothing here
depends on them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Protocol, TypeVar
from xml.parsers import expat

PIECE = 1 << 16  # bytes
MAX_TOKEN = 1 << 18  # bytes in UTF-8; the longest tag seen has 11,000 (SQL Server's metadata of a database)
MAX_ELEMENTS = 200_000  # ten times the largest document seen (System Writer, 18,900 file entries)
MAX_ATTRIBUTES = 1_000_000  # of all elements; that document has 76,000
MAX_NAMES = 1_000  # different ones; the two schemas have about 60
MAX_DEPTH = 32  # the schemas need five

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# Only code pages that map single bytes: Python's other codecs (zip, idna, ...) are not for hostile input.
_DECLARED = re.compile(
    rb"""\s*<\?xml\s[^>]{0,200}?encoding\s*=\s*["'](windows-125\d|iso-8859-\d{1,2})["']""", re.I
)
_PADDING = "\0 \t\r\n"
_CABINET = b"MSCF"

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Attributes = dict[str, str]


class Malformed(Exception):
    """The document cannot be read: it is no text, no XML, or breaks a bound. `where`: the place in it."""

    def __init__(self, why: str, where: str = "") -> None:
        self.why, self.where = why, where
        super().__init__(why)


class Target(Protocol[T_co]):
    """Receives the elements. Its methods may raise Malformed; `where` is filled in by `read_elements`."""

    def start(self, name: str, attributes: Attributes) -> None: ...
    def text(self, text: str) -> None: ...
    def end(self, name: str) -> None: ...
    def close(self) -> T_co: ...


def read_elements(data: bytes, target: Target[T]) -> T:
    """Pass the document's elements to the target.

    Returns:
        What the target's `close` makes of them.

    Raises:
        Malformed: The document cannot be read.
    """
    pieces = read_text(data)
    first = next(pieces, "")
    if not first:
        raise Malformed("empty document", "byte 0")
    return feed_elements(chain((first,), pieces), target)


def feed_elements(pieces: Iterable[str], target: Target[T]) -> T:
    """As `read_elements`, for text that comes in pieces."""
    bounds = _Bounds(target)
    parser = expat.ParserCreate("utf-8")  # with the encoding given, expat ignores the declaration
    parser.buffer_text = True
    parser.StartElementHandler = bounds.start
    parser.EndElementHandler = bounds.end
    parser.CharacterDataHandler = target.text
    parser.StartDoctypeDeclHandler = _refuse_document_type
    fed = 0
    try:
        for piece in pieces:
            encoded = piece.encode()
            parser.Parse(encoded)
            fed += len(encoded)
            if fed - max(parser.CurrentByteIndex, 0) > MAX_TOKEN:
                raise Malformed(f"a tag or comment longer than {MAX_TOKEN:,} bytes")
        parser.Parse(b"", True)
        return target.close()
    except expat.ExpatError as exc:
        why = expat.ErrorString(exc.code) or "not XML"
        raise Malformed(why, f"line {exc.lineno}, column {exc.offset}") from exc
    except Malformed as exc:
        exc.where = exc.where or f"element {bounds.elements:,}"
        raise


def local_name(name: str) -> str:
    """The name without its prefix."""
    return name.rpartition(":")[2]


def read_text(data: bytes) -> Iterator[str]:
    """The document's text in pieces, without byte order mark, surrounding white space and NULs.

    Raises:
        Malformed: A byte that the encoding does not have, before the first piece or at any later one.
    """
    start, encoding = _encoding(data)
    began = False
    for piece in _decoded(data, start, _end(data, start, encoding), encoding):
        if not began:
            piece = piece.lstrip(_PADDING)
            began = piece != ""
        if piece:
            yield piece


def _refuse_document_type(name: str, system: str | None, public: str | None, internal: int) -> None:
    raise Malformed("document types and entities are refused", "prolog")


class _Bounds:
    """Counts elements, attributes, names and depth on the way to the target."""

    def __init__(self, target: Target[object]) -> None:
        self.elements = 0
        self._attributes = 0
        self._depth = 0
        self._names: set[str] = set()
        self._target = target

    def start(self, name: str, attributes: Attributes) -> None:
        self.elements += 1
        self._depth += 1
        self._attributes += len(attributes)
        self._names.add(name)
        self._names.update(attributes)
        if self.elements > MAX_ELEMENTS:
            raise Malformed(f"more than {MAX_ELEMENTS:,} elements")
        if self._depth > MAX_DEPTH:
            raise Malformed(f"elements nested deeper than {MAX_DEPTH}")
        if self._attributes > MAX_ATTRIBUTES:
            raise Malformed(f"more than {MAX_ATTRIBUTES:,} attributes")
        if len(self._names) > MAX_NAMES:
            raise Malformed(f"more than {MAX_NAMES:,} different names")
        self._target.start(local_name(name), attributes)

    def end(self, name: str) -> None:
        self._depth -= 1
        self._target.end(local_name(name))


def _encoding(data: bytes) -> tuple[int, str]:
    """(where the text begins, its encoding)."""
    if data.startswith(_CABINET):
        raise Malformed(
            "it is a cabinet (.cab); extract it, and name the directory of its documents", "byte 0"
        )
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return len(mark), encoding
    # XML begins with an ASCII character, so one NUL in the first two bytes tells UTF-16 and its order.
    first_is_nul, second_is_nul = (byte == 0 for byte in data[:2].ljust(2, b"<"))
    if first_is_nul != second_is_nul:
        return 0, "utf-16-be" if first_is_nul else "utf-16-le"
    try:
        for _ in _decoded(data, 0, len(data), "utf-8"):
            pass
    except Malformed:
        if declared := _DECLARED.match(data):
            return 0, declared[1].decode("ascii")
        raise
    return 0, "utf-8"


def _end(data: bytes, start: int, encoding: str) -> int:
    """Where the padding behind the text begins."""
    end = len(data)
    while end > start:
        tail = data[max(start, end - PIECE) : end]
        kept = len(tail.rstrip(_PADDING.encode()))
        end -= len(tail) - kept
        if kept:
            break
    if encoding.startswith("utf-16") and (end - start) % 2:
        end += 1  # the other half of the last character looks like padding
    return min(end, len(data))


def _decoded(data: bytes, start: int, end: int, encoding: str) -> Iterator[str]:
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
    except LookupError as exc:
        raise Malformed(str(exc), "XML declaration") from exc
    for offset in range(start, end, PIECE):
        upto = min(offset + PIECE, end)
        pending = len(decoder.getstate()[0])
        try:
            yield decoder.decode(data[offset:upto], final=upto == end)
        except UnicodeDecodeError as exc:
            where = f"byte {offset - start - pending + exc.start:,}"
            raise Malformed(f"not text in {encoding}: {exc.reason}", where) from exc
