"""The targets of a restore by name: KIND:PLACE, as on the command line, with options behind a question mark."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from pipeline import ConfigError
from vadpipe.nbd import Nbd
from vadpipe.nbd.client import DEFAULT_PORT
from vadpipe.vmdk.stream import LEVEL

from .blocks import DeviceTarget, NbdTarget
from .ova import Ova
from .qemu import Qcow2Directory
from .raw import RawDirectory, StandardOutput
from .restoring import Proof, RestoreTarget
from .vmdk import SPARSE, VmdkDirectory

_OPTIONS = re.compile(r"\?(?P<options>[a-z]+=[^&=?]*(&[a-z]+=[^&=?]*)*)$")


@dataclass(frozen=True)
class _Kind:
    """How a kind of target is written, what options it has, and what makes one."""

    usage: str
    options: frozenset[str]
    make: Callable[[str, Mapping[str, str]], RestoreTarget]


def _number(options: Mapping[str, str], name: str, default: int) -> int:
    value = options.get(name, str(default))
    if not value.isascii() or not value.isdigit():
        raise ConfigError(f"{name}={value!r} is no number.")
    return int(value)


def _raw(place: str, options: Mapping[str, str]) -> RestoreTarget:
    return StandardOutput() if place == "-" else RawDirectory(Path(place))


def _vmdk(place: str, options: Mapping[str, str]) -> RestoreTarget:
    level = _number(options, "level", LEVEL)
    return VmdkDirectory(Path(place), options.get("format", SPARSE), level)


def _ova(place: str, options: Mapping[str, str]) -> RestoreTarget:
    return Ova(Path(place), _number(options, "level", LEVEL))


def _nbd(place: str, options: Mapping[str, str], *, tls: bool = False) -> RestoreTarget:
    host, port, export = _server(place)
    secured = ssl.create_default_context() if tls else None
    return NbdTarget(Nbd(host, port, export=export, tls=secured))


def _server(place: str) -> tuple[str, int, str]:
    """Host, port and export. Raises ConfigError."""
    try:
        url = urlsplit(f"nbd:{place}")
        return url.hostname or "", url.port or DEFAULT_PORT, unquote(url.path[1:])
    except ValueError as exc:
        raise ConfigError(
            f"{place!r} names no NBD server: {exc}.", remedy="Write nbd://HOST:PORT/EXPORT."
        ) from exc


def _nbd_unix(place: str, options: Mapping[str, str]) -> RestoreTarget:
    socket = options.get("socket", "")
    if not socket.startswith("/"):
        raise ConfigError(
            "nbd+unix: needs the path of a socket.", remedy="Write nbd+unix:///?socket=/run/nbd.sock."
        )
    return NbdTarget(Nbd(socket, export=_server(place)[2]))


_KINDS: Final[Mapping[str, _Kind]] = {
    "raw": _Kind("raw:DIR or raw:-", frozenset(), _raw),
    "vmdk": _Kind("vmdk:DIR[?format=FORMAT&level=1..9]", frozenset({"format", "level"}), _vmdk),
    "ova": _Kind("ova:FILE[?level=1..9]", frozenset({"level"}), _ova),
    "qcow2": _Kind("qcow2:DIR", frozenset(), lambda place, _: Qcow2Directory(Path(place))),
    "device": _Kind("device:/dev/...", frozenset(), lambda place, _: DeviceTarget(Path(place))),
    "nbd": _Kind("nbd://HOST/EXPORT", frozenset(), _nbd),
    "nbds": _Kind("nbds://HOST/EXPORT", frozenset(), partial(_nbd, tls=True)),
    "nbd+unix": _Kind("nbd+unix:///EXPORT?socket=PATH", frozenset({"socket"}), _nbd_unix),
}


def parse_target(text: str) -> RestoreTarget:
    """A target as it is written on the command line, e.g. `raw:DIRECTORY` or `null:`. Raises ConfigError."""
    if text == "null:":
        return Proof()
    name, _, place = text.partition(":")
    if name == "rbd":
        raise ConfigError(
            "An image of Ceph (RBD) is not written directly.",
            remedy="Make it with `rbd create`, map it with `rbd map`, and write device:/dev/rbd0.",
        )
    kind = _KINDS.get(name)
    options: dict[str, str] = {}
    if kind is not None and kind.options and (found := _OPTIONS.search(place)):
        place, options = place[: found.start()], dict(parse_qsl(found["options"], keep_blank_values=True))
    if kind is None or not place:
        known = ", ".join(each.usage for each in _KINDS.values())
        raise ConfigError(
            f"{text!r} is no target of a restore.",
            remedy=f"Write {known}, or null: for a proof alone.",
        )
    if unknown := sorted(options.keys() - kind.options):
        raise ConfigError(
            f"A target {name}: has no option {unknown[0]!r}.",
            remedy=f"It has {', '.join(sorted(kind.options))}.",
        )
    return kind.make(place, options)
