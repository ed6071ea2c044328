"""What a rule of the cross-check is: a row of the table RULES in `rules`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from .evidence import Evidence, WriterEvidence
from .verdict import Finding, Severity

Covered: TypeAlias = Mapping[tuple[str, str], frozenset[str]]
"""What is shown consistent: writer and instance id -> components by full path in lower case."""


@dataclass(frozen=True, slots=True)
class Breach:
    """One place where a rule does not hold. `component` is a full path."""

    document: str
    text: str
    writer: WriterEvidence | None = None
    component: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    """What a rule reads, what it says when it does not hold, and where it comes from."""

    id: str
    severity: Severity
    reads: str
    says: str
    source: str

    def _findings(self, breaches: Iterable[Breach]) -> Iterator[Finding]:
        for breach in breaches:
            yield Finding(
                rule=self.id,
                severity=self.severity,
                document=breach.document,
                text=breach.text,
                writer_id=breach.writer.writer_id if breach.writer else "",
                instance_id=breach.writer.instance_id if breach.writer else "",
                component=breach.component,
            )


@dataclass(frozen=True, slots=True)
class Rule(_Row):
    """One row about the documents."""

    check: Callable[[Evidence], Iterator[Breach]]

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        return self._findings(self.check(evidence))


@dataclass(frozen=True, slots=True)
class CoverageRule(_Row):
    """One row about what all rows about the documents leave covered. Of a severity that does not lower."""

    check: Callable[[Evidence, Covered], Iterator[Breach]]

    def findings(self, evidence: Evidence, covered: Covered) -> Iterator[Finding]:
        return self._findings(self.check(evidence, covered))
