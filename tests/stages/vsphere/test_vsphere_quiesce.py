"""What is asked of the guest, and by which call."""

from collections.abc import Callable

import pytest
from pyVmomi import vim, vmodl

from lab.vcenter import LabVcenter
from pipeline.errors import ConfigError
from stages.vsphere import Journal, Quiesce, Vcenter, find_vm, open_snapshot
from stages.vsphere.quiesce import quiesce_spec

WINDOWS = "windows2019srv_64Guest"


def test_application_quiescing_forces_its_context() -> None:
    spec = quiesce_spec(Quiesce.application(timeout_min=20), WINDOWS)
    assert isinstance(spec, vim.vm.WindowsQuiesceSpec)
    assert (spec.vssBackupContext, spec.vssBackupType, spec.timeout) == ("ctx_backup", 5, 20)
    assert (spec.vssBootableSystemState, spec.vssPartialFileSupport) == (True, False)


@pytest.mark.parametrize(
    ("backup_type", "number"), [("full", 1), ("incremental", 2), ("differential", 3), ("log", 4), ("copy", 5)]
)
def test_backup_types_have_the_numbers_of_vss(backup_type: str, number: int) -> None:
    spec = quiesce_spec(Quiesce.application(backup_type=backup_type), WINDOWS)
    assert isinstance(spec, vim.vm.WindowsQuiesceSpec)
    assert spec.vssBackupType == number


def test_the_other_kinds() -> None:
    spec = quiesce_spec(Quiesce.file_system(), WINDOWS)
    assert isinstance(spec, vim.vm.WindowsQuiesceSpec)
    assert (spec.vssBackupContext, spec.timeout) == ("ctx_file_share_backup", None)
    assert quiesce_spec(Quiesce.none(), WINDOWS) is None
    assert type(quiesce_spec(Quiesce.application(), "ubuntu64Guest")) is vim.vm.GuestQuiesceSpec


@pytest.mark.parametrize("timeout_min", [0, 4, 241, -1])
def test_a_time_out_outside_what_vsphere_takes_is_a_config_error(timeout_min: int) -> None:
    with pytest.raises(ConfigError, match="5 to 240"):
        Quiesce.application(timeout_min=timeout_min)


def test_limits_of_the_time_out_are_good() -> None:
    assert [Quiesce.file_system(timeout_min=limit).timeout_min for limit in (5, 240)] == [5, 240]


def test_unknown_words_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="copy"):
        Quiesce.application(backup_type="everything")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="quiescing"):
        Quiesce("app")  # type: ignore[arg-type]


def _not_found() -> vmodl.MethodFault:
    return vmodl.fault.MethodNotFound(receiver=vim.VirtualMachine("vm-1"), method="CreateSnapshotEx_Task")


@pytest.mark.parametrize("refusal", [vmodl.fault.NotSupported, _not_found])
async def test_where_ex_is_not_to_be_had_the_older_call_is_used(
    lab: LabVcenter,
    vcenter: Vcenter,
    journal: Journal,
    add_vm: Callable[..., str],
    refusal: Callable[[], vmodl.MethodFault],
) -> None:
    add_vm()
    lab.inject("CreateSnapshotEx_Task", refusal)
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        async with open_snapshot(session, vm, Quiesce.application(), journal, run="r"):
            assert lab.calls["CreateSnapshot_Task"] == 1
