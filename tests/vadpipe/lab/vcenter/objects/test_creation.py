"""Folder.CreateVM_Task, and the ends of a VM."""

import pytest
from pyVmomi import vim, vmodl

from tests.vadpipe.lab.vcenter.restoring import KINDS, card, config, controller, devices, disk
from vadpipe.lab.vcenter.faults.injection import Event
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.inventory import DatastoreTraits, HostTraits


def test_a_created_vm_has_the_devices_that_a_server_makes(site):
    vm = site.create(config())
    found = devices(vm)
    assert {key: type(device).__name__.rpartition(".")[2] for key, device in found.items()} == {
        100: "VirtualPCIController",
        200: "VirtualIDEController",
        201: "VirtualIDEController",
        300: "VirtualPS2Controller",
        400: "VirtualSIOController",
        500: "VirtualVideoCard",
        600: "VirtualKeyboard",
        700: "VirtualPointingDevice",
        12000: "VirtualVMCIDevice",
    }
    assert list(found[300].device) == [600, 700]
    assert vm.runtime.powerState == "poweredOff"
    assert site.folder.childEntity == [vm]
    assert vm.parent == site.folder


def test_temporary_keys_become_those_of_a_real_server(site):
    vm = site.create(
        config(
            "web02",
            controller(KINDS.VirtualNVMEController, key=-31000),
            controller(KINDS.VirtualLsiLogicSASController, bus=1, key=-7),
            controller(),
            controller(KINDS.VirtualAHCIController, key=-15000),
            card(),
            card(KINDS.VirtualE1000e, key=-4001),
            disk(at=-1000),
            disk(at=-7, unit=2),
            disk(at=-31000),
            disk(at=-15000, unit=3),
        )
    )
    found = devices(vm)
    assert set(found) >= {1000, 1001, 15000, 31000, 4000, 4001, 2000, 2018, 32000, 16003}
    assert isinstance(found[1001], KINDS.VirtualLsiLogicSASController)
    assert (found[2018].controllerKey, found[2018].unitNumber) == (1001, 2)
    assert list(found[1000].device) == [2000]
    assert found[1000].scsiCtlrUnitNumber == 7
    assert found[4000].controllerKey == 100
    assert {4000, 4001, 1000} <= set(found[100].device)
    names = {found[key].backing.fileName for key in (2000, 2018, 32000, 16003)}
    base = "[datastore1] web02/web02"
    assert names == {f"{base}.vmdk", f"{base}_1.vmdk", f"{base}_2.vmdk", f"{base}_3.vmdk"}


def test_a_created_vm_shows_what_its_spec_said(site):
    boot = vim.vm.BootOptions(efiSecureBootEnabled=True, bootDelay=5000)
    vm = site.create(
        config(
            "efi01",
            guestId="windows2019srv_64Guest",
            firmware="efi",
            bootOptions=boot,
            annotation="restored",
            numCPUs=4,
            numCoresPerSocket=2,
            memoryMB=2048,
            version="vmx-17",
            uuid="421D4F6A-0000-4000-8000-0123456789AB",
            flags=vim.vm.FlagInfo(vbsEnabled=True, vvtdEnabled=True),
            extraConfig=[vim.option.OptionValue(key="disk.EnableUUID", value="TRUE")],
            powerOpInfo=vim.vm.DefaultPowerOpInfo(powerOffType="soft"),
            memoryAllocation=vim.ResourceAllocationInfo(reservation=512),
            cpuHotAddEnabled=True,
        )
    )
    shown = vm.config
    assert (shown.guestId, shown.firmware, shown.version) == ("windows2019srv_64Guest", "efi", "vmx-17")
    assert (shown.bootOptions.efiSecureBootEnabled, shown.bootOptions.bootDelay) == (True, 5000)
    assert shown.annotation == vm.summary.config.annotation == "restored"
    assert (shown.hardware.numCPU, shown.hardware.numCoresPerSocket, shown.hardware.memoryMB) == (4, 2, 2048)
    assert (vm.summary.config.numCpu, vm.summary.config.memorySizeMB) == (4, 2048)
    assert shown.uuid == "421d4f6a-0000-4000-8000-0123456789ab"
    assert shown.flags.vbsEnabled
    assert shown.flags.diskUuidEnabled
    assert shown.defaultPowerOps.powerOffType == "soft"
    assert shown.memoryAllocation.reservation == 512
    assert shown.cpuHotAddEnabled
    assert {option.key: option.value for option in shown.extraConfig}["disk.EnableUUID"] == "TRUE"
    assert shown.files.vmPathName == "[datastore1] efi01/efi01.vmx"


