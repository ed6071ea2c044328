"""What a backup keeps for a restore, read from vcsim: a second opinion on the calls. Needs VCSIM; see the kit."""

from pyVmomi import vim

from tests.vadpipe.vsphere.vcsim_kit import NEEDS_VCSIM, vcsim
from tests.vadpipe.vsphere.vsphere_kit import make_snapshot
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.inventory.origin import CONFIG_DOCUMENT, origin_of
from vadpipe.vsphere.inventory.raw_config import parse_config

__all__ = ["vcsim"]
pytestmark = NEEDS_VCSIM
WEB01 = "DC0_C0_RP0_VM0"


async def test_the_raw_configuration_and_the_places_are_read(vcsim):
    async with vcsim.connect() as session:
        vm = await find_vm(session, WEB01)
        snapshot = await make_snapshot(session, "kept", "d", vm=WEB01)
        origin = await origin_of(session, vm, snapshot)
    parsed = parse_config(origin.documents[CONFIG_DOCUMENT])
    assert parsed.config.name == WEB01
    assert any(isinstance(one, vim.vm.device.VirtualDisk) for one in parsed.config.hardware.device)
    assert origin.facts["folder"] == "/DC0/vm"
    assert origin.facts["cluster"] == "DC0_C0"
    assert origin.facts["pool"] == "/DC0/host/DC0_C0/Resources"
    assert not [one for one in origin.remarks if "Where the VM was" in one]
