"""Certificates are checked before anything secret is sent."""

import dataclasses

import pytest

from pipeline.errors import ConfigError, SourceError
from vadpipe.vsphere.api.faults import CertificateRefused
from vadpipe.vsphere.api.http import Trust
from vadpipe.vsphere.api.session import Vcenter


async def _connect(settings: Vcenter) -> str:
    async with settings.connect() as session:
        return session.certificate_sha1


@pytest.mark.parametrize("shape", [str.lower, str.upper, lambda text: text.replace(":", "")])
@pytest.mark.parametrize("which", ["thumbprint", "thumbprint_sha256"])
async def test_a_pinned_certificate_is_accepted(lab, vcenter, which, shape):
    pinned = dataclasses.replace(vcenter, thumbprint=shape(getattr(lab, which)))
    assert await _connect(pinned) == lab.thumbprint


@pytest.mark.parametrize("length", [20, 32])
async def test_another_certificate_is_refused_and_gets_no_password(lab, vcenter, length):
    wrong = ":".join(["AB"] * length)
    with pytest.raises(CertificateRefused) as caught:
        await _connect(dataclasses.replace(vcenter, thumbprint=wrong))
    assert wrong in str(caught.value)
    assert (lab.thumbprint if length == 20 else lab.thumbprint_sha256) in str(caught.value)
    assert "openssl x509" in str(caught.value)
    assert caught.value.exit_code == 1
    assert isinstance(caught.value, SourceError)
    assert lab.calls == {}


async def test_a_certificate_of_a_given_authority_is_accepted(lab, vcenter):
    trusting = dataclasses.replace(vcenter, thumbprint=None, ca_file=str(lab.certificate))
    assert await _connect(trusting) == lab.thumbprint


async def test_an_unverified_certificate_is_refused_and_its_thumbprint_is_shown(lab, vcenter):
    with pytest.raises(CertificateRefused) as caught:
        await _connect(dataclasses.replace(vcenter, thumbprint=None))
    assert lab.thumbprint_sha256 in str(caught.value)
    assert lab.calls == {}


@pytest.mark.parametrize("thumbprint", ["", "AB", "zz" * 20, "AB:" * 19, "ab" * 64])
def test_a_malformed_thumbprint_is_a_config_error(thumbprint):
    with pytest.raises(ConfigError, match="thumbprint"):
        Trust(thumbprint)


def test_contradicting_or_unreadable_settings_are_config_errors():
    with pytest.raises(ConfigError, match="Both"):
        Trust("ab" * 20, "ca.pem")
    with pytest.raises(ConfigError, match=r"no-such\.pem"):
        Trust(None, "no-such.pem").context()
