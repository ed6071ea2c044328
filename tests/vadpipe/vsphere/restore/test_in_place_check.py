"""What keeps a point from being written over its VM: one message with all of it, before anything is touched."""

from dataclasses import replace

import pytest

from pipeline import ConfigError
from tests.vadpipe.vsphere.vsphere_kit import make_snapshot
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter.state.inventory import DiskState
from vadpipe.vsphere.restore.in_place_check import NotInPlace
from vadpipe.vsphere.vm.mark import SETTING

pytestmark = pytest.mark.slow


@pytest.fixture
async def backed_up(original):
    """Off, and one cluster is not as in the point."""
    await original.back_up()
    original.write((0, 0, b"changed"))
    original.state.power = "poweredOff"
    return original


async def refused(original, message: str, **options) -> NotInPlace:
    """The restore is refused with this message, and the lab is as before."""
    calls = original.lab.calls.copy()
    with pytest.raises(NotInPlace, match=message) as caught:
        await original.restore(**options)
    after = original.lab.calls
    for call in ("ReconfigVM_Task", "CreateSnapshot_Task", "CreateSnapshotEx_Task", "PowerOffVM_Task"):
        assert after.get(call, 0) == calls.get(call, 0)
    assert original.disks[0].read(0, 7) == b"changed"
    assert original.journal.intents() == []
    assert SETTING not in original.state.extra_config
    return caught.value


async def test_a_vm_that_is_powered_on(backed_up):
    backed_up.state.power = "poweredOn"
    await refused(backed_up, r"cannot be written over web01: It is powered on: shut it down first\.")


async def test_a_vm_that_is_suspended(backed_up):
    backed_up.state.power = "suspended"
    await refused(backed_up, r"It is suspended")


async def test_a_vm_with_snapshots(backed_up):
    async with backed_up.vcenter.connect() as session:
        await make_snapshot(session, "before the update", "")
    await refused(backed_up, r"It has snapshots \(before the update\): remove them\.")


async def test_an_encrypted_vm(backed_up):
    backed_up.state.traits.encrypted = True
    await refused(backed_up, r"It is encrypted, and encrypted VMs are restored into a new VM only")


async def test_a_template(backed_up):
    backed_up.state.traits.template = True
    await refused(backed_up, r"It is a template")


async def test_a_vm_that_is_gone_and_another_one_of_its_name(backed_up, add_vm):
    backed_up.state.instance_uuid = "11111111-2222-3333-4444-555555555555"
    await refused(
        backed_up,
        r"has no VM with the UUID .*The VM /\S+/web01 is called web01 too, but has the UUID 11111111-2222-.*: it "
        r"is another one\. Restore the point into a new VM\.",
    )


async def test_a_vm_that_is_gone(backed_up):
    backed_up.state.instance_uuid = "11111111-2222-3333-4444-555555555555"
    backed_up.state.name = "other"
    error = await refused(backed_up, r"has no VM with the UUID")
    assert "another one" not in str(error)


async def test_a_disk_of_another_size(backed_up):
    _exchange(backed_up, 1, capacity=2 * backed_up.disks[1].capacity)
    await refused(backed_up, r"\(scsi0:1\) has 8388608 bytes, and disk scsi0:1 of the point 4194304\.")


async def test_another_disk_in_the_place_of_one(backed_up):
    other = _exchange(backed_up, 1)
    error = await refused(backed_up, r"\(scsi0:1\) is another disk: it has the UUID .*, and the point's ")
    assert "onto={'scsi0:1': 'scsi0:1'} takes it all the same" in str(error)
    target = replace(backed_up.target, onto={"scsi0:1": "scsi0:1"})
    receipt = await backed_up.restore(target=target)
    assert list(receipt.failures) == []
    assert backed_up.holds(0) == [True, True]
    assert backed_up.disks[1] is other


async def test_a_disk_that_is_missing(backed_up):
    backed_up.state.disks.pop()
    await refused(backed_up, r"It has no disk scsi0:1, and disk scsi0:1 of the point has 4\.0 MiB\.")
    receipt = await backed_up.restore(keys=["scsi0:0"])
    assert list(receipt.failures) == []


async def test_a_disk_that_was_added(backed_up):
    _exchange(backed_up, 2)
    await refused(backed_up, r"It has the disk scsi0:2 \(.*, 4\.0 MiB\), which the point does not know\.")
    receipt = await backed_up.restore(target=replace(backed_up.target, keep=["scsi0:2"]))
    assert list(receipt.failures) == []
    assert "(scsi0:2) of web01 stays as it is." in " ".join(receipt.remarks)


async def test_everything_that_is_wrong_is_said_at_once(backed_up):
    backed_up.state.power = "poweredOn"
    backed_up.state.traits.encrypted = True
    backed_up.state.disks.pop()
    error = await refused(backed_up, "powered on.*encrypted.*It has no disk scsi0:1")
    assert len(error.facts["problems"]) == 3


async def test_two_disks_onto_one(backed_up):
    await refused(
        backed_up,
        r"Two disks of the point would be written onto scsi0:0\.",
        target=replace(backed_up.target, onto={"scsi0:1": "scsi0:0"}),
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"onto": {"scsi0:9": "scsi0:0"}},
            r"`onto` names 'scsi0:9', which point \S+ lacks\. It has: scsi0:0, scsi0:1",
        ),
        ({"onto": {"scsi0:0": "scsi0:9"}}, r"web01 has no disk 'scsi0:9', which `onto` or `keep` names"),
        ({"keep": ["scsi1:0"]}, r"web01 has no disk 'scsi1:0'"),
    ],
)
async def test_settings_that_name_what_there_is_not(backed_up, settings, message):
    with pytest.raises(ConfigError, match=message):
        await backed_up.restore(target=replace(backed_up.target, **settings))


async def test_the_last_disk_is_independent(backed_up):
    backed_up.state.traits.disk_mode = "independent_persistent"
    await refused(backed_up, r"\(scsi0:1\) cannot be written: it is independent")


async def test_a_linked_clone(backed_up):
    backed_up.state.traits.linked_to = "[datastore1] golden/golden.vmdk"
    await refused(
        backed_up, r"is a linked clone or has redo logs: .* hangs on \[datastore1\] golden/golden\.vmdk"
    )


def _exchange(original, number: int, capacity: int = 4 << 20) -> LabDisk:
    """A new disk in the place of one, or behind the last."""
    inventory = original.lab.guests.service.inventory
    disk = LabDisk.create(original.disks[0].directory, "other", capacity)
    key = 2000 + number
    inventory.disks[original.moref][key] = disk
    original.state.disks[number:] = [DiskState(key, "other")]
    return disk
