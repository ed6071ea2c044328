"""What needs a key provider is refused where there is none."""

import pytest
from pyVmomi import vim

from tests.vadpipe.lab.vcenter.restoring import KINDS, change, config, devices

KEY = vim.encryption.CryptoKeyId(keyId="k1", providerId=vim.encryption.KeyProviderId(id="vault"))
SPEC = vim.encryption.CryptoSpecEncrypt(cryptoKeyId=KEY)


def test_an_encrypted_vm_needs_the_provider_of_its_key(site, vcenter, client):
    with pytest.raises(vim.fault.EncryptionKeyRequired) as refused:
        site.create(config("web", crypto=SPEC))
    assert refused.value.requiredKey[0].keyId == "k1"
    vcenter.key_providers.append("vault")
    assert [one.clusterId.id for one in client.content.cryptoManager.kmipServers] == ["vault"]
    assert site.create(config("web", crypto=SPEC)).config.keyId.keyId == "k1"


def test_a_tpm_needs_efi_a_key_provider_and_hardware_version_14(site, vcenter):
    tpm = change(KINDS.VirtualTPM(key=-5))
    with pytest.raises(vim.fault.EncryptionKeyRequired):
        site.create(config("web", tpm, firmware="efi"))
    vcenter.key_providers.append("vault")
    with pytest.raises(vim.fault.InvalidDeviceSpec):
        site.create(config("web", tpm, firmware="bios"))
    with pytest.raises(vim.fault.DeviceUnsupportedForVmVersion):
        site.create(config("web", tpm, firmware="efi", version="vmx-13"))
    assert 11000 in devices(site.create(config("web", tpm, firmware="efi")))
