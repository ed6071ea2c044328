"""Networks of all kinds, and the adapters on them."""

from typing import Any

import pytest
from pyVmomi import vim

from tests.vadpipe.lab.vcenter.restoring import KINDS, card, config, devices
from vadpipe.lab.vcenter import LabVcenter, NetworkTraits

BACKINGS = KINDS.VirtualEthernetCard


@pytest.fixture
def portgroup(vcenter, client):
    moref = vcenter.add_network(NetworkTraits("Production", "distributed", "DSwitch", "50 01"))
    return vim.dvs.DistributedVirtualPortgroup(moref, client._stub)


def on_portgroup(portgroup, uuid=None):
    switch = portgroup.config.distributedVirtualSwitch
    port = vim.dvs.PortConnection(switchUuid=uuid or switch.uuid, portgroupKey=portgroup.key)
    return BACKINGS.DistributedVirtualPortBackingInfo(port=port)


def test_adapters_are_on_networks_of_all_kinds(site, vcenter, client, portgroup):
    standard = vcenter.add_network(NetworkTraits("Test net"))
    opaque = vcenter.add_network(NetworkTraits("Segment", "opaque", id="ab-12"))
    nsx = BACKINGS.OpaqueNetworkBackingInfo(opaqueNetworkId="ab-12", opaqueNetworkType="nsx.LogicalSwitch")
    vm = site.create(
        config(
            "web",
            card(network="Test net"),
            card(backing=on_portgroup(portgroup), key=-2),
            card(backing=nsx, key=-3),
        )
    )
    assert {one._moId for one in vm.network} == {standard, portgroup._moId, opaque}
    assert portgroup.vm == [vm]
    found = devices(vm)
    assert found[4000].backing.network._moId == standard
    assert found[4000].deviceInfo.summary == "Test net"
    assert found[4001].backing.port.portgroupKey == portgroup.key
    assert found[4002].backing.opaqueNetworkId == "ab-12"
    summary: Any = vim.OpaqueNetwork(opaque, client._stub).summary
    assert (summary.opaqueNetworkId, summary.opaqueNetworkType) == ("ab-12", "nsx.LogicalSwitch")


def test_a_portgroup_of_another_switch_is_refused(site, portgroup):
    with pytest.raises(vim.fault.InvalidDeviceBacking):
        site.create(config("web", card(backing=on_portgroup(portgroup, "50 02"))))


def test_networks_survive_a_restart(tmp_path, connect):
    with LabVcenter(tmp_path / "world") as first:
        moref = first.add_network(NetworkTraits("Production", "distributed"))
    with LabVcenter(tmp_path / "world") as second:
        portgroup = vim.dvs.DistributedVirtualPortgroup(moref, connect(second)._stub)
        assert portgroup.name == "Production"
        assert list(portgroup.config.distributedVirtualSwitch.portgroup) == [portgroup]
