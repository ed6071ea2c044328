"""What a machine is found to be as a backup proxy: findings with their fixes, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from vadpipe.rules import Finding, RuleTable, Violation, judge

from .settings import Fix

F = TypeVar("F")


class Transport(Enum):
    """How the proxy reaches the disks. NBD never shows them to its operating system."""

    HOTADD = "hotadd"
    SAN = "san"
    NBD = "nbd"


# Tags of rules: the transports to which they apply.
HOTADD = frozenset({Transport.HOTADD.value})
SAN = frozenset({Transport.SAN.value})
ANY = frozenset(each.value for each in Transport)


@dataclass(frozen=True, slots=True)
class Unfit(Violation):
    """A place where the machine is unfit. `fixes`: what harden changes; empty: the remedy is for people."""

    fixes: Sequence[Fix] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a machine is found to be.

    Args:
        platform: 'windows' or 'linux'.
        transport: The rules that apply to it were judged.
        findings: Rules that do not hold.
        held: Ids of the rules that hold.
        facts: What was found, as a dataclass.
        notes: What people see in any case.
    """

    platform: str
    transport: Transport
    findings: Sequence[Finding[Unfit]]
    held: Sequence[str]
    facts: object
    notes: Sequence[str] = ()

    @property
    def fixes(self) -> list[Fix]:
        """Of each broken rule once, however many places it found."""
        first: dict[str, Finding[Unfit]] = {}
        for finding in self.findings:
            first.setdefault(finding.rule, finding)
        return [fix for finding in first.values() for fix in finding.violation.fixes]

    def as_dict(self) -> dict[str, object]:
        return {
            "ok": not self.findings,
            "platform": self.platform,
            "transport": self.transport,
            "findings": [
                {
                    **{name: value for name, value in finding.as_dict().items() if name != "subject"},
                    "mended_by_harden": bool(finding.violation.fixes),
                }
                for finding in self.findings
            ],
            "held": self.held,
            "facts": self.facts,
        }


def judge_machine(
    platform: str, rules: RuleTable[F, Unfit], facts: F, transport: Transport, notes: Sequence[str] = ()
) -> Report:
    """Judge the facts by the rules that apply to the transport."""
    judgement = judge((rule for rule in rules if transport.value in rule.tags), facts)
    return Report(platform, transport, judgement.findings, judgement.held, facts, notes)
