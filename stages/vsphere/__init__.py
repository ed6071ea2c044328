"""VMs on a vCenter or an ESXi host: session, snapshot, change tracking, VSS manifest, clean-up.

machine      VcenterVm: all of it together, what a job captures
session      Vcenter (settings), VcenterSession: one door for every call      faults       foreign errors -> ours
transport, certificate, keep_alive, patience   what a session is made of      properties   narrow reads
lookup       a VM by name, path, moref or UUID                                tasks        waiting, cancellable
quiesce      what is asked of the guest                                       events       what the guest answered
ladder       retried, weakened or given up, by policy                         catalogue    every code -> what to do
journal      intents, durable before the call                                 snapshot     the resource
removal, consolidation   removing what is ours                                sweep        after killed runs
hardware     disks and configuration                                          snapshot_tree  whose snapshot is whose
changes      changed areas, page by page                                      disk, manifest  what is read of it
fetching     ways to fetch a manifest: fetch_https (host_ticket), fetch_copy, fetch_vifs, fetch_powercli (external)
"""

from .catalogue import CATALOGUE, Advice, advice_for
from .changes import same_tracking
from .consolidation import ConsolidationNeeded
from .disk import DiskReader, OpenDisk, SnapshotDisk
from .faults import CertificateRefused, ConnectionLost, LoginRefused, VsphereError
from .fetch_copy import CopyOnDatastore
from .fetch_https import OverHttps
from .fetch_powercli import CopyDatastoreItem
from .fetch_vifs import Vifs
from .fetching import Fetched, ManifestFetcher, ManifestPlace
from .journal import Intent, Journal
from .lookup import Vm, find_vm
from .machine import VcenterVm, VsphereCapture
from .quiesce import Quiesce
from .session import Vcenter, VcenterSession
from .snapshot import Snapshot, open_snapshot
from .snapshot_tree import snapshots_left
from .sweep import Outcome, Swept, sweep

__all__ = [
    "CATALOGUE",
    "Advice",
    "CertificateRefused",
    "ConnectionLost",
    "ConsolidationNeeded",
    "CopyDatastoreItem",
    "CopyOnDatastore",
    "DiskReader",
    "Fetched",
    "Intent",
    "Journal",
    "LoginRefused",
    "ManifestFetcher",
    "ManifestPlace",
    "OpenDisk",
    "Outcome",
    "OverHttps",
    "Quiesce",
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
    "open_snapshot",
    "same_tracking",
    "snapshots_left",
    "sweep",
]
