"""The settings that harden may change, one row each, and the plan of changes. Kernels.

A setting is a place that holds one value, so every change has a way back: the value that was there. DiskPart keeps
two of the values; they are changed by its scripts and read back where it keeps them. An undo file names settings by
id and holds values only, so that no edited file can make us write elsewhere or run something else.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Value = int | str | None
"""A registry number, the text of a file, or None: not there."""


@dataclass(frozen=True, slots=True)
class RegistryValue:
    """A REG_DWORD below HKEY_LOCAL_MACHINE. `flag`: any number but 0 is 1, and a missing value is 0."""

    key: str
    name: str
    flag: bool = False

    def __str__(self) -> str:
        return rf"HKLM\{self.key}, {self.name}"


@dataclass(frozen=True, slots=True)
class TextFile:
    """A whole text file, by its absolute path."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class Setting:
    """A place that harden may change.

    Args:
        id: What undo files call it.
        place: Where the value is.
        scripts: The DiskPart lines that set a value; other values are written in place.
        afterwards: The command that makes a change take effect.
        remark: What a person has to know before agreeing.
    """

    id: str
    place: RegistryValue | TextFile
    scripts: Mapping[int, Sequence[str]] = field(default_factory=dict)
    afterwards: Sequence[str] = ()
    remark: str = ""

    def script(self, value: Value) -> Sequence[str]:
        """The DiskPart lines for this value; empty: it is written in place."""
        return self.scripts.get(value, ()) if isinstance(value, int) else ()


@dataclass(frozen=True, slots=True)
class Fix:
    """How a rule wants a setting: a function from the value that is there to the one wanted."""

    setting: Setting
    edit: Callable[[Value], Value]


def put(setting: Setting, value: Value) -> Fix:
    """The fix that wants exactly this value."""
    return Fix(setting, lambda _: value)


@dataclass(frozen=True, slots=True)
class Change:
    """A setting, the value that was there, and the one to come."""

    setting: Setting
    former: Value
    wanted: Value

    def back(self) -> Change:
        return Change(self.setting, self.wanted, self.former)

    def lines(self) -> list[str]:
        """Exactly what will be done."""
        place = self.setting.place
        if isinstance(place, TextFile):
            lines = [f"{self.setting.id}: {place}", *_difference(self.former, self.wanted)]
        else:
            same = self.former == self.wanted
            step = "stays" if same else f"{_shown(self.former)} ->"
            lines = [f"{self.setting.id}: {place}: {step} {_shown(self.wanted)}"]
        if script := self.setting.script(self.wanted):
            lines.append(f"    DiskPart: {'; '.join(script)}")
        if self.setting.afterwards:
            lines.append(f"    then: {' '.join(self.setting.afterwards)}")
        if self.setting.remark:
            lines.append(f"    note: {self.setting.remark}")
        return lines


def plan(fixes: Iterable[Fix], read: Callable[[Setting], Value]) -> tuple[Change, ...]:
    """One change for each setting that needs one. Two fixes of one setting are applied one after the other."""
    formers: dict[str, Value] = {}
    wanted: dict[str, tuple[Setting, Value]] = {}
    for fix in fixes:
        name = fix.setting.id
        if name not in formers:
            formers[name] = read(fix.setting)
        before = wanted[name][1] if name in wanted else formers[name]
        wanted[name] = (fix.setting, fix.edit(before))
    changes = [Change(setting, formers[name], value) for name, (setting, value) in wanted.items()]
    # A script does more than change the value that can be read back: scrubbing leaves no trace there.
    return tuple(one for one in changes if one.former != one.wanted or one.setting.script(one.wanted))


def _shown(value: Value) -> str:
    return "not set" if value is None else str(value)


def _difference(former: Value, wanted: Value) -> list[str]:
    if wanted is None:
        return ["    the file is removed"]
    before, after = ("" if text is None else str(text) for text in (former, wanted))
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=1, lineterm="")
    # Bytes that are no UTF-8 are kept in the file, and shown in a way that every terminal takes.
    shown = [line.encode("utf-8", "backslashreplace").decode() for line in list(lines)[2:]]
    return ["    a new file"] * (former is None) + [f"    {line}" for line in shown]


AUTOMOUNT = Setting(
    "automount",
    # VDS_SAN_POLICY page of Microsoft's reference: 0 or missing is on.
    RegistryValue(r"SYSTEM\CurrentControlSet\Services\mountmgr", "NoAutoMount", flag=True),
    {1: ("automount disable", "automount scrub", "exit"), 0: ("automount enable", "exit")},
    remark="scrubbing forgets the mount points of volumes that are gone; there is no way back from that",
)
AUTOMOUNT_SCRUBBED = Setting(
    "automount-scrubbed",
    RegistryValue(r"SOFTWARE\vadpipe", "AutomountScrubbed"),
    remark="our own mark: Windows keeps no trace of the scrubbing",
)
REMOTE_DESKTOP = Setting(
    "remote-desktop",
    RegistryValue(r"SYSTEM\CurrentControlSet\Control\Terminal Server", "fDenyTSConnections"),
    remark="no new remote desktop session afterwards: have the console of this machine at hand",
)
SAN_POLICIES = {1: "OnlineAll", 2: "OfflineShared", 3: "OfflineAll", 4: "OfflineInternal"}
SAN_POLICY = Setting(
    "san-policy",
    RegistryValue(r"SYSTEM\CurrentControlSet\Services\partmgr\Parameters", "SanPolicy"),
    {number: (f"san policy={name}", "exit") for number, name in SAN_POLICIES.items()},
    remark="disks that are found from now on come online writable: keep the LUNs of datastores read-only",
)
WINDOWS_SETTINGS = {each.id: each for each in (AUTOMOUNT, AUTOMOUNT_SCRUBBED, REMOTE_DESKTOP, SAN_POLICY)}

# lvmlocal.conf goes before lvm.conf, section by section (lvm.conf(5), the configuration cascade).
LVM = Setting(
    "lvm",
    TextFile("/etc/lvm/lvmlocal.conf"),
    remark="a volume group that is added later has to be put into the list; a guest's must not be in it",
)
MULTIPATH = Setting(
    "multipath", TextFile("/etc/multipath/conf.d/vadpipe.conf"), afterwards=("multipathd", "reconfigure")
)
# Which of the two mdadm reads is fixed when it is built: Debian's looks into /etc/mdadm first.
_INITRAMFS = "the initial RAM disk keeps its own copy until it is built anew"
MDADM_DEBIAN = Setting("mdadm-debian", TextFile("/etc/mdadm/mdadm.conf"), remark=_INITRAMFS)
MDADM = Setting("mdadm", TextFile("/etc/mdadm.conf"), remark=_INITRAMFS)
UDISKS = Setting(
    "udisks",
    TextFile("/etc/udev/rules.d/99-vadpipe-proxy.rules"),
    afterwards=("udevadm", "control", "--reload"),
)
LINUX_SETTINGS = {each.id: each for each in (LVM, MULTIPATH, MDADM_DEBIAN, MDADM, UDISKS)}
