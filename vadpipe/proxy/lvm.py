"""What LVM does with a new disk: kernels over its effective configuration.

A guest's volume group that becomes complete is activated by udev's rules with `pvscan` and `vgchange -aay`. Four
things stop that: no events, a devices file that does not name the disk, a filter that rejects it, or a list of what
may be activated. The last one is what harden sets: it leaves the proxy's own volume groups as they are.

Source: lvm.conf(5), lvmautoactivation(7), lvmdevices(8); outputs of lvm 2.03.16.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

CONFIGURATION = (
    "lvmconfig",
    "--typeconfig",
    "full",
    "global/event_activation",
    "activation/auto_activation_volume_list",
    "devices/use_devicesfile",
    "devices/devicesfile",
    "devices/global_filter",
)
# It prints what is defined and fails for what is not; auto_activation_volume_list has no default.
NODE_NOT_FOUND = 5
VOLUME_GROUPS = ("vgs", "--noheadings", "--options", "vg_name")

# Names that a hot-added disk gets; LVM accepts a disk if one of its names is accepted.
_NAMES = ("/dev/sdzz", "/dev/disk/by-path/pci-0000:03:00.0-scsi-0:0:15:0", "/dev/disk/by-id/wwn-0x6000c29")
_CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}


@dataclass(frozen=True, slots=True)
class LvmFacts:
    """`auto_activation` is None when no list is defined; `volume_groups` when they could not be listed."""

    event_activation: bool
    auto_activation: Sequence[str] | None
    devices_file: bool
    global_filter: Sequence[str]
    volume_groups: Sequence[str] | None

    @property
    def sees_guest_disks(self) -> bool:
        return not self.devices_file and accepts_hot_added(self.global_filter)

    @property
    def activates_guest_disks(self) -> bool:
        return self.sees_guest_disks and self.event_activation and self.auto_activation is None


def parse_configuration(output: str) -> dict[str, Sequence[str]]:
    """The settings that lvmconfig prints, one `name=value` a line, a value being one or a list."""
    found = re.findall(r"^(\w+)=(.+)$", output, re.MULTILINE)
    return {name: _values(value) for name, value in found}


def _values(text: str) -> Sequence[str]:
    """LVM writes strings with quotes, a list in brackets, but a list of one without them."""
    quoted = re.findall(r'"((?:[^"\\]|\\.)*)"', text)
    return [one.replace("\\\\", "\\") for one in quoted] if quoted or text == "[]" else [text]


def accepts_hot_added(patterns: Sequence[str]) -> bool:
    """Whether a filter accepts an unknown disk. The first pattern that matches a name decides for it."""
    return any(_accepts(patterns, name) for name in _NAMES)


def _accepts(patterns: Sequence[str], name: str) -> bool:
    for pattern in patterns:
        end = pattern.rfind(_CLOSING.get(pattern[1:2], pattern[1:2]))
        if re.search(pattern[2:end], name):
            return pattern.startswith("a")
    return True


def limit_activation(text: str, volume_groups: Sequence[str]) -> str:
    """lvmlocal.conf with a list of what may be activated, where none was defined."""
    names = json.dumps(list(volume_groups))  # names are letters, digits and `+_.-`: written alike in both
    block = (
        "# Only the volume groups of this machine itself are activated when their disks appear (vadpipe).\n"
        f"activation {{\n\tauto_activation_volume_list = {names}\n}}\n"
    )
    return f"{text.rstrip()}\n\n{block}" if text.strip() else block
