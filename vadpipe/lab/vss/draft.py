"""A manifest in the making, together with what is true of it.

A draft starts as the faultless manifest of a guest, whose truth is known: every listed component is covered. Each
alteration then changes the documents *and* states what the facts say of that change. So the truth never looks at
the documents, and shares nothing with the classifier but the words of the verdict.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from .circumstances import DEFAULTS, Circumstances
from .documents import backup_document, listed_writer, writer_document
from .elements import PLAIN, Element, Outfit
from .guest import Writer
from .recipe import new_id, zipped


@dataclass
class Standing:
    """What is true of one writer instance. Components by full path in lower case.

    `told` counts what has to be said: (rule, component or nothing for the whole writer). `doubts` are the rules
    that keep something of it from being shown consistent. `missed`: components that took no part or failed.
    `described`: its own document is there and can be read. `excluded`: the user leaves it out.
    """

    writer: Writer
    instance_id: str
    covered: set[str] = field(default_factory=set)
    uncovered: set[str] = field(default_factory=set)
    told: Counter[tuple[str, str]] = field(default_factory=Counter)
    doubts: set[str] = field(default_factory=set)
    missed: set[str] = field(default_factory=set)
    described: bool = True
    excluded: bool = False

    def __post_init__(self) -> None:
        self.covered |= {one.full_path.lower() for one in self.writer.components if one.listed}

    @property
    def writer_id(self) -> str:
        return self.writer.writer_id

    @property
    def counts(self) -> bool:
        return self.writer.counts and not self.excluded

    @property
    def application(self) -> str:
        """What it goes by: only its own document tells the name of a writer that nobody knows."""
        return self.writer.application or (self.writer.name if self.described else self.writer_id)

    def tell(self, rule: str, path: str = "") -> None:
        self.told[rule, path.lower()] += 1

    def doubt(self, rule: str, path: str = "") -> None:
        """This component is not shown consistent; without one, none of the writer's is."""
        gone = {path.lower()} if path else set(self.covered)
        self.covered -= gone
        self.uncovered |= gone
        self.doubts.add(rule)

    def leave_out(self) -> None:
        """Nobody listed it. Components that may be unlisted are then no shortfall."""
        self.covered -= {one.full_path.lower() for one in self.writer.components if one.either}
        self.missed |= {one.full_path.lower() for one in self.writer.components}
        if self.covered:
            self.doubt("writer-not-included")


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
class Need:
    """A dependency: `path` of the standing needs `on`, a component of the writer class `writer_id`."""

    standing: Standing
    path: str
    writer_id: str
    on: str
    remote: bool = False


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

    `told` are the rules that speak about the whole manifest, `doubted` if they keep it below application. `decided`
    is (level, decision) where nothing is left to weigh. `whole` stands in place of the zip, `missing` tells why
    there is none; `refused`: no document is looked at.
    """

    rng: random.Random
    backups: dict[str, Element]
    parts: list[Part]
    outfit: Outfit = PLAIN
    extras: dict[str, bytes] = field(default_factory=dict)
    strays: list[Standing] = field(default_factory=list)
    circumstances: Circumstances = DEFAULTS
    needs: list[Need] = field(default_factory=list)
    told: Counter[str] = field(default_factory=Counter)
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

    @property
    def selects_nothing(self) -> bool:
        """Component mode is off."""
        return self.decided == ("file-system", "no-component-mode")

    def leave_out(self, part: Part) -> None:
        """The requester did not list the writer."""
        if part.listed is not None:
            self.backup.children.remove(part.listed)
            part.listed = None
        part.standing.leave_out()

    def verdict(self) -> tuple[str, str]:
        """(level, decision): VMware's reading of the manifest, with nothing claimed that is not shown."""
        if self.decided:
            return self.decided
        counting = [standing for standing in self.standings if standing.counts]
        if not any(standing.covered for standing in counting):
            return "file-system", "nothing-covered"
        if self.doubted or any(standing.doubts for standing in counting):
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


def _part(writer: Writer, rng: random.Random) -> Part:
    instance_id = new_id(rng)
    standing = Standing(writer, instance_id)
    if not writer.included and writer.components:
        standing.tell("writer-not-included")
        standing.leave_out()
    return Part(
        writer,
        instance_id,
        listed_writer(writer, instance_id, rng) if writer.included else None,
        writer_document(writer, instance_id),
        standing,
    )
