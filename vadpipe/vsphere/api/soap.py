"""pyVmomi's transport over `TrustedConnection`, in the newest API version that both sides speak. Blocks."""

from __future__ import annotations

import http.client
import logging
import time
from http import HTTPStatus
from typing import Any
from xml.etree.ElementTree import ParseError
from xml.sax.saxutils import escape

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException
from pyVmomi.SoapAdapter import SoapStubAdapter
from pyVmomi.VmomiSupport import GetServiceVersions, ManagedObject, versionIdMap

from .faults import SessionExpired, VsphereError
from .http import Endpoint, HttpClient

log = logging.getLogger(__name__)

COOKIE = "vmware_soap_session"
_SDK = "/sdk"
_VERSIONS = f"{_SDK}/vimServiceVersions.xml"
_VIM25 = "urn:vim25"
_ENDED = b"NotAuthenticatedFault"
_RETRIEVE = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" '
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><RetrievePropertiesEx xmlns="urn:vim25">'
    '<_this type="PropertyCollector">{collector}</_this><specSet>'
    "<propSet><type>{kind}</type><pathSet>{path}</pathSet></propSet>"
    '<objectSet><obj type="{kind}">{moref}</obj></objectSet></specSet><options></options>'
    "</RetrievePropertiesEx></soapenv:Body></soapenv:Envelope>"
)


class SoapStub(SoapStubAdapter):
    """The transport to one server. It logs each call with its object and its duration, never its arguments.

    `newest`: the newest version of the API that the server speaks, which pyVmomi may not know; empty when unknown.
    """

    def __init__(self, endpoint: Endpoint, version: str, *, path: str = _SDK, newest: str = "") -> None:
        SoapStubAdapter.__init__(self, host=endpoint.host, port=endpoint.port, path=path, version=version)
        self._server = endpoint.host
        self.newest = newest
        # pyVmomi makes its connections by calling this attribute, by default a class of http.client.
        setattr(self, "scheme", lambda host, port: endpoint.connection())  # noqa: B010

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
    return SoapStub(endpoint, version, newest=_newest_in(response.content)), certificate


def raw_property(
    http: HttpClient, cookie: str, version: str, collector: str, subject: ManagedObject, path: str, limit: int
) -> bytes:
    """The answer with one property as the server sends it, in any version of the API that it speaks. Blocks.

    Args:
        http: A connection to the server.
        cookie: The session, as an HTTP header value.
        version: The version to ask with, e.g. '9.1.0.0'.
        collector: The moref of the server's PropertyCollector.
        subject: The object.
        path: The property.
        limit: Bytes of the largest answer.

    Raises:
        SessionExpired: The session has ended.
        VsphereError: The server refuses, or the answer is too large; ConnectionLost is a kind of it.
    """
    kind = str(type(subject)._wsdlName)
    body = _RETRIEVE.format(
        collector=escape(collector), kind=kind, path=escape(path), moref=escape(str(subject._moId))
    )
    headers = {
        "Cookie": cookie,
        "Content-Type": "text/xml; charset=UTF-8",
        "SOAPAction": f'"{_VIM25}/{version}"',
    }
    call = f"RetrievePropertiesEx {path} of {kind}, version {version}"
    response = http.request("POST", _SDK, call=call, limit=limit, headers=headers, body=body.encode())
    if response.status == HTTPStatus.INTERNAL_SERVER_ERROR and _ENDED in response.content:
        raise SessionExpired(f"The session with {response.server} has ended.", server=response.server)
    return response.require_success()


def session_id(cookie: str) -> str:
    """The bare value of a session cookie, from a value or from a whole header."""
    value = cookie.partition(";")[0].strip().removeprefix(f"{COOKIE}=")
    return value.strip('"')


def _newest_in(document: bytes) -> str:
    """The version that the document names for the namespace of the API; empty: none."""
    try:
        for namespace in defusedxml.ElementTree.fromstring(document).iter("namespace"):
            if namespace.findtext("name") == _VIM25:
                return str(namespace.findtext("version") or "")
    except (ParseError, DefusedXmlException):
        pass
    return ""


def _versions_in(document: bytes) -> frozenset[str]:
    try:
        versions = defusedxml.ElementTree.fromstring(document).iter("version")
        return frozenset(element.text or "" for element in versions)
    except (ParseError, DefusedXmlException):
        return frozenset()
