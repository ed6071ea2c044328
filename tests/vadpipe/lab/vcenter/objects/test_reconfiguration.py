"""ReconfigVM_Task: disks, controllers, adapters and settings are added, changed and removed."""

import subprocess

import pytest
from pyVmomi import vim, vmodl

from tests.vadpipe.lab.vcenter.restoring import (
    KINDS,
    MIB,
    card,
    change,
    config,
    controller,
    devices,
    disk,
)
from vadpipe.lab.vcenter.state.inventory import DatastoreTraits


@pytest.fixture
def created(site):
    """A VM without disks, with two controllers and an adapter; `edit(*changes, **fields)` reconfigures it."""
    vm = site.create(config("web", controller(), controller(bus=1, key=-1001), card()))

    def edit(*changes, **fields):
        site.finish(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=list(changes), **fields)))
        return devices(vm)

    vm.__dict__["edit"] = edit
    return vm


@pytest.mark.parametrize(
    ("backing", "thin", "eager"),
    [
        ({"thinProvisioned": True}, True, None),
        ({"thinProvisioned": False}, False, None),
        ({"thinProvisioned": False, "eagerlyScrub": True}, False, True),
    ],
)
def test_disks_are_added_one_by_one_and_read_back(created, vcenter, backing, thin, eager):
    created.edit(disk(**backing))
    found = created.edit(disk(size=4 * MIB, unit=1, **backing))
    assert [found[key].backing.fileName for key in (2000, 2001)] == [
        "[datastore1] web/web.vmdk",
        "[datastore1] web/web_1.vmdk",
    ]
    assert [found[key].capacityInBytes for key in (2000, 2001)] == [8 * MIB, 4 * MIB]
    assert (found[2000].backing.thinProvisioned, found[2000].backing.eagerlyScrub) == (thin, eager)
    assert found[2000].backing.uuid != found[2001].backing.uuid
    file = vcenter.datastore("datastore1") / "web" / "web.vmdk"
    info = subprocess.run(["qemu-img", "info", file], capture_output=True, text=True, check=True).stdout
    assert "virtual size: 8 MiB" in info
    assert "disk" in {one.type.removesuffix("Descriptor") for one in created.layoutEx.file}


def test_the_vddk_configuration_tells_how_disks_are_provisioned(created, vcenter):
    created.edit(disk(thinProvisioned=False), disk(unit=1, thinProvisioned=False, eagerlyScrub=True))
    lines = (vcenter.root / "vddk.conf").read_text().splitlines()
    assert "lazy=[datastore1] web/web.vmdk" in lines
    assert "eager=[datastore1] web/web_1.vmdk" in lines
    assert f"vm={created._moId}" in lines


def test_a_given_identity_of_a_disk_is_kept(created):
    wanted = "6000C299-aaaa-bbbb-cccc-0123456789ab"
    assert created.edit(disk(uuid=wanted))[2000].backing.uuid.lower() == wanted.lower()


def test_a_disk_on_another_datastore_gets_a_directory_there(created, vcenter):
    vcenter.datastore("datastore2")
    found = created.edit(disk(path="[datastore2]"))
    assert found[2000].backing.fileName == "[datastore2] web/web.vmdk"
    assert sorted(one.name for one in created.datastore) == ["datastore1", "datastore2"]


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (lambda: disk(unit=7), vim.fault.InvalidDeviceSpec),
        (lambda: disk(unit=0, at=1000), vim.fault.InvalidDeviceSpec),  # taken
        (lambda: disk(unit=66), vim.fault.InvalidDeviceSpec),
        (lambda: disk(at=1003, unit=1), vim.fault.InvalidController),
        (lambda: disk(at=600, unit=1), vim.fault.InvalidController),
        (lambda: disk(at=None, unit=1), vim.fault.MissingController),
        (lambda: disk(size=1000, unit=1), vim.fault.InvalidDeviceSpec),
        (lambda: disk(size=0, unit=1), vim.fault.InvalidDeviceSpec),
        (lambda: disk(size=63 << 40, unit=1), vim.fault.FileTooLarge),
        (lambda: disk(unit=1, path="[datastore9] "), vim.fault.InvalidDatastore),
        (lambda: disk(unit=1, path="[datastore1] web/web.vmdk"), vim.fault.FileAlreadyExists),
        (lambda: disk(unit=1, path="[datastore1] no/such.vmdk"), vim.fault.FileNotFound),
        (lambda: disk(unit=1, path="[datastore1] no.vmdk", operation=None), vim.fault.FileNotFound),
        (lambda: controller(bus=1), vim.fault.InvalidDeviceSpec),
        (lambda: controller(bus=4), vim.fault.InvalidDeviceSpec),
        (lambda: change(KINDS.VirtualVideoCard(key=-1)), vim.fault.InvalidDeviceSpec),
        (lambda: change(KINDS.VirtualPCIPassthrough(key=-1)), vim.fault.InvalidDeviceBacking),
        (lambda: change(KINDS.VirtualDisk(key=2005), "remove"), vim.fault.DeviceNotFound),
        (lambda: change(KINDS.VirtualVmxnet3(key=4005), "edit"), vim.fault.DeviceNotFound),
        (lambda: change(KINDS.VirtualIDEController(key=300), "remove"), vim.fault.InvalidDeviceSpec),
    ],
)
def test_a_refused_change_of_devices_names_it_and_changes_nothing(created, vcenter, wrong, fault):
    created.edit(disk())
    before, files = devices(created), list((vcenter.datastore("datastore1") / "web").iterdir())
    with pytest.raises(fault) as refused:
        created.edit(disk(unit=3), wrong())
    if issubclass(fault, vim.fault.InvalidDeviceSpec):
        assert refused.value.deviceIndex == 1
    assert set(devices(created)) == set(before)
    assert list((vcenter.datastore("datastore1") / "web").iterdir()) == files