def test_ids_and_addresses_are_made_where_none_is_given(site, client):
    first, second = (site.create(config(name, card())) for name in ("a", "b"))
    found = [vm.config for vm in (first, second)]
    assert len({one.uuid for one in found} | {one.instanceUuid for one in found}) == 4
    assert client.content.searchIndex.FindAllByUuid(None, found[0].uuid, True, False) == [first]
    cards = [devices(vm)[4000] for vm in (first, second)]
    assert all(one.macAddress.startswith("00:50:56:") and one.addressType == "assigned" for one in cards)
    assert cards[0].macAddress != cards[1].macAddress


def test_a_taken_instance_uuid_is_replaced_and_a_uuid_is_not(site):
    first = site.create(config("a")).config
    second = site.create(config("b", uuid=first.uuid, instanceUuid=first.instanceUuid)).config
    assert second.uuid == first.uuid
    assert second.instanceUuid != first.instanceUuid
    free = "50000000-1111-4222-8333-444444444444"
    assert site.create(config("c", instanceUuid=free)).config.instanceUuid == free


def test_a_manual_address_is_kept(site):
    vm = site.create(config("a", card(addressType="manual", macAddress="00:50:56:AA:BB:CC")))
    assert devices(vm)[4000].macAddress == "00:50:56:aa:bb:cc"


def test_a_taken_directory_gets_a_number_and_a_taken_name_is_refused(site, vcenter):
    (vcenter.datastore("datastore1") / "web").mkdir()
    assert site.create(config("web")).config.files.vmPathName == "[datastore1] web_1/web.vmx"
    with pytest.raises(vim.fault.DuplicateName):
        site.create(config("web"))
    other = site.folder.CreateFolder("Other")
    assert site.create(config("web"), other).config.files.vmPathName == "[datastore1] web_2/web.vmx"
    with pytest.raises(vim.fault.DuplicateName):
        site.folder.CreateFolder("Other")


def test_a_given_directory_is_used_unless_it_is_there(site, vcenter):
    vm = site.create(config("web", path="[datastore1] mine/other.vmx"))
    assert vm.config.files.vmPathName == "[datastore1] mine/other.vmx"
    with pytest.raises(vim.fault.AlreadyExists):
        site.create(config("web2", path="[datastore1] mine/third.vmx"))


def _unknown_portgroup():
    port = vim.dvs.PortConnection(switchUuid="no such", portgroupKey="dvportgroup-1")
    return card(backing=KINDS.VirtualEthernetCard.DistributedVirtualPortBackingInfo(port=port))


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        (lambda: config("a", path=None), vim.fault.InvalidVmConfig),
        (lambda: config("", path="[datastore1]"), vim.fault.InvalidName),
        (lambda: config("a", path="datastore1"), vim.fault.InvalidDatastorePath),
        (lambda: config("a", path="[datastore9]"), vim.fault.InvalidDatastore),
        (lambda: config("a", path="[full]"), vim.fault.InaccessibleDatastore),
        (lambda: config("a", version="vmx-22"), vim.fault.VirtualHardwareVersionNotSupported),
        (lambda: config("a", guestId="ms-dos"), vmodl.fault.InvalidArgument),
        (lambda: config("a", firmware="coreboot"), vmodl.fault.InvalidArgument),
        (lambda: config("a", memoryMB=3), vim.fault.InvalidVmConfig),
        (lambda: config("a", card(network="no such")), vim.fault.InvalidDeviceBacking),
        (lambda: config("a", _unknown_portgroup()), vim.fault.InvalidDeviceBacking),
        (
            lambda: config(
                "a",
                bootOptions=vim.vm.BootOptions(
                    bootOrder=[vim.vm.BootOptions.BootableDiskDevice(deviceKey=2000)]
                ),
            ),
            vmodl.fault.InvalidArgument,
        ),
        (
            lambda: config("a", latencySensitivity=vim.LatencySensitivity(level="custom")),
            vmodl.fault.InvalidArgument,
        ),
    ],
)
def test_a_refused_spec_leaves_nothing(site, vcenter, spec, fault):
    vcenter.datastore("full")
    vcenter._inventory.datastore_traits["full"] = DatastoreTraits(accessible=False)
    with pytest.raises(fault):
        site.create(spec())
    assert site.folder.childEntity == []
    assert list(vcenter.datastore("datastore1").iterdir()) == []


