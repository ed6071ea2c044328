"""Move a running VM out of vSphere: increments into a qcow2 image of each disk, then a short cut-over.

export VC_PASSWORD=...
vadpipe plan migrate.py                                    how long a cut-over would take
vadpipe migrate migrate.py --every 10m                     increments, until another command cuts over
vadpipe migrate migrate.py --until-below 1GiB --cut-over   increments until little is left, then the cut-over
"""

import os

from pipeline import Disk, DiskReceipt, Pipeline, Secret
from sinks import IntoReplica, Migrate, Replica, ReplicaWriter
from stages import (
    ChangedExtents,
    MarkZeros,
    Quiesce,
    ReadSpans,
    RememberRanges,
    Vcenter,
    VcenterVm,
    Vddk,
)

vcenter = Vcenter(
    os.environ.get("VC_SERVER", "vc01.example.com"),
    port=int(os.environ.get("VC_PORT", "443")),
    user=os.environ.get("VC_USER", "backup@vsphere.local"),
    password=Secret.from_env("VC_PASSWORD"),
    thumbprint=os.environ.get("VC_THUMBPRINT"),  # None: verified by the machine's CAs
)


def path(disk: Disk, replica: ReplicaWriter) -> Pipeline[DiskReceipt]:
    return (
        ChangedExtents(disk, replica.previous(disk))
        | RememberRanges(replica, disk)
        | ReadSpans(disk)
        | MarkZeros()
        | IntoReplica(replica, disk)
    )


job = Migrate(
    VcenterVm(
        vcenter,
        os.environ.get("VM", "web01"),
        quiesce=Quiesce.none(),  # the last increment is of a VM that was shut down
        reader=Vddk(os.environ.get("VDDK_LIBDIR", "/opt/vmware-vix-disklib-distrib")),
        enable_change_tracking=True,
    ),
    path,
    # Images in DIR/web01/; or {"scsi0:0": "nbd://host/export", ...}, device:/dev/..., raw:DIR
    into=Replica(
        os.environ.get("REPLICA", "qcow2:/images"),
        state=os.environ.get("STATE", "/var/lib/vadpipe/web01"),
    ),
    power_off=True,  # the cut-over shuts the guest down, through VMware Tools
)
