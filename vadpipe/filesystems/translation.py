"""Errors of the libraries that read file systems, in words of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

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