def test_unit_7_is_refused_with_the_index_of_the_device(created):
    with pytest.raises(vim.fault.InvalidDeviceSpec) as refused:
        created.edit(disk(unit=7))
    assert refused.value.deviceIndex == 0
    assert "unitNumber" in refused.value.property


def test_two_new_disks_in_one_unit_are_refused(created):
    with pytest.raises(vim.fault.InvalidDeviceSpec) as refused:
        created.edit(disk(unit=2), disk(unit=2))
    assert refused.value.deviceIndex == 1


def test_a_thick_disk_needs_its_space_and_gives_it_back(created, vcenter):
    vcenter.datastore("small")
    vcenter._inventory.datastore_traits["small"] = DatastoreTraits(free=10 * MIB)
    thick = {"path": "[small] ", "thinProvisioned": False}
    created.edit(disk(**thick))
    with pytest.raises(vim.fault.NoDiskSpace) as refused:
        created.edit(disk(unit=1, **thick))
    assert refused.value.datastore == "small"
    created.edit(disk(unit=1, path="[small] ", thinProvisioned=True))  # takes nothing yet
    created.edit(change(KINDS.VirtualDisk(key=2000), "remove", "destroy"))
    created.edit(disk(unit=2, **thick))


def test_a_removed_disk_keeps_its_file_unless_it_is_destroyed(created, vcenter):
    created.edit(disk(), disk(unit=1))
    found = created.edit(
        change(KINDS.VirtualDisk(key=2000), "remove"),
        change(KINDS.VirtualDisk(key=2001), "remove", "destroy"),
    )
    assert not {2000, 2001} & set(found)
    directory = vcenter.datastore("datastore1") / "web"
    assert (directory / "web.vmdk").exists()
    assert not (directory / "web_1.vmdk").exists()
    again = created.edit(disk(path="[datastore1] web/web.vmdk", operation=None))
    assert again[2000].capacityInBytes == 8 * MIB


def test_the_boot_order_comes_after_the_disks(created):
    order = [vim.vm.BootOptions.BootableDiskDevice(deviceKey=2000)]
    with pytest.raises(vmodl.fault.InvalidArgument):
        created.edit(bootOptions=vim.vm.BootOptions(bootOrder=order))
    created.edit(disk())
    created.edit(bootOptions=vim.vm.BootOptions(bootOrder=order))
    created.edit(bootOptions=vim.vm.BootOptions(bootDelay=10))
    assert [entry.deviceKey for entry in created.config.bootOptions.bootOrder] == [2000]
    assert created.config.bootOptions.bootDelay == 10


def test_an_adapter_is_edited(created):
    before = devices(created)[4000]
    connectable = KINDS.VirtualDevice.ConnectInfo(
        startConnected=False, connected=False, allowGuestControl=True
    )
    edited = KINDS.VirtualVmxnet3(
        key=4000, backing=before.backing, connectable=connectable, macAddress="00:11:22:33:44:55"
    )
    edited.addressType = "manual"
    after = created.edit(change(edited, "edit"))[4000]
    assert (after.macAddress, after.connectable.startConnected) == ("00:11:22:33:44:55", False)
    assert after.unitNumber == before.unitNumber


