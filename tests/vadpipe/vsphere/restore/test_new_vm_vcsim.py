"""A planned VM is made on govmomi's simulator, which reads what we send by another codec.

It drops data, so nothing is written. It accepts a name that is taken, so that is not tested here.
"""

from dataclasses import replace

import pytest
from pyVmomi import vim

from pipeline.units import MiB
from tests.vadpipe.vsphere.plan.plan_kit import config, disk, saved
from tests.vadpipe.vsphere.vcsim_kit import NEEDS_VCSIM, vcsim
from vadpipe.vsphere.inventory.lookup import find_vms
from vadpipe.vsphere.journal.intents import WHOLE, Journal
from vadpipe.vsphere.plan.values import PointDisk, Wanted
from vadpipe.vsphere.restore.finishing import finish
from vadpipe.vsphere.restore.making import new_vm
from vadpipe.vsphere.restore.planning import planned

__all__ = ["vcsim"]

pytestmark = NEEDS_VCSIM

PLACES = {
    "folder": "/DC0/vm",
    "pool": "DC0_C0",
    "datastore": "LocalDS_0",
    "networks": {"VM Network": "VM Network", "dv-web": "DC0_DVPG0"},
}


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal")


def small():
    """A VM of 6.5 with two disks on two controllers."""
    made = config(version="vmx-13")
    made.hardware.device = [
        one for one in made.hardware.device if not isinstance(one, vim.vm.device.VirtualDisk)
    ]
    made.hardware.device += [disk(2000, 1000, 0, size=8 * MiB), disk(2017, 1001, 1, size=4 * MiB)]
    return saved(made)


async def plan_on(session, **wanted):
    disks = [PointDisk("scsi0:0", 8 * MiB, MiB), PointDisk("scsi1:1", 4 * MiB, MiB)]
    wanted = Wanted(**{"name": "web01-restored", "lower_hardware": True, **PLACES, **wanted})
    return await planned(session, small(), wanted, disks)


async def test_a_vm_is_made_with_its_disks_one_by_one_and_is_destroyed_unless_it_is_whole(vcsim, journal):
    async with vcsim.connect() as session:
        plan = await plan_on(session)
        assert not plan.problems, plan.problems
        async with new_vm(session, plan, journal, run="r", point="p1") as made:
            assert sorted(made.disks) == ["scsi0:0", "scsi1:1"]
            assert [disk.capacity for disk in made.disks.values()] == [8 * MiB, 4 * MiB]
            assert len({disk.path for disk in made.disks.values()}) == 2
            [found] = await find_vms(session, ["web01-restored"])
            assert found.moref == made.vm.moref
        rows = await session.call(
            "FindByInventoryPath",
            lambda: session.content.searchIndex.FindByInventoryPath("/DC0/vm/web01-restored"),
        )
        assert rows is None
    assert journal.intents() == []


async def test_boot_order_attributes_and_change_tracking_follow(vcsim, journal):
    async with vcsim.connect() as session:
        await session.call(
            "AddCustomFieldDef",
            lambda: session.content.customFieldsManager.AddFieldDefinition("owner", vim.VirtualMachine),
            changes=True,
        )
        plan = await plan_on(session)
        assert plan.after.attributes == {"owner": "web team"}
        after = replace(plan.after, nvram=False, tags=())
        async with new_vm(session, plan, journal, run="r", point="p1") as made:
            done = await finish(made, after, None)
            await made.whole()
        assert done.attention == []
        row = await session.properties(made.reference, ["config", "customValue"])
    settings = row.get("config")
    assert settings.bootOptions.bootOrder[0].deviceKey == made.disks["scsi0:0"].device_key
    assert settings.changeTrackingEnabled
    assert [one.value for one in row.get("customValue")] == ["web team"]
    assert journal.intents() == []
    assert WHOLE in made._entry.intent.phase
