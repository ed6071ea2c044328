"""Files of guests by an unmodified client, and what a guest's own settings make of quiescing."""

import ssl
import urllib.error
import urllib.request

import pytest
from pyVmomi import vim

from vadpipe.lab.vcenter.web.host_door import host_door

TOOLS_CONF = r"C:\ProgramData\VMware\VMware Tools\tools.conf"
PRE_FREEZE = r"C:\Windows\pre-freeze-script.bat"
SCRIPTS = r"C:\Program Files\VMware\VMware Tools\backupScripts.d"


def account(user="Administrator", password="guest"):
    return vim.vm.guest.NamePasswordAuthentication(username=user, password=password, interactiveSession=False)


@pytest.fixture
def files(client):
    return client.content.guestOperationsManager.fileManager


@pytest.fixture
def put(vcenter, vm):
    return lambda path, content: vcenter.guests.write(vm.moref, path, content)


def request(vcenter, url, method="GET", data=None, certificate=None):
    context = ssl.create_default_context(cafile=str(certificate or vcenter.certificate))
    url = url.replace("*", f"{vcenter.address}:{vcenter.port}")
    asked = urllib.request.Request(url, data=data, method=method)
    with urllib.request.urlopen(asked, context=context) as response:
        return response.read()


def test_a_file_goes_out_once(vcenter, vm, files, put):
    put(TOOLS_CONF, b"[vmbackup]\n")
    told = files.InitiateFileTransferFromGuest(vm.api, account(), TOOLS_CONF.upper())
    assert (told.size, told.url.split("?")[0]) == (11, "https://*/guestFile")
    assert request(vcenter, told.url) == b"[vmbackup]\n"
    with pytest.raises(urllib.error.HTTPError, match="500"):
        request(vcenter, told.url)


def test_a_file_comes_in_with_its_permissions(vcenter, make_vm, client, files):
    linux = make_vm(vcenter, "linux01", guest_id="ubuntu64Guest")
    place = vcenter.guests.write(linux, "/etc/old", b"x")
    attributes = vim.vm.guest.FileManager.PosixFileAttributes(permissions=0o600)
    api = vim.VirtualMachine(linux, client._stub)
    url = files.InitiateFileTransferToGuest(api, account(), "/etc/new", attributes, 3, False)
    with pytest.raises(urllib.error.HTTPError, match="500"):
        request(vcenter, url, "GET")
    request(vcenter, url, "PUT", b"abc")
    assert place.with_name("new").read_bytes() == b"abc"
    assert place.with_name("new").stat().st_mode & 0o777 == 0o600
    with pytest.raises(vim.fault.FileAlreadyExists):
        files.MoveFileInGuest(api, account(), "/etc/new", "/etc/old", False)
    files.MoveFileInGuest(api, account(), "/etc/new", "/etc/old", True)
    assert place.read_bytes() == b"abc"
    files.DeleteFileInGuest(api, account(), "/etc/old")
    with pytest.raises(vim.fault.FileNotFound):
        files.DeleteFileInGuest(api, account(), "/etc/old")


def test_a_wrong_size_is_refused(vcenter, vm, files, put):
    put(TOOLS_CONF, b"old")
    attributes = vim.vm.guest.FileManager.WindowsFileAttributes()
    url = files.InitiateFileTransferToGuest(vm.api, account(), TOOLS_CONF, attributes, 5, True)
    with pytest.raises(urllib.error.HTTPError, match="500"):
        request(vcenter, url, "PUT", b"four")
    assert put(TOOLS_CONF, b"old").read_bytes() == b"old"


def test_lists_come_in_pages(vm, files, put):
    for number in range(5):
        put(rf"{SCRIPTS}\{number}.bat", b"")
    page = files.ListFilesInGuest(vm.api, account(), SCRIPTS, 0, 3, None)
    assert ([file.path for file in page.files], page.remaining) == ([".", "..", "0.bat"], 4)
    page = files.ListFilesInGuest(vm.api, account(), SCRIPTS, 3, 50, None)
    assert ([file.path for file in page.files], page.remaining) == (["1.bat", "2.bat", "3.bat", "4.bat"], 0)


