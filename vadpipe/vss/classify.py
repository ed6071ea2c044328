"""From a manifest to a verdict: the rules state facts, the decisions below name the level.

DECISIONS is read from the top; the first row that applies names the level. The upper rows are about whether
there is anything to judge, the lower ones about what the writers prove. A level is claimed only on positive
evidence, so taking a writer or a component out of the backup components document never raises it, as long as
the writers' documents account for what is taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from vadpipe.rules import Finding, Severity, judge
from vadpipe.words import counted

from .archive import ManifestUnreadable
from .documents import Document
from .evidence import ManifestEvidence, WriterEvidence
from .parse import read_manifest
from .requested import RequestedQuiescing, distinguishes_types, effect_on_logs
from .rules import COVERAGE_RULES, RULES, CoveredEvidence
from .verdict import (
    ApplicationVerdict,
    Contradiction,
    Coverage,
    Level,
    ManifestFinding,
    Verdict,
    WriterVerdict,
    doubts_of,
)
from .writers import APPLICATIONS


def classify_manifest(
    zip_bytes: bytes | None,
    *,
    absent_reason: str = "",
    requested: RequestedQuiescing | None = None,
    excluded: Sequence[str] = (),
) -> Verdict:
    """The verdict on a manifest file. Never raises on bad input.

    Args:
        zip_bytes: The file's bytes; None when the snapshot has no manifest. For a manifest that exists and
            could not be fetched see `classify_unfetched`.
        absent_reason: Why there is no manifest, for the verdict's text.
        requested: The quiesce specification of the snapshot; None when it is not known.
        excluded: Writers, by name, application or class id, that the user says may be left out.
    """
    if zip_bytes is None:
        return _verdict_on(ManifestEvidence(absent=absent_reason or "the snapshot left no manifest"))
    try:
        documents = read_manifest(zip_bytes)
    except ManifestUnreadable as exc:
        return _verdict_on(ManifestEvidence(damage=exc.reason))
    return classify_documents(documents, requested=requested, excluded=excluded)


def classify_documents(
    documents: Iterable[Document],
    *,
    requested: RequestedQuiescing | None = None,
    excluded: Sequence[str] = (),
) -> Verdict:
    """The verdict on documents that were parsed already. Arguments as of `classify_manifest`."""
    return _verdict_on(ManifestEvidence(tuple(documents), requested=requested, excluded=tuple(excluded)))


def classify_unfetched(reason: str) -> Verdict:
    """The verdict on a manifest that exists and could not be fetched."""
    return _verdict_on(ManifestEvidence(unfetched=reason))


@dataclass(frozen=True)
class JudgedManifest:
    """The evidence and the findings about it: what decisions read."""

    evidence: ManifestEvidence
    findings: tuple[ManifestFinding, ...]

    @cached_property
    def writers(self) -> tuple[WriterVerdict, ...]:
        return judge_writers(self.evidence, self.findings)

    @cached_property
    def covered(self) -> tuple[WriterVerdict, ...]:
        """Writers that count and have at least one covered component."""
        return tuple(writer for writer in self.writers if writer.counts and writer.covered)

    @cached_property
    def doubts(self) -> tuple[ManifestFinding, ...]:
        """Findings that keep the level below `application`."""
        return doubts_of(self.findings, self.writers)


@dataclass(frozen=True, slots=True)
class Decision:
    """One row: the level that it names, and `applies`, which returns the reason or an empty text."""

    id: str
    level: Level
    reads: str
    source: str
    applies: Callable[[JudgedManifest], str]


def _verdict_on(evidence: ManifestEvidence) -> Verdict:
    findings = tuple(_findings(evidence))
    judged = JudgedManifest(evidence, findings)
    for decision in DECISIONS:
        if reason := decision.applies(judged):
            severity = Severity.INFO if decision.level is Level.APPLICATION else Severity.WARNING
            first = Finding(decision.id, severity, Contradiction(reason, document=evidence.backup_document))
            applications = judge_applications(judged.writers, findings, decision.level)
            return Verdict(decision.level, (first, *findings), judged.writers, applications)
    raise AssertionError("the last decision applies to everything")


def _findings(evidence: ManifestEvidence) -> Iterator[ManifestFinding]:
    about_documents = judge(RULES, evidence).findings
    writers = judge_writers(evidence, about_documents)
    covered = {writer.ids: frozenset(path.lower() for path in writer.covered) for writer in writers}
    yield from about_documents
    yield from judge(COVERAGE_RULES, CoveredEvidence(evidence, covered)).findings


def judge_writers(
    evidence: ManifestEvidence, findings: Iterable[ManifestFinding]
) -> tuple[WriterVerdict, ...]:
    """One verdict per writer instance, in the evidence's order."""
    backups = evidence.backups
    claimable = len(backups) == 1 and backups[0].select_components is not False
    by_writer: dict[tuple[str, str], list[ManifestFinding]] = {}
    for finding in findings:
        by_writer.setdefault(finding.violation.writer, []).append(finding)
    return tuple(
        _judge_writer(
            evidence, writer, by_writer.get((writer.writer_id, writer.instance_id), []), claimable=claimable
        )
        for writer in evidence.writers
    )


