"""Everything between a VM and a sink.

extents   which bytes to read: AllocatedExtents, ChangedExtents      vddk      reading through VDDK
read      ReadSpans                                                  vmdk      LocalVm: a VM's own files
zeros     MarkZeros                                                  vsphere   sessions, snapshots, VcenterVm
grains    CutGrains                                                  vss       the VSS manifest and its verdict
digest    Digest     dedupe   Dedupe     compress   Compress    preflight  Preflight: before a snapshot
"""

from .compress import Codec, Compress, Stored, Zstd
from .dedupe import Dedupe, MemoryIndex
from .digest import Blake3, Digest
from .extents import AllocatedExtents, ChangedExtents
from .grains import CutGrains
from .preflight import Preflight
from .read import ReadSpans
from .vddk import DiskAccess, Vddk
from .vmdk import LocalVm
from .vsphere import (
    CopyDatastoreItem,
    CopyOnDatastore,
    EachVm,
    GuestControl,
    Journal,
    OverHttps,
    Quiesce,
    SelectVms,
    Vcenter,
    VcenterVm,
    Vifs,
    Vm,
)
from .vss import Require, RequireApplication, VssManifest
from .zeros import MarkZeros

__all__ = [
    "AllocatedExtents",
    "Blake3",
    "ChangedExtents",
    "Codec",
    "Compress",
    "CopyDatastoreItem",
    "CopyOnDatastore",
    "CutGrains",
    "Dedupe",
    "Digest",
    "DiskAccess",
    "EachVm",
    "GuestControl",
    "Journal",
    "LocalVm",
    "MarkZeros",
    "MemoryIndex",
    "OverHttps",
    "Preflight",
    "Quiesce",
    "ReadSpans",
    "Require",
    "RequireApplication",
    "SelectVms",
    "Stored",
    "Vcenter",
    "VcenterVm",
    "Vddk",
    "Vifs",
    "Vm",
    "VssManifest",
    "Zstd",
]
