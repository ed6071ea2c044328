"""Custom attributes through CustomFieldsManager."""

from typing import Any

import pytest
from pyVmomi import vim, vmodl

from vadpipe.lab.vcenter.server import LabVcenter


def test_an_attribute_is_defined_set_and_read(client, vm):
    manager = client.content.customFieldsManager
    assert list(manager.field) == []
    owner = manager.AddCustomFieldDef("owner", vim.VirtualMachine)
    everywhere = manager.AddCustomFieldDef("cost", None)
    assert [(one.name, one.managedObjectType) for one in manager.field] == [
        ("owner", vim.VirtualMachine),
        ("cost", None),
    ]
    manager.SetField(vm.api, owner.key, "finance")
    vm.api.setCustomValue("cost", "7")
    assert {one.key: one.value for one in vm.api.customValue} == {owner.key: "finance", everywhere.key: "7"}
    assert [one.name for one in vm.api.availableField] == ["owner", "cost"]
    manager.SetField(vm.api, owner.key, "")
    manager.RemoveCustomFieldDef(everywhere.key)
    assert list(vm.api.customValue) == []


def test_wrong_attributes_are_refused(client, vm, vcenter):
    manager = client.content.customFieldsManager
    key = manager.AddCustomFieldDef("owner", None).key
    with pytest.raises(vim.fault.DuplicateName):
        manager.AddCustomFieldDef("owner", None)
    with pytest.raises(vmodl.fault.InvalidArgument):
        manager.SetField(vm.api, key + 1, "x")
    vcenter.denied_privileges.add("Global.SetCustomField")
    with pytest.raises(vim.fault.NoPermission):
        manager.SetField(vm.api, key, "x")


def test_attributes_survive_a_restart(tmp_path, connect, make_vm):
    with LabVcenter(tmp_path / "world", task_s=0) as first:
        client, moref = connect(first), make_vm(first)
        manager = client.content.customFieldsManager
        key = manager.AddCustomFieldDef("owner", None).key
        manager.SetField(vim.VirtualMachine(moref, client._stub), key, "finance")
    with LabVcenter(tmp_path / "world", task_s=0) as second:
        client = connect(second)
        assert [one.name for one in client.content.customFieldsManager.field] == ["owner"]
        values: Any = vim.VirtualMachine(moref, client._stub).customValue
        assert [(one.key, one.value) for one in values] == [(key, "finance")]
