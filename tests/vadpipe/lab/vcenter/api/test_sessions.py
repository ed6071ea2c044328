"""Connecting, logging in, sessions, restarts, the process."""

import hashlib
import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim, vmodl
from pyVmomi.SoapAdapter import SoapStubAdapter

from vadpipe.lab.vcenter.faults.injection import Drop
from vadpipe.lab.vcenter.server import LabVcenter

_ENVELOPE = (
    '<?xml version="1.0"?><e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/"><e:Body>'
    '<{method} xmlns="urn:vim25"><_this type="{kind}">{moref}</_this>{arguments}</{method}>'
    "</e:Body></e:Envelope>"
)


def post(vcenter, method, kind, moref, arguments="", headers=()):
    """A call written by hand: status, headers and the parsed answer, without pyVmomi's codec."""
    context = ssl.create_default_context(cafile=vcenter.certificate)
    connection = http.client.HTTPSConnection(vcenter.address, vcenter.port, context=context)
    body = _ENVELOPE.format(method=method, kind=kind, moref=moref, arguments=arguments)
    connection.request("POST", "/sdk", body, {"SOAPAction": "urn:vim25/8.0.3.0", **dict(headers)})
    response = connection.getresponse()
    answer = ElementTree.fromstring(response.read())
    connection.close()
    return response.status, response.headers, answer


def vddk_conf(vcenter):
    lines = (vcenter.root / "vddk.conf").read_text().splitlines()
    return Counter(line.partition("=")[0] for line in lines), lines


def test_thumbprints_are_those_of_the_certificate_served(vcenter):
    context = ssl._create_unverified_context()
    with (
        socket.create_connection((vcenter.address, vcenter.port)) as connection,
        context.wrap_socket(connection) as tls,
    ):
        served = tls.getpeercert(binary_form=True)
    assert vcenter.thumbprint.replace(":", "").lower() == hashlib.sha1(served).hexdigest()
    assert vcenter.thumbprint_sha256.replace(":", "").lower() == hashlib.sha256(served).hexdigest()


@pytest.mark.parametrize("pin", ["thumbprint", "thumbprint_sha256"])
def test_pyvmomi_accepts_the_pinned_certificate(vcenter, pin):
    strict = ssl.create_default_context()
    stub = SoapStubAdapter(
        vcenter.address,
        vcenter.port,
        sslContext=strict,
        thumbprint=getattr(vcenter, pin),
        version="vim.version.v8_0_3_0",
    )
    about = vim.ServiceInstance("ServiceInstance", stub).content.about
    assert (about.apiType, about.apiVersion) == ("VirtualCenter", "8.0.3.0")
    stub.DropConnections()


def test_smart_connect_verifies_the_certificate(vcenter, connect):
    context = ssl.create_default_context(cafile=vcenter.certificate)
    client = connect(vcenter, thumbprint=None, sslContext=context)
    assert client.content.sessionManager.currentSession.userName == "backup"


@pytest.mark.parametrize("login", [("backup", "no"), ("other", "lab"), ("backup", "")])
def test_wrong_logins_are_refused(vcenter, client, login):
    manager = client.content.sessionManager
    manager.Logout()
    with pytest.raises(vim.fault.InvalidLogin) as refused:
        manager.Login(*login, None)
    assert "incorrect user name or password" in refused.value.msg  # type: ignore[attr-defined]


def test_answers_are_what_the_schema_says_without_its_codec(vcenter):
    names = {"vim": "urn:vim25"}
    status, _, answer = post(vcenter, "RetrieveServiceContent", "ServiceInstance", "ServiceInstance")
    assert status == 200
    assert answer.find(".//vim:returnval/vim:rootFolder", names).attrib["type"] == "Folder"
    assert answer.findtext(".//vim:returnval/vim:about/vim:version", namespaces=names) == "8.0.3"

    status, headers, answer = post(
        vcenter,
        "Login",
        "SessionManager",
        "SessionManager",
        "<userName>backup</userName><password>lab</password>",
    )
    assert status == 200
    cookie = headers["Set-Cookie"].partition(";")[0]
    assert cookie.startswith('vmware_soap_session="')
    status, _, answer = post(
        vcenter, "CurrentTime", "ServiceInstance", "ServiceInstance", headers={"Cookie": cookie}.items()
    )
    assert answer.findtext(".//vim:returnval", namespaces=names).startswith("20")


def test_a_fault_is_a_soap_fault_with_its_type(vcenter):
    status, _, answer = post(
        vcenter,
        "Login",
        "SessionManager",
        "SessionManager",
        "<userName>backup</userName><password>&lt;no&gt;</password>",
    )
    (detail,) = answer.find(".//detail")
    assert status == 500
    assert detail.tag == "{urn:vim25}InvalidLoginFault"
    assert answer.findtext(".//faultstring").startswith("Cannot complete login")


