"""Bytes of a VSS document to text, whatever its producer wrote.

Requesters save these documents from a UTF-16 string in memory, each in its own way: UTF-16 with
or without byte order mark, with the string's trailing NUL, 8-bit, with a declaration or none,
and a declaration copied along that names another encoding. So the bytes decide, and the
declaration is asked only when the bytes are neither UTF-16 nor UTF-8.

Text comes in pieces: a single character outside Latin-1 would make a whole text two to four times as large.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

PIECE = 1 << 16  # bytes

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Only code pages that map single bytes: Python's other codecs (zip, idna, ...) are not for hostile input.
_DECLARED = re.compile(
    rb"""\s*<\?xml\s[^>]{0,200}?encoding\s*=\s*["'](windows-125\d|iso-8859-\d{1,2})["']""", re.I
)
_PADDING = "\0 \t\r\n"


class Undecodable(Exception):
    """A byte that the encoding does not have; `position` is counted after the byte order mark."""

    def __init__(self, encoding: str, reason: str, position: int) -> None:
        self.encoding, self.reason, self.position = encoding, reason, position
        super().__init__(f"byte {position}: {reason}")


def read_text(data: bytes) -> Iterator[str]:
    """The document's text in pieces, without mark, surrounding white space and NULs.

    Raises Undecodable or LookupError (declared code page unknown), before the first piece or at any later one.
    """
    start, encoding = _encoding(data)
    began = False
    for piece in _decoded(data, start, _end(data, start, encoding), encoding):
        if not began:
            piece = piece.lstrip(_PADDING)
            began = piece != ""
        if piece:
            yield piece


def _encoding(data: bytes) -> tuple[int, str]:
    """(where the text begins, its encoding)."""
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
    except Undecodable:
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
    decoder = codecs.getincrementaldecoder(encoding)()
    for offset in range(start, end, PIECE):
        upto = min(offset + PIECE, end)
        pending = len(decoder.getstate()[0])
        try:
            yield decoder.decode(data[offset:upto], final=upto == end)
        except UnicodeDecodeError as exc:
            raise Undecodable(encoding, exc.reason, offset - start - pending + exc.start) from exc
