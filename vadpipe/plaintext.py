"""Plain text for people: paragraphs, lists and sections, as the plainest editor of Windows shows them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

WIDTH = 100


def heading(title: str) -> Iterator[str]:
    """The title of a page, cut to one line."""
    title = title[:WIDTH]
    yield from (title, "=" * len(title))


def section(title: str, lines: Iterable[str]) -> Iterator[str]:
    """A title of the second order, and its lines."""
    yield from ("", title, "-" * len(title))
    yield from lines


def paragraph(text: str) -> list[str]:
    """The text, wrapped."""
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False) or [""]


def paragraphs(texts: Iterable[str]) -> Iterator[str]:
    """The texts, wrapped, with an empty line between them."""
    for number, text in enumerate(texts):
        yield from [""] if number else []
        yield from paragraph(text)


def item(text: str, mark: str = "-", indent: int = 2) -> list[str]:
    """An item of a list, wrapped beside its mark."""
    first = f"{' ' * indent}{mark} "
    below = " " * len(first)
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=below, break_on_hyphens=False
    ) or [first.rstrip()]


def steps(texts: Sequence[str]) -> Iterator[str]:
    """The texts as a numbered list."""
    for number, text in enumerate(texts, 1):
        yield from item(text, f"{number:>2}.")


def windows_text(lines: Iterable[str]) -> bytes:
    """UTF-8 with a byte order mark, and CRLF at every line's end: the Notepad of Windows Server 2012 needs both."""
    whole = "".join(f"{line.rstrip()}\r\n" for line in lines)
    return whole.encode("utf-8-sig", errors="replace")
