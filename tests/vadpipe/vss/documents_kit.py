"""Small documents of a manifest, as values, for tests of what the rules make of them."""

from vadpipe.vss.documents import (
    BackupComponent,
    BackupComponents,
    BackupWriter,
    WriterComponent,
    WriterMetadata,
)
from vadpipe.vss.requested import RequestedQuiescing

SQL = "a65faa63-5ea8-4ebc-9dbd-a0c4db26912a"
EXCHANGE = "76fe1ac4-15f7-4bcd-987e-8e1acb462fb7"
NTDS = "b2014c9e-8711-4c5c-a5a9-3cf384484757"
ASR = "be000cbe-11fe-4426-9c58-531aa6355fc4"
APPLICATION = RequestedQuiescing("application")


def offered(path, *, selectable=True, **more):
    logical, _, name = path.rpartition("\\")
    return WriterComponent("filegroup", logical, name, selectable, 1, **more)


def listed(path, failures=()):
    logical, _, name = path.rpartition("\\")
    return BackupComponent(logical, name, "filegroup", None, True, True, failures)


def metadata(
    writer_id, *components, name="", schema=0, usage="USER_DATA", source="OTHER", instance="i", excluded=()
):
    return WriterMetadata(
        f"{name or writer_id}.xml",
        writer_id,
        instance,
        "",
        name,
        usage,
        source,
        schema,
        components,
        excluded,
    )


def backup(*writers, mode=True, system_state=True, partial=False, backup_type="copy"):
    return BackupComponents("backup.xml", mode, system_state, partial, backup_type, writers)


def part(told, *paths, instance="i"):
    """A writer as the backup components document lists it."""
    components = tuple(one if isinstance(one, BackupComponent) else listed(one) for one in paths)
    return BackupWriter(told.writer_id, instance, "", told.backup_schema, components, ())


def found(verdict, rule):
    return [finding for finding in verdict.findings if finding.rule == rule]
