"""Key providers: which there are, and what needs one: an encrypted VM, a virtual TPM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyVmomi import vim

from ..api.managed import Managed, vim_property
from ..state import hardware

if TYPE_CHECKING:
    from ..service import Service

MANAGER = "CryptoManager"


class CryptoManager(Managed):
    vim_type = vim.encryption.CryptoManagerKmip

    @vim_property
    def enabled(self) -> bool:
        return bool(self.service.key_providers)

    @vim_property
    def kmipServers(self) -> list[vim.encryption.KmipClusterInfo]:
        return [
            vim.encryption.KmipClusterInfo(
                clusterId=vim.encryption.KeyProviderId(id=name), useAsDefault=number == 0
            )
            for number, name in enumerate(self.service.key_providers)
        ]


def usable(service: Service, key: vim.encryption.CryptoKeyId) -> vim.encryption.CryptoKeyId:
    """The key, where its provider is one of the server's. Raises EncryptionKeyRequired."""
    if key.providerId is not None and key.providerId.id in service.key_providers:
        return key
    raise vim.fault.EncryptionKeyRequired(
        requiredKey=[key], msg="A required encryption key is not available from any key provider."
    )


def check_tpm(service: Service, index: int, firmware: str) -> None:
    """A virtual TPM needs EFI and a key provider. Raises InvalidDeviceSpec, EncryptionKeyRequired."""
    if firmware != "efi":
        raise hardware.fault(index)
    if not service.key_providers:
        raise vim.fault.EncryptionKeyRequired(requiredKey=[], msg="A virtual TPM needs a key provider.")
