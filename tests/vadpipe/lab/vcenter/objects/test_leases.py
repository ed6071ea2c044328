"""ImportVApp with a spec of our own: the lease, the streams of its disks, and its ends."""

import http.client
import os
import ssl
import subprocess
import time
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from pyVmomi import vim, vmodl

from tests.vadpipe.lab.vcenter.restoring import MIB, config, controller, devices, disk
from tests.vadpipe.lab.vcenter.stream_kit import GRAIN, stream
from vadpipe.lab.vcenter import Drop, refusing

STREAM = "application/x-vnd.vmware-streamVmdk"
CAPACITY = 40 * MIB  # more than one table of grains


@pytest.fixture
def importing(site, client, vcenter):
    """`start(spec)`: a lease, when it is no longer initializing; `send(url, data)`: the HTTP status."""
    context = ssl.create_default_context(cafile=vcenter.certificate)

    def start(spec=None, folder=site.folder):
        two_disks = (controller(), disk(CAPACITY, at=-1000), disk(4 * MIB, at=-1000, unit=1))
        spec = spec or config("web", *two_disks)
        lease = site.pool.ImportVApp(vim.vm.VmImportSpec(configSpec=spec), folder, None)
        for _ in range(500):
            if lease.state != "initializing":
                return lease
            time.sleep(0.01)
        raise AssertionError("the lease stays in its beginning")

    def send(url, data, method="POST", content_type=STREAM, **options):
        path = urlsplit(url.replace("*", vcenter.address)).path
        connection = http.client.HTTPSConnection(vcenter.address, vcenter.port, context=context)
        try:
            connection.request(method, path, data, {"Content-Type": content_type}, **options)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    return SimpleNamespace(start=start, send=send)


def by_place(lease):
    """The addresses by the last part of the import key: controller and unit."""
    return {one.importKey.rpartition("/")[2]: one for one in lease.info.deviceUrl}


def first_disk(lease):
    return by_place(lease)["ParaVirtualSCSIController0:0"].url


CONTENT = {0: b"boot", 5: os.urandom(GRAIN), 6: bytes(GRAIN), 600: b"far away"}


def test_the_streams_written_here_are_those_of_the_format(tmp_path):
    (tmp_path / "disk.vmdk").write_bytes(stream(CAPACITY, CONTENT))
    convert = ["qemu-img", "convert", "-O", "raw", tmp_path / "disk.vmdk", tmp_path / "disk.raw"]
    subprocess.run(convert, check=True)
    raw = (tmp_path / "disk.raw").read_bytes()
    assert len(raw) == CAPACITY
    assert raw[5 * GRAIN : 6 * GRAIN] == CONTENT[5]
    assert raw[600 * GRAIN :][:8] == b"far away"


@pytest.mark.parametrize("how", [{}, {"encode_chunked": True}, {"method": "PUT"}])
def test_an_imported_vm_has_what_was_sent(importing, site, vcenter, how):
    lease = importing.start()
    assert lease.state == "ready"
    vm = lease.info.entity
    assert len(lease.info.deviceUrl) == 2
    assert all(one.sslThumbprint == vcenter.thumbprint and one.disk for one in lease.info.deviceUrl)
    data = stream(CAPACITY, CONTENT)
    body = iter([data[:1000], data[1000:70000], data[70000:]]) if "encode_chunked" in how else data
    assert importing.send(first_disk(lease), body, **how) == 201
    lease.HttpNfcLeaseProgress(70)
    assert lease.transferProgress == 70
    (entry,) = lease.HttpNfcLeaseGetManifest()
    assert entry.size == len(data)
    lease.HttpNfcLeaseComplete()
    assert lease.state == "done"
    first = vcenter.disks(vm._moId)[0]
    assert first.read(5 * GRAIN, GRAIN) == CONTENT[5]
    assert first.read(600 * GRAIN, 8) == b"far away"
    assert vm in site.folder.childEntity
    file = vcenter.datastore("datastore1") / "web" / "web.vmdk"
    assert file.stat().st_blocks * 512 < MIB  # zeros of the stream are not allocated
    site.finish(vm.PowerOnVM_Task(None))


def test_disks_are_named_by_their_place_and_not_in_their_order(importing):
    lease = importing.start()
    keys = [one.importKey for one in lease.info.deviceUrl]
    assert keys == ["/web/ParaVirtualSCSIController0:1", "/web/ParaVirtualSCSIController0:0"]
    assert lease.info.totalDiskCapacityInKB == 44 * 1024


