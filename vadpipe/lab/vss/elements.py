"""XML elements as the generator builds and alters them, and the outfits in which producers write them.

A writer of its own, because the standard library's would smooth out what parsers have to live with: raw line breaks
in attributes, declarations that lie, a NUL behind the last tag.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_MARKS = {"utf-8": b"\xef\xbb\xbf", "utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}
_GUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


@dataclass
class Element:
    """One element; no text, as VSS documents have none."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Element] = field(default_factory=list)

    def every(self, *tags: str) -> Iterator[Element]:
        """This element and all below it that have one of the tags."""
        if self.tag in tags:
            yield self
        for child in self.children:
            yield from child.every(*tags)

    def copied(self) -> Element:
        return Element(self.tag, dict(self.attributes), [child.copied() for child in self.children])


def told(attributes: Mapping[str, str]) -> dict[str, str]:
    """Attributes without the empty ones, which producers leave out."""
    return {name: value for name, value in attributes.items() if value}


@dataclass(frozen=True)
class Outfit:
    """How a requester writes. None of it means anything.

    `declaration` is the encoding that the XML declaration names (it may lie); empty for no declaration. `prefix`
    stands before the names of the document's own elements. With `shuffle` a seed, attributes come in any order,
    with any quotes and spaces, GUIDs in any letter case and with or without braces.
    """

    encoding: str = "utf-8"
    bom: bool = False
    declaration: str = ""
    trailing_nul: bool = False
    prefix: str = ""
    shuffle: int | None = None

    def text(self, root: Element) -> str:
        """The document without declaration."""
        rng = None if self.shuffle is None else random.Random(self.shuffle)
        return _written(root, self.prefix if root.attributes.get("xmlns") else "", rng)

    def bytes(self, root: Element) -> bytes:
        declared = f'<?xml version="1.0" encoding="{self.declaration}"?>' if self.declaration else ""
        whole = declared + self.text(root) + ("\0" if self.trailing_nul else "")
        return (_MARKS[self.encoding] if self.bom else b"") + whole.encode(self.encoding)


PLAIN = Outfit()


def _written(element: Element, prefix: str, rng: random.Random | None) -> str:
    attributes = dict(element.attributes)
    if "xmlns" in attributes and prefix:
        if attributes["xmlns"]:
            attributes[f"xmlns:{prefix}"] = attributes.pop("xmlns")
        else:
            prefix = ""
            del attributes["xmlns"]
    tag = f"{prefix}:{element.tag}" if prefix else element.tag
    pairs = [(name, _guid_outfit(value, rng)) for name, value in attributes.items()]
    if rng:
        rng.shuffle(pairs)
    start = f"<{tag}" + "".join(f"{_space(rng)}{name}={_quoted(value, rng)}" for name, value in pairs)
    inside = "".join(_written(child, prefix, rng) for child in element.children)
    return f"{start}>{inside}</{tag}>" if inside or (rng and rng.random() < 0.5) else f"{start}/>"


def _space(rng: random.Random | None) -> str:
    return rng.choice((" ", "  ", "\n", "\t")) if rng else " "


def _quoted(value: str, rng: random.Random | None) -> str:
    """The value with its line breaks raw."""
    safe = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if rng and rng.random() < 0.5:
        return "'" + safe.replace("'", "&#39;") + "'"
    return '"' + safe.replace('"', "&quot;") + '"'


def _guid_outfit(value: str, rng: random.Random | None) -> str:
    if rng is None or not _GUID.fullmatch(value):
        return value
    return rng.choice((value.upper(), value.lower(), "{" + value.upper() + "}", f" {value} "))
