"""The rules that cross-check a manifest's documents.

A rule reads the evidence and yields a contradiction for every place where it does not hold. What the findings mean
for the level is decided in `classify`. In `reads`, BCD is the backup components document (the requester's), WMD a
writer's own document.

Sources: "Microsoft" is its public documentation of the Volume Shadow Copy Service (page named), "VDDK guide" the
chapter on Windows backup of VMware's Virtual Disk Development Kit programming guide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vadpipe.rules import RuleTable, Severity

from .documents import BackupComponent, Unrecognised, WriterComponent
from .evidence import ManifestEvidence, WriterEvidence
from .requested import BACKUP_TYPES, VMWARE_DEFAULTS, changes_logs, distinguishes_types, effect_on_logs
from .verdict import Contradiction
from .writers import SQL_SERVER_WRITER

# Requirements of a job refer to these two.
COMPONENT_MODE_UNSTATED = "component-mode-unstated"
WRITER_NOT_INCLUDED = "writer-not-included"

_BOTH = "BCD and WMD"
_REQUESTED = "BCD and the quiesce specification"
_CONTENTS = "Microsoft, Backup Components Document Contents"
_ERRORS = "Microsoft, Writer Errors and Vetoes"
_INTERFACES = "Microsoft, interface reference"
_SELECTABILITY = "Microsoft, Working with Selectability for Backup"
_SQL_SERVER = "Microsoft SQL Server, VSS writer backup guide"
_TYPES = "Microsoft, VSS_BACKUP_TYPE; the writers' own documentation"

Places: TypeAlias = Iterator[Contradiction]

RULES: RuleTable[ManifestEvidence, Contradiction] = RuleTable()


@RULES.rule(
    "document-unreadable", Severity.ERROR, wanted="every document can be read", reads="every member",
    source="own: it may be the document of any writer",
)  # fmt: skip
def _unreadable_document(evidence: ManifestEvidence) -> Places:
    for one in evidence.unreadable:
        yield Contradiction(f"{one.document} cannot be read: {one.why} ({one.where})", document=one.document)


@RULES.rule(
    "document-unrecognised", Severity.INFO, wanted="every document is a VSS document", reads="every member",
    source="own",
)  # fmt: skip
def _unrecognised_document(evidence: ManifestEvidence) -> Places:
    for one in evidence.documents:
        if isinstance(one, Unrecognised):
            text = f"{one.document} is no VSS document: its root element is {one.root!r}"
            yield Contradiction(text, document=one.document)


@RULES.rule(
    COMPONENT_MODE_UNSTATED, Severity.UNPROVEN, wanted="the document says whether it selects components",
    reads="BCD", source="VDDK guide: VMware Tools selects components",
)  # fmt: skip
def _component_mode_unstated(evidence: ManifestEvidence) -> Places:
    for backup in evidence.backups:
        if backup.writers and backup.select_components is None:
            text = f"{backup.document} does not say whether it selects components"
            yield Contradiction(text, document=backup.document)


@RULES.rule(
    "writer-without-metadata", Severity.ERROR, wanted="every listed writer has a document with both of its ids",
    reads=_BOTH, source=_CONTENTS,
)  # fmt: skip
def _writer_without_metadata(evidence: ManifestEvidence) -> Places:
    if not evidence.metadata:
        return  # the manifest came without any writer's document, which one decision says for all
    ids = {one.writer_id for one in evidence.metadata}
    for writer in evidence.writers:
        if writer.metadata is None:
            other = "only one of another instance" if writer.writer_id in ids else "none"
            text = f"{writer.name} is listed, but of its own documents there is {other}"
            yield _about(writer, text, evidence.backup_document)


@RULES.rule(
    "writer-described-twice", Severity.ERROR, wanted="one document for each writer instance", reads="WMD",
    source="Microsoft, Writer Metadata Document Contents",
)  # fmt: skip
def _writer_described_twice(evidence: ManifestEvidence) -> Places:
    for writer in evidence.writers:
        for twin in writer.twins:
            yield _about(writer, f"{twin.document} describes {writer.name} once more", twin.document)


@RULES.rule(
    "writer-failed", Severity.ERROR, wanted="no writer carries a failure message", reads="BCD", source=_ERRORS
)
def _writer_failed(evidence: ManifestEvidence) -> Places:
    for writer in evidence.writers:
        for attribute, message in writer.backup.failures if writer.backup else ():
            yield _about(writer, f"{writer.name} failed: {message} ({attribute})", evidence.backup_document)


@RULES.rule(
    WRITER_NOT_INCLUDED, Severity.UNPROVEN, wanted="every writer with components was frozen and is listed",
    reads=_BOTH, source=f"{_CONTENTS}; VDDK guide: all writers are involved",
)  # fmt: skip
def _writer_not_included(evidence: ManifestEvidence) -> Places:
    for writer in evidence.writers if evidence.proves_absence else ():
        if writer.metadata and writer.backup is None and writer.explicit and not writer.excluded:
            text = f"{writer.name} has components, but was not part of the backup: it was not frozen"
            yield _about(writer, text, writer.metadata.document)


@RULES.rule(
    "schema-differs", Severity.WARNING, wanted="both documents state one backup schema", reads=_BOTH,
    source=_INTERFACES,
)  # fmt: skip
def _schema_differs(evidence: ManifestEvidence) -> Places:
    for writer in evidence.writers:
        if writer.backup and writer.metadata and writer.backup.backup_schema != writer.metadata.backup_schema:
            listed, offered = writer.backup.backup_schema, writer.metadata.backup_schema
            text = f"{writer.name}: backup schema {listed:#x} is listed, its own document says {offered:#x}"
            yield _about(writer, text, evidence.backup_document)


def _listed(
    evidence: ManifestEvidence,
) -> Iterator[tuple[WriterEvidence, BackupComponent, WriterComponent | None]]:
    """Every listed component with its writer, and with what the writer offers under its name."""
    for writer in evidence.writers:
        for component in writer.included:
            yield writer, component, writer.offered.get(component.key)


@RULES.rule(
    "component-failed", Severity.ERROR, wanted="no component carries a failure message or did not succeed",
    reads="BCD", source=_ERRORS,
)  # fmt: skip
def _component_failed(evidence: ManifestEvidence) -> Places:
    for writer, component, _ in _listed(evidence):
        failures = [f"{message} ({attribute})" for attribute, message in component.failures]
        if component.backup_succeeded is False:
            failures.append("its backup did not succeed (backupSucceeded)")
        for failure in failures:
            text = f"{writer.name}, component {component.path}: {failure}"
            yield _about(writer, text, evidence.backup_document, component.path)


@RULES.rule(
    "component-not-offered", Severity.ERROR, wanted="every listed component is in its writer's document",
    reads=_BOTH, source=_CONTENTS,
)  # fmt: skip
def _component_not_offered(evidence: ManifestEvidence) -> Places:
    for writer, component, offer in _listed(evidence):
        if writer.metadata and offer is None:
            text = f"{writer.name} does not offer the listed component {component.path}"
            yield _about(writer, text, evidence.backup_document, component.path)


@RULES.rule(
    "component-of-other-type", Severity.ERROR, wanted="both documents state one type of a component",
    reads=_BOTH, source=_INTERFACES,
)  # fmt: skip
def _component_of_other_type(evidence: ManifestEvidence) -> Places:
    for writer, component, offer in _listed(evidence):
        listed = component.component_type.strip().lower()
        # Other spellings are not documented, so they prove nothing.
        if offer and listed in ("filegroup", "database") and listed != offer.kind:
            text = f"{writer.name}, component {component.path}: listed as {listed}, but is a {offer.kind}"
            yield _about(writer, text, evidence.backup_document, component.path)


def _missing(
    evidence: ManifestEvidence, *, selectable: bool
) -> Iterator[tuple[WriterEvidence, WriterComponent]]:
    for writer in evidence.writers if evidence.proves_absence else ():
        for component in writer.explicit if writer.backup else ():
            if component.selectable is selectable and component.key not in writer.included_keys:
                yield writer, component


@RULES.rule(
    "mandatory-component-missing", Severity.ERROR, wanted="a writer takes part with its mandatory components",
    reads=_BOTH, source=_SELECTABILITY,
)  # fmt: skip
def _mandatory_component_missing(evidence: ManifestEvidence) -> Places:
    for writer, component in _missing(evidence, selectable=False):
        text = f"{writer.name} takes part without its mandatory component {component.path}"
        yield _about(writer, text, evidence.backup_document)


@RULES.rule(
    "component-not-included", Severity.UNPROVEN, wanted="every offered component is listed", reads=_BOTH,
    source="VDDK guide: all components are involved",
)  # fmt: skip
def _component_not_included(evidence: ManifestEvidence) -> Places:
    for writer, component in _missing(evidence, selectable=True):
        text = f"{writer.name} offers component {component.path}, which was not part of the backup"
        yield _about(writer, text, evidence.backup_document, component.path)


@RULES.rule(
    "below-included-ancestor", Severity.WARNING, wanted="no component is listed that its ancestor includes",
    reads=_BOTH, source=_SELECTABILITY,
)  # fmt: skip
def _below_included_ancestor(evidence: ManifestEvidence) -> Places:
    for writer, component, offer in _listed(evidence):
        if offer and writer.above(offer).listed:
            text = f"{writer.name}: component {component.path} is listed, its listed ancestor includes it"
            yield _about(writer, text, evidence.backup_document, component.path)


@RULES.rule(
    "implicit-component-listed", Severity.WARNING, wanted="no component is listed that can only come implicitly",
    reads=_BOTH, source=_SELECTABILITY,
)  # fmt: skip
def _implicit_component_listed(evidence: ManifestEvidence) -> Places:
    for writer, component, offer in _listed(evidence):
        if offer and not offer.selectable and writer.above(offer).selectable:
            text = f"{writer.name}: component {component.path} is listed, though it cannot be selected"
            yield _about(writer, text, evidence.backup_document, component.path)


@RULES.rule(
    "component-twice", Severity.WARNING, wanted="path and name are unique in their writer", reads=_BOTH,
    source="Microsoft, Logical Pathing of Components",
)  # fmt: skip
def _component_twice(evidence: ManifestEvidence) -> Places:
    for writer in evidence.writers:
        lists: list[tuple[str, Sequence[BackupComponent | WriterComponent]]] = [
            (evidence.backup_document, writer.included)
        ]
        if writer.metadata:
            lists.append((writer.metadata.document, writer.metadata.components))
        for document, components in lists:
            counts = Counter(component.key for component in components)
            for key, path in {component.key: component.path for component in components}.items():
                if counts[key] > 1:
                    yield _about(writer, f"{writer.name}: component {path} is there twice", document, path)


@RULES.rule(
    "sql-component-without-stamp", Severity.INFO, wanted="SQL Server left stamp and metadata at each component",
    reads="BCD", source=_SQL_SERVER,
)  # fmt: skip
def _sql_component_without_stamp(evidence: ManifestEvidence) -> Places:
    for writer, component, _ in _listed(evidence):
        marked = component.has_backup_stamp and component.has_backup_metadata
        if writer.writer_id == SQL_SERVER_WRITER and not marked:
            text = f"{writer.name} left no stamp and metadata at {component.path}: weaker evidence"
            yield _about(writer, text, evidence.backup_document, component.path)


@RULES.rule(
    "database-excluded", Severity.UNPROVEN, wanted="a writer excludes no file of a database", reads="WMD",
    source=_SQL_SERVER,
)  # fmt: skip
def _database_excluded(evidence: ManifestEvidence) -> Places:
    for writer in evidence.writers:
        if writer.metadata is None:
            continue
        holders = {
            file: component.path
            for component in writer.metadata.components
            for file in component.database_files
        }
        for file in dict.fromkeys(writer.metadata.excluded_databases):
            if holder := holders.get(file):
                text = f"{writer.name} excludes {file} of its own component {holder}"
                yield _about(writer, text, writer.metadata.document, holder)
            elif _is_lost_database(writer, file):
                text = f"{writer.name} excludes {file}: the database that it belongs to is not covered"
                yield _about(writer, text, writer.metadata.document, file)


_TEMPDB = "\\tempdb.mdf"  # made anew at every start, never part of a backup


def _is_lost_database(writer: WriterEvidence, file: str) -> bool:
    """A database has one primary file; its other files say nothing more."""
    is_primary = file.endswith(".mdf") and not file.endswith(_TEMPDB)
    return writer.writer_id == SQL_SERVER_WRITER and is_primary


_SYSTEM_STATE = frozenset({"BOOTABLE_SYSTEM_STATE", "SYSTEM_SERVICE"})


@RULES.rule(
    "system-state-incomplete", Severity.WARNING, wanted="every part of the system state took part", reads=_BOTH,
    source="Microsoft, Backing Up and Restoring System State",
)  # fmt: skip
def _system_state_incomplete(evidence: ManifestEvidence) -> Places:
    if not evidence.proves_absence or not evidence.backups[0].bootable_system_state:
        return
    for writer in evidence.writers:
        if not writer.metadata or writer.metadata.usage.upper() not in _SYSTEM_STATE or not writer.counts:
            continue
        expected = [component for component in writer.explicit if component.system_state]
        missing = [component.path for component in expected if not writer.takes_part(component)]
        if missing:
            short = f"{', '.join(missing)} did not take part, or failed"
            text = f"{writer.name} belongs to the system state, but {short}"
            yield _about(writer, text, evidence.backup_document)


@RULES.rule(
    "writer-excluded", Severity.INFO, wanted="the configuration excludes no writer", reads="configuration",
    source="VDDK guide: writers can be excluded",
)  # fmt: skip
def _writer_excluded(evidence: ManifestEvidence) -> Places:
    for writer in evidence.writers:
        if writer.excluded:
            took_part = "took part nonetheless" if writer.backup else "did not take part"
            yield _about(writer, f"{writer.name} is excluded by the configuration; it {took_part}")


@RULES.rule(
    "options-differ", Severity.WARNING, wanted="VSS ran with the requested options", reads=_REQUESTED,
    source="VDDK guide and the API's quiesce specification: VMware's defaults",
)  # fmt: skip
def _options_differ(evidence: ManifestEvidence) -> Places:
    wanted = evidence.requested or VMWARE_DEFAULTS
    whose = "was requested" if evidence.requested else "is VMware's default"
    for backup in evidence.backups:
        if not backup.writers and not evidence.metadata:  # then the options concern no writer
            continue
        # How types other than these are spelled is not documented.
        backup_type = backup.backup_type if backup.backup_type in BACKUP_TYPES else None
        for attribute, stated, expected in (
            ("selectComponents", _yes(backup.select_components), "yes"),
            (
                "bootableSystemStateBackup",
                _yes(backup.bootable_system_state),
                _yes(wanted.bootable_system_state),
            ),
            ("partialFileSupport", _yes(backup.partial_file_support), _yes(wanted.partial_files)),
            ("backupType", backup_type, wanted.backup_type),
        ):
            if stated is not None and stated != expected:
                text = f"{backup.document}: {attribute} is {stated}, {expected} {whose}"
                yield Contradiction(text, document=backup.document)


@RULES.rule(
    "context-differs", Severity.WARNING, wanted="writers took part if, and only if, that was requested",
    reads=_REQUESTED, source="vSphere API, vssBackupContext",
)  # fmt: skip
def _context_differs(evidence: ManifestEvidence) -> Places:
    requested = evidence.requested
    if requested is None or requested.kind == "auto" or not evidence.backups:
        return  # with 'auto' VMware Tools choose
    took_part = bool(evidence.metadata)
    if not took_part and evidence.unreadable:
        return  # they may be the writers' documents
    if (requested.kind == "application") is not took_part:
        found = "took part" if took_part else "left no documents"
        text = f"{requested.kind} quiescing was requested, writers {found}"
        yield Contradiction(text, document=evidence.backup_document)


@RULES.rule(
    "logs-kept", Severity.INFO, wanted="the backup type changes a writer's logs and history", reads=_BOTH,
    source=_TYPES,
)  # fmt: skip
def _logs_kept(evidence: ManifestEvidence) -> Places:
    for writer in _with_a_type(evidence, distinguishing=True):
        if not changes_logs(evidence.effective_type(writer)):
            yield _about_logs(evidence, writer)


@RULES.rule(
    "logs-changed", Severity.WARNING, wanted="the backup type leaves a writer's logs and history alone",
    reads=_BOTH, source=_TYPES,
)  # fmt: skip
def _logs_changed(evidence: ManifestEvidence) -> Places:
    for writer in _with_a_type(evidence, distinguishing=True):
        if changes_logs(evidence.effective_type(writer)):
            yield _about_logs(evidence, writer)


@RULES.rule(
    "counts-as-full", Severity.INFO, wanted="a writer with a database tells backup types apart", reads=_BOTH,
    source=_TYPES,
)  # fmt: skip
def _counts_as_full(evidence: ManifestEvidence) -> Places:
    for writer in _with_a_type(evidence, distinguishing=False):
        has_database = writer.metadata and writer.metadata.data_source.upper() == "TRANSACTION_DB"
        if has_database and evidence.effective_type(writer) != evidence.backup_type:
            yield _about_logs(evidence, writer)


def _with_a_type(evidence: ManifestEvidence, *, distinguishing: bool) -> Iterator[WriterEvidence]:
    """Writers that take part in a backup of a known type, by whether they are known to distinguish types."""
    for writer in evidence.writers if evidence.backup_type else ():
        if writer.backup and distinguishes_types(writer.application, writer.backup_schema) is distinguishing:
            yield writer


def _about_logs(evidence: ManifestEvidence, writer: WriterEvidence) -> Contradiction:
    asked, effective = evidence.backup_type, evidence.effective_type(writer)
    performed = f"{asked} backup"
    if effective != asked:
        performed += f", which its schema {writer.backup_schema:#x} lacks and which counts as {effective}"
    effect = effect_on_logs(writer.application, effective) or "nothing is known of its logs"
    return _about(writer, f"{writer.name}: {performed}: {effect}", evidence.backup_document)


@dataclass(frozen=True, slots=True)
class CoveredEvidence:
    """The evidence, and what the rules about the documents leave of it.

    `covered`: writer and instance id -> components that are shown consistent, by full path in lower case.
    """

    evidence: ManifestEvidence
    covered: Mapping[tuple[str, str], frozenset[str]]


# Judged after RULES, because these rules read what those leave covered. None of them lowers the level.
COVERAGE_RULES: RuleTable[CoveredEvidence, Contradiction] = RuleTable()


@COVERAGE_RULES.rule(
    "dependency-not-covered", Severity.WARNING, wanted="every component that another one needs is covered",
    reads=_BOTH, source="Microsoft, Dependencies between Components Managed by Different Writers",
)  # fmt: skip
def _dependency_not_covered(facts: CoveredEvidence) -> Places:
    """About covered components only: the others are short already."""
    by_class: dict[str, set[str]] = {}
    for (writer_id, _), paths in facts.covered.items():
        by_class.setdefault(writer_id, set()).update(paths)
    for writer in facts.evidence.writers:
        own = facts.covered.get((writer.writer_id, writer.instance_id), ())
        for component in writer.metadata.components if writer.metadata else ():
            if not component.dependencies or component.path.lower() not in own:
                continue
            for needed in component.dependencies:
                text = f"{writer.name}, component {component.path}: needs {needed.path}"
                if needed.is_remote:
                    text += ", which lies on another machine and cannot be covered here"
                elif needed.path.lower() not in by_class.get(needed.writer_id, ()):
                    text += f" of writer {needed.writer_id}, which is not shown to be covered"
                else:
                    continue
                yield _about(writer, text, component=component.path)


def _about(
    writer: WriterEvidence, text: str, document: str | None = None, component: str = ""
) -> Contradiction:
    """A contradiction about a writer; `document` is its own one unless another is given."""
    if document is None:
        document = writer.metadata.document if writer.metadata else ""
    return Contradiction(text, component, False, document, writer.writer_id, writer.instance_id)


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"
