"""What a rule of the cross-check is: a row of the table RULES in `rules`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stages.vss.evidence import Evidence, WriterEvidence
from stages.vss.verdict import Finding, Severity


@dataclass(frozen=True, slots=True)
class Breach:
    """One place where a rule does not hold. `component` is a full path."""

    document: str
    text: str
    writer: WriterEvidence | None = None
    component: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: what it reads, what it says when it does not hold, and where it comes from."""

    id: str
    severity: Severity
    reads: str
    says: str
    source: str
    check: Callable[[Evidence], Iterator[Breach]]

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        for breach in self.check(evidence):
            yield Finding(
                rule=self.id,
                severity=self.severity,
                document=breach.document,
                text=breach.text,
                writer_id=breach.writer.writer_id if breach.writer else "",
                instance_id=breach.writer.instance_id if breach.writer else "",
                component=breach.component,
            )