def test_a_host_in_maintenance_takes_no_vm(site, vcenter):
    vcenter._inventory.hosts["host-8"].maintenance = True
    with pytest.raises(vim.fault.InvalidState):
        site.create(config())


def test_an_old_host_takes_no_new_hardware(site, vcenter):
    vcenter._inventory.hosts["host-8"] = HostTraits(version="6.7.0")
    with pytest.raises(vim.fault.VirtualHardwareVersionNotSupported):
        site.create(config("a", version="vmx-19"))
    assert site.create(config("b")).config.version == "vmx-14"


@pytest.mark.parametrize(
    "privilege",
    [
        "VirtualMachine.Inventory.Create",
        "VirtualMachine.Config.AddNewDisk",
        "Datastore.AllocateSpace",
        "Network.Assign",
        "Resource.AssignVMToPool",
    ],
)
def test_a_missing_privilege_is_named(site, vcenter, privilege):
    vcenter.denied_privileges.add(privilege)
    with pytest.raises(vim.fault.NoPermission) as refused:
        site.create(config("a", controller(), disk(at=-1000), card()))
    assert refused.value.privilegeId == privilege


def test_destroying_deletes_the_files_of_the_vm_alone(site, vcenter):
    vm = site.create(config("web", controller(), disk(at=-1000), disk(at=-1000, unit=1)))
    directory = vcenter.datastore("datastore1") / "web"
    site.finish(vm.PowerOnVM_Task(None))
    with pytest.raises(vim.fault.InvalidPowerState):
        site.finish(vm.Destroy_Task())
    site.finish(vm.PowerOffVM_Task())
    (directory / "README.txt").write_text("of somebody else")
    site.finish(vm.Destroy_Task())
    assert [path.name for path in directory.iterdir()] == ["README.txt"]
    assert site.folder.childEntity == []
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vm.config  # noqa: B018


@pytest.mark.parametrize("method", ["ReconfigVM_Task", "PowerOnVM_Task", "Destroy_Task"])
def test_a_task_makes_nothing_where_somebody_deleted_the_vm_before_it_worked(site, vcenter, method):
    vm = site.create(config("web", controller()))
    vcenter.inject(method, Event(lambda: vcenter.delete_vm(vm._moId)), in_task=True)
    spec = [vim.vm.ConfigSpec(deviceChange=[disk(at=1000, unit=1)])] if method == "ReconfigVM_Task" else []
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        site.finish(getattr(vm, method)(*spec))
    assert not (vcenter.datastore("datastore1") / "web").exists()


def test_unregistering_keeps_the_files(site, vcenter):
    vm = site.create(config("web", controller(), disk(at=-1000)))
    vm.UnregisterVM()
    names = {path.name for path in (vcenter.datastore("datastore1") / "web").iterdir()}
    assert {"web.vmx", "web.vmdk"} <= names
    assert site.folder.childEntity == []


def test_a_restarted_server_knows_the_created_vm(tmp_path, connect):
    with LabVcenter(tmp_path / "world", task_s=0) as first:
        client = connect(first)
        datacenter = client.content.rootFolder.childEntity[0]
        pool = datacenter.hostFolder.childEntity[0].resourcePool
        spec = config("web", controller(), disk(at=-1000), card(), annotation="kept", firmware="efi")
        task = datacenter.vmFolder.CreateVM_Task(spec, pool, None)
        while task.info.state not in ("success", "error"):
            pass
        before = task.info.result.config
        moref = task.info.result._moId
    with LabVcenter(tmp_path / "world", task_s=0) as second:
        after = vim.VirtualMachine(moref, connect(second)._stub).config
        assert (after.annotation, after.firmware, after.uuid) == ("kept", "efi", before.uuid)
        assert {one.key for one in after.hardware.device} == {one.key for one in before.hardware.device}
        assert second.disks(moref)[0].capacity == 8 << 20
