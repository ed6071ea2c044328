"""Rules about what belongs together: dependencies, the system state, databases and writers that were left out."""

from __future__ import annotations

from collections.abc import Iterator

from .evidence import Evidence, WriterEvidence
from .rule import Breach, Covered
from .writers import SQL_SERVER_WRITER

_SYSTEM_STATE = frozenset({"BOOTABLE_SYSTEM_STATE", "SYSTEM_SERVICE"})
_TEMPDB = "\\tempdb.mdf"  # made anew at every start, never part of a backup


def dependency_not_covered(evidence: Evidence, covered: Covered) -> Iterator[Breach]:
    """About covered components only: what is not covered is short already."""
    by_class: dict[str, set[str]] = {}
    for (writer_id, _), paths in covered.items():
        by_class.setdefault(writer_id, set()).update(paths)
    for writer in evidence.writers:
        own = covered.get((writer.writer_id, writer.instance_id), ())
        for component in writer.metadata.components if writer.metadata else ():
            if not component.dependencies or component.path.lower() not in own:
                continue
            for needed in component.dependencies:
                whose = f"{writer.name}, component {component.path}: needs {needed.path}"
                if needed.is_remote:
                    text = f"{whose}, which lies on another machine and cannot be covered here"
                elif needed.path.lower() not in by_class.get(needed.writer_id, ()):
                    text = f"{whose} of writer {needed.writer_id}, which is not shown to be covered"
                else:
                    continue
                yield Breach(_document(writer), text, writer, component.path)


def system_state_incomplete(evidence: Evidence) -> Iterator[Breach]:
    if not evidence.tells_absence or not evidence.backups[0].bootable_system_state:
        return
    for writer in evidence.writers:
        if not writer.metadata or writer.metadata.usage.upper() not in _SYSTEM_STATE or not writer.counts:
            continue
        expected = [component for component in writer.explicit if component.system_state]
        missing = [component.path for component in expected if not writer.takes_part(component)]
        if missing:
            short = f"{', '.join(missing)} did not take part, or failed"
            text = f"{writer.name} belongs to the system state, but {short}"
            yield Breach(evidence.backup_document, text, writer)


def database_excluded(evidence: Evidence) -> Iterator[Breach]:
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
                yield Breach(writer.metadata.document, text, writer, holder)
            elif _is_lost_database(writer, file):
                text = f"{writer.name} excludes {file}: the database that it belongs to is not covered"
                yield Breach(writer.metadata.document, text, writer, file)


def _is_lost_database(writer: WriterEvidence, file: str) -> bool:
    """A database has one primary file; its other files say nothing more."""
    is_primary = file.endswith(".mdf") and not file.endswith(_TEMPDB)
    return writer.writer_id == SQL_SERVER_WRITER and is_primary


def writer_excluded(evidence: Evidence) -> Iterator[Breach]:
    for writer in evidence.writers:
        if writer.excluded:
            took_part = "took part nonetheless" if writer.backup else "did not take part"
            yield Breach(
                _document(writer), f"{writer.name} is excluded by the configuration; it {took_part}", writer
            )


def _document(writer: WriterEvidence) -> str:
    return writer.metadata.document if writer.metadata else ""