def test_a_vm_is_off_while_its_lease_lasts(importing, site):
    lease = importing.start()
    vm = lease.info.entity
    with pytest.raises(vim.fault.MethodDisabled):
        vm.PowerOnVM_Task(None)
    lease.HttpNfcLeaseComplete()
    site.finish(vm.PowerOnVM_Task(None))


@pytest.mark.parametrize("end", ["abort", "no progress", "bad stream"])
def test_a_lease_that_fails_takes_its_vm_along(importing, site, vcenter, end):
    if end == "no progress":
        vcenter.leases.timeout_s = 0.2
    lease = importing.start()
    if end == "abort":
        lease.HttpNfcLeaseAbort(None)
    elif end == "bad stream":
        assert importing.send(first_disk(lease), stream(CAPACITY, CONTENT, wrong_tables=True)) == 500
    for _ in range(300):
        if not site.folder.childEntity:
            break
        time.sleep(0.01)
    assert site.folder.childEntity == []
    assert lease.state == "error"
    expected = {
        "abort": vmodl.fault.RequestCanceled,
        "no progress": vim.fault.Timedout,
        "bad stream": vmodl.fault.SystemError,
    }
    assert isinstance(lease.error, expected[end])
    assert lease.info is None
    assert list(vcenter.datastore("datastore1").iterdir()) == []
    with pytest.raises(vim.fault.InvalidState):
        lease.HttpNfcLeaseProgress(10)


def test_progress_keeps_a_lease(importing, vcenter):
    vcenter.leases.timeout_s = 2.0
    lease = importing.start()
    for percent in range(5):
        time.sleep(0.5)
        lease.HttpNfcLeaseProgress(percent)
    assert lease.state == "ready"


@pytest.mark.parametrize(
    "data",
    [
        stream(4 * MIB, {0: b"x"}),  # of another size
        stream(CAPACITY, CONTENT)[:-100] + b"x" * 100,
        b"KDMV" + bytes(2000),
        stream(CAPACITY, CONTENT).replace(b"KDMV\x03", b"KDMV\x01", 1),
    ],
)
def test_another_stream_is_refused(importing, data):
    lease = importing.start()
    assert importing.send(first_disk(lease), data) == 500
    assert lease.state == "error"


def test_who_was_cut_off_may_send_the_disk_again(importing, vcenter):
    lease = importing.start()
    vm, data = lease.info.entity, stream(CAPACITY, CONTENT, end=False)
    assert importing.send(first_disk(lease), data) == 500
    assert lease.state == "ready"
    assert importing.send(first_disk(lease), stream(CAPACITY, {1: b"again"})) == 201
    first = vcenter.disks(vm._moId)[0]
    assert first.read(GRAIN, 5) == b"again"
    assert first.read(0, 4) == bytes(4)  # nothing of the first attempt


def test_a_request_is_refused(importing, vcenter):
    lease = importing.start()
    url, data = first_disk(lease), stream(CAPACITY, CONTENT)
    assert importing.send(url, data, content_type="application/octet-stream") == 415
    assert importing.send(url.replace("disk-0", "disk-9"), data) == 404
    vcenter.inject("/nfc", refusing(503))
    assert importing.send(url, data) == 503
    vcenter.inject("/nfc", Drop.BEFORE)
    with pytest.raises((http.client.HTTPException, ConnectionError, ssl.SSLError)):
        importing.send(url, data)
    lease.HttpNfcLeaseComplete()
    assert importing.send(url, data) == 404


def test_a_spec_that_no_server_takes_ends_the_lease(importing, site):
    lease = importing.start(config("web", path="[datastore9]"))
    assert lease.state == "error"
    assert isinstance(lease.error, vim.fault.InvalidDatastore)
    site.create(config("web"))
    with pytest.raises(vim.fault.DuplicateName):
        importing.start()
    with pytest.raises(vmodl.fault.InvalidArgument):
        importing.start(config("other"), None)


def test_an_import_fails_on_demand(importing, vcenter):
    vcenter.inject("ImportVApp", lambda: vim.fault.NoDiskSpace(file="x", datastore="y"), in_task=True)
    lease = importing.start()
    assert isinstance(lease.error, vim.fault.NoDiskSpace)
    vcenter.denied_privileges.add("VApp.Import")
    with pytest.raises(vim.fault.NoPermission):
        importing.start()


def test_a_restart_forgets_the_lease_and_keeps_the_vm(importing, vcenter, connect):
    lease = importing.start()
    vm = lease.info.entity
    vcenter.restart()
    client = connect(vcenter)
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vim.HttpNfcLease(lease._moId, client._stub).state  # noqa: B018
    assert 2000 in devices(vim.VirtualMachine(vm._moId, client._stub))
