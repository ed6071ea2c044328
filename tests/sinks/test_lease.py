"""A new VM without VDDK for its disks: imported, sent over HTTPS, compared, and gone when anything fails."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import trio
from pyVmomi import vim, vmodl

from pipeline import ConfigError, IntegrityError, MoverError, Secret, SourceError
from pipeline.errors import leaves
from sinks.lease import OpenLease
from sinks.new_vm import NewVm
from tests.sinks.new_vm_kit import Backed, filled
from tests.vadpipe.vsphere.vsphere_kit import settings_of
from vadpipe.lab.vcenter import Drop, refusing
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.web.host_door import host_door
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.journal.intents import IntentKind, Journal
from vadpipe.vsphere.restore import lease as leases
from vadpipe.vsphere.restore.lease_upload import Upload
from vadpipe.vsphere.snapshot.hot_add import DisksStillAttached
from vadpipe.vsphere.vm.sweep import sweep

pytestmark = pytest.mark.slow


@pytest.fixture
async def backed(tmp_path, repository, libdir, monkeypatch):
    """A VM with two disks that is backed up."""
    with LabVcenter(tmp_path / "lab", task_s=0.02) as lab:
        monkeypatch.setenv("VADPIPE_LAB_ROOT", str(lab.root))
        directory = lab.datastore("datastore1") / "web01"
        disks = [filled(directory, f"web01-{number}", number) for number in range(2)]
        moref = lab.register_vm(directory, "web01", disks)
        made = Backed(
            lab, settings_of(lab, patience_s=2), Journal(tmp_path / "journal"), repository, libdir, moref
        )
        await made.back_up()
        yield made


def errors_of(receipt) -> str:
    return " ".join(str(leaf) for failure in receipt.failures for leaf in leaves(failure))


async def test_a_vm_comes_back_without_vddk(backed):
    receipt = await backed.restore(via="lease", writer=None)
    assert errors_of(receipt) == ""
    assert backed.restored() == backed.digests
    assert [disk.key for disk in receipt.disks] == ["scsi0:0", "scsi0:1"]
    told = " ".join(receipt.remarks)
    assert "web01-restored: disks restored, not read back." in told
    assert "proven" not in told
    assert told.count("the server received what was sent (SHA-1 ") == 2
    assert backed.journal.intents() == []
    assert (
        backed.lab.vms["web01-restored"].power == "poweredOff" if isinstance(backed.lab.vms, dict) else True
    )


async def test_the_disks_are_read_back_where_there_is_a_reader(backed):
    receipt = await backed.restore(via="lease")
    assert errors_of(receipt) == ""
    told = " ".join(receipt.remarks)
    assert "web01-restored: disks restored and proven." in told
    assert told.count("read back and proved") == 2


@pytest.mark.slow
async def test_a_sample_is_read_back_where_one_was_asked_for(backed):
    receipt = await backed.restore(via="lease", prove="1B")
    assert errors_of(receipt) == ""
    told = " ".join(receipt.remarks)
    assert "web01-restored: disks restored; a sample of each was proven." in told
    assert told.count("a sample of") == 3


async def nothing_left(backed, receipt=None) -> None:
    """No VM of ours, no files, no intent."""
    assert backed.names == ["web01"]
    assert backed.files() == ["web01"]
    assert backed.journal.intents() == []


async def test_the_server_names_the_disks_last_one_first_and_each_gets_its_own(backed):
    assert backed.lab.leases.reversed
    await backed.restore(via="lease", writer=None)
    assert backed.restored() == backed.digests


async def test_disks_go_to_the_host_that_the_lease_names_with_its_own_certificate(backed):
    with host_door(backed.lab) as certificate:
        assert certificate.thumbprint_sha1 != backed.lab.thumbprint
        receipt = await backed.restore(via="lease", writer=None)
    assert errors_of(receipt) == ""
    assert backed.restored() == backed.digests


@pytest.mark.parametrize("named", ["00:" * 19 + "00", None])
async def test_a_host_with_another_certificate_gets_nothing_and_the_vm_goes(backed, named):
    with host_door(backed.lab):
        backed.lab.guests.host_thumbprint = named or ""
        receipt = await backed.restore(via="lease", writer=None)
    expected = "shows another certificate" if named else "does not say which certificate"
    assert expected in errors_of(receipt)
    await nothing_left(backed)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (refusing(503), "upload of a disk"),
        (Drop.BEFORE, "upload of a disk"),
        (Drop.AFTER, "upload of a disk"),
    ],
)
async def test_an_upload_that_fails_takes_the_vm_along(backed, failure, message):
    backed.lab.inject("/nfc", failure, 2)
    receipt = await backed.restore(via="lease", writer=None)
    assert message in errors_of(receipt)
    await nothing_left(backed)


async def test_an_import_that_the_server_refuses_is_one_message(backed):
    full = vim.fault.NoDiskSpace(file="x", datastore="datastore1")
    backed.lab.inject("ImportVApp", lambda: full, in_task=True)
    with pytest.raises(MoverError, match=r"ImportVApp.*"):
        await backed.restore(via="lease", writer=None)
    await nothing_left(backed)


async def test_a_lease_whose_end_is_refused_takes_the_vm_along(backed):
    backed.lab.inject("HttpNfcLeaseComplete", lambda: vim.fault.InvalidState(msg="no"))
    with pytest.raises(MoverError):
        await backed.restore(via="lease", writer=None)
    await nothing_left(backed)


async def test_a_vm_whose_disk_is_still_attached_to_a_proxy_is_not_destroyed(backed, monkeypatch):
    async def prove(self, writer) -> None:
        raise DisksStillAttached("Disks may still be hot-added to this machine.")

    monkeypatch.setattr(OpenLease, "_prove", prove)
    with pytest.raises(BaseExceptionGroup) as caught:
        await backed.restore(via="lease")
    assert "a disk of it is still attached to a VM" in " ".join(str(leaf) for leaf in leaves(caught.value))
    assert "web01-restored" in backed.names
    [intent] = backed.journal.intents()
    assert intent.abandoned


async def test_progress_keeps_a_lease_that_lasts_longer_than_its_time(backed, monkeypatch):
    backed.lab.leases.timeout_s = 0.8
    monkeypatch.setattr(leases, "PROGRESS_S", 0.1)
    send = Upload.send

    def slow(self, content) -> None:
        time.sleep(0.4)
        send(self, content)

    monkeypatch.setattr(Upload, "send", slow)
    receipt = await backed.restore(via="lease", writer=None)
    assert errors_of(receipt) == ""
    assert backed.restored() == backed.digests
    assert backed.lab.calls["HttpNfcLeaseProgress"] >= 5


async def test_another_digest_than_was_sent_fails_the_restore(backed, monkeypatch):
    monkeypatch.setattr(Upload, "sha1", property(lambda self: "0" * 40))
    with pytest.raises(IntegrityError, match=r"bytes were sent with SHA-1 0{40}, and .* received"):
        await backed.restore(via="lease", writer=None)
    await nothing_left(backed)


async def test_a_server_that_tells_no_digest_is_named(backed):
    backed.lab.inject("HttpNfcLeaseGetManifest", lambda: vmodl.fault.NotSupported())
    receipt = await backed.restore(via="lease", writer=None)
    assert " ".join(receipt.remarks).count("does not tell the digest of what it received") == 2


async def test_a_cancelled_restore_leaves_nothing(backed, monkeypatch):
    with trio.move_on_after(20) as scope:
        begin = Upload.begin

        def begun(self) -> None:
            begin(self)
            trio.from_thread.run_sync(scope.cancel)

        monkeypatch.setattr(Upload, "begin", begun)
        await backed.restore(via="lease", writer=None)
    assert scope.cancelled_caught
    await nothing_left(backed)


async def test_what_a_killed_restore_left_is_destroyed_by_the_next_sweep(backed, monkeypatch):
    """Its lease is still there for a while, and the server takes the VM when that is over."""
    backed.lab.leases.timeout_s = 0.5

    async def killed(self, failure) -> None:
        raise self.left("the process was killed")

    with monkeypatch.context() as patch:
        patch.setattr(leases._Importing, "undo", killed)
        backed.lab.inject("/nfc", refusing(503), 1)
        assert errors_of(await backed.restore(via="lease", writer=None))
    [intent] = backed.journal.intents()
    assert intent.kind is IntentKind.NEW_VM
    backed.journal.write(
        replace(intent, created="2026-01-01T00:00:00+00:00")
    )  # longer ago than anything takes
    for _ in range(50):
        async with backed.vcenter.connect() as session:
            await sweep(session, backed.journal)
        if not backed.journal.intents():
            break
        await trio.sleep(0.1)
    await nothing_left(backed)


async def test_a_name_that_is_taken_is_one_message_before_anything_is_made(backed):
    with pytest.raises(ConfigError, match="web01"):
        await backed.restore(via="lease", writer=None, name="web01")
    assert "ImportVApp" not in backed.lab.calls


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"writer": None}, "has no writer"),
        ({"writer": None, "via": "lease", "path": lambda source, disk: source}, "path= means nothing"),
        ({"writer": None, "via": "ftp"}, "via='ftp' is not a known value"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    vcenter = Vcenter("vc.example.com", "backup", Secret.from_text("secret"))
    with pytest.raises(ConfigError, match=message):
        NewVm(vcenter, **settings)


def planned(*keys):
    disks = [
        SimpleNamespace(key=key, controller=key.partition(":")[0], unit=key.partition(":")[2]) for key in keys
    ]
    return SimpleNamespace(name="web01", disks=disks)


def device(import_key):
    return vim.HttpNfcLease.DeviceUrl(
        key=import_key, importKey=import_key, url="https://*/x", sslThumbprint="", disk=True
    )


@pytest.mark.parametrize(
    ("import_key", "key"),
    [
        ("/web01/ParaVirtualSCSIController1:3", "scsi1:3"),
        ("/web 01/VirtualLsiLogicController0:0", "scsi0:0"),
        ("/web01/VirtualIDEController1:0", "ide1:0"),
        ("/web01/VirtualAHCIController0:2", "sata0:2"),
        ("/web01/VirtualNVMEController0:0", "nvme0:0"),
    ],
)
def test_an_import_key_names_the_place_of_a_disk(import_key, key):
    other = device("/web01/ParaVirtualSCSIController3:15")
    found = leases.matched(planned(key, "scsi3:15"), [other, device(import_key)])
    assert found[key].importKey == import_key
    assert found["scsi3:15"] is other


def test_one_disk_is_found_whatever_its_key_is_like():
    assert leases.matched(planned("scsi0:0"), [device("/imp1/disk:0")])["scsi0:0"].importKey == "/imp1/disk:0"


@pytest.mark.parametrize(
    "keys",
    [
        ["/imp1/disk:0", "/imp1/disk:1"],
        ["/web01/ParaVirtualSCSIController0:0"],
        ["/web01/ParaVirtualSCSIController0:0", "/web01/VirtualLsiLogicController0:0"],
        ["/web01/DiskController0:0", "/web01/VirtualDisk0:1"],
    ],
)
def test_disks_that_cannot_be_told_apart_are_refused(keys):
    with pytest.raises(SourceError, match="its import keys are /"):
        leases.matched(planned("scsi0:0", "scsi0:1"), [device(key) for key in keys])


async def test_a_lease_that_ends_before_its_addresses_are_read_is_one_message(backed):
    backed.lab.leave_unset("info")
    with pytest.raises(SourceError, match="ended before its disks could be sent"):
        await backed.restore(via="lease", writer=None)
    backed.lab.leave_unset()
    await nothing_left(backed)
