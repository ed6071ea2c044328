"""VMs on a vCenter or an ESXi host: session, snapshot, change tracking, VSS manifest, clean-up.

machine      VcenterVm: the settings of all of it                             capture      all of it together
check        what is asked before a snapshot                                  movement     whether it stayed
session      Vcenter (settings), VcenterSession: one door for every call      faults       foreign errors -> ours
transport, certificate, keep_alive, patience   what a session is made of      properties   narrow reads
lookup       a VM by name, path, moref or UUID                                tasks        waiting, cancellable
selection, each_vm   many VMs by pattern, place or tag; a job for each       tagging, inventory  what these read
quiesce      what is asked of the guest                                       events       what the guest answered
ladder       retried, weakened or given up, by policy                         catalogue    every code -> what to do
journal, announcing  intents, durable before the call                         snapshot     the resource
access, relocation, hot_add, power   locks, attached disks and power as resources
removal, consolidation   removing what is ours                                sweep        after killed runs
guest/       what governs quiescing inside a guest                            control      the seven points
hardware     disks and configuration                                          snapshot_tree  whose snapshot is whose
changes      changed areas, page by page                                      disk, manifest  what is read of it
siblings     what one quiescing made                                          orphans      what nothing refers to
fetch/       ways to fetch the VSS manifest from its datastore
"""

from .capture import VsphereCapture
from .catalogue import CATALOGUE, Advice, advice_for
from .changes import same_tracking
from .check import Check, Checked
from .consolidation import Consolidate, ConsolidationNeeded, most_allowed
from .disk import DiskReader, OpenDisk, SnapshotDisk
from .each_vm import EachVm
from .faults import CertificateRefused, ConnectionLost, LoginRefused, VsphereError
from .fetch.copy import CopyOnDatastore
from .fetch.https import OverHttps
from .fetch.powercli import CopyDatastoreItem
from .fetch.vifs import Vifs
from .fetch.ways import Fetched, ManifestFetcher, ManifestPlace
from .guest.control import GuestControl
from .journal import Intent, Journal, Kind
from .lookup import Vm, find_vm, find_vms
from .machine import VcenterVm
from .movement import Moved
from .orphans import Orphan, orphan_candidates
from .quiesce import Quiesce
from .selection import SelectVms, select_vms
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
    "Consolidate",
    "ConsolidationNeeded",
    "CopyDatastoreItem",
    "CopyOnDatastore",
    "DiskReader",
    "EachVm",
    "Fetched",
    "GuestControl",
    "Intent",
    "Journal",
    "Kind",
    "LoginRefused",
    "ManifestFetcher",
    "ManifestPlace",
    "Moved",
    "OpenDisk",
    "Orphan",
    "Outcome",
    "OverHttps",
    "Quiesce",
    "SelectVms",
    "Snapshot",
    "SnapshotDisk",
    "Swept",
    "Vcenter",
    "VcenterSession",
    "VcenterVm",
    "Vifs",
    "Vm",
    "VsphereCapture",
    "VsphereError",
    "advice_for",
    "find_vm",
    "find_vms",
    "most_allowed",
    "open_snapshot",
    "orphan_candidates",
    "same_tracking",
    "select_vms",
    "snapshots_left",
    "sweep",
]
