"""A lab vCenter, VMs with small disks in it, and unmodified pyVmomi clients."""

from types import SimpleNamespace

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim

from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter.server import LabVcenter

MIB = 1 << 20


@pytest.fixture
def vcenter(tmp_path):
    with LabVcenter(tmp_path / "lab", task_s=0.02) as running:
        yield running


@pytest.fixture
def connect():
    """A function: a logged-in ServiceInstance of a LabVcenter; logged out at the end."""
    open_clients = []

    def connect(vcenter, **options):
        account = {"user": "backup", "pwd": "lab", "thumbprint": vcenter.thumbprint}
        client = SmartConnect(host=vcenter.address, port=vcenter.port, **account | options)
        open_clients.append(client)
        return client

    yield connect
    for client in open_clients:
        Disconnect(client)


@pytest.fixture
def client(vcenter, connect):
    return connect(vcenter)


def _make_vm(vcenter, name="web01", sizes=(8 * MIB, 4 * MIB), **options):
    """Register a VM with fresh disks; its moref."""
    directory = vcenter.datastore("datastore1") / name
    disks = [LabDisk.create(directory, f"{name}_{index}", size) for index, size in enumerate(sizes)]
    return vcenter.register_vm(directory, name, disks, **options)


@pytest.fixture
def vm(vcenter, client):
    """A VM with two disks and change tracking: `api` as the client sees it, `disks` as its guest does."""
    moref = _make_vm(vcenter, change_tracking=True)
    api = vim.VirtualMachine(moref, client._stub)

    def snapshot(context="ctx_backup", **options):
        spec = vim.vm.WindowsQuiesceSpec(vssBackupContext=context, **options)
        return _finish(client, api.CreateSnapshotEx_Task("backup", "of a test", False, spec))

    return SimpleNamespace(
        moref=moref,
        api=api,
        disks=vcenter.disks(moref),
        directory=vcenter.root / "datastores" / "datastore1" / "web01",
        snapshot=snapshot,
        finish=lambda task: _finish(client, task),
    )


def _finish(client, task):
    """Wait for a task with pyVmomi's own tool; its result. Raises its error."""
    WaitForTask(task, si=client)
    return task.info.result


@pytest.fixture
def make_vm():
    return _make_vm


@pytest.fixture
def finish():
    return _finish


@pytest.fixture
def site(vcenter, client):
    """Where VMs are created: the datacenter, its folder of VMs, the pool, and `create(spec)`."""
    datacenter = client.content.rootFolder.childEntity[0]
    pool = datacenter.hostFolder.childEntity[0].resourcePool

    def create(spec, folder=None, host=None):
        return _finish(client, (folder or datacenter.vmFolder).CreateVM_Task(spec, pool, host))

    return SimpleNamespace(
        datacenter=datacenter,
        folder=datacenter.vmFolder,
        pool=pool,
        create=create,
        finish=lambda task: _finish(client, task),
    )
