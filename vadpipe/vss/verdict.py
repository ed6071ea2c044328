"""What a manifest proves: the level, the findings that cite rule and document, and each writer's part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias, TypeVar

from vadpipe.jsonable import Json, json_object, without_empty
from vadpipe.rules import Finding, Severity, Violation

E = TypeVar("E", bound=Enum)


class Level(Enum):
    """How consistent a snapshot is shown to be: CRASH < FILE_SYSTEM < APPLICATION_PARTIAL < APPLICATION.

    UNKNOWN stands apart: every comparison of order with it is False, so `level >= required` never holds
    by accident. Ask in that direction; `not level < required` would let UNKNOWN pass.
    """

    CRASH = "crash"
    FILE_SYSTEM = "file-system"
    APPLICATION_PARTIAL = "application-partial"
    APPLICATION = "application"
    UNKNOWN = "unknown"

    def __str__(self) -> str:
        return self.value

    def __lt__(self, other: Level) -> bool:
        return self is not other and self <= other

    def __le__(self, other: Level) -> bool:
        if self is Level.UNKNOWN or other is Level.UNKNOWN:
            return self is other
        return _ORDER.index(self) <= _ORDER.index(other)

    def __gt__(self, other: Level) -> bool:
        return other < self

    def __ge__(self, other: Level) -> bool:
        return other <= self


_ORDER = (Level.CRASH, Level.FILE_SYSTEM, Level.APPLICATION_PARTIAL, Level.APPLICATION)


@dataclass(frozen=True, slots=True)
class Contradiction(Violation):
    """A place in the documents where a rule does not hold.

    `subject` is a component's full path; without one it is about the whole writer. Without a writer it is about the
    whole manifest.
    """

    document: str = ""
    writer_id: str = ""
    instance_id: str = ""

    @property
    def writer(self) -> tuple[str, str]:
        return self.writer_id, self.instance_id


ManifestFinding: TypeAlias = Finding[Contradiction]


class Coverage(Enum):
    """Which components of a writer are shown consistent."""

    COVERED = "covered"
    PARTLY = "partly covered"
    NOT_COVERED = "not covered"
    NOTHING_TO_COVER = "nothing to cover"


@dataclass(frozen=True, slots=True)
class WriterVerdict:
    """One writer instance, and which of its components are shown consistent.

    Args:
        writer_id: The class id, normalised.
        instance_id: The id of the running instance, normalised.
        name: The best name that the documents give.
        application: The application whose data the writer protects; empty when the writer is not well known.
        counts: False for writers that a disk image does not need and for excluded ones: they never change the
            level.
        covered: Components (full paths) that are shown consistent.
        uncovered: Components that are not.
        rules: The rules that state something about the writer.
        excluded: The user said that the writer may be left out.
        effective_backup_type: The type that the writer performs; empty when it took no part.
        logs: What that type does to its logs; empty when it keeps none.
        captions: Names that people know, by component, where the writer gives one besides the component's name.
    """

    writer_id: str
    instance_id: str
    name: str
    application: str
    counts: bool
    coverage: Coverage
    covered: tuple[str, ...]
    uncovered: tuple[str, ...]
    rules: tuple[str, ...]
    excluded: bool = False
    effective_backup_type: str = ""
    logs: str = ""
    captions: Mapping[str, str] = field(default_factory=dict)

    @property
    def ids(self) -> tuple[str, str]:
        return self.writer_id, self.instance_id


@dataclass(frozen=True, slots=True)
class ApplicationVerdict:
    """One application over all its writers.

    Components are full paths, of SQL Server `SERVER\\INSTANCE\\database`: listed ones and those that come along
    with them. `captions`: as in `WriterVerdict`.
    """

    name: str
    level: Level
    writers: tuple[str, ...]
    covered: tuple[str, ...]
    uncovered: tuple[str, ...]
    captions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The level with its evidence. The first finding is the one that decided the level."""

    level: Level
    findings: tuple[ManifestFinding, ...]
    writers: tuple[WriterVerdict, ...] = ()
    applications: tuple[ApplicationVerdict, ...] = ()

    @property
    def reason(self) -> str:
        return self.findings[0].found if self.findings else ""

    @property
    def doubts(self) -> tuple[ManifestFinding, ...]:
        """Findings that keep the level below `application`."""
        return doubts_of(self.findings, self.writers)

    def application(self, name: str) -> ApplicationVerdict | None:
        """The application of this name; letter case does not count."""
        return next((one for one in self.applications if one.name.lower() == name.strip().lower()), None)

    def as_dict(self) -> dict[str, Json]:
        """The document that a restore point keeps; `read_verdict` reads it back."""
        return json_object(
            {
                "level": self.level,
                "reason": self.reason,
                "findings": [_finding_document(finding) for finding in self.findings],
                "applications": [_with_captions(one) for one in self.applications],
                "writers": [_with_captions(one) for one in self.writers],
            }
        )


