"""What a job expects of a guest, the command that makes it so, and the way back."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from pyVmomi import vim

from pipeline.errors import ConfigError, SourceError
from pipeline.secrets import Secret
from stages.vcenter_vm import VcenterVm
from vadpipe.cli.guest_config import guest_config
from vadpipe.lab.vcenter.faults.injection import Drop
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.api.faults import ConnectionLost, GuestRefused, QuiesceFailed
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.guest.change import KEPT, GuestChange, apply_settings, undo_settings
from vadpipe.vsphere.guest.expectations import GuestControl, GuestFindings, look_inside
from vadpipe.vsphere.guest.scripts import LINUX, WINDOWS
from vadpipe.vsphere.guest.tools_conf import SETTINGS, ToolsConfigUnreadable
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.snapshot.quiesce import Quiesce

AddVm = Callable[..., str]
PATH = WINDOWS.tools_conf
ADMINS = b"# mine\r\n[logging]\r\nlog=true\r\n"
WANTED = {"vss.disableAppQuiescing": True, "excludedFileSystems": "E:\\"}
APPLIED = ADMINS + b"\r\n[vmbackup]\r\nvss.disableAppQuiescing=true\r\nexcludedFileSystems=E:\\\\\r\n"


def control(**settings) -> GuestControl:
    return GuestControl("Administrator", Secret.from_text("guest"), **settings)


@pytest.fixture
def moref(add_vm: AddVm) -> str:
    return add_vm()


async def looked(vcenter: Vcenter, wanted: GuestControl | None, quiesce: Quiesce) -> GuestFindings:
    async with vcenter.connect() as session:
        return await look_inside(session, await find_vm(session, "web01"), wanted, quiesce)


async def changed(vcenter: Vcenter, wanted: dict | None, guest_id: str = "windows") -> GuestChange:
    """Apply these settings; None: undo."""
    async with vcenter.connect() as session:
        files = control().files(session, await find_vm(session, "web01"), guest_id)
        return await (undo_settings(files) if wanted is None else apply_settings(files, wanted))


# What a job sees


async def test_a_guest_as_expected_is_reported(lab, vcenter, moref):
    lab.guests.write(moref, PATH, b"[vmbackup]\nenableVSS=1\nexecScripts=false\n")
    found = await looked(vcenter, control(settings={"enableVSS": True}), Quiesce.application())
    assert found.attention == []
    assert found.remarks == [
        "tools.conf of the guest has in [vmbackup]: enableVSS=1, execScripts=false.",
        "execScripts: VMware Tools apply this to CreateSnapshot_Task only, the call before 6.5.",
    ]
    assert found.inside == {
        "vmbackup": {"enableVSS": "1", "execScripts": "false"}, "freeze_scripts": [], "thaw_scripts": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        (b"", {"enableVSS": False}, "enableVSS is not set in tools.conf, but the job expects false."),
        (
            b"[vmbackup]\nscriptArg=x\n",
            {"scriptArg": None},
            "scriptArg is 'x' in tools.conf, but the job expects not set.",
        ),
        (b"[vmbackup]\nenableVSS=false\n", {}, "tools.conf switches VSS off"),
    ],
)
async def test_a_difference_fails_or_is_reported_by_policy(lab, vcenter, moref, text, settings, said):
    lab.guests.write(moref, PATH, text)
    wanted = control(settings=settings)
    with pytest.raises(QuiesceFailed, match=said) as caught:
        await looked(vcenter, wanted, Quiesce.application())
    assert "guest-config" in caught.value.remedy
    found = await looked(vcenter, wanted, Quiesce.application(policy="try"))
    assert said in found.attention[0]


async def test_a_guest_is_not_read_when_nothing_is_quiesced(lab, vcenter, add_vm):
    add_vm(power="poweredOff")
    wanted = control(scripts="required")
    assert await looked(vcenter, None, Quiesce.application()) == GuestFindings()
    assert await looked(vcenter, wanted, Quiesce.none()) == GuestFindings()
    assert await looked(vcenter, wanted, Quiesce.application()) == GuestFindings()
    assert "ListFilesInGuest" not in lab.calls


async def test_a_guest_that_refuses_the_account_is_reported(lab, vcenter, moref):
    wrong = replace(control(), password=Secret.from_text("wrong"))
    found = await looked(vcenter, wrong, Quiesce.application())
    assert "could not be read" in found.attention[0]
    with pytest.raises(QuiesceFailed, match="does not accept the user name") as caught:
        await looked(vcenter, replace(wrong, scripts="none"), Quiesce.application())
    assert "account of the guest" in caught.value.remedy
    assert (
        await looked(vcenter, replace(wrong, scripts="none"), Quiesce.application(policy="try"))
    ).attention


async def test_a_linux_guest_has_its_own_paths(lab, vcenter, add_vm):
    moref = add_vm(guest_id="ubuntu64Guest")
    lab.guests.write(moref, LINUX.tools_conf, b"[vmbackup]\nenableSyncDriver=false\nenableVSS=false\n")
    lab.guests.write(moref, LINUX.post_thaw, b"")
    found = await looked(vcenter, control(), Quiesce.application())
    assert found.attention == []  # VSS is Windows'
    assert found.remarks[0] == f"Scripts that run in the guest at quiescing: {LINUX.post_thaw}."


@pytest.mark.parametrize(
    "settings",
    [{"settings": {"quiesce.apps": True}}, {"settings": {"enableVSS": "yes"}}, {"settings": {"timeout": True}},
     {"scripts": "some"}],
)  # fmt: skip
def test_unknown_settings_are_config_errors(settings):
    with pytest.raises(ConfigError):
        control(**settings)


def test_the_keys_are_those_of_the_collected_facts():
    facts = """enableVSS vss.disableAppQuiescing excludedFileSystems enableSyncDriver enableXmlManifest
        ignoreFrozenFileSystems quiesceApps quiesceFS allowHWProvider execScripts scriptArg timeout enableNullDriver
        vssUseDefault forceQuiesce"""
    assert set(SETTINGS) == set(facts.split())
    assert all(setting.meaning for setting in SETTINGS.values())
    assert "guest" not in repr(control().password)


# The change and the way back


@pytest.mark.slow
async def test_a_change_can_be_undone(lab, vcenter, moref):
    place = lab.guests.write(moref, PATH, ADMINS)
    change = await changed(vcenter, WANTED)
    assert change.changed
    assert place.read_bytes() == APPLIED
    assert place.with_name(place.name + KEPT).read_bytes() == ADMINS
    again = await changed(vcenter, WANTED)
    assert not again.changed
    await changed(vcenter, {"vss.disableAppQuiescing": False})
    assert place.with_name(place.name + KEPT).read_bytes() == ADMINS  # before the first change
    assert (await changed(vcenter, None)).changed
    assert place.read_bytes() == ADMINS
    assert [file.name for file in place.parent.iterdir()] == [place.name]
    assert "nothing was changed" in (await changed(vcenter, None)).done[0]


@pytest.mark.slow
async def test_undoing_removes_a_file_that_did_not_exist_before(lab, vcenter, moref):
    place = lab.guests.write(moref, PATH, b"")
    place.unlink()
    await changed(vcenter, {"enableVSS": False})
    assert place.read_bytes() == b"[vmbackup]\r\nenableVSS=false\r\n"
    await changed(vcenter, None)
    assert list(place.parent.iterdir()) == []


@pytest.mark.slow
async def test_undoing_keeps_changes_by_others(lab, vcenter, moref):
    place = lab.guests.write(moref, PATH, ADMINS)
    await changed(vcenter, WANTED)
    place.write_bytes(APPLIED + b"[guestinfo]\r\nx=1\r\n")
    change = await changed(vcenter, None)
    assert "Other changes since then are kept" in change.done[0]
    assert place.read_bytes() == ADMINS + b"\r\n[vmbackup]\r\n[guestinfo]\r\nx=1\r\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "drop", "nth"),
    [
        ("InitiateFileTransferToGuest", Drop.BEFORE, 1),
        ("InitiateFileTransferToGuest", Drop.AFTER, 2),
        ("MoveFileInGuest", Drop.BEFORE, 1),
        ("MoveFileInGuest", Drop.AFTER, 1),
        ("MoveFileInGuest", Drop.BEFORE, 2),
        ("MoveFileInGuest", Drop.AFTER, 3),
        ("DeleteFileInGuest", Drop.BEFORE, 1),
        ("DeleteFileInGuest", Drop.AFTER, 1),
    ],
)
async def test_an_interrupted_change_continues_with_the_same_command(lab, vcenter, moref, method, drop, nth):
    """Change and way back, broken at any changing call and given again, end as if nothing had happened."""
    place = lab.guests.write(moref, PATH, ADMINS)
    lab.inject(method, drop, nth)
    for wanted, content in ((WANTED, APPLIED), (None, ADMINS)):
        try:
            await changed(vcenter, wanted)
        except ConnectionLost:
            assert place.read_bytes() in (ADMINS, APPLIED)
            await changed(vcenter, wanted)
        assert place.read_bytes() == content
    assert not place.with_name(place.name + KEPT).exists()


async def test_a_file_that_vmware_tools_ignore_is_not_changed(lab, vcenter, moref):
    place = lab.guests.write(moref, PATH, b"; note\n[vmbackup]\n")
    with pytest.raises(ToolsConfigUnreadable, match="Line 1"):
        await changed(vcenter, WANTED)
    assert place.read_bytes() == b"; note\n[vmbackup]\n"
    assert [file.name for file in place.parent.iterdir()] == [place.name]


async def test_an_account_without_the_right_changes_nothing(lab, vcenter, moref):
    place = lab.guests.write(moref, PATH, ADMINS)
    lab.inject("MoveFileInGuest", vim.fault.GuestPermissionDenied)
    with pytest.raises(GuestRefused, match="administrator"):
        await changed(vcenter, WANTED)
    assert place.read_bytes() == ADMINS


# The command; it runs trio itself, so these tests are not asynchronous

CONFIG = """
from pipeline import Job, Secret
from sinks import Nowhere
from stages import GuestControl, Quiesce, Vcenter, VcenterVm

