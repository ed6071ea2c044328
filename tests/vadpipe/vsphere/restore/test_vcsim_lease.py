"""The import of a VM through a lease against govmomi's simulator: a second opinion from another code base."""

from __future__ import annotations

import numpy as np
import pytest
from pyVmomi import vim

from pipeline import Flow, MiB, Span, Zeros
from pipeline.testing.fakes import Items
from sinks.lease import IntoLease
from tests.vadpipe.vsphere.vcsim_kit import NEEDS_VCSIM, vcsim
from vadpipe.vmdk.stream import stream_optimized
from vadpipe.vsphere.api.properties import read_all
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.plan.values import After, Place, PlannedDisk, RestorePlan
from vadpipe.vsphere.restore.lease import leased_vm

__all__ = ["vcsim"]

pytestmark = NEEDS_VCSIM
CAPACITY = 8 * MiB


async def plan_for(session) -> RestorePlan:
    """A VM with one disk, in the first places that the simulator has."""
    kinds = {vim.Folder: ["name", "childType"], vim.ResourcePool: ["name"], vim.Datastore: ["name"]}
    rows = await session.call("RetrieveProperties", lambda: read_all(session.content, kinds))
    folder = next(row for row in rows if "VirtualMachine" in (row.get("childType") or ()))
    pool = next(row for row in rows if row.kind == "ResourcePool")
    store = next(row for row in rows if row.kind == "Datastore")
    controller = vim.vm.device.ParaVirtualSCSIController(key=-1000, busNumber=0, sharedBus="noSharing")
    spec = vim.vm.ConfigSpec(
        name="imported",
        guestId="otherGuest64",
        numCPUs=1,
        memoryMB=128,
        files=vim.vm.FileInfo(vmPathName=f"[{store.get('name')}]"),
        deviceChange=[vim.vm.device.VirtualDeviceSpec(operation="add", device=controller)],
    )
    disk = PlannedDisk(
        key="scsi0:0",
        label="Hard disk 1",
        controller="scsi0",
        unit=0,
        capacity=CAPACITY,
        data=MiB,
        provisioning="thin",
        datastore=store.get("name"),
        datastore_moref=store.moref,
    )
    return RestorePlan(
        mode="copy",
        name="imported",
        folder=Place(folder.moref, "vm", "/DC0/vm", "DC0"),
        pool=Place(pool.moref, "Resources", "/DC0/host/Resources", "DC0"),
        host=None,
        datastore=None,
        spec=spec,
        disks=[disk],
        after=After(),
        decisions=[],
    )


def stream() -> Flow:
    content = np.random.default_rng(1).integers(0, 256, MiB, np.uint8)
    items = [Span.of(content.tobytes()), Zeros(MiB, CAPACITY - MiB)]
    return stream_optimized(Items(items), CAPACITY)


async def test_a_vm_is_imported_with_its_disk(vcsim, tmp_path):
    journal = Journal(tmp_path)
    async with vcsim.connect() as session:
        plan = await plan_for(session)
        async with leased_vm(session, plan, journal, run="r", point="p") as leased:
            assert len(journal.intents()) == 1
            receipt = await (stream() | IntoLease(leased, "scsi0:0")).run()
            assert receipt.sent > MiB
            assert await leased.complete() == [
                "Disk scsi0:0: 127.0.0.1 does not tell the digest of what it received."
            ]
            await leased.made.whole()
        assert leased.made.disks["scsi0:0"].capacity == CAPACITY
        assert (await find_vm(session, "imported")).moref == leased.made.vm.moref
    assert journal.intents() == []


async def test_a_restore_that_fails_leaves_no_vm(vcsim, tmp_path):
    journal = Journal(tmp_path)
    async with vcsim.connect() as session:
        plan = await plan_for(session)
        with pytest.raises(ValueError, match="of the test"):
            async with leased_vm(session, plan, journal, run="r", point="p"):
                raise ValueError("of the test")
        rows = await session.call(
            "RetrieveProperties", lambda: read_all(session.content, {vim.VirtualMachine: ["name"]})
        )
        assert "imported" not in {row.get("name") for row in rows}
    assert journal.intents() == []
