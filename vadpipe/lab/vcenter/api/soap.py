"""SOAP requests and answers on pyVmomi's own codec.

pyVmomi ships the client half of the wire format: a serializer for any vim value and a deserializer that is
driven by expat handlers. Both are table-driven by the API's types and know no direction, so the server half is
small: the parser below walks Envelope and Body itself and lends each parameter element to pyVmomi's deserializer,
which gives the handlers back at the element's end. Answers are therefore schema-valid by construction: the
serializer refuses a missing required field.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any
from xml.parsers.expat import ExpatError, ParserCreate

from pyVmomi import SoapAdapter, VmomiSupport, vmodl

VIM25 = "urn:vim25"
API_VERSION = "8.0.3.0"
_NEWEST = str(VmomiSupport.versionMap[f"vim25/{API_VERSION}"])
_NAMESPACES = {**SoapAdapter.SOAP_NSMAP, VIM25: ""}
_BODY = f"{SoapAdapter.XMLNS_SOAPENV} Body"
_HEADER = SoapAdapter.XML_HEADER + SoapAdapter.SOAP_START
FETCH = "Fetch"  # how pyVmomi reads one property; in no table of methods


class MalformedRequestError(ValueError):
    """The body is no SOAP request for a method that the API has."""


@dataclass(frozen=True)
class Method:
    """A method of the API: its parameters in schema order and what it answers.

    parameters: (name, vmodl type) pairs; description_id: the form that `TaskInfo` carries.
    """

    name: str
    parameters: tuple[tuple[str, type], ...]
    result: type
    description_id: str


@dataclass(frozen=True)
class Request:
    """One decoded call: `arguments` in schema order, None for those left out."""

    method: Method
    target_type: type
    target: str
    arguments: tuple[object, ...]
    version: str


@cache
def _method(target_type: type, name: str) -> Method:
    if name == FETCH:
        return Method(FETCH, (("prop", str),), object, FETCH)
    for known in target_type._GetMethodList():  # type: ignore[attr-defined]
        if known.wsdlName == name:
            short_type = known.type.__name__.removeprefix("vim.")
            return Method(
                name,
                tuple((parameter.name, parameter.type) for parameter in known.params),
                known.result,
                f"{short_type}.{known.name[0].lower()}{known.name[1:]}",
            )
    raise MalformedRequestError(f"{target_type.__name__} has no method {name}; see the vSphere API reference")


def version_of(soap_action: str | None, served: str = API_VERSION) -> str:
    """The API version that a SOAPAction header asks for; the served one when it is absent or newer."""
    newest = str(VmomiSupport.versionMap[f"vim25/{served}"])
    uri = (soap_action or "").strip('"').removeprefix("urn:")
    wanted = str(VmomiSupport.versionMap.get(uri, newest))
    return wanted if wanted in VmomiSupport.GetVersionParents(newest) else newest


@lru_cache(maxsize=8)
def service_versions(served: str = API_VERSION) -> bytes:
    """The document at `/sdk/vimServiceVersions.xml`: every version up to the served one."""
    newest = str(VmomiSupport.versionMap[f"vim25/{served}"])
    prior = "".join(
        f"<version>{VmomiSupport.versionIdMap[version]}</version>"
        for version in VmomiSupport.GetServiceVersions("vim25")
        if version.startswith("vim.") and version in VmomiSupport.GetVersionParents(newest)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><namespaces version="1.0"><namespace>'
        f"<name>{VIM25}</name><version>{served}</version>"
        f"<priorVersions>{prior}</priorVersions></namespace></namespaces>"
    ).encode()


def decode(body: bytes, version: str) -> Request:
    """Read one request. Raises MalformedRequestError."""
    parser = _RequestParser(version)
    try:
        parser.parse(body)
        return parser.request()
    except (ExpatError, KeyError, TypeError, AttributeError) as error:
        raise MalformedRequestError(f"not a SOAP request of the vSphere API: {error}") from error


@dataclass
class _RequestParser:
    """Walks Envelope, Body and method element; hands each parameter element to pyVmomi's deserializer."""

    version: str
    _in_body: bool = False
    _method_name: str = ""
    _target_type: type = object
    _received: list[tuple[str, Callable[[], object]]] = field(default_factory=list)
    _prefixes: dict[str | None, list[str]] = field(default_factory=dict)

    def parse(self, body: bytes) -> None:
        parser = self._parser = ParserCreate(namespace_separator=SoapAdapter.NS_SEP)
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.StartNamespaceDeclHandler = self._start_namespace
        parser.EndNamespaceDeclHandler = lambda prefix: self._prefixes[prefix].pop()
        parser.Parse(body, True)

    def request(self) -> Request:
        method = _method(self._target_type, self._method_name)
        values: dict[str, object] = {}
        for name, result in self._received:
            kind = dict(method.parameters).get(name)
            if kind is not None and issubclass(kind, list):
                values.setdefault(name, kind()).append(result())  # type: ignore[attr-defined]
            else:
                values[name] = result()
        target = values["_this"]._moId  # type: ignore[attr-defined]
        arguments = tuple(values.get(name) for name, _ in method.parameters)
        return Request(method, self._target_type, target, arguments, self.version)

    def _start_namespace(self, prefix: str | None, uri: str) -> None:
        self._prefixes.setdefault(prefix, []).append(uri)

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.rpartition(SoapAdapter.NS_SEP)[2]
        if not self._in_body:
            self._in_body = tag == _BODY
        elif not self._method_name:
            self._method_name = name
        else:
            self._start_parameter(tag, name, attributes)

    def _start_parameter(self, tag: str, name: str, attributes: dict[str, str]) -> None:
        if name == "_this":
            self._target_type = VmomiSupport.GetWsdlType(VIM25, attributes["type"])
            kind: type = VmomiSupport.ManagedObject
        else:
            kind = dict(_method(self._target_type, self._method_name).parameters)[name]
            kind = kind.Item if issubclass(kind, list) else kind  # type: ignore[attr-defined]
        deserializer = SoapAdapter.SoapDeserializer(None, self.version)
        deserializer.Deserialize(self._parser, kind, False, self._prefixes)
        deserializer.StartElementHandler(tag, attributes)
        self._received.append((name, deserializer.GetResult))


