"""Bytes of a VSS document to text, whatever its producer wrote.

Requesters save these documents from a UTF-16 string in memory, each in its own way: UTF-16 with
or without byte order mark, with the string's trailing NUL, 8-bit, with a declaration or none,
and a declaration copied along that names another encoding. So the bytes decide, and the
declaration is asked only when the bytes are neither UTF-16 nor UTF-8.
"""

from __future__ import annotations

import codecs
import re

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


def decode_document(data: bytes) -> str:
    """The document's text, without mark, surrounding white space and NULs.

    Raises UnicodeDecodeError (a bad byte: `start` is counted after the mark) or LookupError
    (declared code page unknown).
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decode(data.removeprefix(mark), encoding)
    # XML begins with an ASCII character, so one NUL in the first two bytes tells UTF-16 and its order.
    first_is_nul, second_is_nul = (byte == 0 for byte in data[:2].ljust(2, b"<"))
    if first_is_nul != second_is_nul:
        return _decode(data, "utf-16-be" if first_is_nul else "utf-16-le")
    try:
        return _decode(data, "utf-8")
    except UnicodeDecodeError:
        if declared := _DECLARED.match(data):
            return _decode(data, declared[1].decode("ascii"))
        raise


def _decode(data: bytes, encoding: str) -> str:
    if encoding.startswith("utf-16") and len(data) % 2 and data.endswith(b"\0"):
        data = data[:-1]  # a NUL of one byte behind text of two-byte characters
    return data.decode(encoding).strip(_PADDING)
