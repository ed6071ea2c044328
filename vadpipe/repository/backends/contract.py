"""What a repository needs of the place where it is stored. Every backend passes `tests/vadpipe/repository/backends`.

A backend keeps *objects*: bytes with a name like `packs/3f/3f0c...00.pack`. An object is written once, whole, under its
final name, and never changed; only hints and signs of life are replaced. The name is taken by whoever writes it first:
that is what writers and removals agree by, so they need no locks.

Methods are synchronous and for worker threads, several at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

Parts = Sequence[bytes | memoryview]


@dataclass(frozen=True)
class Stored:
    """An object as a listing shows it: its name, its size in bytes, and when it was written by the clock of the store
    (seconds since 1970)."""

    name: str
    size: int
    modified: float


class ObjectMissing(Exception):
    """There is no object of this name."""


class ObjectExists(Exception):
    """Somebody wrote an object of this name before."""


class Upload(Protocol):
    """An object in the making. Nobody sees it before `finish`; left without it, nothing stays."""

    def write(self, parts: Parts) -> None:
        """Append. Raises SinkError."""

    def finish(self) -> None:
        """Make it durable, and visible under its name. Raises ObjectExists, SinkError."""

    def abort(self) -> None:
        """Drop it, unless it is finished. May be called more than once."""


class Backend(Protocol):
    """A store of objects.

    A name consists of parts of letters, digits and `_.-~%`, joined by `/`; no part is empty, `.` or `..`. What was
    written, replaced or deleted is durable and seen by every reader when the call returns.

    Raises SinkError with a remedy for what the store refuses or cannot do; `transient` is true where another attempt can
    help. Raises Damage (vadpipe.repository.files) for what has the place of an object and is none: a link, a directory.
    """

    def put(self, name: str, parts: Parts) -> None:
        """Write an object. One atomic step: of two writers one raises ObjectExists. Raises SinkError."""

    def begin(self, name: str) -> Upload:
        """Write a large object piece by piece. Raises SinkError."""

    def replace(self, name: str, parts: Parts) -> None:
        """Write an object, whatever was there: for hints and signs of life. The last one wins. Raises SinkError."""

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object; without `length` to its end. Shorter only where the object ends before.

        Raises ObjectMissing, Damage, SinkError.
        """

    def size(self, name: str) -> int:
        """Bytes of an object. Raises ObjectMissing, Damage, SinkError."""

    def list(self, prefix: str) -> Iterator[Stored]:
        """The objects whose names begin with `prefix`, ascending by name. Raises SinkError."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; missing ones count as removed. Raises SinkError."""

    def place(self, name: str = "") -> str:
        """What a person calls the object, or the store: a path or a URL, without secrets."""

    def close(self) -> None:
        """Let go of connections and descriptors; they are made again when they are needed."""
