"""Findings for people: one line each, with the remedy below. Preflight and proxies are told in this way."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import TypeVar

from vadpipe.jsonable import Json
from vadpipe.rules import Finding, Rule, Severity, Undecided, Violation
from vadpipe.words import counted

from .output import printable

F = TypeVar("F")
V = TypeVar("V", bound=Violation)

_WIDTH = 110
_INDENT = " " * 38


def counts_line(findings: Iterable[Finding[V]]) -> str:
    """'1 error, 2 warnings', or 'nothing found'."""
    severities = [finding.severity for finding in findings]
    found = [counted(severities.count(one), _NOUNS[one]) for one in Severity if one in severities]
    return ", ".join(found) or "nothing found"


_NOUNS = {
    Severity.ERROR: "error",
    Severity.UNPROVEN: "unproven condition",
    Severity.WARNING: "warning",
    Severity.INFO: "remark",
}


def finding_lines(
    findings: Iterable[Finding[V]], undecided: Iterable[Undecided] = (), *, remedies: bool = True
) -> Iterator[str]:
    """Findings in their order, then what nobody can tell."""
    for finding in findings:
        yield printable(f"  {finding.severity.value:8}{finding.rule:28}{finding.sentence}")
        if remedies:
            yield from textwrap.wrap(
                printable(finding.remedy), _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT
            )
    for one in undecided:
        yield printable(f"  {'unknown':8}{one.rule:28}{one.why}")


def rule_line(rule: Rule[F, V]) -> str:
    """A row of a table of rules."""
    return f"{rule.severity.value:8}{rule.id:28}{rule.wanted}"


def rule_document(rule: Rule[F, V]) -> dict[str, Json]:
    """A row of a table of rules, without what only some rooms have."""
    return {
        "id": rule.id,
        "severity": rule.severity.value,
        "wanted": rule.wanted,
        "remedy": rule.remedy,
        "source": rule.source,
    }