def judge_applications(
    writers: Sequence[WriterVerdict], findings: Sequence[ManifestFinding], level: Level
) -> tuple[ApplicationVerdict, ...]:
    """One verdict per application that has components and counts. `level`: that of the whole manifest.

    An application without a covered component is as consistent as its files, if these are known to be. A doubt
    about the whole manifest is a doubt about every application.
    """
    doubted = any(not finding.violation.writer_id for finding in doubts_of(findings, writers))
    unproven = min(level, Level.FILE_SYSTEM) if level is not Level.UNKNOWN else level
    by_application: dict[str, list[WriterVerdict]] = {}
    for writer in writers:
        if writer.counts and (writer.covered or writer.uncovered):
            by_application.setdefault(_application_of(writer), []).append(writer)
    verdicts: list[ApplicationVerdict] = []
    for name, own in by_application.items():
        covered = tuple(path for writer in own for path in writer.covered)
        uncovered = tuple(path for writer in own for path in writer.uncovered)
        proven = Level.APPLICATION_PARTIAL if uncovered or doubted else Level.APPLICATION
        names = tuple(dict.fromkeys(writer.name for writer in own))
        captions = {path: text for writer in own for path, text in writer.captions.items()}
        reached = proven if covered else unproven
        verdicts.append(ApplicationVerdict(name, reached, names, covered, uncovered, captions))
    return tuple(verdicts)


def _application_of(writer: WriterVerdict) -> str:
    """The application of a well-known writer; another writer is an application of its own name."""
    if writer.application:
        return writer.application
    known = writer.name.lower() in {application.lower() for application in APPLICATIONS}
    return f"{writer.name} ({writer.writer_id})" if known else writer.name


def _judge_writer(
    evidence: ManifestEvidence, writer: WriterEvidence, own: list[ManifestFinding], *, claimable: bool
) -> WriterVerdict:
    covered, uncovered = _components(writer, own, claimable=claimable)
    effective = evidence.effective_type(writer)
    keeps_logs = distinguishes_types(writer.application, writer.backup_schema)
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
        logs=effect_on_logs(writer.application, effective) if keeps_logs else "",
        captions=writer.captions,
    )


