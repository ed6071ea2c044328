"""Judgements before the deed: the checkers of specs and of power-on, and what a host's virtual hardware can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyVmomi import VmomiSupport, vim, vmodl

from ..api.managed import Call, Managed, moref_of
from ..faults.kinds import filled
from ..state import configuration
from .creation import blank, host_of
from .power import check_power_on
from .reconfiguration import judge

if TYPE_CHECKING:
    from ..service import Service

_OLDEST_VERSION = 4
# Guests that only newer hardware knows; the versions of vSphere 6.7, 7.0 and 8.0.
_GUESTS_SINCE = {
    "windows2019srv_64Guest": 14,
    "windows2019srvNext_64Guest": 18,
    "windows2022srvNext_64Guest": 20,
    "windows11_64Guest": 18,
    "windows12_64Guest": 20,
    "rhel9_64Guest": 17,
    "debian12_64Guest": 20,
}


class CompatibilityChecker(Managed):
    """Whether it is there, and answers, is the lab's to say: not every server has one that does."""

    vim_type = vim.vm.check.CompatibilityChecker

    def CheckVmConfig_Task(
        self,
        call: Call,
        spec: vim.vm.ConfigSpec,
        vm: vim.VirtualMachine | None,
        host: vim.HostSystem | None,
        pool: vim.ResourcePool | None,
        test_type: list[str] | None,
    ) -> vim.Task:
        self._need_method(call)
        if vm is None and pool is None:
            raise vmodl.fault.InvalidArgument(
                invalidProperty="pool", msg="Without a virtual machine a pool is to be named."
            )

        def check() -> None:
            with self.service.changes.lock:
                if vm is not None:
                    judge(self.service, self.service.inventory.vms[moref_of(vm)], spec)
                    return
                assert pool is not None
                new = blank(self.service, "", spec, host_of(self.service, pool, host))
                self.service.inventory.disks[new.moref] = {}
                try:
                    judge(self.service, new, spec)
                finally:
                    del self.service.inventory.disks[new.moref]

        return self._start(call, check, vm)

    def CheckPowerOn_Task(
        self,
        call: Call,
        vm: vim.VirtualMachine,
        host: vim.HostSystem | None,
        pool: vim.ResourcePool | None,
        test_type: list[str] | None,
    ) -> vim.Task:
        self._need_method(call)
        state = self.service.inventory.vms[moref_of(vm)]
        return self._start(call, lambda: check_power_on(self.service, state), vm)

    def _need_method(self, call: Call) -> None:
        if self.service.checks != "judging":
            raise vmodl.fault.MethodNotFound(
                receiver=self.ref, method=call.method.name, msg=f"Method {call.method.name} not found."
            )

    def _start(
        self, call: Call, check: Callable[[], None], vm: VmomiSupport.ManagedObject | None
    ) -> vim.Task:
        def work() -> object:
            errors = []
            try:
                check()
            except vmodl.MethodFault as fault:
                fault.msg = None  # the schema of a fault inside an answer has no place for it
                errors.append(fault)
            reference = vim.VirtualMachine(moref_of(vm)) if vm is not None else None
            result = vim.vm.check.Result(vm=reference, error=errors)
            return VmomiSupport.GetVmodlType("vim.vm.check.Result[]")([result])

        return self.service.tasks.start(call, None, work)


class ProvisioningChecker(Managed):
    """There, for clients that look for it; the lab does not judge clones and moves."""

    vim_type = vim.vm.check.ProvisioningChecker


class EnvironmentBrowser(Managed):
    """Of one compute resource. host: its moref."""

    vim_type = vim.EnvironmentBrowser

    def __init__(self, service: Service, moref: str, host: str) -> None:
        super().__init__(service, moref)
        self._host = host

    @property
    def _newest(self) -> int:
        return configuration.newest_version(self.service.inventory.hosts[self._host].version)

    def QueryConfigOptionDescriptor(self, call: Call) -> list[vim.vm.ConfigOptionDescriptor]:
        newest = self._newest
        return [
            vim.vm.ConfigOptionDescriptor(
                key=f"vmx-{version:02}",
                description=f"Hardware version {version}",
                host=[vim.HostSystem(self._host)],
                createSupported=version > _OLDEST_VERSION,
                defaultConfigOption=version == newest,
                runSupported=True,
                upgradeSupported=version > _OLDEST_VERSION,
            )
            for version in [4, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22]
            if version <= newest
        ]

    def QueryConfigOption(
        self, call: Call, key: str | None, host: vim.HostSystem | None
    ) -> vim.vm.ConfigOption | None:
        return self._option(key, [])

    def QueryConfigOptionEx(
        self, call: Call, spec: vim.EnvironmentBrowser.ConfigOptionQuerySpec | None
    ) -> vim.vm.ConfigOption | None:
        return self._option(spec.key if spec else None, list(spec.guestId) if spec else [])

    def _option(self, key: str | None, guest_ids: list[str]) -> vim.vm.ConfigOption | None:
        try:
            version = configuration.version_number(key) if key else self._newest
        except ValueError:
            version = self._newest + 1
        if version > self._newest:
            raise vmodl.fault.InvalidArgument(
                invalidProperty="key", msg=f"A specified parameter was not correct: key ({key})"
            )
        known = [
            guest_id
            for guest_id in self.service.guest_ids
            if version >= _GUESTS_SINCE.get(guest_id, 0) and guest_id in (guest_ids or [guest_id])
        ]
        option = filled(
            vim.vm.ConfigOption,
            version=f"vmx-{version:02}",
            description=f"Hardware version {version}",
            guestOSDescriptor=[
                filled(vim.vm.GuestOsDescriptor, id=guest_id, fullName=guest_id) for guest_id in known
            ],
        )
        assert isinstance(option, vim.vm.ConfigOption)
        return option
