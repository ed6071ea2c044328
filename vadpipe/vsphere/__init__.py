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

from .api.advice import CATALOGUE, Advice, advice_for
from .api.faults import (
    CertificateRefused,
    ConnectionLost,
    LoginRefused,
    VsphereError,
)
from .api.session import Vcenter, VcenterSession
from .guest.expectations import GuestControl
from .inventory.lookup import Vm, find_vm, find_vms
from .inventory.selection import SelectVms, select_vms
from .journal.intents import Intent, Journal, Kind
from .manifest.copy import CopyOnDatastore
from .manifest.fetch import Fetched, ManifestFetcher, ManifestPlace
from .manifest.https import OverHttps
from .manifest.powercli import CopyDatastoreItem
from .manifest.vifs import Vifs
from .snapshot.changes import same_tracking
from .snapshot.consolidate import Consolidate, ConsolidationNeeded, most_allowed
from .snapshot.quiesce import Quiesce
from .snapshot.snapshot import Snapshot, open_snapshot
from .snapshot.tree import snapshots_left
from .snapshot.unmoved import Moved
from .vm.capture import VsphereCapture
from .vm.check import Check, Checked
from .vm.disk import DiskReader, OpenDisk, SnapshotDisk
from .vm.each_vm import EachVm
from .vm.orphans import Orphan, orphan_candidates
from .vm.sweep import Outcome, Swept, sweep
from .vm.vm import VcenterVm

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
