"""What a rule is, and what it says: a breach where a condition does not hold, an unknown where nobody can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum

from .facts import Case


class Severity(Enum):
    """ERROR: the job would fail, or claim what is not so. WARNING: it works, with a loss or a risk."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Breach:
    """A place where a condition does not hold. `subject`: which disk, host, datastore; empty: the VM or the job.

    `may_pass`: the job may never meet this place: at most a warning, whatever the rule says.
    """

    found: str
    subject: str = ""
    may_pass: bool = False


@dataclass(frozen=True)
class Unknown:
    """Whether the condition holds cannot be told, and why."""

    why: str


Outcome = Breach | Unknown


@dataclass(frozen=True)
class Rule:
    """One row of the table: a condition, how bad its breach is, what helps, and where the condition comes from.

    `about_quiescing`: a breach costs quiescing, which a job that may degrade survives: then it is a warning.
    """

    id: str
    severity: Severity
    wanted: str
    remedy: str
    source: str
    check: Callable[[Case], Iterator[Outcome]]
    about_quiescing: bool = False

    def as_dict(self) -> dict[str, object]:
        return {
            "id": self.id,
            "severity": self.severity.value,
            "wanted": self.wanted,
            "remedy": self.remedy,
            "source": self.source,
            "about_quiescing": self.about_quiescing,
        }


@dataclass(frozen=True)
class Finding:
    """A breach with all that its rule says of it."""

    rule: str
    severity: Severity
    subject: str
    found: str
    wanted: str
    remedy: str
    source: str

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "severity": self.severity.value}


@dataclass(frozen=True)
class Unjudged:
    """A rule that could not be judged, and why."""

    rule: str
    why: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def judge(rules: Iterable[Rule], case: Case) -> tuple[list[Finding], list[Unjudged]]:
    """What the rules find in a case, the worst first, and what they cannot tell."""
    findings, unjudged = [], []
    for rule in rules:
        degrades = rule.about_quiescing and case.job.may_degrade
        for outcome in rule.check(case):
            if isinstance(outcome, Unknown):
                unjudged.append(Unjudged(rule.id, outcome.why))
            else:
                lowered = rule.severity is Severity.ERROR and (degrades or outcome.may_pass)
                findings.append(
                    Finding(
                        rule.id,
                        Severity.WARNING if lowered else rule.severity,
                        outcome.subject,
                        outcome.found,
                        rule.wanted,
                        rule.remedy,
                        rule.source,
                    )
                )
    order = list(Severity)
    return sorted(findings, key=lambda finding: order.index(finding.severity)), unjudged
