"""What makes Linux unfit as a hot-add proxy: the facts, and one row of RULES each.

The VDDK guide names only Windows' automount; these are its counterparts. A part that is not installed is None in
the facts, and no rule about it can be broken. Sources are the manual pages of the programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from .lvm import LvmFacts, limit_activation
from .md import MdFacts, forbid_foreign
from .mounts import MountFacts
from .multipath import BLACKLIST, MultipathFacts
from .settings import (
    LINUX_SETTINGS,
    LVM,
    MULTIPATH,
    UDISKS,
    Mend,
    Value,
    put,
)
from .udev import IGNORE_RULE
from .verdict import HOTADD, Rule, Severity


@dataclass(frozen=True, slots=True)
class LinuxFacts:
    """`udisks_kept_off` is None without udisks; `unreadable`: what could not be read, and why."""

    lvm: LvmFacts | None
    multipath: MultipathFacts | None
    md: MdFacts | None
    udisks_kept_off: bool | None
    mounts: MountFacts
    unreadable: Sequence[str] = ()

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def _lvm_activates(facts: LinuxFacts) -> Iterator[str]:
    if facts.lvm and facts.lvm.activates_guest_disks:
        yield "LVM activates every volume group whose disks appear, guests' ones too"


def _limit_activation(facts: LinuxFacts) -> Sequence[Mend]:
    if facts.lvm is None or facts.lvm.volume_groups is None:
        return ()
    own = facts.lvm.volume_groups
    return [Mend(LVM, lambda text: limit_activation(_text(text), own))]


def _lvm_sees(facts: LinuxFacts) -> Iterator[str]:
    # Without a volume group of its own there is nothing that a guest's could be taken for.
    if facts.lvm and facts.lvm.sees_guest_disks and facts.lvm.volume_groups != []:
        yield "LVM's commands use any disk: no devices file, and no global_filter that rejects new disks"


def _multipath_claims(facts: LinuxFacts) -> Iterator[str]:
    if facts.multipath and facts.multipath.claims_guest_disks:
        found = facts.multipath.find_multipaths
        yield f"multipath takes disks of VMware VMs (not blacklisted, find_multipaths is {found})"


def _md_assembles(facts: LinuxFacts) -> Iterator[str]:
    if facts.md and facts.md.assembles_guest_arrays:
        auto = "there is no AUTO line" if facts.md.auto is None else f"AUTO {' '.join(facts.md.auto)}"
        yield f"{', '.join(facts.md.rules)} assembles any array ({auto} in {facts.md.configuration})"


def _forbid_foreign(facts: LinuxFacts) -> Sequence[Mend]:
    if facts.md is None or facts.md.unlisted:
        return ()
    settings = [one for one in LINUX_SETTINGS.values() if str(one.place) == facts.md.configuration]
    return [Mend(setting, lambda text: forbid_foreign(_text(text))) for setting in settings]


def _md_unlisted(facts: LinuxFacts) -> Iterator[str]:
    if facts.md and facts.md.assembles_guest_arrays:
        for array in facts.md.unlisted:
            yield f"the active array {array or 'without a name'} has no ARRAY line in {facts.md.configuration}"


def _udisks_offers(facts: LinuxFacts) -> Iterator[str]:
    if facts.udisks_kept_off is False:
        yield "udisks offers disks of VMware VMs to desktops, which mount them"


def _ambiguous(facts: LinuxFacts) -> Iterator[str]:
    for mount in facts.mounts.mounts:
        if names := facts.mounts.ambiguous.get(mount.source):
            yield f"fstab mounts {mount.source} at {mount.mount_point}; {' and '.join(names)} carry it"


def _by_label(facts: LinuxFacts) -> Iterator[str]:
    for mount in facts.mounts.mounts:
        if mount.by_label:
            yield f"fstab mounts {mount.source} at {mount.mount_point}: other machines of this image have it too"


def _unreadable(facts: LinuxFacts) -> Iterator[str]:
    yield from facts.unreadable


def _text(value: Value) -> str:
    return "" if value is None else str(value)


RULES: tuple[Rule[LinuxFacts], ...] = (
    Rule(
        "lvm-auto-activation", Severity.ERROR, HOTADD,
        "only the proxy's own volume groups are activated by themselves",
        "Define activation/auto_activation_volume_list in /etc/lvm/lvmlocal.conf, or use a devices file.",
        "lvmautoactivation(7), lvm.conf(5)", _lvm_activates, _limit_activation,
    ),
    Rule(
        "lvm-sees-guest-disks", Severity.WARNING, HOTADD,
        "LVM looks at the proxy's own disks only: a guest's volume group may have the name of one of the proxy's",
        "With no guest's disk attached: vgimportdevices --all, and use_devicesfile=1; or a global_filter.",
        "lvmdevices(8), lvm.conf(5)", _lvm_sees,
    ),
    Rule(
        "multipath-claims-disks", Severity.ERROR, HOTADD,
        "disks of VMware VMs blacklisted, or find_multipaths strict: a mapped disk is busy",
        "Blacklist vendor VMware, product Virtual disk, in /etc/multipath/conf.d.",
        "multipath.conf(5)", _multipath_claims, lambda facts: [put(MULTIPATH, BLACKLIST)],
    ),
    Rule(
        "md-assembly", Severity.ERROR, HOTADD,
        "AUTO -all: only the arrays in ARRAY lines are assembled; assembling writes to the members",
        "List the proxy's own arrays (mdadm --detail --scan), then add AUTO -all.",
        "mdadm.conf(5)", _md_assembles, _forbid_foreign,
    ),
    Rule(
        "md-arrays-unlisted", Severity.WARNING, HOTADD,
        "every array of the proxy in an ARRAY line, so that it is assembled with AUTO -all too",
        "Append the output of `mdadm --detail --scan` to the configuration, while no guest's disk is attached.",
        "mdadm.conf(5)", _md_unlisted,
    ),
    Rule(
        "udisks-automount", Severity.ERROR, HOTADD, "udisks ignores disks of VMware VMs",
        "Set UDISKS_IGNORE in a udev rule for disks of the vendor VMware.",
        "udisks(8), udev(7)", _udisks_offers, lambda facts: [put(UDISKS, IGNORE_RULE)],
    ),
    Rule(
        "fstab-ambiguous", Severity.ERROR, HOTADD, "one device for each line of fstab",
        "Detach the disk that is not the proxy's (vadpipe cleanup), or give one of them another identity.",
        "fstab(5)", _ambiguous,
    ),
    Rule(
        "fstab-by-label", Severity.WARNING, HOTADD,
        "mounts by UUID: a guest's disk that was left attached may carry the label at the next boot",
        "Write UUID=, as lsblk -f tells it, in place of the label.",
        "fstab(5)", _by_label,
    ),
    Rule(
        "facts-unreadable", Severity.WARNING, HOTADD, "every fact can be read",
        "Run it as root, and look into what is named.", "own", _unreadable,
    ),
)  # fmt: skip