vcenter = Vcenter({address!r}, "backup", Secret.from_text("lab"), thumbprint={thumbprint!r}, port={port})
guest = GuestControl("Administrator", Secret.from_env("GUEST_PASSWORD"), settings={{"excludedFileSystems": "E:"}})

def job_of(name, guest):
    machine = VcenterVm(vcenter, name, reader=None, quiesce=Quiesce.file_system(), guest=guest)
    return Job(machine, path=print, into=Nowhere(), name=name)

jobs = [job_of("web01", {guest}), job_of("without", None)]
"""


@pytest.fixture
def command(lab: LabVcenter, moref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GUEST_PASSWORD", "guest")
    path = tmp_path / "jobs.py"

    def run(*arguments: str, guest: str = "guest") -> tuple[int, str]:
        path.write_text(
            CONFIG.format(address=lab.address, thumbprint=lab.thumbprint, port=lab.port, guest=guest)
        )
        result = CliRunner().invoke(guest_config, [str(path), *arguments], standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return result.return_value, result.output

    return run


@pytest.mark.slow
def test_the_command_shows_changes_and_undoes(lab, moref, command):
    place = lab.guests.write(moref, PATH, ADMINS)
    code, output = command()
    assert code == 3
    assert (
        "web01: ATTENTION: excludedFileSystems is not set in tools.conf, but the job expects 'E:'." in output
    )
    assert place.read_bytes() == ADMINS
    code, output = command("--apply")
    assert code == 0
    assert "excludedFileSystems=E:" in output
    code, output = command("--show", "--json")
    assert code == 0
    assert json.loads(output)["vms"] == [
        {"vm": "web01", "vmbackup": {"excludedFileSystems": "E:"}, "freeze_scripts": [], "thaw_scripts": [],
         "attention": []}
    ]  # fmt: skip
    code, output = command("--undo", "--json")
    assert (code, json.loads(output)["vms"][0]["changed"]) == (0, True)
    assert place.read_bytes() == ADMINS


def test_the_command_reports_what_it_cannot_do(lab, moref, command, add_vm):
    with pytest.raises(ConfigError, match="no job that has an account in its guest"):
        command(guest="None")
    for vm in lab.guests.service.inventory.vms.values():
        vm.power = "poweredOff"
    with pytest.raises(SourceError, match="the VM is not running"):
        command()


def test_a_plan_says_what_is_read_in_the_guest(vcenter, reader, journal):
    machine = VcenterVm(vcenter, "web01", reader=reader, journal=journal, guest=control())
    said = [sentence for sentence in machine.effects() if "tools.conf" in sentence]
    assert said == [
        f"Reads tools.conf and lists scripts in the guest of web01 on {vcenter.server}, as Administrator."
    ]
    assert not any("tools.conf" in one for one in replace(machine, quiesce=Quiesce.none()).effects())
