"""Well-known VSS writers: class id -> name and what it stands for.

Sources: Microsoft, "In-Box VSS Writers", and the product documentation of SQL Server, DFS Replication, Hyper-V,
Message Queuing and SharePoint; ids of Exchange, SharePoint 2007, the cluster database and
deduplication from several public tools that agree. A writer is matched by id; names are for people.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownWriter:
    """A writer class. `counts` is False when a disk image is whole without this writer's components."""

    writer_id: str
    name: str
    application: str
    counts: bool = True


ASR_WRITER = "be000cbe-11fe-4426-9c58-531aa6355fc4"
SQL_SERVER_WRITER = "a65faa63-5ea8-4ebc-9dbd-a0c4db26912a"
_MSMQ_WRITER = "7e47b561-971a-46e6-96b9-696eeaa53b2a"

_WRITERS = (
    KnownWriter("e8132975-6f93-4464-a53e-1050253ae220", "System Writer", "system files and services"),
    # Describes the disk layout, which the image holds anyway. Real sets leave it out, because its mandatory
    # boot component lies on the system-reserved volume.
    KnownWriter(ASR_WRITER, "ASR Writer", "disk layout and boot configuration", counts=False),
    KnownWriter("afbab4a2-367d-4d15-a586-71dbb18f8485", "Registry Writer", "registry"),
    KnownWriter("542da469-d3e1-473c-9f4f-7847f01fc64f", "COM+ REGDB Writer", "COM+ registration"),
    KnownWriter("a6ad56c2-b509-4e6c-bb19-49d8f43532f0", "WMI Writer", "WMI repository"),
    KnownWriter(
        "4dc3bdd4-ab48-4d07-adb0-3bee2926fd7f", "Shadow Copy Optimization Writer", "shadow copy exclusions"
    ),
    KnownWriter("d61d61c8-d73a-4eee-8cdd-f6f9786b7124", "Task Scheduler Writer", "scheduled tasks"),
    KnownWriter("75dfb225-e2e4-4d39-9ac9-ffaff65ddf06", "VSS Metadata Store Writer", "express writers"),
    KnownWriter(
        "0bada1de-01a9-4625-8278-69e735f39dd2", "Performance Counters Writer", "performance counters"
    ),
    KnownWriter("4969d978-be47-48b0-b100-f328f07ac1e0", "BITS Writer", "background transfers"),
    KnownWriter("cd3f2362-8bef-46c7-9181-d62844cdc0b2", "MSSearch Service Writer", "search index"),
    KnownWriter("2a40fd15-dfca-4aa8-a654-1f8c654603f6", "IIS Config Writer", "IIS configuration"),
    KnownWriter("59b1f0cf-90ef-465f-9609-6ca8b2938366", "IIS Metabase Writer", "IIS metabase"),
    KnownWriter("b2014c9e-8711-4c5c-a5a9-3cf384484757", "NTDS", "Active Directory Domain Services"),
    KnownWriter("dd846aaa-a1b6-42a8-aaf8-03dcb6114bfd", "ADAM Writer", "Active Directory LDS"),
    KnownWriter("772c45f8-ae01-4f94-940c-94961864acad", "ADFS VSS Writer", "Active Directory FS"),
    KnownWriter("886c43b1-d455-4428-a37f-4d6b9e43f50f", "AD RMS Writer", "Active Directory RMS"),
    KnownWriter("6f5b15b5-da24-4d88-b737-63063e3a1f86", "Certificate Authority", "Active Directory CS"),
    KnownWriter(
        "1072ae1c-e5a7-4ea1-9e4a-6f7964656570", "Cluster Shared Volume VSS Writer", "cluster shared volumes"
    ),
    KnownWriter("be9ac81e-3619-421f-920f-4c6fea9e93ad", "Dhcp Jet Writer", "DHCP server"),
    KnownWriter("f08c1483-8407-4a26-8c26-6c267a629741", "WINS Jet Writer", "WINS"),
    KnownWriter("12ce4370-5bb7-4c58-a76a-e5d5097e3674", "FSRM Writer", "File Server Resource Manager"),
    KnownWriter("d76f5a28-3092-4589-ba48-2958fb88ce29", "FRS Writer", "File Replication Service"),
    KnownWriter("35e81631-13e1-48db-97fc-d5bc721bb18a", "NPS VSS Writer", "Network Policy Server"),
    KnownWriter("368753ec-572e-4fc7-b4b9-ccd9bdc624cb", "TS Gateway Writer", "Remote Desktop Gateway"),
    KnownWriter("5382579c-98df-47a7-ac6c-98a6d7106e09", "TermServLicensing", "Remote Desktop licensing"),
    KnownWriter("d46bf321-fdba-4a35-8ec3-454df03bc86a", "Sync Share Service VSS Writer", "Work Folders"),
    KnownWriter("82cb5521-68db-4626-83a4-7fc6f88853e9", "WDS VSS Writer", "Windows Deployment Services"),
    KnownWriter("8d5194e1-e455-434a-b2e5-51296cce67df", "WIDWriter", "Windows Internal Database"),
    KnownWriter(SQL_SERVER_WRITER, "SqlServerWriter", "SQL Server"),
    KnownWriter("76fe1ac4-15f7-4bcd-987e-8e1acb462fb7", "Microsoft Exchange Writer", "Exchange"),
    KnownWriter("2707761b-2324-473d-88eb-eb007a359533", "DFS Replication service writer", "DFS Replication"),
    KnownWriter("66841cd4-6ded-4f4b-8f17-fd23f8ddc3de", "Microsoft Hyper-V VSS Writer", "Hyper-V"),
    KnownWriter(_MSMQ_WRITER, "MSMQ Writer", "Message Queuing"),
    KnownWriter("da452614-4858-5e53-a512-38aab25c61ad", "SharePoint Services Writer", "SharePoint"),
    KnownWriter("c2f52614-5e53-4858-a589-38eeb25c6184", "SharePoint Services Writer", "SharePoint 2007"),
    KnownWriter("41e12264-35d8-479b-8e5c-9b23d1dad37e", "Cluster Database", "failover cluster"),
    KnownWriter("41db4dbf-6046-470e-8ad5-d5081dfb1b70", "Dedup Writer", "Data Deduplication"),
)
WELL_KNOWN_WRITERS = {writer.writer_id: writer for writer in _WRITERS}
APPLICATIONS = frozenset(writer.application for writer in _WRITERS)


def known_writer(writer_id: str, friendly_name: str = "") -> KnownWriter | None:
    """The table's row for a normalised id. One id is shared: then the writer's own name decides."""
    if writer_id == _MSMQ_WRITER and "exchange" in friendly_name.lower():
        return KnownWriter(writer_id, "Microsoft Exchange Replica Writer", "Exchange")
    return WELL_KNOWN_WRITERS.get(writer_id)
