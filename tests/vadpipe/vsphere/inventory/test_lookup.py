"""Looking up one VM or many, and the errors when there is none or several."""

import pytest

from pipeline.errors import SourceError
from vadpipe.vsphere.inventory.lookup import find_vm, find_vm_by_uuid, find_vms


async def test_a_vm_is_found_by_name_path_and_moref(lab, vcenter, add_vm):
    moref = add_vm("web01")
    add_vm("web02")
    async with vcenter.connect() as session:
        for wanted in ("web01", "/Datacenter/vm/web01", "Datacenter/vm/web01", "vm/web01", moref):
            vm = await find_vm(session, wanted)
            assert (vm.moref, vm.name, vm.path) == (moref, "web01", "/Datacenter/vm/web01")
            assert vm.datacenter == "Datacenter"
        assert await find_vm_by_uuid(session, vm.uuid) == moref
        assert await find_vm_by_uuid(session, "00000000-0000-0000-0000-000000000000") is None


async def test_a_name_with_escaped_characters_is_found(vcenter, add_vm):
    moref = add_vm("50% a/b")
    async with vcenter.connect() as session:
        vm = await find_vm(session, "50% a/b")
        assert (vm.moref, vm.name) == (moref, "50% a/b")
        assert (await find_vm(session, "50%25 a%2fb")).moref == moref


async def test_an_unknown_name_lists_near_ones(vcenter, add_vm):
    add_vm("web01")
    add_vm("mail")
    async with vcenter.connect() as session:
        with pytest.raises(SourceError, match=r"no VM 'web1'.*web01") as caught:
            await find_vm(session, "web1")
        assert "mail" not in str(caught.value)
        with pytest.raises(SourceError, match="spelling"):
            await find_vm(session, "zzzzzzzz")
    assert caught.value.exit_code == 1


async def test_an_empty_inventory_is_named_as_the_cause(vcenter):
    async with vcenter.connect() as session:
        with pytest.raises(SourceError, match="sees no VM"):
            await find_vm(session, "web01")


async def test_an_ambiguous_name_lists_the_paths(lab, vcenter, add_vm):
    first, second = add_vm("web01"), add_vm("other")
    lab.register_vm(lab.datastore("datastore1") / "again", "web01", [])
    async with vcenter.connect() as session:
        with pytest.raises(SourceError, match=r"2 VMs .*/Datacenter/vm/web01") as caught:
            await find_vm(session, "web01")
        assert first in str(caught.value)
        assert second not in str(caught.value)
        assert (await find_vm(session, first)).moref == first


@pytest.mark.slow
async def test_many_vms_are_read_in_pages(lab, vcenter, add_vm):
    directory = lab.datastore("datastore1")
    for number in range(120):
        lab.register_vm(directory / f"vm{number}", f"vm{number}", [])
    async with vcenter.connect() as session:
        assert (await find_vm(session, "vm119")).name == "vm119"
    assert lab.calls["ContinueRetrievePropertiesEx"] >= 1


async def test_a_vm_is_found_by_instance_and_bios_uuid(lab, vcenter, add_vm):
    moref = add_vm("web01")
    add_vm("web02")
    async with vcenter.connect() as session:
        vm = await find_vm(session, moref)
        assert await find_vm(session, vm.uuid.upper()) == vm
        bios = await session.call("Read", lambda: vm.reference(session).config.uuid)
        assert await find_vm(session, bios) == vm
        with pytest.raises(SourceError, match="no VM"):
            await find_vm(session, "00000000-0000-0000-0000-000000000000")


async def test_many_vms_cost_the_calls_of_one_and_come_in_the_order_asked_for(lab, vcenter, add_vm):
    names = ["web03", "web01", "web02", "web01"]
    for name in sorted(set(names)):
        add_vm(name)
    async with vcenter.connect() as session:
        one_by_one = [await find_vm(session, name) for name in names]
        before = lab.calls["RetrievePropertiesEx"]
        assert await find_vms(session, names) == one_by_one
        assert lab.calls["RetrievePropertiesEx"] - before == 1


async def test_a_missing_vm_among_many_is_named(vcenter, add_vm):
    add_vm("web01")
    async with vcenter.connect() as session:
        with pytest.raises(SourceError, match="no VM 'web02'"):
            await find_vms(session, ["web01", "web02"])
