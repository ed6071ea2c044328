"""LVM2: the logical volumes of physical volumes, as ranges of these. Linear and striped ones.

Source: lvm2's lib/format_text/layout.h and format-text.c; the metadata of lvm 2.03.16.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .contract import Unreadable
from .sources import Joined, Source

_SECTOR: Final = 512
_LABEL_SECTORS: Final = 4
_MAGIC: Final = b" LVM2 x[5A%r0N*>"
_SEED: Final = 0xF597A6CF  # of LVM's CRC-32 (INITIAL_CRC)
_LARGEST: Final = 16 << 20  # of a metadata text; lvm's own areas have 1 MiB
_MOST_PIECES: Final = 1 << 20  # of the stripes of a volume

_TOKEN: Final = re.compile(r'\s+|#[^\n]*|"(?:[^"\\]|\\.)*"|[A-Za-z0-9_.+-]+|[][{}=,]')


class Damaged(ValueError):
    """The metadata is not what it must be."""


@dataclass(frozen=True)
class PhysicalVolume:
    """A physical volume: its id, and the text of its volume group; empty where it keeps none."""

    id: str
    text: str
    source: Source


@dataclass(frozen=True)
class LogicalVolume:
    """A logical volume. `why_not`: why it cannot be read; empty: `source` reads it."""

    group: str
    name: str
    size: int
    source: Source | None
    why_not: str = ""


def physical_volume(source: Source) -> PhysicalVolume:
    """Read label, header and metadata. Raises Damaged, MoverError."""
    start = source.read_at(0, _LABEL_SECTORS * _SECTOR)
    for at in range(0, len(start), _SECTOR):
        if start[at : at + 8] == b"LABELONE" and start[at + 24 : at + 32] == b"LVM2 001":
            header = at + int.from_bytes(start[at + 20 : at + 24], "little")
            break
    else:
        raise Damaged("there is no label")
    identity = start[header : header + 32].decode("ascii", "replace")
    areas = header + 40
    _, after_data = _locations(start, areas)
    found, _ = _locations(start, after_data)
    for offset, size in found:
        text = _metadata(source, offset, size)
        if text:
            return PhysicalVolume(identity, text, source)
    return PhysicalVolume(identity, "", source)


def logical_volumes(volumes: Sequence[PhysicalVolume]) -> list[LogicalVolume]:
    """The logical volumes of all volume groups that these belong to. Raises Damaged."""
    groups: dict[str, tuple[int, str, Mapping[str, Any]]] = {}
    for volume in volumes:
        for name, group in parse(volume.text).items():
            if isinstance(group, dict) and "seqno" in group:
                newer = groups.get(str(group.get("id")), (-1,))[0] < _number(group, "seqno")
                if newer:
                    groups[str(group.get("id"))] = (_number(group, "seqno"), name, group)
    sources = {volume.id: volume.source for volume in volumes}
    return [
        _logical(name, title, volume, group, sources)
        for _, name, group in groups.values()
        for title, volume in (group.get("logical_volumes") or {}).items()
        if "VISIBLE" in volume.get("status", ())
    ]


def parse(text: str) -> dict[str, Any]:
    """LVM's text format: sections as dicts, arrays as lists. Raises Damaged."""
    tokens = _tokens(text)
    root: dict[str, Any] = {}
    stack = [root]
    for token in tokens:
        if token == "}":
            if len(stack) == 1:
                raise Damaged("a section ends that did not begin")
            stack.pop()
            continue
        following = next(tokens, "")
        if following == "{":
            inner: dict[str, Any] = {}
            stack[-1][token] = inner
            stack.append(inner)
        elif following == "=":
            stack[-1][token] = _value(next(tokens, ""), tokens)
        else:
            raise Damaged(f"{token!r} has no value")
    return root


