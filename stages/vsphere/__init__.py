"""VMs on a vCenter or an ESXi host: session, snapshot, change tracking, VSS manifest, clean-up.

machine      VcenterVm: all of it together, what a job captures              check        before the snapshot
session      Vcenter (settings), VcenterSession: one door for every call      faults       foreign errors -> ours
transport, certificate, keep_alive, patience   what a session is made of      properties   narrow reads
lookup       a VM by name, path, moref or UUID                                tasks        waiting, cancellable
quiesce      what is asked of the guest                                       events       what the guest answered
ladder       retried, weakened or given up, by policy                         catalogue    every code -> what to do
journal      intents, durable before the call                                 snapshot     the resource
removal, consolidation   removing what is ours                                sweep        after killed runs
hardware     disks and configuration                                          snapshot_tree  whose snapshot is whose
changes      changed areas, page by page                                      disk, manifest  what is read of it
movement     whether it stayed where it was
"""

from .catalogue import CATALOGUE, Advice, advice_for
from .changes import same_tracking
from .check import Check, Checked
from .consolidation import ConsolidationNeeded
from .disk import DiskReader, OpenDisk, SnapshotDisk
from .faults import CertificateRefused, ConnectionLost, LoginRefused, VsphereError
from .journal import Intent, Journal
from .lookup import Vm, find_vm, find_vms
from .machine import VcenterVm, VsphereCapture
from .movement import Moved
from .quiesce import Quiesce
from .session import Vcenter, VcenterSession
from .snapshot import Snapshot, open_snapshot
from .snapshot_tree import snapshots_left
from .sweep import Outcome, Swept, sweep

__all__ = [
    "CATALOGUE",
    "Advice",
    "CertificateRefused",
    "Check",
    "Checked",
    "ConnectionLost",
    "ConsolidationNeeded",
    "DiskReader",
    "Intent",
    "Journal",
    "LoginRefused",
    "Moved",
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
    "advice_for",
    "find_vm",
    "find_vms",
    "open_snapshot",
    "same_tracking",
    "snapshots_left",
    "sweep",
]
