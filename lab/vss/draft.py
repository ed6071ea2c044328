"""A manifest in the making, together with what is true of it.

A draft starts as the faultless manifest of a guest, whose truth is known: every listed component is covered. Each
alteration then changes the documents *and* states what the facts say of that change. So the truth never looks at
the documents, and shares nothing with the classifier but the words of the verdict.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lab.vss.documents import backup_document, listed_writer, writer_document
from lab.vss.elements import PLAIN, Element, Outfit
from lab.vss.guest import Writer
from lab.vss.recipe import new_id, zipped


@dataclass
class Standing:
    """What is true of one writer instance. Components by full path in lower case.

    `along`: components that nobody lists, to the listed one that brings them along and whose fate they share.
    """

    writer_id: str
    instance_id: str
    counts: bool
    covered: set[str]
    uncovered: set[str] = field(default_factory=set)
    rules: set[str] = field(default_factory=set)
    doubted: bool = False
    along: dict[str, str] = field(default_factory=dict)

    def doubt(self, *paths: str) -> None:
        """These components are not shown consistent; without any, none of the writer's is."""
        gone = {path.lower() for path in paths} or set(self.covered)
        self.covered -= gone
        self.uncovered |= gone
        self.doubted = True


@dataclass
class Part:
    """One writer's part: its element in the requester's document, and its own document. Both may be gone.

    `copies` of its own document are in the zip. `damaged` are the bytes that stand in its place.
    """

    writer: Writer
    instance_id: str
    listed: Element | None
    document: Element | None
    standing: Standing
    copies: int = 1
    damaged: bytes | None = None

    def listed_components(self) -> list[Element]:
        return self.listed.children if self.listed else []

    def offers(self) -> Element:
        """The element that holds what the writer offers."""
        assert self.document is not None
        return next(self.document.every("BACKUP_LOCATIONS"))


@dataclass(frozen=True)
class Request:
    """What VMware Tools asks VSS for by default."""

    context: Literal["application"] = "application"
    backup_type: int = 5
    bootable_system_state: bool = True
    partial_file_support: bool = False
    timeout_min: int = 15
    vm_name: str = "web01"


@dataclass
class Draft:
    """A manifest and its truth.

    `rules` are about the whole manifest. `decided` is (level, decision) where nothing is left to weigh. `whole`
    stands in place of the zip, `missing` tells why there is none; `refused`: no document is looked at.
    `unsaid` are rules about which the facts say nothing in this state.
    """

    rng: random.Random
    backups: dict[str, Element]
    parts: list[Part]
    outfit: Outfit = PLAIN
    extras: dict[str, bytes] = field(default_factory=dict)
    strays: list[Standing] = field(default_factory=list)
    rules: set[str] = field(default_factory=set)
    unsaid: set[str] = field(default_factory=set)
    doubted: bool = False
    decided: tuple[str, str] | None = None
    whole: bytes | None = None
    missing: Literal["", "absent", "unfetched"] = ""
    refused: bool = False
    scattered: bool = False
    flipped: set[str] = field(default_factory=set)

    @property
    def backup(self) -> Element:
        return self.backups["backup.xml"]

    @property
    def standings(self) -> list[Standing]:
        return [part.standing for part in self.parts] + self.strays

    def leave_out(self, part: Part) -> None:
        """The requester did not list the writer. Components that may be unlisted are then no shortfall."""
        if part.listed is not None:
            self.backup.children.remove(part.listed)
            part.listed = None
        part.standing.covered -= {one.full_path.lower() for one in part.writer.components if one.either}
        part.standing.doubt()

    def verdict(self) -> tuple[str, str]:
        """(level, decision): VMware's reading of the manifest, with nothing claimed that is not shown."""
        if self.decided:
            return self.decided
        counting = [standing for standing in self.standings if standing.counts]
        if not any(standing.covered for standing in counting):
            return "file-system", "nothing-covered"
        if self.doubted or any(standing.doubted for standing in counting):
            return "application-partial", "some-covered"
        return "application", "all-covered"

    def members(self) -> dict[str, bytes]:
        """Documents by name, damaged ones included."""
        told = {name: self.outfit.bytes(root) for name, root in self.backups.items()}
        for number, part in enumerate(self.parts, 1):
            if part.damaged is not None:
                told[f"writer{number}.xml"] = part.damaged
            elif part.document is not None:
                for copy in range(part.copies):
                    told[f"writer{number}{'-again' * copy}.xml"] = self.outfit.bytes(part.document)
        told |= self.extras
        if self.scattered:
            names = list(told)
            self.rng.shuffle(names)
            told = {f"{self.rng.choice(('', 'sub/'))}{n}.{name}": told[name] for n, name in enumerate(names)}
        return told

    def well_formed(self) -> list[Element]:
        """The documents that a conforming XML parser has to accept."""
        own = [part.document for part in self.parts if part.document is not None and part.damaged is None]
        return [*self.backups.values(), *own]

    def archive(self) -> bytes:
        if self.whole is not None:
            return self.whole
        members = self.members()
        data = bytearray(zipped(members))
        for name in self.flipped:
            position = data.index(name.encode()) + len(name)  # the local header ends with the name
            data[position + 4] ^= 0xFF
        return bytes(data)


def draft_of(writers: Sequence[Writer], rng: random.Random) -> Draft:
    """The faultless manifest of a guest with these writers."""
    backup = backup_document(Request(), new_id(rng))
    parts = [_part(writer, rng) for writer in writers]
    backup.children = [part.listed for part in parts if part.listed is not None]
    return Draft(rng, {"backup.xml": backup}, parts)


def along(writer: Writer) -> dict[str, str]:
    """Its implicit components, each to the component that brings it along."""
    return {one.full_path.lower(): one.under.lower() for one in writer.components if one.under}


def _part(writer: Writer, rng: random.Random) -> Part:
    instance_id = new_id(rng)
    paths = {one.full_path.lower() for one in writer.components if one.listed}
    standing = Standing(writer.writer_id, instance_id, writer.counts, covered=paths, along=along(writer))
    if not writer.included and paths:
        standing.rules.add("writer-not-included")
        standing.doubt()
    return Part(
        writer,
        instance_id,
        listed_writer(writer, instance_id, rng) if writer.included else None,
        writer_document(writer, instance_id),
        standing,
    )