@pytest.mark.parametrize("kind", ["VirtualMachine", "NoSuchType"])
def test_a_method_that_the_type_lacks_is_no_request(vcenter, kind):
    status, _, answer = post(vcenter, "Login", kind, "vm-1")
    assert status == 500
    assert answer.find(".//detail")[0].tag == "{urn:vim25}InvalidRequestFault"


def test_calls_without_a_session_are_refused(vcenter, client):
    Disconnect(client)
    with pytest.raises(vim.fault.NotAuthenticated):
        client.content.rootFolder.name  # noqa: B018


def test_a_new_login_follows_an_expired_session(vcenter, client):
    before = client.content.sessionManager.currentSession.key
    assert client.content.sessionManager.SessionIsActive(before, "backup")
    assert vddk_conf(vcenter)[0]["cookie"] == 2  # one session in two forms
    vcenter.expire_sessions()
    assert vddk_conf(vcenter)[0]["cookie"] == 0
    with pytest.raises(vim.fault.NotAuthenticated):
        client.content.rootFolder.name  # noqa: B018
    after = client.content.sessionManager.Login("backup", "lab", None).key
    assert client.content.rootFolder.name == "Datacenters"
    assert after != before
    assert not client.content.sessionManager.SessionIsActive(before, "backup")


def test_idle_sessions_end(tmp_path, connect):
    with LabVcenter(tmp_path, session_idle_s=0) as vcenter:
        client = connect(vcenter)
        with pytest.raises(vim.fault.NotAuthenticated):
            client.content.rootFolder.name  # noqa: B018


def test_unknown_objects_and_methods_are_faults(vcenter, client):
    with pytest.raises(vmodl.fault.ManagedObjectNotFound) as missing:
        vim.VirtualMachine("vm-99999", client._stub).name  # noqa: B018
    assert missing.value.obj == vim.VirtualMachine("vm-99999")
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vim.VirtualMachine(client.content.rootFolder._moId, client._stub).name  # noqa: B018
    with pytest.raises(vmodl.fault.NotSupported, match="createDatacenter"):
        client.content.rootFolder.CreateDatacenter("new")
    with pytest.raises(vmodl.fault.NotSupported, match="capability"):
        client.capability  # noqa: B018


def test_injected_fault_hits_the_call_it_is_for(vcenter, client):
    vcenter.inject("CurrentTime", lambda: vim.fault.Timedout(msg="late"), nth=2)
    client.CurrentTime()
    with pytest.raises(vim.fault.Timedout):
        client.CurrentTime()
    client.CurrentTime()
    assert vcenter.calls["CurrentTime"] == 3


@pytest.mark.parametrize("drop", list(Drop))
def test_a_dropped_connection_is_an_error_of_the_client(vcenter, client, drop):
    session = client.content.sessionManager.currentSession.key
    vcenter.inject("Logout", drop)
    with pytest.raises((ConnectionError, http.client.HTTPException, ssl.SSLError)):
        client.content.sessionManager.Logout()
    still_there = client.content.sessionManager.currentSession
    assert (still_there is not None and still_there.key == session) is (drop is Drop.BEFORE)


def test_cut_connections_leave_the_session(vcenter, client):
    folder = client.content.rootFolder
    vcenter.drop_connections()
    with pytest.raises((ConnectionError, http.client.HTTPException, ssl.SSLError)):
        folder.name  # noqa: B018
    assert folder.name == "Datacenters"


def test_restart_goes_on_where_it_was(tmp_path, connect, make_vm):
    with LabVcenter(tmp_path, task_s=0, datacenter="Bering Street/DC 1") as first:
        moref = make_vm(first, power="poweredOff")
        described = first.description()
        conf = vddk_conf(first)[1]
    with LabVcenter(tmp_path, task_s=0) as second:
        assert second.thumbprint == first.thumbprint
        assert json.loads((tmp_path / "server.json").read_text()) == described | {"port": second.port}
        assert vddk_conf(second)[1] == conf
        client = connect(second)
        vm = client.content.searchIndex.FindByInventoryPath("Bering Street/DC 1/vm/web01")
        assert vm._moId == moref == second.moref("web01")
        assert vm.runtime.powerState == "poweredOff"
        assert [disk.capacity for disk in second.disks(moref)] == [8 << 20, 4 << 20]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["standard input", "SIGTERM"])
def test_the_lab_serves_as_a_process(tmp_path, connect, monkeypatch, ending):
    monkeypatch.setenv("LAB_PASSWORD", "geheim")
    command = [
        sys.executable,
        "-m",
        "vadpipe.lab.vcenter",
        str(tmp_path),
        "--user",
        "x",
        "--password-env",
        "LAB_PASSWORD",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        served = json.loads(process.stdout.readline())
        assert served == json.loads((tmp_path / "server.json").read_text())
        client = SmartConnect(
            host=served["host"],
            port=served["port"],
            user="x",
            pwd="geheim",
            thumbprint=served["thumbprint_sha1"],
        )
        assert client.content.about.apiType == "VirtualCenter"
        client._stub.DropConnections()
        if ending == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        else:
            process.stdin.close()
        assert process.wait(timeout=20) == 0
