"""Checking a repository without its keys: what has rotted, been cut off or gone, as far as checksums say.

For a sealed repository on a machine that must not read it. That the bytes are the right ones, and nothing was
replaced by something older, only `verify` with a key can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pipeline import IntegrityError, SinkError, format_size
from vadpipe.words import counted

from ..backends.contract import Backend
from ..format import frames
from ..format.config import FORMAT, SEALING, parse
from ..format.objects import (
    CONFIG,
    ENDED,
    FORGOTTEN,
    HOLDS,
    INDEX,
    LARGEST_POINT,
    LARGEST_SMALL,
    PACKS,
    POINTS,
    REMOVALS,
    Damage,
    Objects,
    stem,
)
from ..format.packs import HEADER_SIZE, addresses, pack_header, read_stored, read_table
from ..format.sealing import check_document
from ..index.segments import Ended, Segment


@dataclass
class ChecksumReport:
    """How many objects of each kind were read, their bytes, and what is wrong: name and problem."""

    packs: int = 0
    segments: int = 0
    documents: int = 0
    bytes: int = 0
    damages: list[tuple[str, str]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        found = counted(len(self.damages), "damaged object") if self.damages else "all checksums are right"
        words = (
            counted(self.packs, "pack"),
            counted(self.segments, "index segment"),
            counted(self.documents, "document"),
            f"{format_size(self.bytes)} read",
        )
        return [f"{', '.join(words)}: {found}.", *(f"{name}: {problem}." for name, problem in self.damages)]


def check_without_key(backend: Backend, progress: Callable[[int, int], None] | None = None) -> ChecksumReport:
    """Read every object. For a worker thread.

    Args:
        progress: Is told the bytes of packs that were read so far, and all that will be read.

    Raises:
        SinkError: It is no repository of format 2, or the store failed.
    """
    objects, report = Objects(backend), ChecksumReport()
    repository_id, sealed = _identity(objects)
    for prefix in (POINTS, HOLDS, FORGOTTEN, REMOVALS):
        for found in backend.list(prefix):
            report.documents += 1
            report.bytes += found.size
            for problem in _document(objects, found.name, sealed):
                report.damages.append((objects.place(found.name), problem))
    named: set[str] = set()
    for found in backend.list(INDEX):
        try:
            segment = Segment(objects, found.name, repository_id, _Closed() if sealed else None)  # type: ignore[arg-type]
            segment.prove_cells()
            if not sealed:
                named.update(segment.packs())
        except Ended:
            continue
        except IntegrityError as error:
            report.damages.append(
                (objects.place(found.name), error.problem.partition("is damaged: ")[2].rstrip("."))
            )
        report.segments += 1
        report.bytes += found.size
    packs = list(backend.list(PACKS))
    total = sum(found.size for found in packs)
    for found in packs:
        report.packs += 1
        report.bytes += found.size
        for problem in _pack(objects, found.name, repository_id):
            report.damages.append((objects.place(found.name), problem))
        if progress is not None:
            progress(report.bytes, total)
    for pack in sorted(named - {stem(found.name) for found in packs}):
        report.damages.append((objects.place(objects.pack(pack)), "it is missing"))
    return report


class _Closed:
    """In the place of a sealing whose keys are not there: what is read stays encrypted."""

    sealed = True

    def cipher(self, epoch: int, purpose: str, salt: bytes) -> _Closed:
        return self

    def decrypt(self, nonce: bytes, content: bytes, associated: bytes) -> bytes:
        return bytes(content[:-16])


def _identity(objects: Objects) -> tuple[bytes, bool]:
    """The id of the repository, and whether it is sealed; nothing of it is proved."""
    try:
        fields = parse(objects.read_whole(CONFIG, LARGEST_SMALL))
        if fields.get("format") != FORMAT or fields.get("version") != 2:
            raise Damage("it is not that of a repository of format 2")
        return bytes.fromhex(str(fields["id"])), fields.get("sealing") == SEALING
    except (Damage, KeyError, ValueError) as exc:
        raise SinkError(
            f"{objects.place(CONFIG)} cannot be read: {exc}.",
            remedy="Name the place of a repository.",
            path=objects.place(CONFIG),
        ) from exc


def _document(objects: Objects, name: str, sealed: bool) -> Iterator[str]:
    try:
        content = objects.read_whole(name, LARGEST_POINT)
        if content.startswith(ENDED):
            return
        if sealed:
            check_document(content)
        else:
            parse(content)
    except Damage as damage:
        yield str(damage)


def _pack(objects: Objects, name: str, repository_id: bytes) -> Iterator[str]:
    try:
        if objects.read(name, 0, HEADER_SIZE) != pack_header(repository_id, stem(name)):
            raise Damage("its header is wrong")
        table = list(addresses(read_table(objects, repository_id, stem(name)), stem(name)))
    except Damage as damage:
        yield str(damage)
        return
    for address in table:
        try:
            content = read_stored(objects, address)
            frames.check(content)
            if frames.length_and_id(content) != (address.length, address.id):
                raise Damage("another frame is stored in its place")
        except Damage as damage:
            yield f"the frame at byte {address.offset}: {damage}"
