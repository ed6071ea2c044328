"""What a repository needs of the place where it is stored. Every backend passes the suite of its tests.

A backend keeps *objects*: bytes with a name like `packs/3f/3f0c...00.pack`. An object is written once, whole, under
its final name, and never changed; only hints and signs of life are replaced. The name is taken by whoever writes it
first: that is what writers and removals agree by, so they need no locks.

Methods are synchronous and for worker threads, several at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import ascii_letters, digits
from typing import Final, Protocol

Parts = Sequence[bytes | memoryview]

NAME_LIMIT: Final = 900  # an S3 key has at most 1024 bytes; the rest is for the prefix of the repository

_PART = re.compile(r"[A-Za-z0-9_.~%-]+")
_CHARACTERS: Final = (ascii_letters + digits + "_.~%-").encode()  # the same


@dataclass(frozen=True)
class Stored:
    """An object as a listing shows it: its name, its size in bytes, and when it was written (seconds since 1970, by
    the clock of the store)."""

    name: str
    size: int
    modified: float


class Damage(Exception):
    """A phrase like 'its checksum is wrong'. Whoever knows the object, the position and the disk that is hit makes
    an IntegrityError of it; this one never leaves the repository."""


class ObjectMissing(Exception):
    """There is no object of this name."""


class ObjectExists(Exception):
    """Somebody wrote an object of this name before."""


@lru_cache(4096)  # a reader asks for ranges of the same few objects
def checked_name(name: str) -> str:
    """The name, when an object may have it. `tmp/` belongs to the directory backend, so no name begins with it.

    Raises:
        ValueError: It is none, and no backend touches anything.
    """
    parts = name.split("/")
    if len(name) > NAME_LIMIT or parts[0] == "tmp" or not all(_is_part(part) for part in parts):
        raise ValueError(f"{name!r} is no name of an object")
    return name


def having_names(directory: str, parts: Sequence[str]) -> Sequence[str]:
    """Those of the entries of a directory, given with its slash or empty for the root, that objects may have."""
    # All at once: a directory may hold thousands.
    together = "".join(parts)
    foreign = not together.isascii() or together.encode().translate(None, _CHARACTERS)
    if foreign or not together or len(directory) + max(map(len, parts)) > NAME_LIMIT:
        parts = [part for part in parts if _is_part(part) and len(directory) + len(part) <= NAME_LIMIT]
    return parts if directory else [part for part in parts if part != "tmp"]


def checked_prefix(prefix: str) -> str:
    """The prefix, when names may begin with it; its last part may be empty or `.`. Raises ValueError."""
    *parts, last = prefix.split("/")
    if not all(_is_part(part) for part in parts) or (last and not _PART.fullmatch(last)):
        raise ValueError(f"{prefix!r} is no prefix of names")
    return prefix


def _is_part(part: str) -> bool:
    return _PART.fullmatch(part) is not None and part not in (".", "..")


class Upload(Protocol):
    """An object in the making. Nobody sees it before `finish`; left without it, nothing stays."""

    def write(self, parts: Parts) -> None:
        """Append. Raises SinkError."""

    def finish(self) -> None:
        """Make it durable, and visible under its name. After a transient error it may be called again.

        Raises ObjectExists, SinkError.
        """

    def abort(self) -> None:
        """Drop it, unless it is finished. May be called more than once."""


class Backend(Protocol):
    """A store of objects.

    A name consists of parts of letters, digits and `_.-~%`, joined by `/`; no part is empty, `.` or `..`, and the
    first is not `tmp`. Any other name is a ValueError (`checked_name`). No name continues another one with `/`: a
    directory has no place for both. What was written, replaced or deleted is durable and seen by every reader when
    the call returns.

    Raises SinkError with a remedy for what the store refuses or cannot do; `transient` is true where another
    attempt can help. Raises Damage for what has the place of an object and is none: a link, a directory.
    """

    def put(self, name: str, parts: Parts) -> None:
        """Write an object. One atomic step: of two writers one raises ObjectExists. Raises SinkError."""

    def begin(self, name: str) -> Upload:
        """Write a large object piece by piece. Raises SinkError."""
        ...

    def replace(self, name: str, parts: Parts) -> None:
        """Write an object, whatever was there: for hints and signs of life. The last one wins. Raises SinkError."""

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object; without `length` to its end. Shorter only where the object ends before.

        Raises ObjectMissing, Damage, SinkError.
        """
        ...

    def size(self, name: str) -> int:
        """Bytes of an object. Raises ObjectMissing, Damage, SinkError."""
        ...

    def list(self, prefix: str) -> Iterator[Stored]:
        """The objects whose names begin with `prefix`, ascending by name. Raises SinkError."""
        ...

    def names(self, prefix: str) -> Sequence[str]:
        """The names that `list` has, in its order; nothing is asked about a single object. Raises SinkError."""
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; missing ones count as removed. Raises SinkError."""

    def place(self, name: str = "") -> str:
        """What a person calls the object, or the store: a path or a URL, without secrets."""
        ...

    def close(self) -> None:
        """Let go of connections and descriptors; they are made again when they are needed."""