def encode(request: Request, value: object, result: type) -> bytes:
    """The answer to `request`: `value` as the schema's type `result`."""
    returned = VmomiSupport.Object(
        name="returnval", type=result, version="vim.version.version1", flags=VmomiSupport.F_OPTIONAL
    )
    text = "" if value is None else SoapAdapter.SerializeToStr(value, returned, request.version, _NAMESPACES)
    tag = f"{request.method.name}Response"
    return f'{_HEADER}<{tag} xmlns="{VIM25}">{text}</{tag}>{SoapAdapter.SOAP_END}'.encode()


def encode_fault(fault: vmodl.MethodFault, version: str) -> bytes:
    """The SOAP fault that carries `fault`; it goes out with HTTP status 500."""
    name = VmomiSupport.GetWsdlName(type(fault))
    message = SoapAdapter.XmlEscape(message_of(fault))
    bare: Any = copy.copy(fault)
    bare.msg = None  # the serializer has no place for it: the text travels as faultstring
    info = VmomiSupport.Object(name=f"{name}Fault", type=object, version=version, flags=0)
    detail = SoapAdapter.SerializeFaultDetail(bare, info, version, _NAMESPACES)
    # The serializer leaves the namespace of the outermost element to its caller.
    start, _, rest = detail.partition(">")
    return (
        f"{_HEADER}<{SoapAdapter.SOAP_FAULT_TAG}><faultcode>ServerFaultCode</faultcode>"
        f"<faultstring>{message}</faultstring>"
        f'<detail>{start} xmlns="{VIM25}">{rest}</detail></{SoapAdapter.SOAP_FAULT_TAG}>{SoapAdapter.SOAP_END}'
    ).encode()


def message_of(fault: vmodl.MethodFault) -> str:
    """The text of a fault, its type's name when it has none."""
    return str(getattr(fault, "msg", None) or VmomiSupport.GetWsdlName(type(fault)))


def fingerprint(value: object) -> str:
    """A text that is equal for equal vim values: they themselves compare by identity."""
    return "" if value is None else str(SoapAdapter.SerializeToStr(value, None, _NEWEST, _NAMESPACES))
