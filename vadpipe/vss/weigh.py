"""What the rules' findings leave: the verdict on each writer, and on each application over its writers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from .evidence import Evidence, WriterEvidence
from .rule import Covered
from .sent import about_logs, tells_types_apart
from .verdict import (
    ApplicationVerdict,
    Coverage,
    Finding,
    Level,
    WriterVerdict,
    doubts_of,
)
from .writers import APPLICATIONS


def weigh_writers(evidence: Evidence, findings: Iterable[Finding]) -> tuple[WriterVerdict, ...]:
    """One verdict per writer instance, in the evidence's order."""
    backups = evidence.backups
    claimable = len(backups) == 1 and backups[0].select_components is not False
    by_writer: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        by_writer.setdefault((finding.writer_id, finding.instance_id), []).append(finding)
    return tuple(
        _weigh(
            evidence, writer, by_writer.get((writer.writer_id, writer.instance_id), []), claimable=claimable
        )
        for writer in evidence.writers
    )


def covered_paths(writers: Iterable[WriterVerdict]) -> Covered:
    """What these verdicts call covered."""
    return {writer.ids: frozenset(path.lower() for path in writer.covered) for writer in writers}


def weigh_applications(
    writers: Sequence[WriterVerdict], findings: Sequence[Finding], level: Level
) -> tuple[ApplicationVerdict, ...]:
    """One verdict per application that has components and counts. `level`: that of the whole manifest.

    An application of which nothing is covered is as consistent as its files, if anything is known of these. A doubt
    about the whole manifest is one about every application.
    """
    doubted = any(not finding.writer_id for finding in doubts_of(findings, writers))
    unproven = min(level, Level.FILE_SYSTEM) if level is not Level.UNKNOWN else level
    by_application: dict[str, list[WriterVerdict]] = {}
    for writer in writers:
        if writer.counts and (writer.covered or writer.uncovered):
            by_application.setdefault(_application_of(writer), []).append(writer)
    told: list[ApplicationVerdict] = []
    for name, own in by_application.items():
        covered = tuple(path for writer in own for path in writer.covered)
        uncovered = tuple(path for writer in own for path in writer.uncovered)
        proven = Level.APPLICATION_PARTIAL if uncovered or doubted else Level.APPLICATION
        names = tuple(dict.fromkeys(writer.name for writer in own))
        told.append(ApplicationVerdict(name, proven if covered else unproven, names, covered, uncovered))
    return tuple(told)


def _application_of(writer: WriterVerdict) -> str:
    """That of the table; a writer that is not in it stands for itself, and never for one that is."""
    if writer.application:
        return writer.application
    known = writer.name.lower() in {application.lower() for application in APPLICATIONS}
    return f"{writer.name} ({writer.writer_id})" if known else writer.name


def _weigh(
    evidence: Evidence, writer: WriterEvidence, own: list[Finding], *, claimable: bool
) -> WriterVerdict:
    covered, uncovered = _components(writer, own, claimable=claimable)
    effective = evidence.effective_type(writer)
    keeps_logs = tells_types_apart(writer.application, writer.backup_schema)
    return WriterVerdict(
        writer_id=writer.writer_id,
        instance_id=writer.instance_id,
        name=writer.name,
        application=writer.application,
        counts=writer.counts,
        coverage=_coverage(covered, uncovered),
        covered=covered,
        uncovered=uncovered,
        rules=tuple(dict.fromkeys(finding.rule for finding in own)),
        excluded=writer.excluded,
        effective_backup_type=effective,
        logs=about_logs(writer.application, effective) if keeps_logs else "",
    )


def _components(
    writer: WriterEvidence, own: Iterable[Finding], *, claimable: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the writer's own findings leave of its components: full paths of the covered ones, and of the others.

    A finding about the whole writer leaves none; one about a component leaves none of those below it either, when
    these come along with one above.
    """
    doubted = {finding.component.lower(): finding.component for finding in own if finding.severity.lowers}
    believed = claimable and writer.metadata is not None and writer.backup is not None and "" not in doubted
    carried = {one.key: one.path for one in writer.included} | {one.key: one.path for one in writer.explicit}
    proven = {key for key, path in carried.items() if believed and path.lower() not in doubted}
    paths = {path.lower(): path for path in carried.values()}
    good = {carried[key].lower() for key in proven}
    for component in writer.implied:
        paths.setdefault(component.path.lower(), component.path)
        carrier = writer.carrier(component)
        if carrier in proven and not _doubted_below(carried[carrier], component.path, doubted):
            good.add(component.path.lower())
    paths |= {lower: path for lower, path in doubted.items() if path and lower not in paths}
    covered = tuple(path for lower, path in paths.items() if lower in good)
    return covered, tuple(path for lower, path in paths.items() if lower not in good)


def _doubted_below(carrier: str, path: str, doubted: Collection[str]) -> bool:
    """True when the component at `path` is doubted, or one between it and the one that brings it along."""
    carrier, path = carrier.lower(), path.lower()
    while doubted and path and path != carrier:
        if path in doubted:
            return True
        path = path.rpartition("\\")[0]
    return False


def _coverage(covered: Sequence[str], uncovered: Sequence[str]) -> Coverage:
    if covered:
        return Coverage.PARTLY if uncovered else Coverage.COVERED
    return Coverage.NOT_COVERED if uncovered else Coverage.NOTHING_TO_COVER
