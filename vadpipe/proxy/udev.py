"""Which udev rules are in force, and whether they keep udisks off a hot-added disk: kernels.

Source: udev(7) for the order of directories and files; udisks(8) for UDISKS_IGNORE and UDISKS_AUTO.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

DIRECTORIES = (
    "etc/udev/rules.d",
    "run/udev/rules.d",
    "usr/local/lib/udev/rules.d",
    "usr/lib/udev/rules.d",
    "lib/udev/rules.d",
)

# What udev would know of a disk that was just hot-added.
_DISK = {
    "ACTION": "add",
    "SUBSYSTEM": "block",
    "SUBSYSTEMS": "scsi",
    "KERNEL": "sdzz",
    "ATTRS{vendor}": "VMware",
    "ENV{DEVTYPE}": "disk",
    "ENV{ID_BUS}": "scsi",
    "ENV{ID_VENDOR}": "VMware",
}
_PAIR = re.compile(r'([A-Z_]+(?:\{[^}]*\})?)\s*(==|!=|\+=|-=|:=|=)\s*"([^"]*)"')

IGNORE_RULE = """\
# A guest's disk that is hot-added here is nobody's to mount (vadpipe).
SUBSYSTEM=="block", SUBSYSTEMS=="scsi", ATTRS{vendor}=="VMware*", ENV{UDISKS_IGNORE}="1"
"""


def in_force(directories: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """name -> text of the rules files, in the order they are read. A file hides those of its name further down.

    directories: name -> text, the strongest first. A file is switched off by an empty one, or a link to /dev/null.
    """
    strongest: dict[str, str] = {}
    for files in directories:
        strongest = {**files, **strongest}
    return {name: text for name, text in sorted(strongest.items()) if text.strip()}


def keeps_udisks_off(texts: Iterable[str]) -> bool:
    """Whether the rules tell udisks to ignore, or not to offer for mounting, a disk that was just hot-added.

    A rule counts only if every condition of it is one that we can answer; jumps are not followed.
    """
    ignore = auto = ""
    for text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            pairs = [] if line.lstrip().startswith("#") else _PAIR.findall(line)
            if all(
                _holds(key, operator, value) for key, operator, value in pairs if operator in ("==", "!=")
            ):
                assigned = {key: value for key, operator, value in pairs if operator in ("=", ":=")}
                ignore = assigned.get("ENV{UDISKS_IGNORE}", ignore)
                auto = assigned.get("ENV{UDISKS_AUTO}", auto)
    return ignore == "1" or auto == "0"


def _holds(key: str, operator: str, pattern: str) -> bool:
    if key not in _DISK:
        return False
    matches = any(fnmatchcase(_DISK[key], one) for one in pattern.split("|"))
    return matches if operator == "==" else not matches
