"""How Linux is configured to treat a new disk: software RAID, multipath, udev, and mounts.

Kernels over the text of files and the output of commands.

md: udev's rules hand every RAID member that appears to `mdadm --incremental`. The AUTO line says which arrays it
may assemble; those in ARRAY lines it always may. So `AUTO -all` is right once the proxy's own arrays have such
lines; before that the machine might not boot. Source: mdadm.conf(5), udev rules of mdadm 4.2.

multipath: a disk under a multipath map is busy: it cannot be opened alone, nor detached. Disks are left alone when
the blacklist names them, or when a single path does not make a map (find_multipaths strict or yes). Source:
multipath.conf(5) of multipath-tools 0.9.

udev: whether the rules in force keep udisks off a hot-added disk. Source: udev(7), udisks(8).

mounts: a hot-added disk that a killed run left behind is there at the next boot, when LABEL= and UUID= are looked
up. Labels are the same in every machine of one image; UUIDs in every copy of one machine. Source: fstab(5),
mount(8), lsblk(8).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

ACTIVE_ARRAYS = ("mdadm", "--detail", "--scan")

_NOTHING_FOREIGN = "AUTO -all"


@dataclass(frozen=True, slots=True)
class MdFacts:
    """`rules`: the udev rules files in force that assemble. `unlisted`: active arrays without an ARRAY line."""

    rules: Sequence[str]
    configuration: str
    auto: Sequence[str] | None
    unlisted: Sequence[str]

    @property
    def assembles_guest_arrays(self) -> bool:
        return bool(self.rules) and not assembles_nothing_foreign(self.auto)


def assembles_by_rule(rules: str) -> bool:
    """Whether the text of a udev rules file hands disks to mdadm."""
    lines = [line for line in rules.splitlines() if not line.lstrip().startswith("#")]
    return any(re.search(r"\bmdadm\s+(--incremental|-I)\b", line) for line in lines)


def configuration_lines(text: str) -> list[list[str]]:
    """The words of each line; a line that begins with white space continues the one before."""
    lines: list[list[str]] = []
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if words and line[0].isspace() and lines:
            lines[-1] += words
        elif words:
            lines.append(words)
    return lines


def auto_policy(text: str) -> Sequence[str] | None:
    """The words of the AUTO line that counts: the first one. None: there is none."""
    return next((words[1:] for words in configuration_lines(text) if _is_keyword(words[0], "auto")), None)


def assembles_nothing_foreign(auto: Sequence[str] | None) -> bool:
    """True when the policy forbids assembling another machine's arrays. The first word that matches decides."""
    for word in auto or ():
        if word.lower() == "-all":
            return True
        if word.startswith("+") and word.lower() != "+homehost":
            return False
    return False  # what no word matches may be assembled


def unlisted_arrays(active: str, configuration: str) -> list[str]:
    """Devices of the active arrays (`mdadm --detail --scan`) whose UUID no ARRAY line names."""
    listed = {uuid for _, uuid in _arrays(configuration)}
    return [device for device, uuid in _arrays(active) if uuid not in listed]


def _arrays(text: str) -> list[tuple[str, str]]:
    found = []
    for words in configuration_lines(text):
        if _is_keyword(words[0], "array"):
            device = words[1] if len(words) > 1 and "=" not in words[1] else ""
            uuids = [word[5:].lower() for word in words if word.lower().startswith("uuid=")]
            found.append((device, uuids[0] if uuids else ""))
    return found


def forbid_foreign(text: str) -> str:
    """The configuration with `AUTO -all`, in place of its AUTO lines or at its end."""
    lines: list[str] = []
    started = within = replaced = False
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if words and not (started and line[0].isspace()):
            started, within = True, _is_keyword(words[0], "auto")
        if not (words and within):
            lines.append(line)
        elif not replaced:
            lines.append(_NOTHING_FOREIGN)
            replaced = True
    if not replaced:
        lines += [
            "# Only the arrays listed here are assembled, not those of guests (vadpipe).",
            _NOTHING_FOREIGN,
        ]
    return "\n".join(lines) + "\n"


def _is_keyword(word: str, keyword: str) -> bool:
    """Three letters are enough for mdadm, in any case."""
    return len(word) >= 3 and keyword.startswith(word.lower())


MULTIPATH_CONFIGURATION = ("multipath", "-t")

# How a disk of a VMware VM identifies itself.
_MULTIPATH_DISK = {
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
        elif any(key == way and _match(value, _MULTIPATH_DISK[way]) for key, value in section.values):
            return True
    return False


def _matches(device: _Section) -> bool:
    return all(_match(value, _MULTIPATH_DISK[key]) for key, value in device.values if key in _MULTIPATH_DISK)


def _match(pattern: str, text: str) -> bool:
    """Their patterns are regular expressions, one with a leading `!` matches everything else."""
    if pattern.startswith("!"):
        return not re.search(pattern[1:], text)
    return re.search("" if pattern == "*" else pattern, text) is not None


UDEV_DIRECTORIES = (
    "etc/udev/rules.d",
    "run/udev/rules.d",
    "usr/local/lib/udev/rules.d",
    "usr/lib/udev/rules.d",
    "lib/udev/rules.d",
)

# What udev knows of a disk that was just hot-added.
_UDEV_DISK = {
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
# A guest's disk that is hot-added here must not be mounted (vadpipe).
SUBSYSTEM=="block", SUBSYSTEMS=="scsi", ATTRS{vendor}=="VMware*", ENV{UDISKS_IGNORE}="1"
"""


def in_force(directories: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The rules files that count, as name -> text, in the order in which udev reads them.

    Args:
        directories: Files as name -> text, the strongest directory first. A file hides files of its name in weaker
            directories; an empty file, or a link to /dev/null, switches them off.
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
    if key not in _UDEV_DISK:
        return False
    matches = any(fnmatchcase(_UDEV_DISK[key], one) for one in pattern.split("|"))
    return matches if operator == "==" else not matches


BLOCK_DEVICES = ("lsblk", "--json", "--output", "NAME,FSTYPE,UUID,LABEL,PARTUUID,PARTLABEL")

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
    """Tags that several devices carry, with their names. `output` is of BLOCK_DEVICES. Raises ValueError."""
    carriers: dict[str, dict[str, None]] = {}
    for device in json.loads(output)["blockdevices"]:
        for tag, name in _carried(device):
            carriers.setdefault(tag, {})[name] = None
    return {tag: list(names) for tag, names in carriers.items() if len(names) > 1}


def _carried(device: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """The tags of a device and of the devices on top of it; a child that repeats its parent is the same thing."""
    own: list[str] = []
    if device.get("fstype") not in _MEMBERS:
        own = [f"{tag}={device[tag.lower()]}" for tag in _TAGS if device.get(tag.lower())]
    yield from ((tag, str(device["name"])) for tag in own)
    children = device.get("children")
    for child in children if isinstance(children, list) else ():
        yield from ((tag, name) for tag, name in _carried(child) if tag not in own)
