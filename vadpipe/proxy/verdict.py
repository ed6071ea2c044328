"""Rules over plain facts, what they find, and the report: kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from .settings import Mend

F = TypeVar("F")


class Transport(Enum):
    """How the proxy reaches the disks. NBD never shows them to its operating system."""

    HOTADD = "hotadd"
    SAN = "san"
    NBD = "nbd"


HOTADD = frozenset({Transport.HOTADD})
SAN = frozenset({Transport.SAN})
ANY = frozenset(Transport)


class Severity(Enum):
    """ERROR: guests' disks or the proxy are in danger. WARNING: they may be, or it cannot be told."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where a rule does not hold. `mends`: what harden does about it; empty: the remedy is yours."""

    rule: str
    severity: Severity
    found: str
    wanted: str
    remedy: str
    source: str
    mends: Sequence[Mend] = ()

    def as_dict(self) -> dict[str, object]:
        return {
            "rule": self.rule,
            "severity": self.severity.value,
            "found": self.found,
            "wanted": self.wanted,
            "remedy": self.remedy,
            "source": self.source,
            "mended_by_harden": bool(self.mends),
        }

    def lines(self) -> list[str]:
        by = "`vadpipe proxy harden` does it" if self.mends else self.remedy
        return [
            f"{self.severity.name:<7} {self.rule}: {self.found}",
            f"        wanted: {self.wanted}",
            f"        remedy: {by}",
            f"        source: {self.source}",
        ]


@dataclass(frozen=True, slots=True)
class Rule(Generic[F]):
    """One row. `check` yields what it found wherever the rule does not hold; `mend` says what would change that."""

    id: str
    severity: Severity
    transports: frozenset[Transport]
    wanted: str
    remedy: str
    source: str
    check: Callable[[F], Iterator[str]]
    mend: Callable[[F], Sequence[Mend]] = lambda _: ()

    def findings(self, facts: F) -> Iterator[Finding]:
        for found in self.check(facts):
            yield Finding(
                self.id, self.severity, found, self.wanted, self.remedy, self.source, self.mend(facts)
            )

    def line(self, platform: str) -> str:
        where = ",".join(each.value for each in Transport if each in self.transports)
        return f"{platform:<8}{self.id:<24}{self.severity.value:<8}{where:<16}{self.wanted}"

    def as_dict(self) -> dict[str, object]:
        return {
            "rule": self.id,
            "severity": self.severity.value,
            "transports": [each.value for each in Transport if each in self.transports],
            "wanted": self.wanted,
            "remedy": self.remedy,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What a machine is found to be.

    `held`: ids of the rules that hold. `facts` are plain values; `notes`: what people see in any case.
    """

    platform: str
    transport: Transport
    findings: Sequence[Finding]
    held: Sequence[str]
    facts: Mapping[str, object]
    notes: Sequence[str] = ()

    def as_dict(self) -> dict[str, object]:
        return {
            "ok": not self.findings,
            "platform": self.platform,
            "transport": self.transport.value,
            "findings": [finding.as_dict() for finding in self.findings],
            "held": list(self.held),
            "facts": dict(self.facts),
        }

    def lines(self) -> list[str]:
        broken = len({finding.rule for finding in self.findings})
        rules = broken + len(self.held)
        head = f"{self.platform} proxy, transport {self.transport.value}: "
        lines = [head + (f"{len(self.held)} of {rules} rules hold." if rules else "no rule applies.")]
        for finding in self.findings:
            lines += finding.lines()
        return [*lines, *(f"ok      {rule}" for rule in self.held), *self.notes]


def judge(
    rules: Sequence[Rule[F]], facts: F, transport: Transport
) -> tuple[Sequence[Finding], Sequence[str]]:
    """What the rules that apply to the transport find, and the ids of those that hold."""
    findings: list[Finding] = []
    held: list[str] = []
    for rule in rules:
        if transport in rule.transports:
            found = list(rule.findings(facts))
            findings += found
            held += [] if found else [rule.id]
    return findings, held
