"""What follows the data of a new VM, and what a user may choose."""

import json
from dataclasses import replace

import pytest
import trio
from pyVmomi import vim

from pipeline import ConfigError, IntegrityError, MoverError, Secret, observed
from pipeline.errors import leaves
from sinks import IntoVddkDisk, NewVm, Proof, Restore, open_repository
from sinks.restoring import Contents, restore
from stages import Vcenter, Vddk
from tests.sinks.new_vm_kit import at_step
from vadpipe.lab.compared_vms import compared, configurations
from vadpipe.lab.vcenter.faults.kinds import fault_maker
from vadpipe.lab.vcenter.state.networks import NetworkTraits
from vadpipe.vsphere.api.tasks import wait_for_task

pytestmark = pytest.mark.slow

NVRAM = b"MRVN" + bytes(range(256)) * 300


@pytest.fixture
async def described(machine):
    """A VM with firmware variables, a boot order, a custom attribute, a tag and change tracking; backed up."""
    lab = machine.lab
    vm = lab._inventory.vms[machine.moref]
    (lab._inventory.directory_of(vm) / "web01.nvram").write_bytes(NVRAM)
    lab.tags.attach(lab.tags.create("env", "prod"), machine.moref)
    async with machine.vcenter.connect() as session:
        subject = vim.VirtualMachine(machine.moref, session.stub)
        row = await session.properties(subject, ["config.hardware.device"])
        second = row.get("config.hardware.device")
        keys = [one.key for one in second if isinstance(one, vim.vm.device.VirtualDisk)]
        order = [vim.vm.BootOptions.BootableDiskDevice(deviceKey=keys[1])]
        spec = vim.vm.ConfigSpec(bootOptions=vim.vm.BootOptions(bootOrder=order), changeTrackingEnabled=True)
        task = await session.call("ReconfigVM_Task", lambda: subject.Reconfigure(spec), changes=True)
        await wait_for_task(session, task, "ReconfigVM_Task")
        fields = session.content.customFieldsManager
        assert fields is not None

        def describe():
            owner = fields.AddFieldDefinition("owner", vim.VirtualMachine)
            fields.SetField(subject, owner.key, "web team")

        await session.call("SetField", describe, changes=True)
    await machine.back_up()
    return machine


async def config_of(backed, name="web01-restored"):
    async with backed.vcenter.connect() as session:
        subject = vim.VirtualMachine(backed.lab.moref(name), session.stub)
        return (await session.properties(subject, ["config"])).get("config")


async def test_nvram_boot_order_attributes_tags_and_change_tracking_follow_the_data(described):
    receipt = await described.restore()
    assert not receipt.failures
    assert not receipt.attention, receipt.attention
    lab = described.lab
    vm = lab._inventory.vms[lab.moref("web01-restored")]
    [nvram] = list(lab._inventory.directory_of(vm).glob("*.nvram"))
    assert nvram.read_bytes() == NVRAM
    config = await config_of(described)
    disks = [one.key for one in config.hardware.device if isinstance(one, vim.vm.device.VirtualDisk)]
    assert [entry.deviceKey for entry in config.bootOptions.bootOrder] == [disks[1]]
    assert config.changeTrackingEnabled
    assert list(vm.custom_values.values()) == ["web team"]
    remarks = " ".join(receipt.remarks)
    assert "Its tags are attached: env/prod." in remarks
    assert "Its custom attributes are set: owner." in remarks
    assert described.restored() == described.digests


async def test_fresh_firmware_variables_are_the_servers(described):
    receipt = await described.restore(nvram="fresh")
    lab = described.lab
    directory = lab._inventory.directory_of(lab._inventory.vms[lab.moref("web01-restored")])
    assert [path for path in directory.glob("*.nvram") if path.read_bytes() == NVRAM] == []
    assert "NVRAM" not in " ".join(receipt.remarks)


async def test_a_step_after_the_data_that_is_refused_needs_attention_and_the_vm_is_left_off(described):
    described.lab.inject("SetField", fault_maker("NoPermission"))
    receipt = await described.restore(power_on=True)
    assert not receipt.failures
    [refused, off] = receipt.attention
    assert refused.startswith("Custom attributes were not set: ")
    assert off == "web01-restored was not switched on, because it is not as planned."
    assert described.restored() == described.digests
    assert described.lab._inventory.vms[described.lab.moref("web01-restored")].power == "poweredOff"
    assert described.journal.intents() == []