def test_settings_are_changed(created):
    created.edit(
        name="web-restored",
        annotation="from a backup",
        changeTrackingEnabled=True,
        extraConfig=[vim.option.OptionValue(key="a.b", value="1")],
    )
    assert (created.name, created.config.annotation) == ("web-restored", "from a backup")
    assert created.config.changeTrackingEnabled
    created.edit(extraConfig=[vim.option.OptionValue(key="a.b", value="")])
    assert "a.b" not in {option.key for option in created.config.extraConfig}


def test_a_taken_name_is_refused(created, site):
    site.create(config("other"))
    with pytest.raises(vim.fault.DuplicateName):
        created.edit(name="other")


def test_a_running_vm_takes_disks_and_no_new_firmware(created, site):
    created.edit(disk())
    site.finish(created.PowerOnVM_Task(None))
    assert 2001 in created.edit(disk(unit=1))
    with pytest.raises(vim.fault.InvalidPowerState):
        created.edit(firmware="efi")


def test_a_vm_with_snapshots_keeps_its_disks(created, site):
    created.edit(disk())
    snapshot = site.finish(created.CreateSnapshot_Task("before", "", False, False))
    found = created.edit(disk(unit=1))
    assert found[2000].backing.fileName == "[datastore1] web/web-000001.vmdk"
    assert found[2000].backing.parent.fileName == "[datastore1] web/web.vmdk"
    assert 2001 not in {one.key for one in snapshot.config.hardware.device}
    with pytest.raises(vim.fault.InvalidDeviceOperation):
        created.edit(change(KINDS.VirtualDisk(key=2000), "remove", "destroy"))


def test_a_registered_vm_takes_a_disk(vm):
    before = devices(vm.api)
    spec = vim.vm.ConfigSpec(deviceChange=[disk(unit=4), card()])
    vm.finish(vm.api.ReconfigVM_Task(spec))
    after = devices(vm.api)
    assert {2000, 2001, 2004, 4000, 1000} <= set(after)
    assert after[2000].backing.fileName == before[2000].backing.fileName
    assert after[2004].backing.fileName == "[datastore1] web01/web01.vmdk"
    assert vm.api.config.guestId == "windows2019srv_64Guest"


def test_a_disk_of_another_vm_is_attached_by_hand(created, vm, site):
    name = devices(vm.api)[2000].backing.fileName
    by_hand = disk(path=name, operation=None, diskMode="independent_nonpersistent")
    assert created.edit(by_hand)[2000].backing.fileName == name
    with pytest.raises(vim.fault.FileLocked):
        created.edit(disk(unit=1, path=name, operation=None))
    created.edit(change(KINDS.VirtualDisk(key=2000), "remove"))
    assert devices(vm.api)[2000].backing.fileName == name


@pytest.mark.parametrize(
    ("fields", "privilege"),
    [
        ({"annotation": "x"}, "VirtualMachine.Config.Annotation"),
        ({"changeTrackingEnabled": True}, "VirtualMachine.Config.ChangeTracking"),
        ({"deviceChange": [disk()]}, "VirtualMachine.Config.AddNewDisk"),
        ({"deviceChange": [disk()]}, "Datastore.AllocateSpace"),
        ({"deviceChange": [card(key=-2)]}, "Network.Assign"),
    ],
)
def test_a_missing_privilege_is_named(created, vcenter, fields, privilege):
    vcenter.denied_privileges.add(privilege)
    with pytest.raises(vim.fault.NoPermission) as refused:
        created.ReconfigVM_Task(vim.vm.ConfigSpec(**fields))
    assert refused.value.privilegeId == privilege


def test_the_vmx_file_tells_what_the_vm_has(created, vcenter):
    created.edit(controller(KINDS.VirtualNVMEController, key=-3), disk(at=1001, unit=2), disk(at=-3))
    vmx = (vcenter.datastore("datastore1") / "web" / "web.vmx").read_text().splitlines()
    assert {
        'scsi0.virtualDev = "pvscsi"',
        'scsi1:2.fileName = "web.vmdk"',
        'nvme0:0.fileName = "web_1.vmdk"',
        f'ethernet0.address = "{devices(created)[4000].macAddress}"',
        'firmware = "bios"',
        'virtualHW.version = "21"',
    } <= set(vmx)
