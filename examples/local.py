"""Back up a VM's own files, without a vCenter: an exported VM, one of Workstation or Fusion, a datastore over NFS.

VM_DIRECTORY=/vms/web01 REPOSITORY=/srv/backup vadpipe run local.py
"""

import os

from pipeline import Disk, DiskReceipt, Job, Pipeline
from sinks import IntoRepository, Point, Repository
from stages import (
    AllocatedExtents,
    Compress,
    CutChunks,
    Dedupe,
    Digest,
    LocalVm,
    MarkZeros,
    ReadSpans,
    Refine,
    VssManifest,
    Zstd,
)


def path(disk: Disk, point: Point) -> Pipeline[DiskReceipt]:
    return (
        AllocatedExtents(disk)
        | ReadSpans(disk)
        | MarkZeros()
        | CutChunks()
        | Digest(point)
        | Refine(point, disk)
        | Dedupe(point)
        | Compress(Zstd(level=1))
        | IntoRepository(point, disk)
    )


job = Job(
    LocalVm(os.environ.get("VM_DIRECTORY", "/vms/web01")),
    path,
    into=Repository(os.environ.get("REPOSITORY", "/srv/backup")),
    finish=[VssManifest()],
)
