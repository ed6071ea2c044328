"""Rules about what was asked for: what VSS was run with, and what each writer makes of the type of backup."""

from __future__ import annotations

from collections.abc import Iterator

from .evidence import Evidence, WriterEvidence
from .rule import Breach
from .sent import (
    BACKUP_TYPES,
    VMWARE_DEFAULTS,
    about_logs,
    changes_logs,
    tells_types_apart,
)


def options_differ(evidence: Evidence) -> Iterator[Breach]:
    wanted, whose = evidence.sent or VMWARE_DEFAULTS, "was sent" if evidence.sent else "is VMware's default"
    for backup in evidence.backups:
        if not backup.writers and not evidence.metadata:  # then the options concern nobody
            continue
        # How types other than these are spelled is not documented.
        backup_type = backup.backup_type if backup.backup_type in BACKUP_TYPES else None
        for attribute, told, expected in (
            ("selectComponents", _yes(backup.select_components), "yes"),
            (
                "bootableSystemStateBackup",
                _yes(backup.bootable_system_state),
                _yes(wanted.bootable_system_state),
            ),
            ("partialFileSupport", _yes(backup.partial_file_support), _yes(wanted.partial_files)),
            ("backupType", backup_type, wanted.backup_type),
        ):
            if told is not None and told != expected:
                text = f"{backup.document}: {attribute} is {told}, {expected} {whose}"
                yield Breach(backup.document, text)


def context_differs(evidence: Evidence) -> Iterator[Breach]:
    if evidence.sent is None or evidence.sent.kind == "auto" or not evidence.backups:
        return  # with 'auto' VMware Tools choose
    took_part = bool(evidence.metadata)
    if not took_part and evidence.unreadable:
        return  # which may be the writers' documents
    if (evidence.sent.kind == "application") is not took_part:
        met = "took part" if took_part else "left no documents"
        text = f"{evidence.sent.kind} quiescing was sent, writers {met}"
        yield Breach(evidence.backup_document, text)


def logs_kept(evidence: Evidence) -> Iterator[Breach]:
    for writer in _telling(evidence, apart=True):
        if not changes_logs(evidence.effective_type(writer)):
            yield _about_logs(evidence, writer)


def logs_changed(evidence: Evidence) -> Iterator[Breach]:
    for writer in _telling(evidence, apart=True):
        if changes_logs(evidence.effective_type(writer)):
            yield _about_logs(evidence, writer)


def counts_as_full(evidence: Evidence) -> Iterator[Breach]:
    for writer in _telling(evidence, apart=False):
        has_database = writer.metadata and writer.metadata.data_source.upper() == "TRANSACTION_DB"
        if has_database and evidence.effective_type(writer) != evidence.backup_type:
            yield _about_logs(evidence, writer)


def _telling(evidence: Evidence, *, apart: bool) -> Iterator[WriterEvidence]:
    """Writers that take part and were told a type, by whether they are known to tell types apart."""
    for writer in evidence.writers if evidence.backup_type else ():
        if writer.backup and tells_types_apart(writer.application, writer.backup_schema) is apart:
            yield writer


def _about_logs(evidence: Evidence, writer: WriterEvidence) -> Breach:
    asked, effective = evidence.backup_type, evidence.effective_type(writer)
    counts = f"{asked} backup"
    if effective != asked:
        counts = f"{asked} backup, which its schema {writer.backup_schema:#x} lacks and which counts as {effective}"
    text = f"{writer.name}: {counts}: {about_logs(writer.application, effective) or 'nothing is known of its logs'}"
    return Breach(evidence.backup_document, text, writer)


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"