async def test_a_copy_agrees_with_the_original_field_by_field(described):
    await described.restore()
    lab = described.lab
    original, copy = configurations(lab.address, lab.port, "backup", "lab", "web01", "web01-restored")
    wrong = [row for row in compared(original, copy) if row.wrong]
    assert wrong == []


async def test_a_lost_vm_comes_back_with_its_identities(described):
    lab = described.lab
    before = await config_of(described, "web01")
    lab.unregister_vm(described.moref)
    receipt = await described.restore(mode="replace", name=None)
    assert not receipt.failures, receipt.failures
    after = await config_of(described, "web01")
    assert (after.uuid, after.instanceUuid) == (before.uuid, before.instanceUuid)
    assert described.restored("web01") == described.digests


async def test_replace_is_refused_while_the_original_is_there(described):
    with pytest.raises(ConfigError, match="web01"):
        await described.restore(mode="replace", name="web01-again")
    assert described.names == ["web01"]
    assert "CreateVM_Task" not in described.lab.calls


async def test_places_are_mapped_by_options_and_by_a_file(backed, tmp_path):
    backed.lab.datastore("fast")
    backed.lab.add_network(NetworkTraits("Lab"))
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(
        'datastore = "fast"\n[datastores]\n"scsi0:1" = "datastore1"\n[networks]\n"VM Network" = "Lab"\n'
    )
    receipt = await backed.restore(mapping=mapping)
    assert not receipt.failures
    places = {disk.key: disk.place.partition(" ")[2].partition("]")[0] for disk in receipt.disks}
    assert places == {"scsi0:0": "[fast", "scsi0:1": "[datastore1"}
    as_json = tmp_path / "mapping.json"
    as_json.write_text(json.dumps({"datastore": "nowhere"}))
    with pytest.raises(ConfigError, match="nowhere"):
        await backed.restore(name="another", mapping=as_json)
    receipt = await backed.restore(name="another", mapping=as_json, datastore="fast")  # what is given counts
    assert not receipt.failures


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"name": "web01"}, "web01"),
        ({"datastore": "datastor1"}, "datastore1"),
        ({"folder": "Web"}, "Web"),
        ({"pool": "Cluster"}, "Cluster"),
        ({"host": "esx99"}, "esx99"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_a_place_that_is_not_there_is_one_error_before_anything_is_made(backed, settings, told):
    with pytest.raises(ConfigError) as caught:
        await backed.restore(**settings)
    assert told in str(caught.value)
    assert caught.value.remedy
    assert "CreateVM_Task" not in backed.lab.calls
    assert backed.journal.intents() == []


async def test_a_network_that_is_not_there_is_named_with_its_likes(machine):
    machine.lab.add_network(NetworkTraits("Laboratory"))
    async with machine.vcenter.connect() as session:
        subject = vim.VirtualMachine(machine.moref, session.stub)
        backing = vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network")
        card = vim.vm.device.VirtualVmxnet3(key=-1, backing=backing)
        spec = vim.vm.ConfigSpec(deviceChange=[vim.vm.device.VirtualDeviceSpec(operation="add", device=card)])
        task = await session.call("ReconfigVM_Task", lambda: subject.Reconfigure(spec), changes=True)
        await wait_for_task(session, task, "ReconfigVM_Task")
    await machine.back_up()
    with pytest.raises(ConfigError, match="Labor") as caught:
        await machine.restore(networks={"VM Network": "Labor"})
    assert "Laboratory" in str(caught.value)
    assert "CreateVM_Task" not in machine.lab.calls
    assert not (await machine.restore(networks={"VM Network": "Laboratory"})).failures


async def test_a_missing_privilege_is_named_before_anything_is_made(backed):
    backed.lab.denied_privileges.add("VirtualMachine.Inventory.Create")
    with pytest.raises(ConfigError, match=r"VirtualMachine\.Inventory\.Create"):
        await backed.restore()
    assert "CreateVM_Task" not in backed.lab.calls


async def test_no_library_is_one_error_and_no_vm_stays(backed, tmp_path):
    receipt = await backed.restore(writer=replace(backed.writer, libdir=tmp_path / "nowhere"))
    assert {type(leaf) for failure in receipt.failures for leaf in leaves(failure)} == {ConfigError}
    assert backed.names == ["web01"]


@pytest.mark.parametrize(
    "settings", [{"mode": "move"}, {"prove": "often"}, {"nvram": "old"}, {"provisioning": "fat"}]
)
def test_an_impossible_setting_is_refused_without_io(backed_settings, settings):
    with pytest.raises(ConfigError):
        backed_settings(**settings)


@pytest.fixture
def backed_settings(vcenter_settings):
    return lambda **settings: NewVm(vcenter_settings, writer=Vddk("/opt/vddk"), **settings)


@pytest.fixture
def vcenter_settings():
    return Vcenter("vc01.example.com", "backup", Secret.from_text("x"))


@pytest.mark.parametrize(
    "text", ['networks = "lan"', "folder = 3", 'power_on = "yes"', 'keep = "a.*"', "datastores = {a = 1}"]
)
def test_a_mapping_file_with_a_value_of_the_wrong_kind_is_named(backed_settings, tmp_path, text):
    path = tmp_path / "mapping.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"a value of the wrong kind: {text.partition(' ')[0]} = "):
        backed_settings(mapping=path).wanted()


def test_a_mapping_file_with_an_unknown_setting_is_named(backed_settings, tmp_path):
    path = tmp_path / "mapping.toml"
    path.write_text('datastor = "fast"\n')
    with pytest.raises(ConfigError, match="datastor"):
        backed_settings(mapping=path).wanted()
    with pytest.raises(ConfigError, match="cannot be read"):
        backed_settings(mapping=tmp_path / "none.toml").wanted()


async def test_bytes_that_changed_after_they_were_written_are_found_and_no_vm_stays(backed):
    def damage():
        vm = backed.lab.disks(backed.lab.moref("web01-restored"))[1]
        vm.write(6 << 20, b"rot")

    with observed(at_step("proving disk scsi0:1", damage)):
        receipt = await backed.restore()
    [failure] = receipt.failures
    [error] = leaves(failure)
    assert isinstance(error, IntegrityError)
    assert error.facts["disk"] == "scsi0:1"
    assert error.facts["offset"] <= 6 << 20 < error.facts["offset"] + error.facts["length"]
    assert backed.names == ["web01"]
    assert backed.journal.intents() == []


async def test_data_where_the_point_has_none_is_found(backed):
    def damage():
        backed.lab.disks(backed.lab.moref("web01-restored"))[0].write(10 << 20, b"not mine")

    with observed(at_step("proving disk scsi0:0", damage)):
        receipt = await backed.restore()
    [error] = leaves(receipt.failures[0])
    assert "it is zero in the point" in str(error)


async def test_a_sample_says_what_it_is(backed):
    receipt = await backed.restore(prove="30%")
    assert "web01-restored: disks restored; a sample of each was proven." in receipt.remarks
    [told, _] = [remark for remark in receipt.remarks if remark.startswith("Disk ")]
    assert "a sample of" in told
    assert "of 4.1 MiB read back and proved (seed " in told


async def test_a_restore_is_a_job(backed):
    job = Restore(
        backed.repository, "latest", into=backed.target(), path=lambda source, disk: _written(source, disk)
    )
    receipt = await job.run()
    assert backed.restored() == backed.digests
    assert receipt.point.machine.name == "web01"
    with pytest.raises(ConfigError, match="path="):
        Restore(backed.repository, "latest", into=Proof(), path=_written)


def _written(source, disk):
    return source | IntoVddkDisk(disk)


async def test_a_point_of_an_older_version_restores_from_its_summary(backed):
    """Points had neither the server's own answer nor where the VM was."""
    async with open_repository(backed.repository.path) as reader:
        point = reader.points[-1]
        known = {name: value for name, value in point.configuration.items() if name != "origin"}
        older = replace(point, configuration=known, documents={})
        settings = {"folder": "/Datacenter/vm", "pool": "Resources", "datastore": "datastore1"}
        receipt = await restore(reader, older, backed.target(**settings))
    assert not receipt.failures
    assert backed.restored() == backed.digests


async def test_a_point_without_a_vm_says_what_is_missing(backed):
    async with open_repository(backed.repository.path) as reader:
        point = replace(reader.points[-1], configuration={}, documents={})
        target = backed.target()
        with pytest.raises(MoverError) as caught:
            plan = await target.plan(Contents(reader, point, point.disks))
            plan.require_possible()
    assert caught.value.remedy
    await trio.lowlevel.checkpoint()
