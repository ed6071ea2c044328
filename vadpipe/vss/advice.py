"""What people have to know of a restore with VSS: the work of a guest agent, the tools, and single applications.

Sources: Microsoft, "Overview of processing a restore under VSS", its pages on the writers of SQL Server and
Exchange and on restoring an Active Directory server, DiskShadow and VShadow; VMware, VDDK programming guide,
"Windows Backup Implementations". What none of them says is not said here either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from .verdict import Level

WORDS = "disks restored and proven"

LEVELS: Mapping[Level, str] = MappingProxyType(
    {
        Level.APPLICATION: (
            "Application-consistent. Every writer that counts took part in the snapshot, and the documents "
            "prove it: its files are as the application itself prepared them for a backup."
        ),
        Level.APPLICATION_PARTIAL: (
            "Application-consistent in part. Some writers are proven to have taken part, others are not: the "
            "sheet of each writer says which of its components are proven. What is not proven is to be taken "
            "as the file system left it."
        ),
        Level.FILE_SYSTEM: (
            "File-system consistent. The file systems wrote out what was pending, so they are not damaged. "
            "No application is proven to have been prepared: a database recovers when it is started, as "
            "after a crash."
        ),
        Level.CRASH: (
            "Crash-consistent. The disks are as if the machine had suddenly lost its power: only data that "
            "was already written to disk is there. File systems and databases have to recover when they are "
            "started, and what applications held in memory is lost. Nothing proves that a writer took part, "
            "so a guest agent has nothing to go by."
        ),
        Level.UNKNOWN: (
            "Unknown. It cannot be told whether anything was quiesced. Take the disks as crash-consistent, "
            "as if the machine had suddenly lost its power: only data that was already written to disk is "
            "there."
        ),
    }
)

NOT_VERIFIED = (
    "Not verified. Nobody looked at how the snapshot was quiesced, and the point holds no VSS documents. "
    "Take the disks as crash-consistent, as if the machine had suddenly lost its power: only data that was "
    "already written to disk is there."
)

WHAT_IT_MEANS = (
    f'A restore by vadpipe ends with the words "{WORDS}": every byte of the disks was proved against '
    "the digests that were taken at the backup. That says nothing about the state of an application inside. "
    "vSphere offers no way to restore an application from outside the guest; that is the work of a guest "
    "agent, which VSS calls a requester.",
    "After a restore of the whole machine all files of all writers are back in their places, as they were at "
    "the snapshot. A guest agent is needed for more than that: to put a single application, database or "
    "object back, or to apply changes that were made later.",
)

FIRST_STEPS = (
    "Start the restored machine with its network adapters disconnected, above all when the original still "
    "runs.",
    "Read the sheet of each application that matters to you, before anything is connected.",
    "Only then connect it, or let a guest agent do its work.",
)

# Microsoft's names of the calls stay, because who writes or configures an agent looks them up.
ORDER_OF_WORK = (
    "CreateVssBackupComponents.",
    "InitializeForRestore with the backup components document of this point.",
    "CreateVssExamineWriterMetadata once for each writer's document of this point.",
    "GatherWriterMetadata of the writers that live in the guest now.",
    "GetWriterComponents, and compare: is each stored writer there, does it still have the component?",
    "For each component: SetSelectedForRestore (or SetSelectedForRestoreEx) or AddRestoreSubcomponent; where "
    "it is wanted SetRestoreOptions, AddNewTarget, SetAdditionalRestores.",
    "PreRestore. Writers may change where their files go, so read the targets again afterwards.",
    "Put the files in place, by each component's restore method, alternate location mapping, new targets and "
    "partial files.",
    "SetFileRestoreStatus for each component: ALL; NONE, when nothing was changed; FAILED, when it was "
    "changed in part, which means that the component is corrupt.",
    "PostRestore.",
    "GatherWriterStatus, look at each writer's state, and release everything.",
)

ABOUT_THE_ORDER = (
    "No shadow copy is needed for a restore.",
    "Where the restore method says to stop and start a service, the requester does it, not the writer. A "
    "writer that was stopped and started is a new instance and does not see PostRestore.",
)

TOOLS = (
    "DiskShadow (Server editions only): `load metadata FILE.cab`, `begin restore` (PreRestore), then copy "
    "the files, `end restore` (PostRestore); `simulate restore` tries it. It loads the cabinet that it wrote "
    "itself. The documents here are no such cabinet.",
    "VShadow (a sample of the Windows SDK): -r=FILE restores with a backup components document, -rs=FILE "
    "simulates that, -exec= names a command to run between PreRestore and PostRestore, -wi and -wx choose "
    "writers. That it accepts a document written by VMware Tools is not known: simulate first.",
    "ntdsutil: for Active Directory; see the sheet of that writer.",
)

SIGN_IN = (
    "Applications that sign in with SSPI (with the Windows account of whoever runs them) may fail when they "
    "fetch files from vSphere: its HTTP access asks for a user name and a password, unless the session was "
    "recently authenticated. Give the agent a user name and a password, or a fresh session.",
)

RESTORE_METHODS: Mapping[str, str] = MappingProxyType(
    {
        "RESTORE_IF_CAN_BE_REPLACED": "put the files in place if every one of them can be replaced",
        "REPLACE_AT_REBOOT": "put the files in place when the machine starts the next time",
        "REPLACE_AT_REBOOT_IF_CANNOT_REPLACE": (
            "put the files in place; those that cannot be replaced now, when the machine starts the next time"
        ),
    }
)
DOMAIN_CONTROLLER = (
    "A domain controller that was copied or rolled back without Active Directory noticing does not get a new "
    "invocation id; this is called USN rollback. Two things protect against that: VM-GenerationID, which "
    "Windows Server 2012 and later read and vSphere provides, and a restore through VSS.",
    "So: keep the restored machine off the network until you know that it noticed. That a restored machine "
    "gets a new generation id is not promised here. A controller older than Windows Server 2012 is never "
    "safe to start beside its partners from restored disks alone.",
)
_DIRECTORY = (
    *DOMAIN_CONTROLLER,
    "A restore of the directory itself is made in Directory Services Restore Mode, in an isolated network: "
    "with NTDS running it has to fail.",
    "Not authoritative (the usual case): partners replicate their later changes over what was restored. "
    "Authoritative: the restored objects win over those of the partners; `ntdsutil`, `authoritative "
    "restore`, in Directory Services Restore Mode. A requester asks the writer for it with "
    "SetAuthoritativeRestore.",
)

APPLICATIONS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "SQL Server": (
            "When the restored machine is started, SQL Server recovers its databases as after a crash, to "
            "the moment at which the snapshot was taken.",
            "Log backups that were made later can be applied only to a database in the state RESTORING, and "
            "only a requester leaves it so: it calls SetAdditionalRestores for the database before "
            "PreRestore. The writer itself makes no log backups.",
            "Not covered are databases that the writer did not offer: of stopped instances, offline ones, "
            "closed ones, and database snapshots. tempdb is made anew at every start and is never part of a "
            "backup.",
        ),
        "Active Directory Domain Services": _DIRECTORY,
        "Exchange": (
            "The restored disks hold database files and logs that fit together.",
            "Under a requester Exchange replays its logs in PostRestore, unless SetAdditionalRestores said "
            "that more is to come.",
            "To restore to another target, e.g. a recovery database, a requester uses SetRestoreOptions and "
            "AddNewTarget before PreRestore.",
        ),
    }
)
OTHER_APPLICATIONS = (
    "The files of this writer are on the restored disks, as they were at the snapshot. To put some of them "
    "back into a living machine, a guest agent follows the order of work in README.txt.",
)
