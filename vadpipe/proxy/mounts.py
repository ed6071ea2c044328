"""Whether what the proxy mounts at boot could be found on a guest's disk instead: kernels over fstab and lsblk.

A hot-added disk that a killed run left behind is there at the next boot, when LABEL= and UUID= are looked up.
Labels are the same in every machine of one image; UUIDs in every copy of one machine.

Source: fstab(5), mount(8), lsblk(8).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

DEVICES = ("lsblk", "--json", "--output", "NAME,FSTYPE,UUID,LABEL,PARTUUID,PARTLABEL")

_TAGS = ("UUID", "LABEL", "PARTUUID", "PARTLABEL")
_QUOTE = '"'
_SPACES = re.compile(r"\\([0-7]{3})")  # fstab(5): white space in a path is written as octal
# Members of one whole share its identity by design.
_MEMBERS = ("btrfs", "linux_raid_member", "mpath_member")


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of fstab. `source`: TAG=value, without quotes and the tag in capitals, or a path."""

    source: str
    mount_point: str

    @property
    def by_label(self) -> bool:
        return self.source.startswith(("LABEL=", "PARTLABEL="))


@dataclass(frozen=True, slots=True)
class MountFacts:
    """`ambiguous`: TAG=value -> names of the devices that carry it, where there are several."""

    mounts: Sequence[Mount]
    ambiguous: Mapping[str, Sequence[str]]


def parse_fstab(text: str) -> list[Mount]:
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and not words[0].startswith("#"):
            tag, _, value = words[0].partition("=")
            tagged = tag.upper() in _TAGS
            source = f"{tag.upper()}={value.strip(_QUOTE)}" if tagged else words[0]
            found.append(Mount(source, _SPACES.sub(lambda octal: chr(int(octal[1], 8)), words[1])))
    return found


def ambiguous_tags(output: str) -> dict[str, Sequence[str]]:
    """TAG=value -> names, of what several devices carry; output: of the command DEVICES. Raises ValueError."""
    carriers: dict[str, dict[str, None]] = {}
    for device in json.loads(output)["blockdevices"]:
        for tag, name in _carried(device):
            carriers.setdefault(tag, {})[name] = None
    return {tag: list(names) for tag, names in carriers.items() if len(names) > 1}


def _carried(device: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """What a device and the devices on top of it carry; a child that repeats its parent is the same thing."""
    own: list[str] = []
    if device.get("fstype") not in _MEMBERS:
        own = [f"{tag}={device[tag.lower()]}" for tag in _TAGS if device.get(tag.lower())]
    yield from ((tag, str(device["name"])) for tag in own)
    children = device.get("children")
    for child in children if isinstance(children, list) else ():
        yield from ((tag, name) for tag, name in _carried(child) if tag not in own)
