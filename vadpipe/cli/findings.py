"""Findings for people: one line each, with the remedy below. Used for preflight and for proxies."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from vadpipe.rules import Finding, Rule, Severity, Undecided, Violation
from vadpipe.words import counted, printable

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
    """Findings in their order, then conditions that could not be checked."""
    for finding in findings:
        yield printable(f"  {finding.severity.value:8}{finding.rule:28}{finding.sentence}")
        if remedies:
            yield from textwrap.wrap(
                printable(finding.remedy), _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT
            )
    for one in undecided:
        yield printable(f"  {'unknown':8}{one.rule:28}{one.why}")


def rule_line(rule: Rule[Any, Any]) -> str:
    """A row of a table of rules."""
    return f"{rule.severity.value:8}{rule.id:28}{rule.wanted}"


def rule_document(rule: Rule[Any, Any]) -> dict[str, object]:
    """A row of a table of rules, without what only some rooms have."""
    return {
        "id": rule.id,
        "severity": rule.severity,
        "wanted": rule.wanted,
        **({"remedy": rule.remedy} if rule.remedy else {}),
        "source": rule.source,
    }


def stored_preflight_lines(document: Mapping[str, object] | None) -> Iterator[str]:
    """What preflight found before the snapshot of a restore point; unknown conditions are only counted."""
    if document is None or "problem" in document:
        yield "  preflight: none" + (f", because {document['problem']}" if document else "")
        return
    unknown, stored = document.get("unknown"), document.get("findings")
    findings = (
        [_read_finding(one) for one in stored if isinstance(one, Mapping)] if isinstance(stored, list) else []
    )
    count = counted(len(unknown), "condition") if isinstance(unknown, list) and unknown else ""
    yield f"  preflight: {counts_line(findings)}{f', {count} not known' if count else ''}"
    yield from (f"  {line}" for line in finding_lines(findings, remedies=False))


def _read_finding(document: Mapping[str, object]) -> Finding[Violation]:
    texts = {name: str(value) for name, value in document.items()}
    severity = next((one for one in Severity if one.value == texts.get("severity")), Severity.INFO)
    violation = Violation(texts.get("found", ""), texts.get("subject", ""))
    return Finding(texts.get("rule", ""), severity, violation, remedy=texts.get("remedy", ""))
