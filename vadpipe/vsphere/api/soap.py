"""pyVmomi's transport over our own connections, in the newest version of the API that both sides speak. Blocks."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from xml.etree.ElementTree import ParseError

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException
from pyVmomi.SoapAdapter import SoapStubAdapter
from pyVmomi.VmomiSupport import GetServiceVersions, versionIdMap

from .certificate import TrustedConnection
from .faults import VsphereError

_VERSIONS = "/sdk/vimServiceVersions.xml"
COOKIE = "vmware_soap_session"


def negotiated_stub(
    server: str, port: int, connection: Callable[[], TrustedConnection]
) -> tuple[SoapStubAdapter, bytes]:
    """The transport, and the server's certificate (DER).

    Raises OSError, HTTPException, CertificateRefused, VsphereError.
    """
    first = connection()
    offered = _offered_versions(first)
    version = next((name for name in GetServiceVersions("vim25") if versionIdMap[name] in offered), None)
    if version is None:
        raise VsphereError(
            f"{server} speaks no version of the vSphere API that this program knows.",
            remedy="Check the name and port of the server; update pyVmomi for a newer vSphere.",
            server=server,
        )
    stub = SoapStubAdapter(host=server, port=port, version=version)
    # pyVmomi makes its connections by calling this attribute, a class of http.client when left alone.
    setattr(stub, "scheme", lambda host, port: connection())  # noqa: B010
    return stub, first.certificate


def session_id(cookie: str) -> str:
    """The bare value of a session cookie that is given as a value or as a whole header."""
    value = cookie.partition(";")[0].strip().removeprefix(f"{COOKIE}=")
    return value.strip('"')


def _offered_versions(connection: TrustedConnection) -> frozenset[str]:
    try:
        connection.request("GET", _VERSIONS)
        response = connection.getresponse()
        document = response.read(1 << 20)
        if response.status >= http.client.INTERNAL_SERVER_ERROR:
            raise http.client.HTTPException(f"{response.status} {response.reason}")
        versions = defusedxml.ElementTree.fromstring(document).iter("version")
        return frozenset(element.text or "" for element in versions)
    except (ParseError, DefusedXmlException):
        return frozenset()
    finally:
        connection.close()
