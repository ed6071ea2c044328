"""Everything between a VM and a sink.

extents   which bytes to read: AllocatedExtents, ChangedExtents      vddk      reading through VDDK
read      ReadSpans                                                  vmdk      LocalVm: a VM's own files
zeros     MarkZeros                                                  vsphere   sessions, snapshots, VcenterVm
chunks    CutChunks                                                  vss       the VSS manifest and its verdict
digest    Digest     dedupe   Dedupe     compress   Compress    preflight  Preflight: before a snapshot
"""

from vadpipe.preflight import Preflight
from vadpipe.vddk import DiskAccess, Vddk
from vadpipe.vmdk import LocalVm
from vadpipe.vsphere import (
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
from vadpipe.vss import Require, RequireApplication, VssManifest

from .chunks import CutChunks
from .compress import (
    Codec,
    Compress,
    Uncompressed,
    Zstd,
)
from .dedupe import Dedupe, MemoryIndex
from .digest import Blake3, Digest
from .extents import AllocatedExtents, ChangedExtents
from .read import ReadSpans
from .zeros import MarkZeros

__all__ = [
    "AllocatedExtents",
    "Blake3",
    "ChangedExtents",
    "Codec",
    "Compress",
    "CopyDatastoreItem",
    "CopyOnDatastore",
    "CutChunks",
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
    "Uncompressed",
    "Vcenter",
    "VcenterVm",
    "Vddk",
    "Vifs",
    "Vm",
    "VssManifest",
    "Zstd",
]
