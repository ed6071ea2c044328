"""`python lab_runs.py SETTINGS`: a real capture of web01 through VDDK, for tests that kill it at a known moment."""

import json
import sys
from pathlib import Path

import numpy as np
import trio

from pipeline.extents import Extents
from pipeline.secrets import Secret
from stages.vcenter_vm import VcenterVm
from vadpipe.vddk.disk import Vddk
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.vm.capture import VsphereCapture


def machine(where: dict[str, object]) -> VcenterVm:
    vcenter = Vcenter(
        str(where["host"]),
        "backup",
        Secret.from_text("lab"),
        thumbprint=str(where["thumbprint_sha1"]),
        port=int(str(where["port"])),
        patience_s=10,
    )
    reader = Vddk(
        str(where["libdir"]), transports="hotadd:nbdssl", end_timeout_s=0.5, restarts=0, restart_pause_s=0
    )
    journal = Journal(Path(str(where["journal"])))
    return VcenterVm(vcenter, "web01", reader=reader, quiesce=Quiesce.none(), journal=journal, preflight=None)


async def capture(where: dict[str, object]) -> None:
    async with machine(where).capture() as held:
        await read_all(held)


async def read_all(held: VsphereCapture) -> None:
    """Read the first MiB of every disk."""
    for disk in held.disks:
        buffer = await disk.pool.acquire()
        try:
            await disk.read(buffer, 0, Extents.whole(1 << 20))
            assert not np.count_nonzero(buffer.array[: 1 << 20])
        finally:
            buffer.release()


if __name__ == "__main__":
    trio.run(capture, json.loads(sys.argv[1]))
