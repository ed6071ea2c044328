"""VMs on a vCenter or an ESXi host: session, snapshot, change tracking, VSS manifest, clean-up.

machine      VcenterVm: all of it together, what a job captures
session      Vcenter (settings), VcenterSession: one door for every call      faults       foreign errors -> ours
certificate  pinned or verified, before anything is sent                      properties   narrow reads
lookup       a VM by name, path or moref                                      tasks        waiting, cancellable
quiesce      what is asked of the guest                                       events       what the guest answered
journal      intents, durable before the call                                 snapshot     the resource
removal      removing what is ours                                            sweep        after killed runs
hardware     disks and configuration                                          snapshot_tree  whose snapshot is whose
changes      changed areas, page by page                                      disk, manifest  what is read of it
"""

from .changes import same_tracking
from .disk import DiskReader, OpenDisk, SnapshotDisk
from .faults import CertificateRefused, ConnectionLost, LoginRefused, VsphereError
from .journal import Intent, Journal
from .lookup import Vm, find_vm
from .machine import VcenterVm, VsphereCapture
from .quiesce import Quiesce
from .session import Vcenter, VcenterSession
from .snapshot import Snapshot, open_snapshot
from .snapshot_tree import snapshots_left
from .sweep import Outcome, Swept, sweep

__all__ = [
    "CertificateRefused",
    "ConnectionLost",
    "DiskReader",
    "Intent",
    "Journal",
    "LoginRefused",
    "OpenDisk",
    "Outcome",
    "Quiesce",
    "Snapshot",
    "SnapshotDisk",
    "Swept",
    "Vcenter",
    "VcenterSession",
    "VcenterVm",
    "Vm",
    "VsphereCapture",
    "VsphereError",
    "find_vm",
    "open_snapshot",
    "same_tracking",
    "snapshots_left",
    "sweep",
]
