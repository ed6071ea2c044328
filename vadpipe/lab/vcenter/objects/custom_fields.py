"""Custom attributes: their definitions, and the values that VMs have for them."""

from __future__ import annotations

from pyVmomi import vim, vmodl

from ..api.managed import Call, Entity, Managed, moref_of, vim_property
from ..state.inventory import CustomField, VmState

_FIRST_KEY = 101


class CustomFieldsManager(Managed):
    vim_type = vim.CustomFieldsManager

    @vim_property
    def field(self) -> list[vim.CustomFieldsManager.FieldDef]:
        return [_definition(key, one) for key, one in self.service.inventory.custom_fields.items()]

    def AddCustomFieldDef(
        self,
        call: Call,
        name: str,
        mo_type: type | None,
        definition_policy: vim.PrivilegePolicyDef | None,
        policy: vim.PrivilegePolicyDef | None,
    ) -> vim.CustomFieldsManager.FieldDef:
        self.service.need("Global.ManageCustomFields", self.service.root_folder.ref)
        fields = self.service.inventory.custom_fields
        kind = "" if mo_type is None else mo_type.__name__
        with self.service.changes.lock:
            if any(one.name == name for one in fields.values()):
                raise vim.fault.DuplicateName(
                    name=name, object=self.ref, msg=f"The name '{name}' already exists."
                )
            key = max(fields, default=_FIRST_KEY - 1) + 1
            fields[key] = CustomField(name, kind)
            self.service.inventory.save()
            self.service.changes.touch(self.moref)
        return _definition(key, fields[key])

    def RemoveCustomFieldDef(self, call: Call, key: int) -> None:
        self.service.need("Global.ManageCustomFields", self.service.root_folder.ref)
        with self.service.changes.lock:
            self._need(key)
            del self.service.inventory.custom_fields[key]
            for vm in self.service.inventory.vms.values():
                vm.custom_values.pop(key, None)
            self.service.inventory.save()
            self.service.changes.touch(self.moref)

    def SetField(self, call: Call, entity: vim.ManagedEntity, key: int, value: str) -> None:
        self.service.need("Global.SetCustomField", entity)
        vm = self.service.inventory.vms.get(moref_of(entity))
        if vm is None:
            raise vmodl.fault.NotSupported(msg="The lab keeps attributes of virtual machines only.")
        with self.service.changes.lock:
            self._need(key)
            if value:
                vm.custom_values[key] = value
            else:
                vm.custom_values.pop(key, None)
            self.service.vm_changed(vm)

    def _need(self, key: int) -> None:
        if key not in self.service.inventory.custom_fields:
            raise vmodl.fault.InvalidArgument(invalidProperty="key", msg=f"There is no custom field {key}.")


def _definition(key: int, field: CustomField) -> vim.CustomFieldsManager.FieldDef:
    return vim.CustomFieldsManager.FieldDef(
        key=key,
        name=field.name,
        type=str,
        managedObjectType=vim.VirtualMachine if field.kind else None,
    )


class Attributed(Entity):
    """The properties and the method of a VM that concern custom attributes."""

    state: VmState

    @vim_property
    def customValue(self) -> list[vim.CustomFieldsManager.StringValue]:
        return [
            vim.CustomFieldsManager.StringValue(key=key, value=value)
            for key, value in self.state.custom_values.items()
        ]

    @vim_property
    def value(self) -> list[vim.CustomFieldsManager.StringValue]:
        values: list[vim.CustomFieldsManager.StringValue] = self.customValue
        return values

    @vim_property
    def availableField(self) -> list[vim.CustomFieldsManager.FieldDef]:
        return [_definition(key, one) for key, one in self.service.inventory.custom_fields.items()]

    def setCustomValue(self, call: Call, key: str, value: str) -> None:
        """key: the attribute's name."""
        self.service.need("Global.SetCustomField", self.ref)
        fields = self.service.inventory.custom_fields.items()
        number = next((number for number, one in fields if one.name == key), None)
        if number is None:
            raise vmodl.fault.InvalidArgument(invalidProperty="key", msg=f"There is no field {key!r}.")
        with self.service.changes.lock:
            self.state.custom_values[number] = value
            self.service.vm_changed(self.state)
