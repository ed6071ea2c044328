"""What a backup keeps for a restore: read from the lab's vCenter, whole, with few calls, and never failing."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from pyVmomi import vim, vmodl

from pipeline.secrets import Secret
from tests.vadpipe.vsphere.vsphere_kit import make_snapshot, settings_of
from vadpipe.lab.vcenter.faults.injection import Drop
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.inventory import VmTraits
from vadpipe.lab.vcenter.state.networks import NetworkTraits
from vadpipe.vmdk.vmx import NVRAM_DOCUMENT, REDACTED
from vadpipe.vsphere.api.tasks import wait_for_task
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.inventory.origin import CONFIG_DOCUMENT, origin_of
from vadpipe.vsphere.inventory.raw_config import parse_config
from vadpipe.vsphere.plan.saved import saved_from


async def _origin(lab, settings, before=None):
    async with settings.connect() as session:
        vm = await find_vm(session, "web01")
        snapshot = await make_snapshot(session, "kept", "d")
        if before is not None:
            before()
        return await origin_of(session, vm, snapshot)


@pytest.fixture
def web01(lab, add_vm):
    moref = add_vm(disks=2, folder="Web")
    lab.guests.service.inventory.vms[moref].extra_config |= {
        "guestinfo.userdata": "hunter2!",
        "RemoteDisplay.vnc.password": "hunter2!",
    }
    (lab.datastore("datastore1") / "web01" / "web01.nvram").write_bytes(b"variables")
    lab.tags.attach(lab.tags.create("env", "prod"), moref)
    return moref


async def test_all_of_it_is_kept(lab, vcenter, web01):
    origin = await _origin(lab, vcenter)
    assert origin.remarks == []
    facts = json.loads(json.dumps(origin.facts))
    assert facts["api_version"] == "8.0.3.0"
    assert facts["path"] == "/Datacenter/vm/Web/web01"
    assert facts["folder"] == "/Datacenter/vm/Web"
    assert facts["pool"].endswith("/Resources")
    assert facts["host"] == "esxi01.lab.local"
    assert facts["tags"] == [{"category": "env", "name": "prod"}]
    assert facts["disks"]["scsi0:1"]["datastore"] == "datastore1"
    assert facts["disks"]["scsi0:1"]["provisioning"] == "thin"
    assert origin.documents[NVRAM_DOCUMENT] == b"variables"


async def test_the_answer_is_raw_and_holds_no_secret(lab, vcenter, web01):
    document = (await _origin(lab, vcenter)).documents[CONFIG_DOCUMENT]
    assert document.startswith(b"<?xml")
    assert b"RetrievePropertiesExResponse" in document
    assert b"hunter2!" not in document
    config = parse_config(document).config
    assert {one.key: one.value for one in config.extraConfig}["guestinfo.userdata"] == REDACTED
    assert len([one for one in config.hardware.device if isinstance(one, vim.vm.device.VirtualDisk)]) == 2


async def test_few_calls_are_made(lab, vcenter, web01):
    earlier: Counter[str] = Counter()
    await _origin(lab, vcenter, lambda: earlier.update(lab.calls))
    made = Counter(lab.calls) - earlier
    rest = made.pop("/api")
    assert rest == 5  # login, the tags of the VM, one tag, its category, logout
    assert made.pop("/pbm/sdk", 1) == 1
    assert made == {"RetrievePropertiesEx": 3, "/folder": 1, "Logout": 1}


async def test_a_vm_that_never_ran_has_no_firmware_variables(lab, vcenter, add_vm):
    add_vm()
    origin = await _origin(lab, vcenter)
    assert NVRAM_DOCUMENT not in origin.documents
    assert origin.remarks == []


async def test_a_refused_answer_is_replaced_by_pyvmomis_own_writing(lab, vcenter, web01):
    def refuse() -> None:
        lab.inject("RetrievePropertiesEx", lambda: vmodl.fault.NotSupported())

    origin = await _origin(lab, vcenter, refuse)
    [remark] = origin.remarks
    assert "own answer" in remark
    document = origin.documents[CONFIG_DOCUMENT]
    assert b"hunter2!" not in document
    assert parse_config(document).config.name == "web01"


@pytest.mark.parametrize("nth", [2, 3])
async def test_places_that_cannot_be_read_are_a_remark(lab, vcenter, web01, nth):
    def refuse() -> None:
        lab.inject("RetrievePropertiesEx", lambda: vim.fault.NoPermission(privilegeId="System.View"), nth)

    origin = await _origin(lab, vcenter, refuse)
    assert [one for one in origin.remarks if one.startswith("Where the VM was")]
    assert CONFIG_DOCUMENT in origin.documents


async def test_a_lost_connection_is_repeated(lab, vcenter, web01):
    origin = await _origin(lab, vcenter, lambda: lab.inject("RetrievePropertiesEx", Drop.AFTER))
    assert origin.remarks == []
    assert CONFIG_DOCUMENT in origin.documents


async def test_an_ended_session_is_renewed(lab, vcenter, web01):
    origin = await _origin(
        lab,
        vcenter,
        lambda: lab.inject(
            "RetrievePropertiesEx",
            lambda: vim.fault.NotAuthenticated(object=vim.Folder("group-d1"), privilegeId="System.View"),
        ),
    )
    assert origin.remarks == []


async def test_an_encrypted_vm_leaves_its_key_id_and_no_key(lab, vcenter, add_vm):
    add_vm(traits=VmTraits(encrypted=True))
    facts = (await _origin(lab, vcenter)).facts
    assert facts["encryption"] == {"key_id": "lab", "provider": "lab", "bundle": False}


async def test_a_session_by_cookie_reads_no_tags(lab, vcenter, web01):
    async with vcenter.connect() as session:
        cookie = Secret.from_text(session.cookie)
        settings = replace(vcenter, user="", password=None, cookie=cookie)
        origin = await _origin(lab, settings)
    assert "tags" not in origin.facts
    assert origin.remarks == []


async def test_an_esxi_host_keeps_what_it_has(tmp_path):
    with LabVcenter(tmp_path / "esxi", api_type="HostAgent") as lab:
        from pipeline.units import MiB
        from vadpipe.lab.disks import LabDisk

        directory = lab.datastore("datastore1") / "web01"
        lab.register_vm(directory, "web01", [LabDisk.create(directory, "disk0", MiB)])
        origin = await _origin(lab, settings_of(lab, patience_s=1))
    assert origin.remarks == []
    assert "tags" not in origin.facts
    vm = saved_from("web01", parse_config(origin.documents[CONFIG_DOCUMENT]).config, origin=origin.facts)
    assert vm.disks[0].datastore == "datastore1"


async def test_networks_of_each_kind_and_custom_attributes_are_kept_by_name(lab, vcenter, web01):
    card = vim.vm.device.VirtualEthernetCard
    group = lab.add_network(NetworkTraits("dv-web", "distributed"))
    lab.add_network(NetworkTraits("segment", "opaque", id="o-1"))
    switch = NetworkTraits().switch_uuid
    port = vim.dvs.PortConnection(switchUuid=switch, portgroupKey=group)
    backings = [
        card.NetworkBackingInfo(deviceName="VM Network"),
        card.DistributedVirtualPortBackingInfo(port=port),
        card.OpaqueNetworkBackingInfo(opaqueNetworkId="o-1", opaqueNetworkType="nsx.LogicalSwitch"),
    ]
    nics = [
        vim.vm.device.VirtualDeviceSpec(
            operation="add", device=vim.vm.device.VirtualVmxnet3(key=-number, backing=backing)
        )
        for number, backing in enumerate(backings, 1)
    ]
    async with vcenter.connect() as session:
        subject = vim.VirtualMachine(web01, session.stub)
        wanted = vim.vm.ConfigSpec(deviceChange=nics)
        task = await session.call("ReconfigVM_Task", lambda: subject.Reconfigure(wanted), changes=True)
        await wait_for_task(session, task, "ReconfigVM_Task")
        fields = session.content.customFieldsManager
        assert fields is not None

        def describe() -> None:
            owner = fields.AddFieldDefinition("owner", vim.VirtualMachine)
            fields.SetField(subject, owner.key, "web team")

        await session.call("SetField", describe, changes=True)
    facts = (await _origin(lab, vcenter)).facts
    assert facts["attributes"] == {"owner": "web team"}
    kept = {one["kind"]: (one["name"], one["ids"]) for one in facts["networks"].values()}
    assert kept == {
        "standard": ("VM Network", {}),
        "distributed": ("dv-web", {"switch_uuid": switch, "portgroup_key": group}),
        "opaque": ("segment", {"opaque_id": "o-1", "opaque_type": "nsx.LogicalSwitch"}),
    }
