"""Back up one VM of a vCenter every night: application-quiesced, incremental, deduplicated, into a repository.

export VC_PASSWORD=...
vadpipe init /srv/backup
vadpipe run nightly.py
"""

import os

from pipeline import Disk, DiskReceipt, Job, Pipeline, Secret
from sinks import IntoRepository, Point, Repository
from stages import (
    ChangedExtents,
    Compress,
    CutChunks,
    Dedupe,
    Digest,
    MarkZeros,
    Quiesce,
    ReadSpans,
    Refine,
    Vcenter,
    VcenterVm,
    Vddk,
    VssManifest,
    Zstd,
)

vcenter = Vcenter(
    os.environ.get("VC_SERVER", "vc01.example.com"),
    port=int(os.environ.get("VC_PORT", "443")),
    user=os.environ.get("VC_USER", "backup@vsphere.local"),
    password=Secret.from_env("VC_PASSWORD"),
    thumbprint=os.environ.get("VC_THUMBPRINT"),  # None: verified by the machine's CAs
)
repository = Repository(os.environ.get("REPOSITORY", "/srv/backup"))


def path(disk: Disk, point: Point) -> Pipeline[DiskReceipt]:
    return (
        ChangedExtents(disk, point.previous(disk))
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
    VcenterVm(
        vcenter,
        os.environ.get("VM", "web01"),
        quiesce=Quiesce.application(),
        reader=Vddk(os.environ.get("VDDK_LIBDIR", "/opt/vmware-vix-disklib-distrib")),
        enable_change_tracking=True,
    ),
    path,
    into=repository,
    finish=[VssManifest()],
)
