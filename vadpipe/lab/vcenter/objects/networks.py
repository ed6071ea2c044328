"""Networks in the inventory, and the distributed switches of their portgroups."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pyVmomi import VmomiSupport, vim

from ..api.managed import Entity, vim_property
from ..state.networks import NetworkTraits

if TYPE_CHECKING:
    from ..service import Service


class Network(Entity):
    """A standard network, of which the other kinds are special cases."""

    vim_type: ClassVar[type[VmomiSupport.ManagedObject]] = vim.Network

    def __init__(self, service: Service, moref: str, traits: NetworkTraits) -> None:
        super().__init__(service, moref)
        self.traits = traits

    @property
    def display_name(self) -> str:
        return self.traits.name

    @vim_property
    def summary(self) -> vim.Network.Summary:
        return vim.Network.Summary(
            network=self.ref,
            name=self.traits.name,
            accessible=self.traits.accessible,
            ipPoolName="",
        )

    @vim_property
    def vm(self) -> list[vim.VirtualMachine]:
        vms = self.service.inventory.vms.values()
        on_it = (vm for vm in vms if self.moref in self.service.networks_of(vm))
        return [vim.VirtualMachine(vm.moref) for vm in on_it]

    @vim_property
    def host(self) -> list[vim.HostSystem]:
        return [vim.HostSystem(moref) for moref in self.service.inventory.hosts]


class OpaqueNetwork(Network):
    vim_type = vim.OpaqueNetwork

    @vim_property
    def summary(self) -> vim.OpaqueNetwork.Summary:
        return vim.OpaqueNetwork.Summary(
            network=self.ref,
            name=self.traits.name,
            accessible=self.traits.accessible,
            ipPoolName="",
            opaqueNetworkId=self.traits.id,
            opaqueNetworkType=self.traits.type,
        )


class Portgroup(Network):
    """A portgroup of a distributed switch."""

    vim_type = vim.dvs.DistributedVirtualPortgroup

    @vim_property
    def key(self) -> str:
        return self.moref

    @vim_property
    def config(self) -> vim.dvs.DistributedVirtualPortgroup.ConfigInfo:
        return vim.dvs.DistributedVirtualPortgroup.ConfigInfo(
            key=self.moref,
            name=self.traits.name,
            numPorts=128,
            distributedVirtualSwitch=vim.dvs.VmwareDistributedVirtualSwitch(
                self.service.switch(self.traits).moref
            ),
            type="earlyBinding",
            policy=vim.dvs.DistributedVirtualPortgroup.PortgroupPolicy(
                blockOverrideAllowed=True,
                shapingOverrideAllowed=False,
                vendorConfigOverrideAllowed=False,
                livePortMovingAllowed=False,
                portConfigResetAtDisconnect=True,
            ),
        )


class Switch(Entity):
    """A distributed switch."""

    vim_type = vim.dvs.VmwareDistributedVirtualSwitch

    def __init__(self, service: Service, moref: str, traits: NetworkTraits) -> None:
        super().__init__(service, moref)
        self._name, self._uuid = traits.switch, traits.switch_uuid

    @property
    def display_name(self) -> str:
        return self._name

    @vim_property
    def uuid(self) -> str:
        return self._uuid

    @vim_property
    def summary(self) -> vim.DistributedVirtualSwitch.Summary:
        return vim.DistributedVirtualSwitch.Summary(name=self._name, uuid=self._uuid, numPorts=256)

    @vim_property
    def portgroup(self) -> list[vim.dvs.DistributedVirtualPortgroup]:
        networks = self.service.inventory.networks.items()
        return [
            vim.dvs.DistributedVirtualPortgroup(moref)
            for moref, traits in networks
            if traits.kind == "distributed" and traits.switch_uuid == self._uuid
        ]


KINDS: dict[str, type[Network]] = {"standard": Network, "distributed": Portgroup, "opaque": OpaqueNetwork}
