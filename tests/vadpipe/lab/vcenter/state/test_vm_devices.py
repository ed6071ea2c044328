"""What the lab's vCenter tells of disk chains: in the tree, in configurations, in the layout of files."""

from typing import Any

import pytest
from pyVmomi import vim, vmodl

from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.inventory import VmTraits

Collector = vmodl.query.PropertyCollector
APPLICATIONS = vim.vm.WindowsQuiesceSpec(vssBackupContext="ctx_backup")


def _chain(config):
    """The names of the first disk's files, as the configuration names them, and what they hang on."""
    (disk, *_) = [one for one in config.hardware.device if isinstance(one, vim.vm.device.VirtualDisk)]
    names: list[str] = []
    backing: Any = disk.backing
    while backing is not None:
        names.append(backing.fileName.rpartition("/")[2])
        backing = backing.parent
    return names


@pytest.fixture
def quiesced(vcenter, client, make_vm, finish):
    """A function: a VM with one disk, and the snapshot that its task named."""

    def quiesced(form):
        moref = make_vm(vcenter, sizes=(1 << 20,), traits=VmTraits(quiesced_form=form))
        api = vim.VirtualMachine(moref, client._stub)
        return api, finish(client, api.CreateSnapshotEx_Task("backup", "ours", False, APPLICATIONS))

    return quiesced


def test_the_running_disk_does_not_hang_on_the_writers_redo_log(quiesced):
    api, snapshot = quiesced("one snapshot")
    assert _chain(snapshot.config) == ["web01_0-000002.vmdk", "web01_0.vmdk"]
    assert _chain(api.config) == ["web01_0-000001.vmdk", "web01_0.vmdk"]


@pytest.mark.parametrize(("form", "said"), [("siblings", "ours"), ("unmarked sibling", "")])
def test_siblings_name_what_was_frozen_and_what_writers_change(quiesced, form, said):
    api, snapshot = quiesced(form)
    fixed, writable = api.snapshot.rootSnapshotList
    assert fixed.snapshot == snapshot == api.snapshot.currentSnapshot
    assert list(api.rootSnapshot) == [fixed.snapshot, writable.snapshot]
    assert _chain(fixed.snapshot.config) == ["web01_0.vmdk"]
    assert _chain(writable.snapshot.config) == ["web01_0-000002.vmdk", "web01_0.vmdk"]
    assert (fixed.description, writable.description) == ("ours", said)


def test_a_later_snapshot_is_a_child_of_the_frozen_one(quiesced, vcenter):
    api, snapshot = quiesced("siblings")
    later = vcenter.take_snapshot(api._moId, "later")
    fixed, writable = api.snapshot.rootSnapshotList
    (child,) = fixed.childSnapshotList
    assert (fixed.snapshot, child.snapshot._moId) == (snapshot, later)
    assert writable.childSnapshotList == []
    assert list(snapshot.childSnapshot) == [child.snapshot]
    assert list(writable.snapshot.childSnapshot) == []


@pytest.mark.parametrize("first", [0, 1])
def test_redo_logs_stay_until_both_siblings_are_removed(quiesced, vcenter, client, finish, first):
    api, _ = quiesced("siblings")
    both = [entry.snapshot for entry in api.snapshot.rootSnapshotList]
    finish(client, both[first].RemoveSnapshot_Task(False, True))
    assert len(_chain(api.config)) == 2
    (left,) = api.snapshot.rootSnapshotList
    finish(client, left.snapshot.RemoveSnapshot_Task(False, True))
    assert _chain(api.config) == ["web01_0.vmdk"]
    assert api.snapshot is None
    assert not vcenter.needs_consolidation(api._moId)


def test_siblings_outlive_the_server(quiesced, vcenter):
    api, _ = quiesced("siblings")
    before = vcenter.snapshots(api._moId)
    with LabVcenter(vcenter.root) as again:
        assert again.snapshots(api._moId) == before
        assert len(before) == 2


def test_the_layout_lists_what_the_vm_knows_of(quiesced, vcenter):
    api, _ = quiesced("one snapshot")
    (vcenter.datastore("datastore1") / "web01" / "stray.vmdk").write_bytes(b"")
    names = {file.name.rpartition("/")[2] for file in api.layoutEx.file}
    assert {"web01_0.vmdk", "web01_0-000001.vmdk", "web01_0-000002.vmdk", "web01.vmx"} <= names
    assert "stray.vmdk" not in names


def test_asked_properties_are_noted_and_can_be_left_unset(vcenter, client, make_vm):
    api = vim.VirtualMachine(make_vm(vcenter), client._stub)
    collector = client.RetrieveContent().propertyCollector
    spec = Collector.FilterSpec(
        objectSet=[Collector.ObjectSpec(obj=api)],
        propSet=[Collector.PropertySpec(type=vim.VirtualMachine, pathSet=["name", "config.uuid"])],
    )

    def read():
        (found,) = collector.RetrieveContents([spec])
        return {item.name for item in found.propSet}

    assert read() == {"name", "config.uuid"}
    assert (vim.VirtualMachine, "config.uuid") in vcenter.asked
    vcenter.leave_unset("config.uuid")
    assert read() == {"name"}
    vcenter.leave_unset()
    assert read() == {"name", "config.uuid"}
