"""What was found out, for people: findings of preflight and of proxies, and the verdict on a VSS manifest."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from vadpipe.rules import Finding, Rule, Severity, Undecided, Violation
from vadpipe.vss.verdict import (
    ApplicationVerdict,
    Coverage,
    ManifestFinding,
    Verdict,
    WriterVerdict,
    read_verdict,
)
from vadpipe.words import counted, printable

if TYPE_CHECKING:
    from rich.console import Group

V = TypeVar("V", bound=Violation)

_WIDTH = 110
_INDENT = " " * 38
_NAMED = 6  # components of a writer that are named; the rest is counted
_STYLES = {Coverage.COVERED: "green", Coverage.PARTLY: "yellow", Coverage.NOT_COVERED: "red"}
_GUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


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
    """A row of a table of rules, with the fields that all tables have."""
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


@dataclass(frozen=True)
class _Row:
    """One writer. `why`: about each uncovered component, and about the writer as a whole."""

    name: str
    coverage: Coverage
    covered: str
    why: tuple[str, ...]


def verdict_lines(path: str, verdict: Verdict) -> list[str]:
    """The verdict as plain lines."""
    lines = [_head(path, verdict)]
    lines += [f"  {line}" for line in _applications(verdict)]
    for row in _rows(verdict):
        covered = f": {row.covered}" if row.covered else ""
        lines.append(f"  {row.coverage.value:16} {row.name}{covered}")
        lines += [f"    {why}" for why in row.why]
    return lines + [f"  {line}" for line in _about_all(verdict)]


def verdict_table(path: str, verdict: Verdict) -> Group:
    """The same for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True)
    table.add_column("writer", ratio=3, overflow="fold")
    table.add_column("state", min_width=9)
    table.add_column("covered", ratio=3, overflow="fold")
    table.add_column("why", ratio=6, overflow="fold")
    for row in _rows(verdict):
        state = Text(row.coverage.value, style=_STYLES.get(row.coverage, ""))
        table.add_row(Text(row.name), state, Text(row.covered), Text("\n".join(row.why)))
    applications = (Text(line) for line in _applications(verdict))
    about_all = (Text(line) for line in _about_all(verdict))
    return Group(Text(_head(path, verdict), style="bold"), *applications, table, *about_all)


def quiescing_lines(
    asked: str, reached: str | None, reasons: Sequence[str], verdict: Mapping[str, object]
) -> list[str]:
    """The quiescing of a restore point, in the report of its job and in `vadpipe show`."""
    return [
        f"  quiescing: asked {asked}, {f'reached {reached}' if reached else 'not verified'}",
        *(f"    {reason}" for reason in reasons),
        *stored_verdict_lines(verdict),
    ]


def stored_verdict_lines(document: Mapping[str, object]) -> list[str]:
    """A stored verdict in short: its applications, and the writers that are part of none and not fully covered."""
    verdict = read_verdict(document)
    named = {writer for application in verdict.applications for writer in application.writers}
    lines = [f"  application {one.name}: {one.level}{_parts(one)}" for one in verdict.applications]
    lines += [
        f"  writer {_name(one)}: {_parts(one)[2:] or one.coverage.value}"
        for one in verdict.writers
        if one.name not in named
    ]
    return [printable(line) for line in lines]


def _head(path: str, verdict: Verdict) -> str:
    return printable(f"{path}: {verdict.level}: {verdict.reason}")


def _applications(verdict: Verdict) -> Iterator[str]:
    for one in verdict.applications:
        short = f"; not covered: {_named(one.uncovered, one.captions)}" if one.uncovered else ""
        yield printable(f"application {one.name}: {one.level}") + short


def _rows(verdict: Verdict) -> Iterator[_Row]:
    for writer in verdict.writers:
        own = [one for one in verdict.findings if one.violation.writer == writer.ids]
        covered = _named(writer.covered, writer.captions)
        yield _Row(printable(_name(writer)), writer.coverage, covered, tuple(_why(writer, own)))


def _why(writer: WriterVerdict, own: Sequence[ManifestFinding]) -> Iterator[str]:
    """Findings first, most of them name their component; then the uncovered components without one of their own."""
    for finding in own:
        yield _line(finding)
    if not writer.counts:
        yield "does not count towards the level"
    mentioned = {finding.subject.lower() for finding in own}
    if rest := [path for path in writer.uncovered if path.lower() not in mentioned]:
        yield f"not covered: {_named(rest, writer.captions)}"


def _about_all(verdict: Verdict) -> Iterator[str]:
    """Findings about the whole manifest, besides the one that decided."""
    for finding in verdict.findings[1:]:
        if not finding.violation.writer_id and finding.severity is not Severity.INFO:
            yield _line(finding)


def _line(finding: ManifestFinding) -> str:
    return printable(f"{finding.severity.value}: {finding.found} [{finding.rule}]")


def _parts(verdict: WriterVerdict | ApplicationVerdict) -> str:
    """'; covered: a, b; not covered: c', where there is something of the kind."""
    parts = (("covered", verdict.covered), ("not covered", verdict.uncovered))
    return "".join(f"; {word}: {_named(paths, verdict.captions)}" for word, paths in parts if paths)


def _name(writer: WriterVerdict) -> str:
    return f"{writer.name} ({writer.application})" if writer.application else writer.name


def _named(paths: Sequence[str], captions: Mapping[str, str]) -> str:
    """Some components by name; a component whose name is a GUID comes with its caption."""
    names = [
        f"{path} ({captions[path]})" if path in captions and _GUID.search(path) else path
        for path in paths[:_NAMED]
    ]
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return printable(", ".join(names) + more)
