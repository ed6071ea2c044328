"""A VM's configuration as the server's own answer: secret values blotted, everything else byte for byte.

pyVmomi answers with what its own version knows, so what a newer server says would be lost for ever. The answer is
kept as it came; a later version of vadpipe may understand more of it. Kernels: bytes in, bytes or values out.

Source: vSphere Web Services API, `VirtualMachineConfigInfo`, `OptionValue`, `VAppPropertyInfo`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from xml.etree.ElementTree import Element, ParseError
from xml.parsers.expat import ExpatError, ParserCreate
from xml.sax.saxutils import escape, quoteattr

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException
from pyVmomi import SoapAdapter, vim
from pyVmomi.VmomiSupport import DataObject, GetWsdlType, GuessWsdlType, ManagedObject

from vadpipe.vmdk.vmx import REDACTED, redacted

_TYPE: Final = "VirtualMachineConfigInfo"
_VIM25: Final = "urn:vim25"
_XSI: Final = "http://www.w3.org/2001/XMLSchema-instance"
_XSD: Final = "http://www.w3.org/2001/XMLSchema"
# Simple types as an answer names them in values of any type.
_XSD_TYPES: Final = frozenset(
    ("string", "int", "long", "short", "byte", "boolean", "double", "float", "dateTime", "base64Binary")
)
# What answers hold by names of which one part is a secret: (the names, the secret parts).
_NAMES: Final = ("id", "key", "label", "category", "type")
_VALUES: Final = ("value", "defaultValue")


class NotAConfigurationError(ValueError):
    """The document holds no configuration of a VM, or is no XML."""


@dataclass(frozen=True)
class ParsedConfig:
    """What a stored answer says.

    Args:
        config: The configuration as far as this version knows its types.
        unknown: What it does not know: 'hardware.device.newField', or the name of a type.
        unknown_devices: The names of the types of devices that it does not know, by device key.
    """

    config: vim.vm.ConfigInfo
    unknown: Sequence[str] = ()
    unknown_devices: dict[int, str] = field(default_factory=dict)


def blotted(document: bytes) -> tuple[bytes, list[str]]:
    """The answer without the values that may be secrets, and the names of those.

    Values of settings (extraConfig) and of vApp properties are judged by their names, as a .vmx's are, and every
    other text by itself: a URI with a password, a private key.

    Raises:
        NotAConfigurationError: It is not well-formed.
    """
    blotter = _Blotter()
    try:
        blotter.parser.Parse(document, True)
    except ExpatError as exc:
        raise NotAConfigurationError(str(exc)) from exc
    pieces, done = [], 0
    for start, end in sorted(blotter.cuts):
        pieces += [document[done:start], REDACTED.encode()]
        done = end
    return b"".join([*pieces, document[done:]]), blotter.names


@dataclass
class _Open:
    """An element that is not closed yet. `start`: the byte where its content begins."""

    name: str
    start: int = 0
    text: str = ""
    leaf: bool = True
    parts: dict[str, tuple[str, int, int]] = field(default_factory=dict)


class _Blotter:
    """Notes which bytes of the document are secrets."""

    def __init__(self) -> None:
        self.cuts: list[tuple[int, int]] = []
        self.names: list[str] = []
        self._stack: list[_Open] = []
        self._awaiting: _Open | None = None
        self.parser = ParserCreate()
        self.parser.buffer_text = False
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.StartDoctypeDeclHandler = self._doctype

    def _doctype(self, *_: object) -> None:
        raise NotAConfigurationError("it has a document type")

    def _start(self, name: str, _: dict[str, str]) -> None:
        if self._stack:
            self._stack[-1].leaf = False
        self._stack.append(_Open(name.rpartition(":")[2], start=-1))

    def _text(self, data: str) -> None:
        if self._stack:
            if self._stack[-1].start < 0:
                self._stack[-1].start = self.parser.CurrentByteIndex
            self._stack[-1].text += data

    def _end(self, _: str) -> None:
        closed, end = self._stack.pop(), self.parser.CurrentByteIndex
        above = self._stack[-1] if self._stack else None
        if closed.leaf and closed.start >= 0:
            if above is not None and closed.name in (*_NAMES, *_VALUES):
                above.parts[closed.name] = (closed.text, closed.start, end)
            elif redacted("", closed.text) == REDACTED:
                self._cut(closed.name, closed.start, end)
        self._judge(closed)

    def _judge(self, closed: _Open) -> None:
        """Blot the values of an element that has been read whole."""
        texts = {name: part[0] for name, part in closed.parts.items()}
        secret_type = texts.get("type", "").lower().startswith("password")
        names = [texts[name] for name in _NAMES if name in texts and name != "type"]
        for part in closed.parts:
            text, start, end = closed.parts[part]
            by_name = part in _VALUES and any(redacted(name, text) == REDACTED for name in names)
            if text and (by_name or (part in _VALUES and secret_type) or redacted("", text) == REDACTED):
                self._cut(names[0] if names else part, start, end)

    def _cut(self, name: str, start: int, end: int) -> None:
        self.cuts.append((start, end))
        if name not in self.names:
            self.names.append(name)


def parse_config(document: bytes) -> ParsedConfig:
    """The configuration in an answer of the server, by pyVmomi's own deserializer.

    What pyVmomi does not know is taken out first and named, so that a newer server's answer can be read.

    Raises:
        NotAConfigurationError: There is no configuration in it.
    """
    try:
        root = defusedxml.ElementTree.fromstring(document)
    except (ParseError, DefusedXmlException) as exc:
        raise NotAConfigurationError(str(exc)) from exc
    element = next(_configurations(root), None)
    if element is None:
        raise NotAConfigurationError(f"it has no {_TYPE}")
    known = _Known()
    content = known.content(element, vim.vm.ConfigInfo, "")
    namespaces = f'xmlns="{_VIM25}" xmlns:xsi="{_XSI}" xmlns:xsd="{_XSD}"'
    text = f"<config {namespaces}>{content}</config>"
    try:
        config: Any = SoapAdapter.Deserialize(text.encode(), vim.vm.ConfigInfo)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise NotAConfigurationError(f"a value of it has another type: {exc}") from exc
    return ParsedConfig(config, tuple(dict.fromkeys(known.unknown)), known.devices)


def _configurations(root: Element) -> Iterator[Element]:
    for element in root.iter():
        if _local(element.get(f"{{{_XSI}}}type", "")) == _TYPE or _local(element.tag) == "config":
            yield element


class _Known:
    """Copies of elements with nothing in them that pyVmomi does not know."""

    def __init__(self) -> None:
        self.unknown: list[str] = []
        self.devices: dict[int, str] = {}

    def content(self, element: Element, kind: type, path: str) -> str:
        """The inside of an element of a data object's type."""
        fields = {one.name: one.type for one in kind._GetPropertyList()}  # type: ignore[attr-defined]
        parts = []
        for child in element:
            name = _local(child.tag)
            here = f"{path}.{name}" if path else name
            if name not in fields:
                self.unknown.append(here)
            elif (copied := self._element(child, name, fields[name], here)) is not None:
                parts.append(copied)
        return "".join(parts)

    def _element(self, element: Element, name: str, declared: type, path: str) -> str | None:
        if issubclass(declared, list):
            declared = declared.Item  # type: ignore[attr-defined]
        kind, written = self._type(element, declared, path)
        text = (element.text or "").strip() if len(element) else (element.text or "")
        if issubclass(kind, Exception):
            return None  # the last fault of a scheduled upgrade: no part of a configuration
        if issubclass(kind, ManagedObject):
            return self._reference(element, name, text, path)
        if issubclass(kind, DataObject):
            inside = self.content(element, kind, path)
        elif issubclass(kind, list):  # an array as a value of any type
            inside = "".join(
                part
                for child in element
                if (part := self._element(child, _local(child.tag), kind, path)) is not None
            )
        elif not _fits(kind, text):
            self.unknown.append(f"{path}={text}")
            return None
        else:
            inside = escape(text)
        attribute = f" xsi:type={quoteattr(written)}" if written else ""
        return f"<{name}{attribute}>{inside}</{name}>"

    def _type(self, element: Element, declared: type, path: str) -> tuple[type, str]:
        """The type of an element, and what its copy says of it."""
        named = _local(element.get(f"{{{_XSI}}}type", ""))
        if not named:
            return (str, "xsd:string") if declared is object else (declared, "")
        if named in _XSD_TYPES:
            return (declared if declared is not object else str), f"xsd:{named}"
        found = _wsdl_type(named)
        if found is None or (declared is not object and not issubclass(found, declared)):
            self.unknown.append(named)
            if issubclass(declared, vim.vm.device.VirtualDevice):
                key = next((child.text or "" for child in element if _local(child.tag) == "key"), "")
                self.devices[int(key) if key.lstrip("-").isdigit() else 0] = named
            return (str, "xsd:string") if declared is object else (declared, "")
        return found, named

    def _reference(self, element: Element, name: str, text: str, path: str) -> str | None:
        kind = _local(element.get("type", ""))
        if _wsdl_type(kind) is None:
            self.unknown.append(f"{path}={kind}")
            return None
        return f"<{name} type={quoteattr(kind)}>{escape(text)}</{name}>"


def _wsdl_type(name: str) -> type | None:
    try:
        found: object = GetWsdlType(_VIM25, name)
    except KeyError:
        try:
            found = GuessWsdlType(name)
        except KeyError:
            return None
    return found if isinstance(found, type) else None


def _fits(kind: type, text: str) -> bool:
    """Whether pyVmomi has this value of an enumeration; other values are checked by its deserializer."""
    return not hasattr(kind, "values") or hasattr(kind, text)


def _local(name: str) -> str:
    """A name without its namespace."""
    return name.rpartition("}")[2].rpartition(":")[2]
