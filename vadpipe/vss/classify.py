"""From a manifest to a verdict: the rules state, the decisions below weigh.

DECISIONS is read from the top; the first row that applies names the level. The upper rows are about
whether there is anything to judge, the lower ones about what the writers prove. A level is claimed only
on positive evidence, so taking a writer or a component out of the backup components document never raises
it, as long as the writer documents account for what is taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from .archive import ManifestUnreadable
from .documents import Document
from .evidence import Evidence
from .manifest import read_manifest
from .rule import Rule
from .rules import RULES
from .sent import SentQuiescing
from .verdict import (
    Finding,
    Level,
    Severity,
    Verdict,
    WriterVerdict,
    doubts_of,
)
from .weigh import covered_paths, weigh_applications, weigh_writers


def classify_manifest(
    zip_bytes: bytes | None,
    *,
    absent_reason: str = "",
    sent: SentQuiescing | None = None,
    excluded: Sequence[str] = (),
) -> Verdict:
    """The verdict on a manifest file as it came from the datastore; None when the snapshot has none.

    `absent_reason` says why there is none, for the verdict's text. `sent`: the quiesce spec of the snapshot, None
    when nobody knows it. `excluded`: writers by name, application or class id that the user says may be left out.
    Never raises on bad input. For a file that exists and could not be fetched ask `classify_unfetched`.
    """
    if zip_bytes is None:
        return _judge(Evidence(absent=absent_reason or "the snapshot left no manifest"))
    try:
        documents = read_manifest(zip_bytes)
    except ManifestUnreadable as exc:
        return _judge(Evidence(damage=exc.reason))
    return classify_documents(documents, sent=sent, excluded=excluded)


def classify_documents(
    documents: Iterable[Document], *, sent: SentQuiescing | None = None, excluded: Sequence[str] = ()
) -> Verdict:
    """The verdict on documents that were parsed already, e.g. loose files. Arguments as of `classify_manifest`."""
    return _judge(Evidence(tuple(documents), sent=sent, excluded=tuple(excluded)))


def classify_unfetched(reason: str) -> Verdict:
    """The verdict on a manifest that exists and could not be fetched."""
    return _judge(Evidence(unfetched=reason))


@dataclass(frozen=True)
class Judged:
    """The evidence together with what the rules stated about it: what decisions read."""

    evidence: Evidence
    findings: tuple[Finding, ...]

    @cached_property
    def writers(self) -> tuple[WriterVerdict, ...]:
        return weigh_writers(self.evidence, self.findings)

    @cached_property
    def covered(self) -> tuple[WriterVerdict, ...]:
        """Writers that count and have at least one covered component."""
        return tuple(writer for writer in self.writers if writer.counts and writer.covered)

    @cached_property
    def doubts(self) -> tuple[Finding, ...]:
        """Findings that keep the level below `application`."""
        return doubts_of(self.findings, self.writers)


@dataclass(frozen=True, slots=True)
class Decision:
    """One row: the level it gives, and `applies`, which returns the reason or an empty text."""

    id: str
    level: Level
    reads: str
    source: str
    applies: Callable[[Judged], str]


def _judge(evidence: Evidence) -> Verdict:
    findings = tuple(_stated(evidence))
    judged = Judged(evidence, findings)
    for decision in DECISIONS:
        if reason := decision.applies(judged):
            severity = Severity.INFO if decision.level is Level.APPLICATION else Severity.WARNING
            first = Finding(decision.id, severity, evidence.backup_document, reason)
            applications = weigh_applications(judged.writers, findings, decision.level)
            return Verdict(decision.level, (first, *findings), judged.writers, applications)
    raise AssertionError("the last decision applies to everything")


def _stated(evidence: Evidence) -> Iterator[Finding]:
    """What the rules say, in their order."""
    of_documents = {rule.id: tuple(rule.findings(evidence)) for rule in RULES if isinstance(rule, Rule)}
    covered = covered_paths(weigh_writers(evidence, chain.from_iterable(of_documents.values())))
    for rule in RULES:
        yield from of_documents[rule.id] if isinstance(rule, Rule) else rule.findings(evidence, covered)


def _unfetched(judged: Judged) -> str:
    reason = judged.evidence.unfetched
    return "" if reason is None else f"the manifest could not be fetched: {reason}"


def _absent(judged: Judged) -> str:
    reason = judged.evidence.absent
    return "" if reason is None else f"there is no manifest: {reason}"


def _refused(judged: Judged) -> str:
    reason = judged.evidence.damage
    return "" if reason is None else f"the manifest cannot be read: {reason}"


def _linux(judged: Judged) -> str:
    found = judged.evidence.quiesce_manifests
    if not found or len(found) != len(judged.evidence.documents):
        return ""
    provider = found[0].provider_name or "unnamed provider"
    return f"this is a Linux guest's quiesce manifest ({provider}), which proves no VSS snapshot"


def _no_backup_document(judged: Judged) -> str:
    if judged.evidence.backups:
        return ""
    names = ", ".join(one.document for one in judged.evidence.unreadable)
    return "no readable backup components document" + (f" (unreadable: {names})" if names else "")


def _two_backup_documents(judged: Judged) -> str:
    names = [one.document for one in judged.evidence.backups]
    return f"{' and '.join(names)} are both backup components documents" if len(names) > 1 else ""


def _no_writer_document_readable(judged: Judged) -> str:
    unreadable = judged.evidence.unreadable
    if judged.evidence.metadata or not unreadable:
        return ""
    return f"none of the {len(unreadable)} documents beside the backup components document can be read"


def _backup_document_alone(judged: Judged) -> str:
    if judged.evidence.metadata:
        return ""
    return f"{judged.evidence.backup_document} came without writer documents: file systems were quiesced"


def _no_component_mode(judged: Judged) -> str:
    if judged.evidence.backups[0].select_components is not False:
        return ""
    return f"{judged.evidence.backup_document} does not select components, so it says nothing of applications"


def _foreign_documents(judged: Judged) -> str:
    listed = [writer for writer in judged.evidence.writers if writer.backup]
    if not listed or any(writer.metadata for writer in listed):
        return ""
    return f"none of the {len(listed)} listed writers has its document: they come from different runs"


def _nothing_covered(judged: Judged) -> str:
    return "" if judged.covered else "writer documents came along, but no writer's component is shown covered"


def _some_covered(judged: Judged) -> str:
    if not judged.doubts:
        return ""
    short = [one.name for one in judged.writers if one.counts and one.uncovered]
    whose = f"not proven: {', '.join(short)}" if short else judged.doubts[0].text
    return f"{len(judged.covered)} writers take part with consistent components; {whose}"


def _all_covered(judged: Judged) -> str:
    components = sum(len(writer.covered) for writer in judged.covered)
    return f"all {len(judged.covered)} writers that count took part, {components} components covered"


_VDDK = "VDDK guide, Application-Consistent Backup and Restore"
_OWN = "own: the manifest says nothing that could be relied on"

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
