"""What the libraries that read file systems have in common, and their errors in words of ours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from pipeline.errors import IntegrityError, MoverError

from .contract import Content, Entry, Kind, Unreadable
from .sources import Source


@contextmanager
def reading(source: Source, what: str) -> Iterator[None]:
    """What fails inside is told with `what`; damage of the repository comes out as it is, also when swallowed.

    A library raises anything when a file system is damaged or forged: errors of its own, of structs, of numbers.
    """
    before = source.failure
    try:
        yield
    except MoverError:
        raise
    except Exception as exc:
        if source.failure is not None:
            raise source.failure from exc
        detail = str(exc) or type(exc).__name__
        raise Unreadable(
            f"{what} cannot be read: {detail}.",
            remedy="If a restored VM reads it, the reader of vadpipe is at fault: please report it.",
        ) from exc
    if source.failure is not None and source.failure is not before:
        raise source.failure


def entry_or_why(source: Source, name: str, make: Callable[[], Entry]) -> Entry:
    """An entry of a directory; where its own record cannot be read, one that says so."""
    try:
        with reading(source, "Its record"):
            return make()
    except (Unreadable, IntegrityError) as exc:
        return Entry(name, Kind.FILE, 0, None, None, None, unreadable=exc.problem.rstrip("."))


class Translated:
    """A content whose errors are told as `reading` does."""

    def __init__(self, content: Content, source: Source, what: str) -> None:
        self._content, self._source, self._what = content, source, what

    @property
    def size(self) -> int:
        return self._content.size

    def extents(self) -> Sequence[tuple[int, int]]:
        return self._content.extents()

    def read(self, offset: int, length: int) -> bytes:
        with reading(self._source, self._what):
            return self._content.read(offset, length)


class RecordFileSystem(ABC):
    """A file system whose directories hold names and numbers of records, as ext, XFS and NTFS do."""

    _source: Source
    _title: str

    def root(self) -> Entry:
        with reading(self._source, f"The root of {self._title}"):
            return self._entry("/", self._root())

    def entries(self, directory: Entry) -> Sequence[Entry]:
        with self._reading_directory(directory):
            return [self._entry_or_why(*row) for row in self._names(directory)]

    def find(self, directory: Entry, name: str) -> Entry | None:
        with self._reading_directory(directory):
            for row in self._names(directory):
                if row[0] == name:
                    return self._entry_or_why(*row)
        return None

    def open(self, entry: Entry, stream: str = "") -> Content:
        what = f"File {entry.name!r} of {self._title}"
        with reading(self._source, what):
            return Translated(self._content(entry.node, stream), self._source, what)

    @abstractmethod
    def _root(self) -> int:
        """The number of the root's record."""

    @abstractmethod
    def _names(self, directory: Entry) -> Iterator[tuple[str, int]]:
        """Names and record numbers of a directory."""

    @abstractmethod
    def _entry(self, name: str, number: int) -> Entry:
        """The entry that a record makes."""

    @abstractmethod
    def _content(self, node: Any, stream: str = "") -> Content:  # noqa: ANN401 - of a library without types
        """The content of a record, or one of its streams."""

    def _entry_or_why(self, name: str, number: int) -> Entry:
        return entry_or_why(self._source, name, partial(self._entry, name, number))

    def _reading_directory(self, directory: Entry) -> AbstractContextManager[None]:
        return reading(self._source, f"Directory {directory.name!r} of {self._title}")
