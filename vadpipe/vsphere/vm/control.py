"""The seven points of granular control over quiescing that the VDDK programming guide lists, and who keeps each.

The documentation's table is made from this one, so that neither says what the other does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

How = Literal["API", "guest", "evidence", "vadpipe"]


@dataclass(frozen=True)
class ControlPoint:
    """One point. `setting`: where a user says it; `how`: what applies it; `kept`: how, and what is left open.

    `how`: 'API', sent with the snapshot; 'guest', set or looked at inside; 'evidence', judged afterwards by the VSS
    manifest; 'vadpipe', decided by the run itself.
    """

    id: str
    point: str
    setting: str
    how: tuple[How, ...]
    kept: str
    source: str


CONTROL = (
    ControlPoint(
        "scripts",
        "whether pre-freeze and post-thaw scripts run",
        '`GuestControl(scripts="none")`, `"required"` or `"any"`; `settings={"execScripts": False}`',
        ("guest",),
        "Scripts are listed in the guest before the snapshot and reported; one too many, or none, fails the run "
        "or is said. `execScripts` is heeded by VMware Tools for CreateSnapshot_Task only.",
        "open-vm-tools vmbackup; KB 1006671",
    ),
    ControlPoint(
        "quiescing",
        "whether the guest is quiesced",
        "`Quiesce.none()`, or any other",
        ("API",),
        "With a quiesce spec or without. That vSphere ignored one is found out before and after the call.",
        "CreateSnapshotEx_Task",
    ),
    ControlPoint(
        "snapshot-context",
        "VSS snapshot context",
        "`Quiesce.application()`, `.auto()`, `.file_system()`",
        ("API", "evidence"),
        "`vssBackupContext`: ctx_backup, ctx_auto, ctx_file_share_backup. What was reached is judged by the "
        "manifest; that a guest forbids it (`vss.disableAppQuiescing`) is told before, with a `GuestControl`.",
        "VirtualMachineWindowsQuiesceSpec",
    ),
    ControlPoint(
        "backup-context",
        "VSS backup context",
        '`backup_type="copy"`, `"full"`, `"incremental"`, `"differential"`, `"log"`',
        ("API",),
        "`vssBackupType`. All but copy may let applications truncate their logs; plan and report warn.",
        "VirtualMachineWindowsQuiesceSpec, VSS_BACKUP_TYPE",
    ),
    ControlPoint(
        "writers",
        "writers and components that take part",
        '`VssManifest(require=Require(applications=(RequireApplication("SQL Server", databases=("sales",)),)))`, '
        "`excluded=`",
        ("evidence",),
        "The API takes no list. The manifest tells which writers and components took part, and a requirement is "
        "held against it before anything is read. How a guest excludes a writer (KB 1031200) could not be "
        "verified: nothing does that; writers that were left out on purpose are listed in `excluded`.",
        "VSS manifest",
    ),
    ControlPoint(
        "fail-or-continue",
        "whether a writer that fails ends the quiescing",
        '`policy="require"` or `"try"`; `VssManifest(missing_writer="fail"` or `"continue"`, '
        '`on_shortfall="publish"` or `"discard")`',
        ("vadpipe", "evidence"),
        "A quiesce that fails ends the run, or goes on with the next weaker kind and says so. A writer that failed "
        "while the snapshot succeeded is found in the manifest: the point is published with a mark and exit code "
        "3, or not at all.",
        "faults and events of the snapshot; VSS manifest",
    ),
    ControlPoint(
        "retries",
        "retry count",
        "`retries=`, `retry_after_s=`",
        ("vadpipe",),
        "Of `Quiesce`: further attempts, as far as the catalogue of failures says that one can help, after the "
        "time it gives. Of `VssManifest`: further snapshots, when one falls short of what is required.",
        "catalogue of failures",
    ),
)


def control_table() -> str:
    """The table as Markdown, for the operations guide."""
    rows = [f"| {row.point} | {row.setting} | {', '.join(row.how)} | {row.kept} |" for row in CONTROL]
    return "\n".join(["| What | Setting | Applied by | How |", "|---|---|---|---|", *rows])


def control_summary() -> str:
    """Points and who applies them, as Markdown, for the README."""
    rows = [f"| {row.point} | {', '.join(row.how)} |" for row in CONTROL]
    return "\n".join(["| Control of quiescing | Applied by |", "|---|---|", *rows])
