"""Who may do what, and by which licence: AuthorizationManager and LicenseManager."""

from __future__ import annotations

from pyVmomi import vim

from .objects import (
    Call,
    Managed,
    moref_of,
    vim_property,
)


class AuthorizationManager(Managed):
    """The account may do everything but what the service denies it."""

    vim_type = vim.AuthorizationManager

    def HasPrivilegeOnEntities(
        self, call: Call, entities: list[vim.ManagedEntity], session_id: str, privileges: list[str]
    ) -> list[vim.AuthorizationManager.EntityPrivilege]:
        availability = [
            vim.AuthorizationManager.PrivilegeAvailability(
                privId=name, isGranted=name not in self.service.denied_privileges
            )
            for name in privileges
        ]
        return [
            vim.AuthorizationManager.EntityPrivilege(
                entity=type(entity)(moref_of(entity)), privAvailability=availability
            )
            for entity in entities
        ]


class LicenseManager(Managed):
    vim_type = vim.LicenseManager

    @vim_property
    def licenses(self) -> list[vim.LicenseManager.LicenseInfo]:
        edition = self.service.edition
        return [
            vim.LicenseManager.LicenseInfo(
                licenseKey="00000", editionKey=edition, name=edition, total=0, costUnit="cpuPackage"
            )
        ]
