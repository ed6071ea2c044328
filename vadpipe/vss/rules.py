"""The rules that cross-check a manifest's documents: one row of RULES each.

A rule reads the evidence and yields a breach for every place where it does not hold. It only states; what the
statements mean for the level is decided in `classify`. A rule is added by a function and its row.

Sources: "Microsoft" is its public documentation of the Volume Shadow Copy Service (page named), "VDDK guide" the
chapter on Windows backup of VMware's Virtual Disk Development Kit programming guide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from .documents import BackupComponent, Unrecognised, WriterComponent
from .evidence import Evidence, WriterEvidence
from .rule import Breach, CoverageRule, Rule
from .rules_relations import (
    database_excluded,
    dependency_not_covered,
    system_state_incomplete,
    writer_excluded,
)
from .rules_sent import (
    context_differs,
    counts_as_full,
    logs_changed,
    logs_kept,
    options_differ,
)
from .verdict import Severity
from .writers import SQL_SERVER_WRITER

# What the requirements of a job ask for by name.
COMPONENT_MODE_UNSTATED = "component-mode-unstated"
WRITER_NOT_INCLUDED = "writer-not-included"


def _unreadable_document(evidence: Evidence) -> Iterator[Breach]:
    for one in evidence.unreadable:
        yield Breach(one.document, f"{one.document} cannot be read: {one.why} ({one.where})")


def _unrecognised_document(evidence: Evidence) -> Iterator[Breach]:
    for one in evidence.documents:
        if isinstance(one, Unrecognised):
            yield Breach(one.document, f"{one.document} is no VSS document: its root element is {one.root!r}")


def _component_mode_unstated(evidence: Evidence) -> Iterator[Breach]:
    for backup in evidence.backups:
        if backup.writers and backup.select_components is None:
            yield Breach(backup.document, f"{backup.document} does not say whether it selects components")


def _writer_without_metadata(evidence: Evidence) -> Iterator[Breach]:
    ids = {one.writer_id for one in evidence.metadata}
    for writer in evidence.writers:
        if writer.metadata is None:
            other = "only one of another instance" if writer.writer_id in ids else "none"
            text = f"{writer.name} is listed, but of its own documents there is {other}"
            yield Breach(evidence.backup_document, text, writer)


def _writer_described_twice(evidence: Evidence) -> Iterator[Breach]:
    for writer in evidence.writers:
        for twin in writer.twins:
            yield Breach(twin.document, f"{twin.document} describes {writer.name} once more", writer)


def _writer_failed(evidence: Evidence) -> Iterator[Breach]:
    for writer in evidence.writers:
        for attribute, message in writer.backup.failures if writer.backup else ():
            yield Breach(evidence.backup_document, f"{writer.name} failed: {message} ({attribute})", writer)


def _writer_not_included(evidence: Evidence) -> Iterator[Breach]:
    for writer in evidence.writers if evidence.tells_absence else ():
        if writer.metadata and writer.backup is None and writer.explicit and not writer.excluded:
            text = f"{writer.name} has components, but was not part of the backup: it was not frozen"
            yield Breach(writer.metadata.document, text, writer)


def _schema_differs(evidence: Evidence) -> Iterator[Breach]:
    for writer in evidence.writers:
        if writer.backup and writer.metadata and writer.backup.backup_schema != writer.metadata.backup_schema:
            listed, told = writer.backup.backup_schema, writer.metadata.backup_schema
            text = f"{writer.name}: backup schema {listed:#x} is listed, its own document says {told:#x}"
            yield Breach(evidence.backup_document, text, writer)


def _component_failed(evidence: Evidence) -> Iterator[Breach]:
    for writer in evidence.writers:
        for component in writer.included:
            told = [f"{message} ({attribute})" for attribute, message in component.failures]
            if component.backup_succeeded is False:
                told.append("its backup did not succeed (backupSucceeded)")
            for text in told:
                text = f"{writer.name}, component {component.path}: {text}"
                yield Breach(evidence.backup_document, text, writer, component.path)


def _component_not_offered(evidence: Evidence) -> Iterator[Breach]:
    for writer in evidence.writers:
        for component in writer.included:
            if writer.metadata and component.key not in writer.offered:
                text = f"{writer.name} does not offer the listed component {component.path}"
                yield Breach(evidence.backup_document, text, writer, component.path)


def _component_of_other_type(evidence: Evidence) -> Iterator[Breach]:
    for writer in evidence.writers:
        for component in writer.included:
            offer = writer.offered.get(component.key)
            listed = component.component_type.strip().lower()
            # Other spellings are not documented, so they prove nothing.
            if offer and listed in ("filegroup", "database") and listed != offer.kind:
                text = f"{writer.name}, component {component.path}: listed as {listed}, but is a {offer.kind}"
                yield Breach(evidence.backup_document, text, writer, component.path)


def _missing(evidence: Evidence, *, selectable: bool) -> Iterator[tuple[WriterEvidence, WriterComponent]]:
    for writer in evidence.writers if evidence.tells_absence else ():
        for component in writer.explicit if writer.backup else ():
            if component.selectable is selectable and component.key not in writer.included_keys:
                yield writer, component


def _mandatory_component_missing(evidence: Evidence) -> Iterator[Breach]:
    for writer, component in _missing(evidence, selectable=False):
        text = f"{writer.name} takes part without its mandatory component {component.path}"
        yield Breach(evidence.backup_document, text, writer)


def _component_not_included(evidence: Evidence) -> Iterator[Breach]:
    for writer, component in _missing(evidence, selectable=True):
        text = f"{writer.name} offers component {component.path}, which was not part of the backup"
        yield Breach(evidence.backup_document, text, writer, component.path)


def _below_included_ancestor(evidence: Evidence) -> Iterator[Breach]:
    for writer in evidence.writers:
        for component in writer.included:
            offer = writer.offered.get(component.key)
            if offer and writer.above(offer).listed:
                text = f"{writer.name}: component {component.path} is listed, its listed ancestor includes it"
                yield Breach(evidence.backup_document, text, writer, component.path)


def _implicit_component_listed(evidence: Evidence) -> Iterator[Breach]:
    for writer in evidence.writers:
        for component in writer.included:
            offer = writer.offered.get(component.key)
            if offer and not offer.selectable and writer.above(offer).selectable:
                text = f"{writer.name}: component {component.path} is listed, though it cannot be selected"
                yield Breach(evidence.backup_document, text, writer, component.path)


def _component_twice(evidence: Evidence) -> Iterator[Breach]:
    for writer in evidence.writers:
        told: list[tuple[str, Sequence[BackupComponent | WriterComponent]]] = [
            (evidence.backup_document, writer.included)
        ]
        if writer.metadata:
            told.append((writer.metadata.document, writer.metadata.components))
        for document, components in told:
            counted = Counter(component.key for component in components)
            for key, path in {component.key: component.path for component in components}.items():
                if counted[key] > 1:
                    yield Breach(document, f"{writer.name}: component {path} is there twice", writer, path)


def _sql_component_without_stamp(evidence: Evidence) -> Iterator[Breach]:
    for writer in evidence.writers:
        for component in writer.included if writer.writer_id == SQL_SERVER_WRITER else ():
            if not (component.has_backup_stamp and component.has_backup_metadata):
                text = f"{writer.name} left no stamp and metadata at {component.path}: weaker evidence"
                yield Breach(evidence.backup_document, text, writer, component.path)


_BOTH = "BCD and WMD"
_INTERFACES = "Microsoft, interface reference"
_SELECTABILITY = "Microsoft, Working with Selectability for Backup"
_SQL_SERVER = "Microsoft SQL Server, VSS writer backup guide"
_TYPES = "Microsoft, VSS_BACKUP_TYPE; the writers' own documentation"
_SENT = "BCD and the quiesce spec that was sent"

RULES: tuple[Rule | CoverageRule, ...] = (
    Rule(
        "document-unreadable", Severity.ERROR, "every member", "a document cannot be read",
        "own: it may be the document of any writer", _unreadable_document,
    ),
    Rule(
        "document-unrecognised", Severity.INFO, "every member", "a document is no VSS document",
        "own", _unrecognised_document,
    ),
    Rule(
        COMPONENT_MODE_UNSTATED, Severity.UNPROVEN, "BCD", "the selectComponents attribute is missing",
        "VDDK guide: VMware Tools selects components", _component_mode_unstated,
    ),
    Rule(
        "writer-without-metadata", Severity.ERROR, _BOTH, "no writer document has both ids of a listed writer",
        "Microsoft, Backup Components Document Contents", _writer_without_metadata,
    ),
    Rule(
        "writer-described-twice", Severity.ERROR, "WMD", "two documents claim the same writer instance",
        "Microsoft, Writer Metadata Document Contents", _writer_described_twice,
    ),
    Rule(
        "writer-failed", Severity.ERROR, "BCD", "a writer carries a failure message",
        "Microsoft, Writer Errors and Vetoes", _writer_failed,
    ),
    Rule(
        WRITER_NOT_INCLUDED, Severity.UNPROVEN, _BOTH, "a writer with components is not listed: not frozen",
        "Microsoft, Backup Components Document Contents; VDDK guide: all writers are involved",
        _writer_not_included,
    ),
    Rule(
        "schema-differs", Severity.WARNING, _BOTH, "the backup schema differs between the documents",
        _INTERFACES, _schema_differs,
    ),
    Rule(
        "component-failed", Severity.ERROR, "BCD", "a component carries a failure message or did not succeed",
        "Microsoft, Writer Errors and Vetoes", _component_failed,
    ),
    Rule(
        "component-not-offered", Severity.ERROR, _BOTH, "a listed component is not in the writer's document",
        "Microsoft, Backup Components Document Contents", _component_not_offered,
    ),
    Rule(
        "component-of-other-type", Severity.ERROR, _BOTH, "a component is a file group here and a database there",
        _INTERFACES, _component_of_other_type,
    ),
    Rule(
        "mandatory-component-missing", Severity.ERROR, _BOTH, "a writer takes part without a mandatory component",
        _SELECTABILITY, _mandatory_component_missing,
    ),
    Rule(
        "component-not-included", Severity.UNPROVEN, _BOTH, "a component is offered and not listed",
        "VDDK guide: all components are involved", _component_not_included,
    ),
    Rule(
        "below-included-ancestor", Severity.WARNING, _BOTH, "a component is listed that its ancestor includes",
        _SELECTABILITY, _below_included_ancestor,
    ),
    Rule(
        "implicit-component-listed", Severity.WARNING, _BOTH, "a component is listed that can only come implicitly",
        _SELECTABILITY, _implicit_component_listed,
    ),
    Rule(
        "component-twice", Severity.WARNING, _BOTH, "path and name are not unique in their writer",
        "Microsoft, Logical Pathing of Components", _component_twice,
    ),
    Rule(
        "sql-component-without-stamp", Severity.INFO, "BCD", "SQL Server left no stamp and metadata at a component",
        _SQL_SERVER, _sql_component_without_stamp,
    ),
    Rule(
        "database-excluded", Severity.UNPROVEN, "WMD", "a writer leaves files of a database out",
        _SQL_SERVER, database_excluded,
    ),
    CoverageRule(
        "dependency-not-covered", Severity.WARNING, _BOTH, "a component that another one needs is not covered",
        "Microsoft, Dependencies between Components Managed by Different Writers", dependency_not_covered,
    ),
    Rule(
        "system-state-incomplete", Severity.WARNING, _BOTH, "a part of the system state did not take part",
        "Microsoft, Backing Up and Restoring System State", system_state_incomplete,
    ),
    Rule(
        "writer-excluded", Severity.INFO, "configuration", "a writer is excluded by the user: it does not count",
        "VDDK guide: writers can be excluded", writer_excluded,
    ),
    Rule(
        "options-differ", Severity.WARNING, _SENT, "VSS was run with other options than were sent",
        "VDDK guide and the API's quiesce spec: VMware's defaults", options_differ,
    ),
    Rule(
        "context-differs", Severity.WARNING, _SENT, "writers took part though not asked, or did not though asked",
        "vSphere API, vssBackupContext", context_differs,
    ),
    Rule(
        "logs-kept", Severity.INFO, _BOTH, "the backup type leaves a writer's logs and history alone",
        _TYPES, logs_kept,
    ),
    Rule(
        "logs-changed", Severity.WARNING, _BOTH, "the backup type changes a writer's logs or backup history",
        _TYPES, logs_changed,
    ),
    Rule(
        "counts-as-full", Severity.INFO, _BOTH, "a writer with a database takes any backup type for a full one",
        _TYPES, counts_as_full,
    ),
)  # fmt: skip
