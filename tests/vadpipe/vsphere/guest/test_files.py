"""Files of guests: read, list, replace, remove; trust in hosts; errors."""

import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from pyVmomi import vim

from pipeline.secrets import Secret
from vadpipe.lab.certificate import load_or_create
from vadpipe.lab.vcenter.faults.injection import Drop
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.guests import Transfer
from vadpipe.lab.vcenter.web.host_door import host_door
from vadpipe.vsphere.api.faults import CertificateRefused, ConnectionLost, GuestRefused, VsphereError
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.api.tasks import wait_for_task
from vadpipe.vsphere.guest.files import GuestAccount, GuestFileError, GuestFiles
from vadpipe.vsphere.guest.scripts import LINUX, WINDOWS, in_order, scripts_in
from vadpipe.vsphere.inventory.lookup import find_vm

AddVm = Callable[..., str]
PATH = WINDOWS.tools_conf
PASSWORD = "guest"


@pytest.fixture
def write(lab: LabVcenter, add_vm: AddVm) -> Callable[[str, bytes], Path]:
    moref = add_vm()
    return lambda path, content: lab.guests.write(moref, path, content)


@asynccontextmanager
async def opened(
    vcenter: Vcenter, *, password: str = PASSWORD, windows: bool = True
) -> AsyncIterator[GuestFiles]:
    async with vcenter.connect() as session:
        account = GuestAccount("Administrator", Secret.from_text(password))
        yield GuestFiles(session, await find_vm(session, "web01"), account, windows)


async def test_a_file_is_read_and_replaced(vcenter, write):
    place = write(PATH, b"old")
    async with opened(vcenter) as files:
        old = await files.read(PATH)
        assert old is not None
        assert old.content == b"old"
        await files.replace(PATH, b"new and longer", old)
        assert place.read_bytes() == b"new and longer"
        assert sorted(file.name for file in place.parent.iterdir()) == ["tools.conf"]
        await files.replace(PATH + ".other", b"")
        assert (place.parent / "tools.conf.other").read_bytes() == b""
        await files.remove(PATH)
        await files.remove(PATH)
        assert not place.exists()
        assert await files.read(PATH) is None


async def test_a_replaced_file_keeps_owner_and_permissions(lab, vcenter, add_vm):
    moref = add_vm(guest_id="ubuntu64Guest")
    place = lab.guests.write(moref, LINUX.tools_conf, b"old")
    place.chmod(0o600)
    async with opened(vcenter, windows=False) as files:
        await files.replace(LINUX.tools_conf, b"new", await files.read(LINUX.tools_conf))
    assert place.read_bytes() == b"new"
    assert place.stat().st_mode & 0o777 == 0o600


async def test_long_lists_are_read_to_their_end(vcenter, write, monkeypatch):
    monkeypatch.setattr("vadpipe.vsphere.guest.files._PAGE", 3)
    for number in range(7):
        write(rf"{WINDOWS.scripts}\{number}.bat", b"")
    (write(rf"{WINDOWS.scripts}\x", b"").parent / "directory").mkdir()
    async with opened(vcenter) as files:
        assert await files.names(WINDOWS.scripts) == [*(f"{number}.bat" for number in range(7)), "x"]
        assert await files.names(rf"{WINDOWS.scripts}\x") == ["x"]
        assert await files.names(r"C:\nowhere") == []


@pytest.fixture
def host(lab: LabVcenter) -> Iterator[None]:
    with host_door(lab):
        yield


async def test_a_host_is_trusted_by_the_thumbprint_that_vcenter_names(vcenter, write, host):
    place = write(PATH, b"old")
    async with opened(vcenter) as files:
        old = await files.read(PATH)
        await files.replace(PATH, b"new", old)
    assert place.read_bytes() == b"new"


async def test_a_host_with_another_certificate_gets_nothing(lab, vcenter, write, host, tmp_path):
    place = write(PATH, b"old")
    lab.guests.host_thumbprint = load_or_create(tmp_path, lab.address).thumbprint_sha1
    async with opened(vcenter) as files:
        with pytest.raises(CertificateRefused):
            await files.read(PATH)
        with pytest.raises(CertificateRefused):
            await files.replace(PATH, b"new")
        lab.guests.host_thumbprint = None
        with pytest.raises(CertificateRefused, match="does not say which certificate"):
            await files.read(PATH)
    assert lab.calls.get("/guestFile", 0) == 0
    assert place.read_bytes() == b"old"


async def test_a_host_must_show_the_certificate_that_vcenter_names_even_with_an_authority(
    lab, vcenter, write, host, tmp_path
):
    """Also where vCenter itself is verified by an authority, the host has to be the one vCenter names."""
    write(PATH, b"old")
    verified = replace(vcenter, thumbprint=None, ca_file=str(lab.certificate))
    async with opened(verified) as files:
        assert await files.read(PATH) is not None
        lab.guests.host_thumbprint = load_or_create(tmp_path, lab.address).thumbprint_sha1
        with pytest.raises(CertificateRefused):
            await files.read(PATH)


async def test_an_esxi_host_of_the_session_is_trusted_as_the_session(tmp_path, vcenter):
    """An ESXi host names itself as it likes; what vouches for the session vouches for the file."""
    with LabVcenter(tmp_path / "esxi", api_type="HostAgent") as esxi:
        directory = esxi.datastore("datastore1") / "web01"
        moref = esxi.register_vm(directory, "web01", [])
        esxi.guests.write(moref, PATH, b"old")
        esxi.guests.door = f"localhost:{esxi.port}"
        async with opened(replace(vcenter, port=esxi.port, thumbprint=esxi.thumbprint_sha256)) as files:
            found = await files.read(PATH)
            assert found is not None
            assert found.content == b"old"


