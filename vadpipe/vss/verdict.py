"""What a manifest proves: the level, the findings that cite rule and document, and each writer's part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


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


class Severity(Enum):
    """ERROR: contradicted or failed. UNPROVEN: not shown. Both keep what they name from counting as covered."""

    ERROR = "error"
    UNPROVEN = "unproven"
    WARNING = "warning"
    INFO = "info"

    @property
    def lowers(self) -> bool:
        return self in (Severity.ERROR, Severity.UNPROVEN)


@dataclass(frozen=True, slots=True)
class Finding:
    """One statement of one rule about one document. Without a component it is about the whole writer,
    without a writer about the whole manifest."""

    rule: str
    severity: Severity
    document: str
    text: str
    writer_id: str = ""
    instance_id: str = ""
    component: str = ""

    def as_dict(self) -> dict[str, object]:
        told = {
            "rule": self.rule,
            "severity": self.severity.value,
            "document": self.document,
            "text": self.text,
            "writer_id": self.writer_id,
            "instance_id": self.instance_id,
            "component": self.component,
        }
        return {name: value for name, value in told.items() if value}


class Coverage(Enum):
    """What is shown of a writer: all of its components, some, none, or it has none to cover."""

    COVERED = "covered"
    PARTLY = "partly covered"
    NOT_COVERED = "not covered"
    NOTHING_TO_COVER = "nothing to cover"


@dataclass(frozen=True, slots=True)
class WriterVerdict:
    """One writer: components (full paths) that are shown consistent and that are not, and the rules that say why.

    `counts` is False for writers that a disk image does not need and for `excluded` ones, which the user said may
    be left out; their state does not change the level. `effective_backup_type` is what the type that was asked for
    comes to under the writer's schema, `logs` what that means for its logs; both are empty for writers that took no
    part or keep none.
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

    @property
    def ids(self) -> tuple[str, str]:
        return self.writer_id, self.instance_id

    def as_dict(self) -> dict[str, object]:
        return {
            "writer_id": self.writer_id,
            "instance_id": self.instance_id,
            "name": self.name,
            "application": self.application,
            "counts": self.counts,
            "coverage": self.coverage.value,
            "covered": list(self.covered),
            "uncovered": list(self.uncovered),
            "rules": list(self.rules),
            "excluded": self.excluded,
            "effective_backup_type": self.effective_backup_type,
            "logs": self.logs,
        }


@dataclass(frozen=True, slots=True)
class ApplicationVerdict:
    """One application over all its writers: its level, and its components (full paths; of SQL Server
    `SERVER\\INSTANCE\\database`), listed ones and those that come along with them."""

    name: str
    level: Level
    writers: tuple[str, ...]
    covered: tuple[str, ...]
    uncovered: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "level": self.level.value,
            "writers": list(self.writers),
            "covered": list(self.covered),
            "uncovered": list(self.uncovered),
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """The level with its evidence. The first finding is the one that decided the level."""

    level: Level
    findings: tuple[Finding, ...]
    writers: tuple[WriterVerdict, ...] = ()
    applications: tuple[ApplicationVerdict, ...] = ()

    @property
    def reason(self) -> str:
        return self.findings[0].text

    @property
    def doubts(self) -> tuple[Finding, ...]:
        """Findings that keep the level below `application`."""
        return doubts_of(self.findings, self.writers)

    def application(self, name: str) -> ApplicationVerdict | None:
        """The application of this name; letter case does not count."""
        return next((one for one in self.applications if one.name.lower() == name.strip().lower()), None)

    def as_dict(self) -> dict[str, object]:
        return {
            "level": self.level.value,
            "reason": self.reason,
            "findings": [finding.as_dict() for finding in self.findings],
            "applications": [application.as_dict() for application in self.applications],
            "writers": [writer.as_dict() for writer in self.writers],
        }


def doubts_of(findings: Iterable[Finding], writers: Iterable[WriterVerdict]) -> tuple[Finding, ...]:
    """The findings that lower the level: not those about writers that do not count."""
    idle = {writer.ids for writer in writers if not writer.counts}
    return tuple(
        one for one in findings if one.severity.lowers and (one.writer_id, one.instance_id) not in idle
    )
