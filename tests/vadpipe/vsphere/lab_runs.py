"""`python -m tests.vadpipe.vsphere.lab_runs WHAT SETTINGS`: work on web01 that tests kill at a known moment."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import trio

from pipeline.extents import Extents
from pipeline.secrets import Secret
from stages.vcenter_vm import VcenterVm
from vadpipe.vddk.disk import Vddk
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.snapshot.snapshot import open_snapshot
from vadpipe.vsphere.vm.capture import VsphereCapture
from vadpipe.vsphere.vm.prepare import enable_uuid


def vcenter_of(where: dict) -> Vcenter:
    account = "backup", Secret.from_text("lab")
    return Vcenter(
        where["host"], *account, thumbprint=where["thumbprint_sha1"], port=where["port"], patience_s=10
    )


def machine(where: dict) -> VcenterVm:
    reader = Vddk(
        where["libdir"], transports="hotadd:nbdssl", end_timeout_s=0.5, restarts=0, restart_pause_s=0
    )
    journal = Journal(Path(where["journal"]))
    return VcenterVm(
        vcenter_of(where), "web01", reader=reader, quiesce=Quiesce.none(), journal=journal, preflight=None
    )


def start(what: str, where: dict, **options) -> subprocess.Popen:
    """The work in a process of its own. what: capture, hold or prepare."""
    command = [sys.executable, "-m", "tests.vadpipe.vsphere.lab_runs", what, json.dumps(where)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[3], **options)


async def hold(where: dict) -> None:
    """Hold a snapshot."""
    async with vcenter_of(where).connect() as session:
        vm = await find_vm(session, "web01")
        journal = Journal(Path(where["journal"]))
        async with open_snapshot(session, vm, Quiesce.none(), journal, run="killed"):
            print("held", flush=True)
            await trio.sleep_forever()


async def prepare(where: dict) -> None:
    async with vcenter_of(where).connect() as session:
        vm = await find_vm(session, "web01")
        await enable_uuid(session, vm, Journal(Path(where["journal"])), allow_power_off=True)


async def capture(where: dict) -> None:
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
    trio.run({"capture": capture, "hold": hold, "prepare": prepare}[sys.argv[1]], json.loads(sys.argv[2]))
