"""From what the API, the firmware and the file system say to facts."""

import uuid
from dataclasses import replace
from typing import Any, cast

import pytest
from pyVmomi import vim

from pipeline.secrets import Secret
from stages import Quiesce, Vddk
from tests.vadpipe.vsphere.vsphere_kit import settings_of
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.inventory import VmTraits
from vadpipe.preflight import gather
from vadpipe.preflight.reach import probe, this_machine
from vadpipe.preflight.report import job_facts, vddk_facts
from vadpipe.preflight.vm import DETAILS, MAX_SNAPSHOTS, vm_facts
from vadpipe.vsphere.api.properties import Row
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.vm.vm import VsphereVm


def row(**values):
    return Row("VirtualMachine", "vm-1", {"name": "web01", "config.version": "vmx-19", **values})


def test_settings_are_read_one_by_one():
    details = (
        "architecture='X86' bitness='64' buildNumber='20348' distroName='Windows' "
        "kernelVersion='20348.2582' prettyName='Windows Server 2022'"
    )
    found = vm_facts(
        row(
            **{
                MAX_SNAPSHOTS: vim.option.OptionValue(key="snapshot.maxSnapshots", value="0"),
                DETAILS: vim.option.OptionValue(key="guestInfo.detailed.data", value=details),
            }
        ),
        (8, 0),
        {},
    )
    assert found.max_snapshots == 0
    assert found.guest_build == (20348, 2582)
    plain = vm_facts(row(), (8, 0), {})
    assert (plain.max_snapshots, plain.guest_build) == (None, None)
    assert (plain.tools_running, plain.tools_version, plain.volumes) == (None, None, None)


def test_an_agent_is_what_vsphere_manages_itself():
    def managed_by(key):
        return row(**{"config.managedBy": vim.ext.ManagedByInfo(extensionKey=key, type="cluster-agent")})

    assert vm_facts(managed_by("com.vmware.vim.eam"), (8, 0), {}).agent
    assert not vm_facts(managed_by("com.example.appliance"), (8, 0), {}).agent
    assert not vm_facts(row(), (8, 0), {}).agent


def test_encryption_is_a_matter_of_the_version():
    key = vim.encryption.CryptoKeyId(keyId="k")
    assert vm_facts(row(**{"config.keyId": key}), (6, 7), {}).encrypted is True
    assert vm_facts(row(), (6, 7), {}).encrypted is False
    assert vm_facts(row(), (6, 0), {}).encrypted is False
    assert vm_facts(Row("VirtualMachine", "vm-1", {}), (8, 0), {}).encrypted is None


@pytest.mark.parametrize(
    ("file", "version"),
    [("libvixDiskLib.so.8.0.3", (8, 0, 3)), ("libvixDiskLib.so.7.0.3.2", (7, 0, 3, 2)), (None, (8,))],
)
def test_the_version_of_vddk_is_in_the_name_of_its_file(tmp_path, file, version):
    directory = tmp_path / "lib64"
    directory.mkdir()
    link = directory / f"libvixDiskLib.so.{version[0]}"
    if file:
        (directory / file).touch()
        link.symlink_to(file)
    else:
        link.touch()
    found = vddk_facts(Vddk(tmp_path, transports="hotadd:nbdssl"))
    assert (found.version, found.problem, found.transports) == (version, "", ("hotadd", "nbdssl"))


async def test_the_facts_of_a_job_come_from_its_settings(tmp_path):
    server = Vcenter("vc01", "backup", Secret.from_text("lab"))
    quiesce = Quiesce.application(policy="try", backup_type="full")
    machine = VsphereVm(server, "web01", reader=Vddk(tmp_path), quiesce=quiesce, enable_change_tracking=True)
    facts = await job_facts(machine)
    assert (facts.quiescing, facts.may_degrade, facts.backup_type) == ("application", True, "full")
    assert facts.enable_change_tracking
    assert facts.vddk is not None
    assert "no VDDK library" in facts.vddk.problem
    without_vddk = replace(machine, reader=cast(Any, None), quiesce=Quiesce.none())
    assert (await job_facts(without_vddk)).vddk is None


async def test_this_machine_is_found_by_its_firmware(tmp_path, lab, vcenter, add_vm):
    moref = add_vm()
    own = uuid.UUID(lab._inventory.vms[moref].uuid)

    async def told(vendor, text=""):
        (tmp_path / "sys_vendor").write_text(vendor)
        (tmp_path / "product_uuid").write_text(text)
        async with vcenter.connect() as session:
            return await this_machine(session, tmp_path)

    assert await told("VMware, Inc.\n", f"{own}\n".upper()) == (True, moref)
    assert await told("VMware, Inc.\n", str(uuid.UUID(bytes=own.bytes_le))) == (True, moref)
    assert await told("VMware, Inc.\n", str(uuid.uuid4())) == (True, None)
    assert await told("VMware, Inc.\n", "") == (True, None)  # only root may read it
    assert await told("QEMU\n") == (True, None)
    assert await told("Dell Inc.\n") == (False, None)
    (tmp_path / "sys_vendor").unlink()
    async with vcenter.connect() as session:
        assert await this_machine(session, tmp_path) == (None, None)


async def test_an_esxi_host_tells_its_licence(tmp_path):
    with LabVcenter(tmp_path / "host", api_type="HostAgent", task_s=0.02) as host:
        directory = host.datastore("datastore1") / "web01"
        moref = host.register_vm(directory, "web01", [], traits=VmTraits())
        settings = settings_of(host)
        host.license("esxBasic")
        async with settings.connect() as session:
            gathered = await gather(session, [moref])
            assert not gathered.server.is_vcenter
            assert list(gathered.server.editions) == ["esxBasic"]
            host.inject("RetrievePropertiesEx", lambda: vim.fault.NoPermission(privilegeId="Global.Licenses"))
            assert (await gather(session, [moref])).server.editions is None


async def test_the_ports_of_an_esxi_host_are_tried_at_the_configured_address(tmp_path):
    with LabVcenter(tmp_path / "host", api_type="HostAgent", task_s=0.02) as host:
        moref = host.register_vm(host.datastore("datastore1") / "web01", "web01", [], traits=VmTraits())
        settings = settings_of(host)
        async with settings.connect() as session:
            gathered = await gather(session, [moref])
            [esxi] = [gathered.hosts[one] for one in gathered.hosts_of(moref)]
            assert esxi.name == "esxi01.lab.local"  # which resolves nowhere
            [probed] = await probe([esxi], ports=(host.port,))
    assert (probed.reached_at, probed.unresolved, probed.closed_ports) == (host.address, "", {host.port: ""})
