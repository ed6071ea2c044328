"""ESXi hosts as vCenter knows them: where they are, and which certificate they have.

A host has a certificate of its own, which neither the pinned certificate of vCenter nor its authority fits. vCenter
knows the certificate of each of its hosts, and its session is trusted already. So a host must show exactly the
certificate that vCenter names. A host whose certificate vCenter does not name gets no request.

Source: vSphere API reference, HostConfigSummary, GenericServiceTicket.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from ..api.faults import CertificateRefused, ObjectGone
from ..api.http import HTTPS_PORT, Endpoint, Trust, thumbprint_of
from ..api.properties import read
from ..api.session import VcenterSession
from .lookup import Vm


@dataclass(frozen=True)
class EsxiHost:
    """A host as its vCenter knows it. `thumbprint`: of its certificate; None when vCenter does not name it."""

    name: str
    port: int
    thumbprint: str | None

    def endpoint(self, session: VcenterSession) -> Endpoint:
        """The host, pinned to the certificate that vCenter names.

        Raises:
            CertificateRefused: vCenter does not name the certificate.
        """
        if self.thumbprint is None:
            raise CertificateRefused(
                f"{session.server} does not say which certificate {self.name} has, so nothing is sent there.",
                remedy="Check in vCenter that the host is connected; or log in at the host itself.",
                server=self.name,
            )
        return Endpoint(self.name, self.port, Trust(self.thumbprint))


def host_of(session: VcenterSession, vm: Vm) -> EsxiHost:
    """The host where a vCenter has the VM registered; it sees the VM's files. Blocks.

    Raises:
        ObjectGone: The VM is on no host.
    """
    host = read(session.content, vm.reference(session), ["runtime.host"]).get("runtime.host")
    if host is None:
        raise ObjectGone(f"{vm.name} is on no host.", server=session.server, vm=vm.name)
    config = read(session.content, host, ["summary.config"]).get("summary.config")
    return EsxiHost(config.name, config.port or HTTPS_PORT, pin(config.sslCertificate, config.sslThumbprint))


def pin(certificate: str | None, thumbprint: str | None) -> str | None:
    """The thumbprint to pin: SHA-256 of the certificate (PEM) when there is one, else what the server names."""
    if certificate:
        return thumbprint_of(ssl.PEM_cert_to_DER_cert(certificate.strip()), "sha256")
    return thumbprint or None