def test_an_account_without_the_right_gets_the_fault_of_the_api(vcenter, vm, client, files, put):
    place = put(TOOLS_CONF, b"")
    with pytest.raises(vim.fault.InvalidGuestLogin):
        client.content.guestOperationsManager.authManager.ValidateCredentialsInGuest(
            vm.api, account(password="wrong")
        )
    vcenter.guests.forbidden.add(place)
    with pytest.raises(vim.fault.GuestPermissionDenied):
        files.ListFilesInGuest(vm.api, account(), TOOLS_CONF, None, None, None)
    with pytest.raises(vim.fault.FileFault):
        files.ListFilesInGuest(vm.api, account(), r"tools.conf", None, None, None)
    with pytest.raises(vim.fault.FileFault):
        files.ListFilesInGuest(vm.api, account(), r"C:\..\..\inventory.json", None, None, None)
    vm.finish(vm.api.PowerOffVM_Task())
    with pytest.raises(vim.fault.GuestOperationsUnavailable):
        files.ListFilesInGuest(vm.api, account(), TOOLS_CONF, None, None, None)


def test_a_host_answers_with_its_own_certificate(vcenter, vm, client, files, put):
    put(TOOLS_CONF, b"text")
    with host_door(vcenter) as certificate:
        told = files.InitiateFileTransferFromGuest(vm.api, account(), TOOLS_CONF)
        assert "*" not in told.url
        assert certificate.thumbprint_sha1 != vcenter.thumbprint
        host = vm.api.runtime.host
        assert host.summary.config.sslThumbprint == certificate.thumbprint_sha1
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            request(vcenter, told.url)
        assert request(vcenter, told.url, certificate=certificate.path) == b"text"
    assert vm.api.runtime.host.summary.config.sslThumbprint == vcenter.thumbprint


def documents(vcenter, vm):
    return len(list((vcenter.root / "datastores" / "datastore1" / "web01").glob("*.zip")))


@pytest.mark.parametrize("context", ["ctx_backup", "ctx_auto"])
def test_a_guest_may_allow_file_systems_only(vcenter, vm, put, context):
    put(TOOLS_CONF, b"# note\n[vmbackup]\nvss.disableAppQuiescing=true\n")
    requests = []
    object.__setattr__(vcenter.guests.service.settings, "manifest", requests.append)
    vm.snapshot(context)
    assert [request.context for request in requests] == ["file-system"]


def test_without_vss_the_newer_call_fails_and_the_older_quiesces_nothing(vcenter, vm, put):
    put(TOOLS_CONF, b"[vmbackup]\nenableVSS=false\n")
    with pytest.raises(vim.fault.ApplicationQuiesceFault):
        vm.snapshot()
    vm.finish(vm.api.CreateSnapshot_Task("older", "", False, True))
    assert documents(vcenter, vm) == 0


def test_scripts_run_in_order(vcenter, vm, put):
    put(PRE_FREEZE, b"echo hello\r\n")
    put(rf"{SCRIPTS}\20-b.bat", b"exit /b 0\r\n")
    put(rf"{SCRIPTS}\10-a.bat", b"")
    vm.snapshot()
    ran = [(path.rpartition("\\")[2], argument) for _, path, argument in vcenter.guests.ran]
    assert ran == [
        ("pre-freeze-script.bat", "freeze"),
        ("10-a.bat", "freeze"),
        ("20-b.bat", "freeze"),
        ("20-b.bat", "thaw"),
        ("10-a.bat", "thaw"),
    ]


def test_a_script_that_fails_fails_the_quiesce(vcenter, vm, client, put):
    put(rf"{SCRIPTS}\10-a.bat", b"@echo off\r\nexit /b 3\r\n")
    with pytest.raises(vim.fault.ApplicationQuiesceFault):
        vm.snapshot()
    assert [argument for _, _, argument in vcenter.guests.ran] == ["freeze", "freezeFail"]
    assert "error code was: 2" in client.content.eventManager.latestEvent.fullFormattedMessage
    assert vm.api.snapshot is None


def test_only_the_older_call_heeds_that_scripts_are_switched_off(vcenter, vm, put):
    put(PRE_FREEZE, b"")
    put(TOOLS_CONF, b"[vmbackup]\nexecScripts=false\n")
    vm.finish(vm.api.CreateSnapshot_Task("older", "", False, True))
    assert vcenter.guests.ran == []
    vm.snapshot()
    assert len(vcenter.guests.ran) == 1
