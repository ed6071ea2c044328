"""A VM that moves takes everything with it that names its place; what is left behind reads as zeros."""

import pytest
from pyVmomi import vim

from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.inventory import DatastoreTraits, HostTraits

MIB = 1 << 20


@pytest.fixture
def second_host(vcenter):
    return vcenter.add_host(HostTraits("esxi02.lab.local"))


def backing_files(config):
    disks = [one for one in config.hardware.device if isinstance(one, vim.vm.device.VirtualDisk)]
    return [disk.backing.fileName for disk in disks]


def test_storage_vmotion_changes_every_name(vcenter, client, vm):
    vm.disks[0].write(0, b"before")
    snapshot = vm.snapshot()
    vm.disks[0].write(0, b"after!")
    vcenter.datastore("datastore2")
    (target,) = [
        one for one in client.content.rootFolder.childEntity[0].datastore if one.name == "datastore2"
    ]
    vm.finish(vm.api.RelocateVM_Task(vim.vm.RelocateSpec(datastore=target)))
    assert [one.name for one in vm.api.datastore] == ["datastore2"]
    config = vm.api.config
    assert config.files.snapshotDirectory.startswith("[datastore2] web01")
    assert config.files.vmPathName == "[datastore2] web01/web01.vmx"
    names = [
        *backing_files(config),
        *backing_files(snapshot.config),
        *(one.name for one in vm.api.layoutEx.file),
    ]
    assert names
    assert all(name.startswith("[datastore2] web01/") for name in names)
    manifest = vm.api.snapshot.rootSnapshotList[0].backupManifest
    assert manifest.startswith("[datastore2] web01/")
    assert not vm.directory.exists()
    assert vm.disks[0].read(0, 6) == b"after!"
    frozen = vm.disks[0].forks[0].frozen
    assert frozen.parent == vcenter.datastore("datastore2") / "web01"
    change_id = vm.disks[0].forks[0].change_id
    assert vm.api.QueryChangedDiskAreas(snapshot, 2000, 0, change_id).length == vm.disks[0].capacity
    vm.finish(snapshot.RemoveSnapshot_Task(False, True))
    assert vm.disks[0].read(0, 6) == b"after!"
    assert not vm.api.runtime.consolidationNeeded


def test_a_taken_directory_gets_a_number(vcenter, vm):
    (vcenter.datastore("datastore2") / "web01").mkdir()
    vcenter.move(vm.moref, datastore="datastore2")
    assert vm.api.config.files.vmPathName == "[datastore2] web01_1/web01.vmx"


def test_vmotion_changes_the_host_alone(vcenter, vm, second_host):
    before = backing_files(vm.api.config)
    vm.finish(vm.api.MigrateVM_Task(None, vim.HostSystem(second_host), "defaultPriority", None))
    assert vm.api.runtime.host._moId == second_host
    assert vm.api.runtime.host.name == "esxi02.lab.local"
    assert [one._moId for one in vm.api.runtime.host.vm] == [vm.moref]
    assert vm.api.resourcePool.owner.host == [vm.api.runtime.host]
    assert backing_files(vm.api.config) == before


def test_a_restarted_server_finds_a_moved_vm(tmp_path, make_vm):
    with LabVcenter(tmp_path / "world", task_s=0) as first:
        moref = make_vm(first)
        host = first.add_host(HostTraits("esxi02.lab.local"))
        first.datastore("datastore2")
        first.disks(moref)[0].write(0, b"kept")
        first.move(moref, host=host, datastore="datastore2")
    with LabVcenter(tmp_path / "world", task_s=0) as second:
        assert second.disks(moref)[0].read(0, 4) == b"kept"
        assert second._inventory.vms[moref].host == host


def test_a_move_is_refused(vcenter, vm, second_host):
    with pytest.raises(vim.fault.InvalidDatastore):
        vcenter.move(vm.moref, datastore="no such")
    vcenter.datastore("datastore2")
    vcenter._inventory.datastore_traits["datastore2"] = DatastoreTraits(hosts=[second_host])
    with pytest.raises(vim.fault.InvalidDatastore):
        vcenter.move(vm.moref, datastore="datastore2")
    vcenter.move(vm.moref, host=second_host, datastore="datastore2")
    vcenter._inventory.vms[vm.moref].disabled_methods.append("RelocateVM_Task")
    assert list(vm.api.disabledMethod) == ["RelocateVM_Task"]
    with pytest.raises(vim.fault.MethodDisabled):
        vcenter.move(vm.moref, datastore="datastore1")


def test_a_vm_that_a_vddk_client_locked_changes_its_host_only(vcenter, vm, second_host):
    (vcenter.root / "locks").mkdir()
    (vcenter.root / "locks" / vm.moref).write_text("a client")
    vcenter.datastore("datastore2")
    with pytest.raises(vim.fault.MethodDisabled):
        vcenter.move(vm.moref, datastore="datastore2")
    vcenter.move(vm.moref, host=second_host)
    assert vm.api.runtime.host._moId == second_host


def test_a_vm_with_a_task_at_work_stays(vcenter, vm, second_host):
    vcenter._service.tasks._task_s = 30  # until the lab stops
    vm.api.CreateSnapshot_Task("busy", "", False, False)
    with pytest.raises(vim.fault.TaskInProgress):
        vcenter.move(vm.moref, host=second_host)


def test_datastores_tell_which_hosts_mount_them(vcenter, client, vm, second_host):
    (datastore,) = vm.api.datastore
    assert {mount.key._moId for mount in datastore.host} == {"host-8", second_host}
    vcenter._inventory.datastore_traits["datastore1"] = DatastoreTraits(hosts=["host-8"])
    assert [mount.key._moId for mount in datastore.host] == ["host-8"]
    assert vim.HostSystem(second_host, client._stub).datastore == []


def test_the_lab_tells_privileges_and_licences(vcenter, client, vm):
    manager, session = client.content.authorizationManager, client.content.sessionManager.currentSession
    wanted = ["VirtualMachine.State.CreateSnapshot", "Datastore.Browse"]
    vcenter.denied_privileges.add("Datastore.Browse")
    (found,) = manager.HasPrivilegeOnEntities([vm.api], session.key, wanted)
    assert found.entity == vm.api
    assert {one.privId: one.isGranted for one in found.privAvailability} == {
        wanted[0]: True,
        wanted[1]: False,
    }
    vcenter.license("esxBasic")
    assert [one.editionKey for one in client.content.licenseManager.licenses] == ["esxBasic"]
    assert vm.api.capability.snapshotOperationsSupported
