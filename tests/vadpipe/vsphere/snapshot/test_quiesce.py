"""What is asked of the guest, and by which call."""

from collections.abc import Callable

import pytest
from pyVmomi import vim, vmodl

from pipeline.errors import ConfigError
from tests.vadpipe.vsphere.vsphere_kit import settings_of
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.snapshot.fallback import fallbacks
from vadpipe.vsphere.snapshot.quiesce import Quiesce, not_conveyed, quiesce_spec
from vadpipe.vsphere.snapshot.snapshot import open_snapshot

WINDOWS = "windows2019srv_64Guest"


def test_application_quiescing_forces_its_context():
    spec = quiesce_spec(Quiesce.application(timeout_min=20), WINDOWS)
    assert isinstance(spec, vim.vm.WindowsQuiesceSpec)
    assert (spec.vssBackupContext, spec.vssBackupType, spec.timeout) == ("ctx_backup", 5, 20)
    assert (spec.vssBootableSystemState, spec.vssPartialFileSupport) == (True, False)


@pytest.mark.parametrize(
    ("backup_type", "number"), [("full", 1), ("incremental", 2), ("differential", 3), ("log", 4), ("copy", 5)]
)
def test_backup_types_have_the_numbers_of_vss(backup_type, number):
    spec = quiesce_spec(Quiesce.application(backup_type=backup_type), WINDOWS)
    assert isinstance(spec, vim.vm.WindowsQuiesceSpec)
    assert spec.vssBackupType == number


def test_auto_quiescing_lets_vmware_tools_choose():
    spec = quiesce_spec(Quiesce.auto(backup_type="full", timeout_min=5), WINDOWS)
    assert isinstance(spec, vim.vm.WindowsQuiesceSpec)
    assert (spec.vssBackupContext, spec.vssBackupType, spec.timeout) == ("ctx_auto", 1, 5)
    assert "truncate" in Quiesce.auto(backup_type="full").warning
    assert Quiesce.auto().warning == ""
    assert [kind.kind for kind in fallbacks(Quiesce.auto(policy="try"), WINDOWS)] == [
        "auto",
        "file-system",
        "none",
    ]
    with pytest.raises(ConfigError, match="5 to 240"):
        Quiesce.auto(timeout_min=4)


@pytest.mark.parametrize(
    ("quiesce", "lost"),
    [
        (Quiesce.none(), []),
        (Quiesce.auto(), []),
        (Quiesce.application(), ["context (application)"]),
        (Quiesce.file_system(timeout_min=30), ["context (file-system)", "30 minutes"]),
        (Quiesce.auto(backup_type="log"), ["'log', which is 'copy' instead"]),
        (Quiesce.auto(bootable_system_state=False, partial_files=True), ["bootable", "partial files"]),
    ],
)
def test_options_that_the_older_call_cannot_express_are_reported(quiesce, lost):
    told = not_conveyed(quiesce, WINDOWS)
    assert bool(told) == bool(lost)
    assert all(word in told for word in lost)
    assert not_conveyed(Quiesce.application(backup_type="log"), "ubuntu64Guest") == ""


def test_the_other_kinds_of_quiescing_have_their_specs():
    spec = quiesce_spec(Quiesce.file_system(), WINDOWS)
    assert isinstance(spec, vim.vm.WindowsQuiesceSpec)
    assert (spec.vssBackupContext, spec.timeout) == ("ctx_file_share_backup", None)
    assert quiesce_spec(Quiesce.none(), WINDOWS) is None
    assert type(quiesce_spec(Quiesce.application(), "ubuntu64Guest")) is vim.vm.GuestQuiesceSpec


@pytest.mark.parametrize("timeout_min", [0, 4, 241, -1, 10.0])
def test_a_time_out_outside_what_vsphere_takes_is_a_config_error(timeout_min):
    with pytest.raises(ConfigError, match="5 to 240"):
        Quiesce.application(timeout_min=timeout_min)


def test_the_limits_of_the_time_out_are_accepted():
    assert [Quiesce.file_system(timeout_min=limit).timeout_min for limit in (5, 240)] == [5, 240]


def test_unknown_words_are_config_errors():
    with pytest.raises(ConfigError, match="copy"):
        Quiesce.application(backup_type="everything")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="quiescing"):
        Quiesce("app")  # type: ignore[arg-type]


@pytest.fixture
def add_to() -> Callable[[LabVcenter], str]:
    """Registers a VM with a disk in a lab that a test made itself."""

    def add(lab: LabVcenter) -> str:
        directory = lab.datastore("datastore1") / "web01"
        return lab.register_vm(directory, "web01", [LabDisk.create(directory, "disk", 1 << 20)])

    return add


def _not_found() -> vmodl.MethodFault:
    return vmodl.fault.MethodNotFound(receiver=vim.VirtualMachine("vm-1"), method="CreateSnapshotEx_Task")


@pytest.mark.parametrize("refusal", [vmodl.fault.NotSupported, _not_found])
async def test_servers_without_the_ex_call_get_the_older_one(lab, vcenter, journal, add_vm, refusal):
    add_vm()
    lab.inject("CreateSnapshotEx_Task", refusal)
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        async with open_snapshot(session, vm, Quiesce.application(), journal, run="r") as snapshot:
            assert lab.calls["CreateSnapshot_Task"] == 1
    assert [remark for remark in snapshot.remarks if "no CreateSnapshotEx_Task" in remark] == [
        not_conveyed(Quiesce.application(), WINDOWS)
    ]


async def test_a_server_before_6_5_is_asked_by_the_older_call_at_once(tmp_path, journal, add_to):
    with LabVcenter(tmp_path / "old", api_version="6.0", task_s=0.02) as old:
        add_to(old)
        vcenter = settings_of(old)
        async with vcenter.connect() as session:
            vm = await find_vm(session, "web01")
            async with open_snapshot(session, vm, Quiesce.auto(), journal, run="r") as snapshot:
                assert "CreateSnapshotEx_Task" not in old.calls
    assert snapshot.remarks == []
