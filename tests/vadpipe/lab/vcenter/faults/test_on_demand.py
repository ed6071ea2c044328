"""`/folder` and manifests that misbehave when they are told to, and well-behaved otherwise."""

import http.client
import ssl

import pytest
from pyVmomi import vim

from vadpipe.lab.vcenter.faults.injection import Delay, Drop
from vadpipe.lab.vcenter.faults.on_demand import refusing
from vadpipe.lab.vcenter.server import LabVcenter

CONTENT = bytes(range(256)) * 40
QUERY = "?dcPath=Datacenter&dsName=datastore1"


@pytest.fixture
def get(vcenter, client):
    """A function that asks for a file with the session's cookie: status, headers, body."""
    (vcenter.datastore("datastore1") / "file").write_bytes(CONTENT)
    context = ssl.create_default_context(cafile=vcenter.certificate)

    def get(query=QUERY, **headers):
        connection = http.client.HTTPSConnection(vcenter.address, vcenter.port, context=context, timeout=10)
        try:
            cookie = {"Cookie": client._stub.cookie.partition(";")[0]}
            connection.request("GET", f"/folder/file{query}", headers=cookie | headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    return get


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_one_request_is_refused(vcenter, get, status):
    vcenter.inject("/folder", refusing(status), nth=2)
    assert [get()[0] for _ in range(3)] == [200, status, 200]


def test_a_connection_may_break_after_half_of_a_file(vcenter, get):
    vcenter.inject("/folder", Drop.AFTER)
    with pytest.raises((http.client.IncompleteRead, ssl.SSLError)):
        get()
    vcenter.inject("/folder", Delay(0.01), after=True)
    assert get()[2] == CONTENT
    assert vcenter.folder.bytes_sent == 1.5 * len(CONTENT)


def test_a_server_may_refuse_ranges_versions_and_cookies(vcenter, get):
    part = {"Range": "bytes=5-"}
    status, headers, body = get(**part)
    assert (status, body) == (206, CONTENT[5:])
    assert headers["Last-Modified"].endswith("GMT")
    vcenter.folder.ranges = vcenter.folder.versions = False
    status, headers, body = get(**part)
    assert (status, body, headers["Last-Modified"]) == (200, CONTENT, None)
    vcenter.folder.accepts = {"basic", "ticket"}
    assert get()[0] == 401


def test_an_esxi_host_has_one_datacenter(tmp_path, connect):
    with LabVcenter(tmp_path / "host", api_type="HostAgent") as host:
        (host.datastore("datastore1") / "file").write_bytes(CONTENT)
        context = ssl.create_default_context(cafile=host.certificate)
        connection = http.client.HTTPSConnection(host.address, host.port, context=context)
        cookie = connect(host)._stub.cookie.partition(";")[0]
        connection.request("GET", "/folder/file?dsName=datastore1", headers={"Cookie": cookie})
        assert connection.getresponse().read() == CONTENT
        connection.close()


def told(vm):
    (entry,) = vm.api.snapshot.rootSnapshotList
    return entry.backupManifest


def zips(vm):
    return sorted(path.name for path in vm.directory.glob("*manifest*"))


def test_manifests_come_as_they_are_told_to(vcenter, vm):
    vcenter.manifests.relative = True
    vm.snapshot()
    assert told(vm) == "web01-vss_manifests1.zip"
    vcenter.manifests.named = False
    assert told(vm) is None
    assert zips(vm) == ["web01-vss_manifests1.zip"]


def test_a_manifest_may_come_late_or_under_the_last_number(vcenter, vm):
    (vm.directory / "web01-vss_manifests4.zip").write_bytes(b"old")
    vcenter.manifests.reuse_numbers = vcenter.manifests.late = True
    vm.snapshot()
    assert (vm.directory / "web01-vss_manifests4.zip").read_bytes() == b"old"
    vcenter.manifests.release()
    assert (vm.directory / "web01-vss_manifests4.zip").read_bytes().startswith(b"PK")
    assert zips(vm) == ["web01-vss_manifests4.zip"]


def test_the_host_tells_where_it_answers(vcenter, client, vm):
    config = vim.HostSystem("host-8", client._stub).summary.config
    assert (config.port, config.sslThumbprint) == (443, vcenter.thumbprint)
