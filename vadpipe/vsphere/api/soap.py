"""pyVmomi's transport over `TrustedConnection`, in the newest API version that both sides speak. Blocks."""

from __future__ import annotations

import http.client
import logging
import time
from typing import Any
from xml.etree.ElementTree import ParseError

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException
from pyVmomi.SoapAdapter import SoapStubAdapter
from pyVmomi.VmomiSupport import GetServiceVersions, ManagedObject, versionIdMap

from .faults import VsphereError
from .http import Endpoint, HttpClient

log = logging.getLogger(__name__)

COOKIE = "vmware_soap_session"
_VERSIONS = "/sdk/vimServiceVersions.xml"


class SoapStub(SoapStubAdapter):
    """The transport to one server. It logs each call with its object and its duration, never its arguments."""

    def __init__(self, endpoint: Endpoint, version: str) -> None:
        SoapStubAdapter.__init__(self, host=endpoint.host, port=endpoint.port, version=version)
        self._server = endpoint.host
        # pyVmomi makes its connections by calling this attribute, by default a class of http.client; with host and
        # port from version 9 on, with "host:port" before.
        setattr(self, "scheme", lambda *_, **__: endpoint.connection())  # noqa: B010

    def InvokeMethod(self, mo: ManagedObject, info: Any, args: Any, outerStub: Any = None) -> Any:  # noqa: ANN401, N802, N803
        started, outcome = time.monotonic(), "failed after "
        try:
            answer = SoapStubAdapter.InvokeMethod(self, mo, info, args, outerStub)
            outcome = ""
            return answer
        finally:
            kind = type(mo).__name__.rpartition(".")[2]
            duration_s = time.monotonic() - started
            log.debug(
                "%s: %s %s:%s %s%.3f s", self._server, info.wsdlName, kind, mo._moId, outcome, duration_s
            )


def negotiated_stub(endpoint: Endpoint) -> tuple[SoapStubAdapter, bytes]:
    """Connect, and agree on a version of the API.

    Returns:
        The transport, and the server's certificate (DER).

    Raises:
        VsphereError: No common version; CertificateRefused and ConnectionLost are kinds of it.
    """
    with HttpClient(endpoint) as client:
        response = client.request("GET", _VERSIONS, call="vimServiceVersions.xml", limit=1 << 20)
        certificate = client.certificate
    if response.status >= http.client.INTERNAL_SERVER_ERROR:
        response.require_success(remedy="See whether the services of the server run.")
    offered = _versions_in(response.content)
    version = next((name for name in GetServiceVersions("vim25") if versionIdMap[name] in offered), None)
    if version is None:
        raise VsphereError(
            f"{endpoint.host} speaks no version of the vSphere API that this program knows.",
            remedy="Check the name and port of the server; update pyVmomi for a newer vSphere.",
            server=endpoint.host,
        )
    return SoapStub(endpoint, version), certificate


def session_id(cookie: str) -> str:
    """The bare value of a session cookie, from a value or from a whole header."""
    value = cookie.partition(";")[0].strip().removeprefix(f"{COOKIE}=")
    return value.strip('"')


def _versions_in(document: bytes) -> frozenset[str]:
    try:
        versions = defusedxml.ElementTree.fromstring(document).iter("version")
        return frozenset(element.text or "" for element in versions)
    except (ParseError, DefusedXmlException):
        return frozenset()