def _components(
    writer: WriterEvidence, own: Iterable[ManifestFinding], *, claimable: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The writer's components by its own findings: full paths of the covered ones, and of the others.

    A finding about the whole writer uncovers all. A finding about a component uncovers those below it as well, when
    they come along with one above.
    """
    doubted = {finding.subject.lower(): finding.subject for finding in own if finding.severity.lowers}
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


def _unfetched(judged: JudgedManifest) -> str:
    reason = judged.evidence.unfetched
    return "" if reason is None else f"the manifest could not be fetched: {reason}"


def _absent(judged: JudgedManifest) -> str:
    reason = judged.evidence.absent
    return "" if reason is None else f"there is no manifest: {reason}"


def _refused(judged: JudgedManifest) -> str:
    reason = judged.evidence.damage
    return "" if reason is None else f"the manifest cannot be read: {reason}"


def _linux(judged: JudgedManifest) -> str:
    found = judged.evidence.quiesce_manifests
    if not found or len(found) != len(judged.evidence.documents):
        return ""
    provider = found[0].provider_name or "unnamed provider"
    return f"this is a Linux guest's quiesce manifest ({provider}), which proves no VSS snapshot"


def _no_backup_document(judged: JudgedManifest) -> str:
    if judged.evidence.backups:
        return ""
    names = ", ".join(one.document for one in judged.evidence.unreadable)
    return "no readable backup components document" + (f" (unreadable: {names})" if names else "")


def _two_backup_documents(judged: JudgedManifest) -> str:
    names = [one.document for one in judged.evidence.backups]
    return f"{' and '.join(names)} are both backup components documents" if len(names) > 1 else ""


def _no_writer_document_readable(judged: JudgedManifest) -> str:
    unreadable = judged.evidence.unreadable
    if judged.evidence.metadata or not unreadable:
        return ""
    documents = counted(len(unreadable), "document")
    return f"none of {documents} beside the backup components document can be read"


def _backup_document_alone(judged: JudgedManifest) -> str:
    if judged.evidence.metadata:
        return ""
    return f"{judged.evidence.backup_document} came without writer documents: file systems were quiesced"


def _no_component_mode(judged: JudgedManifest) -> str:
    if judged.evidence.backups[0].select_components is not False:
        return ""
    return f"{judged.evidence.backup_document} does not select components, so it says nothing of applications"


def _foreign_documents(judged: JudgedManifest) -> str:
    listed = [writer for writer in judged.evidence.writers if writer.backup]
    if not listed or any(writer.metadata for writer in listed):
        return ""
    return f"none of {counted(len(listed), 'listed writer')} has its document: they come from different runs"


def _nothing_covered(judged: JudgedManifest) -> str:
    return "" if judged.covered else "writer documents came along, but no writer's component is shown covered"


def _some_covered(judged: JudgedManifest) -> str:
    if not judged.doubts:
        return ""
    short = dict.fromkeys(one.name for one in judged.writers if one.counts and one.uncovered)
    whose = f"not proven: {', '.join(short)}" if short else judged.doubts[0].found
    return f"{counted(len(judged.covered), 'writer')} with consistent components took part; {whose}"


def _all_covered(judged: JudgedManifest) -> str:
    number = len(judged.covered)
    writers = f"all {number} writers that count" if number > 1 else "the only writer that counts"
    components = counted(sum(len(writer.covered) for writer in judged.covered), "component")
    return f"{writers} took part, {components} covered"


_VDDK = "VDDK guide, Application-Consistent Backup and Restore"
_OWN = "own: nothing in the manifest can be relied on"

DECISIONS: tuple[Decision, ...] = (
    Decision("manifest-unfetched", Level.UNKNOWN, "fetching", _OWN, _unfetched),
    Decision("manifest-absent", Level.CRASH, "snapshot directory", _VDDK, _absent),
    Decision("archive-refused", Level.UNKNOWN, "zip", _OWN, _refused),
    Decision(
        "linux-quiesce-manifest", Level.CRASH, "zip",
        "VDDK guide, Working with Microsoft Shadow Copy: other guests", _linux,
    ),
    Decision("backup-document-missing", Level.UNKNOWN, "zip", _OWN, _no_backup_document),
    Decision("backup-document-twice", Level.UNKNOWN, "zip", _OWN, _two_backup_documents),
    Decision("writer-documents-unreadable", Level.UNKNOWN, "zip", _OWN, _no_writer_document_readable),
    Decision("backup-document-alone", Level.FILE_SYSTEM, "zip", _VDDK, _backup_document_alone),
    Decision(
        "no-component-mode", Level.FILE_SYSTEM, "BCD", "Microsoft, Overview of Backup Initialization",
        _no_component_mode,
    ),
    Decision("foreign-documents", Level.UNKNOWN, "BCD and WMD", _OWN, _foreign_documents),
    Decision(
        "nothing-covered", Level.FILE_SYSTEM, "rules",
        "Microsoft, Backup Components Document Contents", _nothing_covered,
    ),
    Decision("some-covered", Level.APPLICATION_PARTIAL, "rules", _VDDK, _some_covered),
    Decision("all-covered", Level.APPLICATION, "rules", _VDDK, _all_covered),
)  # fmt: skip
