"""A verdict for people: a table on a terminal, lines in a pipe. Both say the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from vadpipe.vss.verdict import (
    Coverage,
    Finding,
    Severity,
    Verdict,
    WriterVerdict,
)

from .output import printable

_NAMED = 4  # components of a writer that are named; the rest is counted
_STYLES = {Coverage.COVERED: "green", Coverage.PARTLY: "yellow", Coverage.NOT_COVERED: "red"}


@dataclass(frozen=True)
class _Row:
    """What is said of one writer. `why`: of each uncovered component, and of the writer as a whole."""

    name: str
    coverage: Coverage
    covered: str
    why: tuple[str, ...]


def verdict_lines(path: str, verdict: Verdict) -> list[str]:
    """The verdict as plain lines."""
    lines = [printable(f"{path}: {verdict.level}: {verdict.reason}")]
    lines += [f"  {line}" for line in _applications(verdict)]
    for row in _rows(verdict):
        covered = f": {row.covered}" if row.covered else ""
        lines.append(f"  {row.coverage.value:16} {row.name}{covered}")
        lines += [f"    {why}" for why in row.why]
    return lines + [f"  {line}" for line in _about_all(verdict)]


def verdict_table(path: str, verdict: Verdict) -> Group:
    """The verdict for a terminal."""
    table = Table(expand=True)
    table.add_column("writer", ratio=3, overflow="fold")
    table.add_column("state", min_width=9)
    table.add_column("covered", ratio=3, overflow="fold")
    table.add_column("why", ratio=6, overflow="fold")
    for row in _rows(verdict):
        state = Text(row.coverage.value, style=_STYLES.get(row.coverage, ""))
        table.add_row(Text(row.name), state, Text(row.covered), Text("\n".join(row.why)))
    level = Text(printable(f"{path}: {verdict.level}: {verdict.reason}"), style="bold")
    applications = (Text(line) for line in _applications(verdict))
    return Group(level, *applications, table, *(Text(line) for line in _about_all(verdict)))


def _applications(verdict: Verdict) -> Iterator[str]:
    for one in verdict.applications:
        short = f"; not covered: {_named(one.uncovered)}" if one.uncovered else ""
        yield printable(f"application {one.name}: {one.level}") + short


def _rows(verdict: Verdict) -> Iterator[_Row]:
    for writer in verdict.writers:
        own = [one for one in verdict.findings if _ids(one) == (writer.writer_id, writer.instance_id)]
        yield _Row(_name(writer), writer.coverage, _named(writer.covered), tuple(_why(writer, own)))


def _why(writer: WriterVerdict, own: list[Finding]) -> Iterator[str]:
    """Findings first, most of them name their component; then what is uncovered without one of its own."""
    for finding in own:
        yield _told(finding)
    if not writer.counts:
        yield "does not count towards the level"
    told = {finding.component.lower() for finding in own}
    if rest := [path for path in writer.uncovered if path.lower() not in told]:
        yield f"not covered: {_named(rest)}"


def _about_all(verdict: Verdict) -> Iterator[str]:
    """Findings about the manifest itself, beside the one that decided."""
    for finding in verdict.findings[1:]:
        if not finding.writer_id and finding.severity is not Severity.INFO:
            yield _told(finding)


def _told(finding: Finding) -> str:
    return printable(f"{finding.severity.value}: {finding.text} [{finding.rule}]")


def _ids(finding: Finding) -> tuple[str, str]:
    return finding.writer_id, finding.instance_id


def _name(writer: WriterVerdict) -> str:
    return printable(f"{writer.name} ({writer.application})" if writer.application else writer.name)


def _named(paths: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return printable(", ".join(paths[:_NAMED]) + more)
