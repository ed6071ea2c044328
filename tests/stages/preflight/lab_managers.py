"""What the lab's vCenter lacks for preflight: who may do what, and the licences."""

from types import SimpleNamespace

from pyVmomi import vim

from lab.vcenter.managers import ServiceInstance
from lab.vcenter.objects import Managed, moref_of, vim_property


class AuthorizationManager(Managed):
    """Grants everything but `denied`: names of privileges."""

    vim_type = vim.AuthorizationManager
    denied = frozenset()

    def HasPrivilegeOnEntities(self, call, entities, session_id, privileges):  # noqa: N802
        return [
            vim.AuthorizationManager.EntityPrivilege(
                entity=type(entity)(moref_of(entity)),
                privAvailability=[
                    vim.AuthorizationManager.PrivilegeAvailability(
                        privId=name, isGranted=name not in self.denied
                    )
                    for name in privileges
                ],
            )
            for entity in entities
        ]


class LicenseManager(Managed):
    vim_type = vim.LicenseManager
    edition = "esx.enterprisePlus.cpuPackage"

    @vim_property
    def licenses(self):
        return [
            vim.LicenseManager.LicenseInfo(
                licenseKey="00000", editionKey=self.edition, name=self.edition, total=0, costUnit="cpuPackage"
            )
        ]


class InformedServiceInstance(ServiceInstance):
    def _content(self):
        content = super()._content()
        content.authorizationManager = vim.AuthorizationManager("AuthorizationManager")
        content.licenseManager = vim.LicenseManager("LicenseManager")
        return content


def install(lab):
    """Let the lab's sessions find both managers; returns them, for tests to change."""
    service = lab._service
    found = SimpleNamespace(
        authorization=AuthorizationManager(service, "AuthorizationManager"),
        licenses=LicenseManager(service, "LicenseManager"),
    )
    service._register(
        found.authorization, found.licenses, InformedServiceInstance(service, "ServiceInstance")
    )
    return found
