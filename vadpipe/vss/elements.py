"""The elements of an XML document that nobody vouches for, one after the other.

expat says whether the document is well-formed; this adds what it lacks, bounds. The text is fed in pieces. What
expat was fed and has not consumed is one unfinished tag, comment or instruction, so one comparison per piece bounds
all of them before they cost anything: an element with a million attributes would take 400 MiB, and a token that
grows over many pieces is read from its start each time. No document type, so no entities. Names are taken as they
are written, without their prefix and with no regard to namespaces: nothing here depends on them, and expat would
spell out the namespace in every name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar
from xml.parsers import expat

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

MAX_TOKEN = 1 << 18  # bytes in UTF-8; the longest tag seen has 11,000 (SQL Server's metadata of a database)
MAX_ELEMENTS = 200_000  # ten times the largest document seen (System Writer, 18,900 file entries)
MAX_ATTRIBUTES = 1_000_000  # of all elements; that document has 76,000
MAX_NAMES = 1_000  # different ones; the two schemas have about 60
MAX_DEPTH = 32  # the schemas need five

Attributes = dict[str, str]


class Refused(Exception):
    """The document breaks a bound or lacks what identifies it. `where` is filled in by `read_elements`."""

    def __init__(self, why: str, where: str = "") -> None:
        self.where = where
        super().__init__(why)


class Target(Protocol[T_co]):
    """What becomes of the elements. May raise Refused."""

    def start(self, name: str, attributes: Attributes) -> None: ...
    def text(self, text: str) -> None: ...
    def end(self, name: str) -> None: ...
    def close(self) -> T_co: ...


def read_elements(pieces: Iterable[str], target: Target[T]) -> T:
    """Pass the elements by the target, and return what it makes of them. Raises Refused or expat.ExpatError."""
    bounds = _Bounds(target)
    # The encoding is given, so expat does not ask the declaration.
    parser = expat.ParserCreate("utf-8")
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
                raise Refused(f"a tag or comment longer than {MAX_TOKEN:,} bytes")
        parser.Parse(b"", True)
        return target.close()
    except Refused as exc:
        exc.where = exc.where or f"element {bounds.elements:,}"
        raise


def _refuse_document_type(name: str, system: str | None, public: str | None, internal: int) -> None:
    raise Refused("document types and entities are refused", "prolog")


class _Bounds:
    """Counts what passes by."""

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
            raise Refused(f"more than {MAX_ELEMENTS:,} elements")
        if self._depth > MAX_DEPTH:
            raise Refused(f"elements nested deeper than {MAX_DEPTH}")
        if self._attributes > MAX_ATTRIBUTES:
            raise Refused(f"more than {MAX_ATTRIBUTES:,} attributes")
        if len(self._names) > MAX_NAMES:
            raise Refused(f"more than {MAX_NAMES:,} different names")
        self._target.start(local_name(name), attributes)

    def end(self, name: str) -> None:
        self._depth -= 1
        self._target.end(local_name(name))


def local_name(name: str) -> str:
    """The name without its prefix."""
    return name.rpartition(":")[2]
