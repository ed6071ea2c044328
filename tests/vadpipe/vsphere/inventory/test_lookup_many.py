"""Many VMs looked up at once: in the order asked for, each as if alone, for the calls of one."""

from collections.abc import Callable

import pytest

from pipeline.errors import SourceError
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.inventory.lookup import find_vm, find_vms

NAMES = ["web03", "web01", "web02", "web01"]


async def test_many_cost_the_calls_of_one(
    lab: LabVcenter, vcenter: Vcenter, add_vm: Callable[..., str]
) -> None:
    for name in sorted(set(NAMES)):
        add_vm(name)
    async with vcenter.connect() as session:
        one_by_one = [await find_vm(session, name) for name in NAMES]
        before = lab.calls["RetrievePropertiesEx"]
        assert await find_vms(session, NAMES) == one_by_one
        assert lab.calls["RetrievePropertiesEx"] - before == 2


async def test_one_that_is_missing_is_named(vcenter: Vcenter, add_vm: Callable[..., str]) -> None:
    add_vm("web01")
    async with vcenter.connect() as session:
        with pytest.raises(SourceError, match="no VM 'web02'"):
            await find_vms(session, ["web01", "web02"])
