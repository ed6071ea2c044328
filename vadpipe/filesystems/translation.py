"""Errors of the libraries that read file systems, in words of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.errors import MoverError

from .contract import Content, Unreadable
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