async def test_an_address_without_tls_is_refused(lab, vcenter, write, monkeypatch):
    write(PATH, b"old")

    def begin(transfer: Transfer) -> str:
        return f"http://{lab.address}/guestFile?id=1&token=1"

    monkeypatch.setattr(lab.guests, "begin", begin)
    async with opened(vcenter) as files:
        with pytest.raises(VsphereError, match="without TLS"):
            await files.read(PATH)


@pytest.mark.parametrize("drop", [Drop.BEFORE, Drop.AFTER])
async def test_a_broken_transfer_is_repeated_once(lab, vcenter, write, drop):
    place = write(PATH, b"old text")
    lab.inject("/guestFile", drop)
    async with opened(vcenter) as files:
        found = await files.read(PATH)
        assert found is not None
        assert found.content == b"old text"
        lab.inject("/guestFile", Drop.BEFORE)
        await files.replace(PATH, b"new text")
        assert place.read_bytes() == b"new text"
        for nth in (1, 2):
            lab.inject("/guestFile", Drop.BEFORE, nth)
        with pytest.raises(ConnectionLost):
            await files.read(PATH)


async def test_a_lost_answer_of_a_change_is_not_repeated(lab, vcenter, write):
    place = write(PATH, b"old")
    lab.inject("MoveFileInGuest", Drop.AFTER)
    async with opened(vcenter) as files:
        with pytest.raises(ConnectionLost):
            await files.replace(PATH, b"new")
    assert lab.calls["MoveFileInGuest"] == 1
    assert place.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (vim.fault.GuestOperationsUnavailable, GuestRefused, "Check that VMware Tools run in the guest"),
        (vim.fault.GuestPermissionDenied, GuestRefused, "Give it the right in the guest"),
        (vim.fault.GuestComponentsOutOfDate, GuestRefused, "Update VMware Tools"),
        (vim.fault.OperationDisabledByGuest, GuestRefused, "configuration forbids it"),
        (vim.fault.OperationNotSupportedByGuest, GuestRefused, "do not support it"),
        (vim.fault.TooManyGuestLogons, GuestRefused, "too many logons"),
        (lambda: vim.fault.CannotAccessFile(file="x"), GuestFileError, "tools.conf in the guest of web01"),
        (lambda: vim.fault.FileFault(file="x"), GuestFileError, "tools.conf in the guest of web01"),
    ],
)
async def test_each_refusal_has_a_remedy(lab, vcenter, write, fault, error, said):
    write(PATH, b"old")
    lab.inject("InitiateFileTransferFromGuest", fault)
    async with opened(vcenter) as files:
        with pytest.raises(error, match=said) as caught:
            await files.read(PATH)
    assert caught.value.remedy


async def test_a_wrong_password_is_reported_and_not_shown(lab, vcenter, write):
    write(PATH, b"old")
    async with opened(vcenter, password="s3cr3t of the guest") as files:
        with pytest.raises(GuestRefused, match="account of the guest") as caught:
            await files.replace(PATH, b"x")
    assert "s3cr3t" not in f"{caught.value!r}{caught.value.facts}{caught.value.__cause__!r}{files!r}"


async def test_a_token_is_in_no_error(lab, vcenter, write, monkeypatch):
    write(PATH, b"old")
    monkeypatch.setattr(lab.guests, "redeem", lambda token, incoming: None)
    async with opened(vcenter) as files:
        with pytest.raises(VsphereError, match="500") as caught:
            await files.read(PATH)
    assert "token" not in f"{caught.value!r}{caught.value.facts}"


async def test_a_file_above_the_size_limit_is_not_read(vcenter, write, monkeypatch):
    monkeypatch.setattr("vadpipe.vsphere.guest.files.READ_LIMIT", 10)
    write(PATH, b"0123456789x")
    async with opened(vcenter) as files:
        with pytest.raises(VsphereError, match="larger than 10 bytes"):
            await files.read(PATH)


async def test_scripts_are_listed_in_the_order_in_which_they_run(vcenter, write, lab):
    for path in (
        WINDOWS.pre_freeze,
        rf"{WINDOWS.scripts}\2.bat",
        rf"{WINDOWS.scripts}\1.bat",
        WINDOWS.post_thaw,
    ):
        write(path, b"")
    async with opened(vcenter) as files:
        scripts = await scripts_in(files)
        vm = files.vm.reference(files.session)
        task = await files.session.call(
            "Create", lambda: vm.CreateSnapshot("x", "", False, True), changes=True
        )
        await wait_for_task(files.session, task, "Create")
    ran = [(path, argument) for _, path, argument in lab.guests.ran]
    assert ran == [*((path, "freeze") for path in scripts.freeze), *((path, "thaw") for path in scripts.thaw)]
    assert len(scripts.paths) == 4


def test_a_guest_without_scripts_has_empty_lists():
    scripts = in_order(LINUX, False, False, [])
    assert not scripts
    assert scripts.paths == []
    assert in_order(LINUX, False, True, ["b", "a"]).thaw == [
        "/etc/vmware-tools/backupScripts.d/b", "/etc/vmware-tools/backupScripts.d/a", "/usr/sbin/post-thaw-script",
    ]  # fmt: skip


def test_the_servers_of_the_lab_show_different_certificates(lab, host):
    """The two servers of these tests do show different certificates."""
    port = int(lab.guests.door.rpartition(":")[2])
    shown = {ssl.get_server_certificate((lab.address, number)) for number in (lab.port, port)}
    assert len(shown) == 2
