"""One rules engine for everything that is judged: VSS manifests, VMs before a job, and backup proxies.

A rule is a check over plain facts. It yields a `Violation` for each place where its condition does not hold, and
an `Unknown` where that cannot be found out. A table holds the rules of a room in their order; the decorator puts
the row and its check next to each other:

    RULES: RuleTable[Facts, Violation] = RuleTable()

    @RULES.rule("vm-template", Severity.ERROR, wanted="a VM, not a template", remedy="Convert it.", source="...")
    def _template(facts: Facts) -> Iterator[Violation]:
        if facts.template:
            yield Violation("it is a template")

`judge` runs a table over facts. A room with more to say about a place derives its own type from `Violation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeAlias, TypeVar


class Severity(Enum):
    """How bad a violation is, the worst first.

    ERROR: the job would fail, data is in danger, or documents contradict each other. UNPROVEN: consistency is not
    shown. WARNING: it works, with a loss or a risk. INFO: good to know.
    """

    ERROR = "error"
    UNPROVEN = "unproven"
    WARNING = "warning"
    INFO = "info"

    @property
    def lowers(self) -> bool:
        """True when what the finding names does not count as covered."""
        return self in (Severity.ERROR, Severity.UNPROVEN)


_ORDER = {severity: place for place, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True)
class Violation:
    """One place where a rule does not hold.

    Args:
        found: What was found, as a clause.
        subject: The disk, host, component or volume; empty for the whole.
        may_pass: The job may never meet this place, so it is at most a warning.
    """

    found: str
    subject: str = ""
    may_pass: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """It cannot be found out whether the rule holds; `why`: the cause."""

    why: str


Outcome: TypeAlias = Violation | Unknown

F = TypeVar("F")
V = TypeVar("V", bound=Violation)


@dataclass(frozen=True, slots=True)
class Rule(Generic[F, V]):
    """One row of a table.

    Args:
        id: Stable name; reports and stored restore points cite it.
        severity: Of its violations, unless the judge lowers it.
        wanted: The condition, as it should be.
        remedy: What to do about a violation, as a sentence.
        source: Document, KB article or header that states the condition.
        check: Yields violations and unknowns.
        reads: Which documents it looks at, where that is not plain.
        tags: What it is about, for whoever picks or weighs rules.
    """

    id: str
    severity: Severity
    wanted: str
    remedy: str
    source: str
    check: Callable[[F], Iterable[V | Unknown]]
    reads: str = ""
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Finding(Generic[V]):
    """A violation together with what its rule says about it."""

    rule: str
    severity: Severity
    violation: V
    wanted: str = ""
    remedy: str = ""
    source: str = ""

    @property
    def found(self) -> str:
        return self.violation.found

    @property
    def subject(self) -> str:
        return self.violation.subject

    @property
    def sentence(self) -> str:
        """What was found, with its subject in front."""
        return f"{self.subject}: {self.found}" if self.subject else self.found

    def as_dict(self) -> dict[str, object]:
        return {
            "rule": self.rule,
            "severity": self.severity,
            "subject": self.subject,
            "found": self.found,
            "wanted": self.wanted,
            "remedy": self.remedy,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True)
class Undecided:
    """A rule that could not be checked, and why."""

    rule: str
    why: str


@dataclass(frozen=True, slots=True)
class Judgement(Generic[V]):
    """What a table says about facts.

    Args:
        findings: In the order of the rules.
        undecided: Rules without an answer.
        held: Ids of the rules without findings and with an answer.
    """

    findings: Sequence[Finding[V]]
    undecided: Sequence[Undecided]
    held: Sequence[str]

    @property
    def worst_first(self) -> list[Finding[V]]:
        return sorted(self.findings, key=lambda finding: _ORDER[finding.severity])


class RuleTable(list[Rule[F, V]]):
    """Rules in the order in which they were defined."""

    def rule(
        self,
        id: str,
        severity: Severity,
        *,
        wanted: str,
        remedy: str = "",
        source: str,
        reads: str = "",
        tags: Iterable[str] = (),
    ) -> Callable[[Callable[[F], Iterable[V | Unknown]]], Rule[F, V]]:
        """A decorator that turns a check into the next rule of the table."""

        def add(check: Callable[[F], Iterable[V | Unknown]]) -> Rule[F, V]:
            rule = Rule(id, severity, wanted, remedy, source, check, reads, frozenset(tags))
            self.append(rule)
            return rule

        return add


def judge(
    rules: Iterable[Rule[F, V]], facts: F, *, survivable: Callable[[Rule[F, V]], bool] = lambda _: False
) -> Judgement[V]:
    """Run the rules over the facts.

    Args:
        rules: A table, or a selection of its rules.
        facts: What the checks read.
        survivable: Rules whose errors cost quality, not the job: they become warnings.
    """
    findings: list[Finding[V]] = []
    undecided: list[Undecided] = []
    held: list[str] = []
    for rule in rules:
        before = len(findings) + len(undecided)
        lowered = rule.severity is Severity.ERROR and survivable(rule)
        for outcome in rule.check(facts):
            if isinstance(outcome, Unknown):
                undecided.append(Undecided(rule.id, outcome.why))
                continue
            passes = lowered or (rule.severity is Severity.ERROR and outcome.may_pass)
            severity = Severity.WARNING if passes else rule.severity
            findings.append(Finding(rule.id, severity, outcome, rule.wanted, rule.remedy, rule.source))
        if before == len(findings) + len(undecided):
            held.append(rule.id)
    return Judgement(findings, undecided, held)