def _tokens(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Damaged(f"its text is not readable at {at}")
        at = match.end()
        token = match.group()
        if not token[0].isspace() and token[0] != "#":
            yield token


def _value(token: str, tokens: Iterator[str]) -> Any:  # noqa: ANN401 - strings, numbers and lists of them
    if token == "[":
        found: list[Any] = []
        for each in tokens:
            if each == "]":
                return found
            if each != ",":
                found.append(_value(each, iter(())))
        raise Damaged("an array has no end")
    if token.startswith('"'):
        return re.sub(r"\\(.)", r"\1", token[1:-1])
    if re.fullmatch(r"-?\d+", token):
        return int(token)
    if token in ("", "]", "{", "}", "=", ","):
        raise Damaged("a value is missing")
    return token


def _locations(content: bytes, at: int) -> tuple[list[tuple[int, int]], int]:
    """Pairs of offset and size up to a pair of zeros, and where the next list begins."""
    found = []
    while at + 16 <= len(content):
        offset, size = struct.unpack_from("<QQ", content, at)
        at += 16
        if not offset and not size:
            break
        found.append((offset, size))
    return found, at


def _metadata(source: Source, offset: int, size: int) -> str:
    """The current text of a metadata area; empty where there is none that is sound."""
    header = source.read_at(offset, _SECTOR)
    if header[4:20] != _MAGIC or _checksum(header[4:]) != int.from_bytes(header[:4], "little"):
        return ""
    place, length, checksum, flags = struct.unpack_from("<QQII", header, 40)
    if not place or flags & 1 or not 0 < length <= min(_LARGEST, size) or not _SECTOR <= place < size:
        return ""
    first = min(length, size - place)
    text = source.read_at(offset + place, first)
    if first < length:  # the area is a ring behind its header
        text += source.read_at(offset + _SECTOR, length - first)
    if len(text) < length or _checksum(text) != checksum:
        return ""
    return text.rstrip(b"\0").decode("utf-8", "replace")


def _checksum(content: bytes) -> int:
    return zlib.crc32(content, _SEED ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def _number(section: Mapping[str, Any], key: str) -> int:
    value = section.get(key)
    if not isinstance(value, int) or value < 0:
        raise Damaged(f"{key} is {value!r}")
    return value


def _logical(
    group_name: str,
    name: str,
    volume: Mapping[str, Any],
    group: Mapping[str, Any],
    sources: Mapping[str, Source],
) -> LogicalVolume:
    extent = _number(group, "extent_size") * _SECTOR
    segments = sorted(
        (each for key, each in volume.items() if key.startswith("segment") and isinstance(each, dict)),
        key=lambda each: _number(each, "start_extent"),
    )
    size = sum(_number(each, "extent_count") for each in segments) * extent
    try:
        parts: list[tuple[Source, int, int]] = []
        for segment in segments:
            parts += _parts(segment, extent, group["physical_volumes"], sources)
        return LogicalVolume(group_name, name, size, Joined(parts))
    except Unreadable as exc:
        return LogicalVolume(group_name, name, size, None, exc.problem)
    except (KeyError, TypeError, AttributeError) as exc:
        raise Damaged(f"{group_name}/{name} is described by halves") from exc


def _parts(
    segment: Mapping[str, Any],
    extent: int,
    physical: Mapping[str, Any],
    sources: Mapping[str, Source],
) -> Iterator[tuple[Source, int, int]]:
    if segment["type"] != "striped":
        raise Unreadable(f"it is of the type {segment['type']}; read it in a restored VM")
    stripes = segment["stripes"]
    length = _number(segment, "extent_count") * extent
    places: list[tuple[Source, int]] = []
    for device, first in zip(stripes[::2], stripes[1::2], strict=True):
        described = physical[device]
        source = sources.get(str(described["id"]).replace("-", ""))
        if source is None:
            raise Unreadable(f"its physical volume {device} is on no disk of the point that was looked at")
        places.append((source, _number(described, "pe_start") * _SECTOR + int(first) * extent))
    if len(places) == 1:
        yield (*places[0], length)
        return
    step = _number(segment, "stripe_size") * _SECTOR
    if not step or not places or length // step > _MOST_PIECES:
        raise Unreadable(f"it has {len(places)} stripes of {step} bytes")
    for number in range(length // step):
        row, column = divmod(number, len(places))
        source, start = places[column]
        yield source, start + row * step, step
