"""Whether multipath takes a hot-added disk for itself: kernels over `multipath -t`.

A disk under a multipath map is busy: it cannot be opened alone, nor detached. Disks are left alone when the
blacklist names them, or when a first single path does not make a map (find_multipaths strict or yes).

Source: multipath.conf(5) of multipath-tools 0.9.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

CONFIGURATION = ("multipath", "-t")

# What a disk of a VMware VM says of itself.
_DISK = {
    "devnode": "sdzz",
    "vendor": "VMware  ",
    "product": "Virtual disk    ",
    "wwid": "36000c290000000000000000000000000",
}
_WAITS_FOR_A_SECOND_PATH = ("strict", "yes", "on")
_TOKEN = re.compile(r'"(?P<quoted>(?:[^"]|"")*)"|(?P<brace>[{}])|[#!].*|(?P<word>[^\s{}"#!]+)')

BLACKLIST = """\
# A guest's disk that is hot-added here has one path, and is not ours to map (vadpipe).
blacklist {
\tdevice {
\t\tvendor "VMware"
\t\tproduct "Virtual disk"
\t}
}
"""


@dataclass(frozen=True, slots=True)
class MultipathFacts:
    find_multipaths: str
    blacklisted: bool

    @property
    def claims_guest_disks(self) -> bool:
        return not self.blacklisted and self.find_multipaths not in _WAITS_FOR_A_SECOND_PATH


@dataclass(slots=True)
class _Section:
    values: list[tuple[str, str]] = field(default_factory=list)
    sections: list[tuple[str, _Section]] = field(default_factory=list)

    def named(self, name: str) -> Iterator[_Section]:
        return (section for each, section in self.sections if each == name)


def parse_multipath(output: str) -> MultipathFacts:
    """The facts in a whole configuration, as `multipath -t` prints it."""
    root = _parse(output)
    found = [
        value for part in root.named("defaults") for key, value in part.values if key == "find_multipaths"
    ]
    # Versions that do not know the setting make a map of every path.
    return MultipathFacts(found[-1] if found else "off", _blacklisted(root))


def _parse(text: str) -> _Section:
    root = _Section()
    open_sections = [root]
    for line in text.splitlines():
        tokens = [match for match in _TOKEN.finditer(line) if match.lastgroup]
        words = [match[match.lastgroup or ""] for match in tokens if match.lastgroup != "brace"]
        if any(match["brace"] == "{" for match in tokens) and words:
            section = _Section()
            open_sections[-1].sections.append((words[0], section))
            open_sections.append(section)
        elif any(match["brace"] == "}" for match in tokens):
            if len(open_sections) > 1:
                open_sections.pop()
        elif len(words) > 1:
            open_sections[-1].values.append((words[0], words[1]))
    return root


def _blacklisted(root: _Section) -> bool:
    """By device, by node name or by WWID; an exception lifts only what was blacklisted the same way."""
    return any(
        _listed(root, "blacklist", way) and not _listed(root, "blacklist_exceptions", way)
        for way in ("device", "devnode", "wwid")
    )


def _listed(root: _Section, kind: str, way: str) -> bool:
    for section in root.named(kind):
        if way == "device":
            if any(device.values and _matches(device) for device in section.named("device")):
                return True
        elif any(key == way and _match(value, _DISK[way]) for key, value in section.values):
            return True
    return False


def _matches(device: _Section) -> bool:
    return all(_match(value, _DISK[key]) for key, value in device.values if key in _DISK)


def _match(pattern: str, text: str) -> bool:
    """Their patterns are regular expressions, one with a leading `!` matches everything else."""
    if pattern.startswith("!"):
        return not re.search(pattern[1:], text)
    return re.search("" if pattern == "*" else pattern, text) is not None
