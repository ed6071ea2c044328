"""Restore the newest point of a VM into a new VM: made, written through VDDK, read back and proved.

export VC_PASSWORD=...
vadpipe plan restore.py      what becomes of every field, setting and device
vadpipe run restore.py
vadpipe restore /srv/backup latest vsphere:restore.py --vm web01 --name web01-test --map 'VM Network=Lab'
"""

import os
from typing import Any

from pipeline import Flow, Pipeline, Secret, Span, WritableDisk, Zeros
from sinks import IntoVddkDisk, NewVm, Restore
from stages import Vcenter, Vddk

vcenter = Vcenter(
    os.environ.get("VC_SERVER", "vc01.example.com"),
    port=int(os.environ.get("VC_PORT", "443")),
    user=os.environ.get("VC_USER", "backup@vsphere.local"),
    password=Secret.from_env("VC_PASSWORD"),
    thumbprint=os.environ.get("VC_THUMBPRINT"),  # None: verified by the machine's CAs
)


def path(source: Flow[Span | Zeros], disk: WritableDisk) -> Pipeline[Any]:
    return source | IntoVddkDisk(disk)


target = NewVm(
    vcenter,
    writer=Vddk(os.environ.get("VDDK_LIBDIR", "/opt/vmware-vix-disklib-distrib"), transports="nbdssl"),
    name="web01-restored",
    mode="copy",  # new identities, NICs not connected; "replace" makes the lost VM again
)

job = Restore(
    os.environ.get("REPOSITORY", "/srv/backup"),
    "latest",
    into=target,
    path=path,
    vm=os.environ.get("VM", "web01"),
    name="restore of web01",
)
