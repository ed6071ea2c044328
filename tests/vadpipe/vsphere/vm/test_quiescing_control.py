"""The seven points of granular control, each shown on the lab, and the table of them in the documentation."""

import sys
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path

import pytest

from pipeline.protocols import Evidence
from pipeline.secrets import Secret
from stages.vcenter_vm import VcenterVm
from stages.vss_manifest import VssManifest
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vss.recipe import ManifestRecipe, manifest_zip
from vadpipe.vsphere.api.faults import QuiesceFailed
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.guest.expectations import GuestControl
from vadpipe.vsphere.guest.scripts import WINDOWS
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.vm.capture import VsphereCapture

README = Path(__file__).parents[4] / "README.md"
OPERATIONS = README.parent / "docs" / "operations.md"
CREATE = "CreateSnapshotEx_Task"
# The seven points of granular control in the VDDK programming guide, as the documentation names them.
POINTS = {
    "whether pre-freeze and post-thaw scripts run": "scripts",
    "whether the guest is quiesced": "quiescing",
    "VSS snapshot context": "snapshot_context",
    "VSS backup context": "backup_context",
    "writers and components that take part": "writers",
    "whether a writer that fails ends the quiescing": "fail_or_continue",
    "retry count": "retries",
}
ACCOUNT = GuestControl("Administrator", Secret.from_text("guest"))


@pytest.fixture
def web01(vcenter: Vcenter, reader, journal: Journal) -> VcenterVm:
    return VcenterVm(vcenter, "web01", reader=reader, journal=journal)


@pytest.fixture
def asked(lab: LabVcenter, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What VSS was run with, at each quiesced snapshot."""
    requests: list[object] = []

    def manifest(request) -> bytes:
        requests.append(request)
        return manifest_zip(request)

    object.__setattr__(lab.guests.service.settings, "manifest", manifest)
    return requests


async def _captured(machine: VcenterVm) -> VsphereCapture:
    async with machine.capture() as capture:
        return capture


async def _evidence(machine: VcenterVm) -> Evidence:
    async with machine.capture() as capture:
        return await VssManifest().finish(capture)


def _first_cells(document: Path, heading: str) -> list[str]:
    """The first column of the Markdown table whose header row starts with `heading`."""
    lines = document.read_text().splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [row.split("|")[1].strip() for row in rows]


def test_every_point_of_control_in_the_documentation_has_a_test():
    assert _first_cells(README, "Control of quiescing") == list(POINTS)
    assert _first_cells(OPERATIONS, "What") == list(POINTS)
    for name in POINTS.values():
        assert hasattr(sys.modules[__name__], f"test_point_{name}"), name


@pytest.mark.slow
async def test_point_scripts(lab, web01, add_vm):
    moref = add_vm()
    required = replace(web01, guest=replace(ACCOUNT, scripts="required"))
    with pytest.raises(QuiesceFailed, match="the job requires one"):
        await _captured(required)
    assert CREATE not in lab.calls
    lab.guests.write(moref, WINDOWS.pre_freeze, b"")
    capture = await _captured(required)
    assert f"Scripts that run in the guest at quiescing: {WINDOWS.pre_freeze}." in capture.remarks
    assert capture.configuration["inside_guest"] == {
        "vmbackup": {},
        "freeze_scripts": [WINDOWS.pre_freeze],
        "thaw_scripts": [],
    }
    assert [path for _, path, _ in lab.guests.ran] == [WINDOWS.pre_freeze]
    with pytest.raises(QuiesceFailed, match="the job allows none"):
        await _captured(replace(web01, guest=replace(ACCOUNT, scripts="none")))
    assert len(lab.guests.ran) == 1


async def test_point_scripts_that_fail_fail_the_quiescing(lab, web01, add_vm):
    lab.guests.write(add_vm(), WINDOWS.pre_freeze, b"exit /b 1")
    with pytest.raises(QuiesceFailed, match="a script in the guest failed"):
        await _captured(replace(web01, quiesce=Quiesce.application(retries=3, retry_after_s=0)))
    assert lab.calls[CREATE] == 1  # it would fail again


@pytest.mark.slow
async def test_point_quiescing(web01, add_vm, asked):
    add_vm()
    assert (await _evidence(replace(web01, quiesce=Quiesce.none()))).reached == "crash"
    assert asked == []
    assert (await _evidence(web01)).reached == "application"
    assert len(asked) == 1


@pytest.mark.slow
async def test_point_snapshot_context(lab, web01, add_vm, asked):
    moref = add_vm()
    for quiesce in (Quiesce.application(), Quiesce.auto(), Quiesce.file_system()):
        await _captured(replace(web01, quiesce=quiesce))
    assert [request.context for request in asked] == ["application", "application", "file-system"]
    lab.guests.write(moref, WINDOWS.tools_conf, b"[vmbackup]\nvss.disableAppQuiescing=true\n")
    reached = await _evidence(replace(web01, quiesce=Quiesce.auto()))
    assert (reached.reached, reached.satisfied) == ("file-system", True)
    reached = await _evidence(web01)
    assert (reached.reached, reached.satisfied) == ("file-system", False)
    with pytest.raises(QuiesceFailed, match="file-system quiescing only"):
        await _captured(replace(web01, guest=ACCOUNT))


@pytest.mark.slow
async def test_point_backup_context(web01, add_vm, asked):
    add_vm()
    for backup_type in ("copy", "full", "incremental", "differential", "log"):
        machine = replace(web01, quiesce=Quiesce.application(backup_type=backup_type))
        capture = await _captured(machine)
        for said in (machine.effects(), capture.remarks):
            assert any("use 'copy' unless" in sentence for sentence in said) == (backup_type != "copy")
    assert [request.backup_type for request in asked] == [5, 1, 2, 3, 4]


async def test_point_writers(lab, web01, add_vm):
    add_vm()
    recipe = ManifestRecipe(drop_writers=frozenset({"SqlServerWriter"}))
    object.__setattr__(lab.guests.service.settings, "manifest", partial(manifest_zip, recipe=recipe))
    evidence = await _evidence(web01)
    assert (evidence.reached, evidence.satisfied) == ("application-partial", False)
    assert any("SqlServerWriter" in reason for reason in evidence.reasons)


@pytest.mark.slow
async def test_point_fail_or_continue(lab, web01, add_vm):
    add_vm(quiescing="fault")
    with pytest.raises(QuiesceFailed):
        await _captured(replace(web01, quiesce=Quiesce.application(retries=0)))
    capture = await _captured(replace(web01, quiesce=Quiesce.application(policy="try", retries=0)))
    assert capture.snapshot.quiesce.kind == "none"
    assert capture.attention


@pytest.mark.slow
async def test_point_fail_or_continue_when_one_writer_failed(lab, web01, add_vm):
    add_vm()
    recipe = ManifestRecipe(failing_writers=frozenset({"SqlServerWriter"}))
    object.__setattr__(lab.guests.service.settings, "manifest", partial(manifest_zip, recipe=recipe))
    evidence = await _evidence(web01)
    assert (evidence.reached, evidence.satisfied) == ("application-partial", False)


@pytest.mark.parametrize("retries", [0, 2])
async def test_point_retries(lab, web01, add_vm, retries):
    add_vm(quiescing="fault")
    with pytest.raises(QuiesceFailed):
        await _captured(replace(web01, quiesce=Quiesce.application(retries=retries, retry_after_s=0)))
    assert lab.calls[CREATE] == 1 + retries