def doubts_of(
    findings: Iterable[ManifestFinding], writers: Iterable[WriterVerdict]
) -> tuple[ManifestFinding, ...]:
    """The findings that lower the level: not those about writers that do not count."""
    idle = {writer.ids for writer in writers if not writer.counts}
    return tuple(one for one in findings if one.severity.lowers and one.violation.writer not in idle)


def read_verdict(document: Mapping[str, object]) -> Verdict:
    """The verdict in a stored document, of whatever version wrote it.

    What is missing, or has another shape, is left out; an unknown level is `Level.UNKNOWN`.
    """
    return Verdict(
        level=_member(Level, document.get("level"), Level.UNKNOWN),
        findings=tuple(
            Finding(
                rule=_text(one, "rule"),
                severity=_member(Severity, one.get("severity"), Severity.INFO),
                violation=Contradiction(
                    found=_text(one, "text"),
                    subject=_text(one, "component"),
                    document=_text(one, "document"),
                    writer_id=_text(one, "writer_id"),
                    instance_id=_text(one, "instance_id"),
                ),
            )
            for one in _objects(document, "findings")
        ),
        writers=tuple(
            WriterVerdict(
                writer_id=_text(one, "writer_id"),
                instance_id=_text(one, "instance_id"),
                name=_text(one, "name"),
                application=_text(one, "application"),
                counts=one.get("counts") is not False,
                coverage=_member(Coverage, one.get("coverage"), Coverage.NOTHING_TO_COVER),
                covered=_texts(one, "covered"),
                uncovered=_texts(one, "uncovered"),
                rules=_texts(one, "rules"),
                excluded=one.get("excluded") is True,
                effective_backup_type=_text(one, "effective_backup_type"),
                logs=_text(one, "logs"),
                captions=_captions(one),
            )
            for one in _objects(document, "writers")
        ),
        applications=tuple(
            ApplicationVerdict(
                name=_text(one, "name"),
                level=_member(Level, one.get("level"), Level.UNKNOWN),
                writers=_texts(one, "writers"),
                covered=_texts(one, "covered"),
                uncovered=_texts(one, "uncovered"),
                captions=_captions(one),
            )
            for one in _objects(document, "applications")
        ),
    )


def _finding_document(finding: ManifestFinding) -> dict[str, Json]:
    at = finding.violation
    document = {
        "rule": finding.rule,
        "severity": finding.severity.value,
        "document": at.document,
        "text": finding.found,
        "writer_id": at.writer_id,
        "instance_id": at.instance_id,
        "component": finding.subject,
    }
    return without_empty(document)


def _with_captions(verdict: WriterVerdict | ApplicationVerdict) -> dict[str, Json]:
    document = json_object(verdict)
    if not verdict.captions:
        del document["captions"]
    return document


def _objects(document: Mapping[str, object], name: str) -> Iterator[Mapping[str, object]]:
    found = document.get(name)
    for one in found if isinstance(found, list) else ():
        if isinstance(one, Mapping):
            yield one


def _text(document: Mapping[str, object], name: str) -> str:
    found = document.get(name)
    return found if isinstance(found, str) else ""


def _texts(document: Mapping[str, object], name: str) -> tuple[str, ...]:
    found = document.get(name)
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _captions(document: Mapping[str, object]) -> dict[str, str]:
    found = document.get("captions")
    return {str(path): str(text) for path, text in found.items()} if isinstance(found, Mapping) else {}


def _member(kind: type[E], value: object, default: E) -> E:
    return next((one for one in kind if one.value == value), default)
