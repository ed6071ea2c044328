"""What makes Linux unfit as a hot-add proxy: the facts and the rules.

The VDDK guide names only Windows' automount; these are its counterparts. A program that is not installed is None in
the facts, and no rule about it can be broken. Sources are the manual pages of the programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vadpipe.rules import RuleTable, Severity

from .linux_config import BLACKLIST, IGNORE_RULE, MdFacts, MountFacts, MultipathFacts, forbid_foreign
from .lvm import LvmFacts, limit_activation
from .report import HOTADD, Unfit
from .settings import LINUX_SETTINGS, LVM, MULTIPATH, UDISKS, Fix, Value, put


@dataclass(frozen=True, slots=True)
class LinuxFacts:
    """`udisks_kept_off` is None without udisks. `unreadable`: what could not be read, and why."""

    lvm: LvmFacts | None
    multipath: MultipathFacts | None
    md: MdFacts | None
    udisks_kept_off: bool | None
    mounts: MountFacts
    unreadable: Sequence[str] = ()


RULES: RuleTable[LinuxFacts, Unfit] = RuleTable()


@RULES.rule(
    "lvm-auto-activation", Severity.ERROR,
    wanted="only the proxy's own volume groups are activated by themselves",
    remedy="Define activation/auto_activation_volume_list in /etc/lvm/lvmlocal.conf, or use a devices file.",
    source="lvmautoactivation(7), lvm.conf(5)", tags=HOTADD,
)  # fmt: skip
def _lvm_activates(facts: LinuxFacts) -> Iterator[Unfit]:
    if facts.lvm and facts.lvm.activates_guest_disks:
        own = facts.lvm.volume_groups
        fixes = [] if own is None else [Fix(LVM, lambda text: limit_activation(_text(text), own))]
        yield Unfit("LVM activates every volume group whose disks appear, guests' ones too", fixes=fixes)


@RULES.rule(
    "lvm-sees-guest-disks", Severity.WARNING,
    wanted="LVM uses the proxy's own disks only: a guest's volume group may have the name of one of the proxy's",
    remedy="With no guest's disk attached: vgimportdevices --all, and use_devicesfile=1; or a global_filter.",
    source="lvmdevices(8), lvm.conf(5)", tags=HOTADD,
)  # fmt: skip
def _lvm_sees(facts: LinuxFacts) -> Iterator[Unfit]:
    # Without a volume group of its own there is nothing that a guest's could be taken for.
    if facts.lvm and facts.lvm.sees_guest_disks and facts.lvm.volume_groups != []:
        yield Unfit(
            "LVM's commands use any disk: no devices file, and no global_filter that rejects new disks"
        )


@RULES.rule(
    "multipath-claims-disks", Severity.ERROR,
    wanted="disks of VMware VMs blacklisted, or find_multipaths strict: a mapped disk is busy",
    remedy="Blacklist vendor VMware, product Virtual disk, in /etc/multipath/conf.d.",
    source="multipath.conf(5)", tags=HOTADD,
)  # fmt: skip
def _multipath_claims(facts: LinuxFacts) -> Iterator[Unfit]:
    if facts.multipath and facts.multipath.claims_guest_disks:
        found = facts.multipath.find_multipaths
        text = f"multipath takes disks of VMware VMs (not blacklisted, find_multipaths is {found})"
        yield Unfit(text, fixes=[put(MULTIPATH, BLACKLIST)])


@RULES.rule(
    "md-assembly", Severity.ERROR,
    wanted="AUTO -all: only the arrays in ARRAY lines are assembled; assembling writes to the members",
    remedy="List the proxy's own arrays (mdadm --detail --scan), then add AUTO -all.",
    source="mdadm.conf(5)", tags=HOTADD,
)  # fmt: skip
def _md_assembles(facts: LinuxFacts) -> Iterator[Unfit]:
    if facts.md and facts.md.assembles_guest_arrays:
        auto = "there is no AUTO line" if facts.md.auto is None else f"AUTO {' '.join(facts.md.auto)}"
        text = f"{', '.join(facts.md.rules)} assembles any array ({auto} in {facts.md.configuration})"
        yield Unfit(text, fixes=_forbid_foreign(facts.md))


def _forbid_foreign(md: MdFacts) -> Sequence[Fix]:
    if md.unlisted:  # then the proxy itself might not start
        return ()
    settings = [one for one in LINUX_SETTINGS.values() if str(one.place) == md.configuration]
    return [Fix(setting, lambda text: forbid_foreign(_text(text))) for setting in settings]


@RULES.rule(
    "md-arrays-unlisted", Severity.WARNING,
    wanted="every array of the proxy in an ARRAY line, so that it is assembled with AUTO -all too",
    remedy="Append the output of `mdadm --detail --scan` to the configuration, while no guest's disk is attached.",
    source="mdadm.conf(5)", tags=HOTADD,
)  # fmt: skip
def _md_unlisted(facts: LinuxFacts) -> Iterator[Unfit]:
    if facts.md and facts.md.assembles_guest_arrays:
        for array in facts.md.unlisted:
            name = array or "without a name"
            yield Unfit(f"the active array {name} has no ARRAY line in {facts.md.configuration}")


@RULES.rule(
    "udisks-automount", Severity.ERROR, wanted="udisks ignores disks of VMware VMs",
    remedy="Set UDISKS_IGNORE in a udev rule for disks of the vendor VMware.", source="udisks(8), udev(7)",
    tags=HOTADD,
)  # fmt: skip
def _udisks_offers(facts: LinuxFacts) -> Iterator[Unfit]:
    if facts.udisks_kept_off is False:
        text = "udisks offers disks of VMware VMs to desktops, which mount them"
        yield Unfit(text, fixes=[put(UDISKS, IGNORE_RULE)])


@RULES.rule(
    "fstab-ambiguous", Severity.ERROR, wanted="one device for each line of fstab",
    remedy="Detach the disk that is not the proxy's (vadpipe cleanup), or give one of them another identity.",
    source="fstab(5)", tags=HOTADD,
)  # fmt: skip
def _ambiguous(facts: LinuxFacts) -> Iterator[Unfit]:
    for mount in facts.mounts.mounts:
        if names := facts.mounts.ambiguous.get(mount.source):
            yield Unfit(f"fstab mounts {mount.source} at {mount.mount_point}; {' and '.join(names)} carry it")


@RULES.rule(
    "fstab-by-label", Severity.WARNING,
    wanted="mounts by UUID: a guest's disk that was left attached may carry the label at the next boot",
    remedy="Write UUID=, as lsblk -f tells it, in place of the label.", source="fstab(5)", tags=HOTADD,
)  # fmt: skip
def _by_label(facts: LinuxFacts) -> Iterator[Unfit]:
    for mount in facts.mounts.mounts:
        if mount.by_label:
            where = f"fstab mounts {mount.source} at {mount.mount_point}"
            yield Unfit(f"{where}: other machines of this image have it too")


@RULES.rule(
    "facts-unreadable", Severity.WARNING, wanted="every fact can be read",
    remedy="Run it as root, and check what is named.", source="own", tags=HOTADD,
)  # fmt: skip
def _unreadable(facts: LinuxFacts) -> Iterator[Unfit]:
    yield from map(Unfit, facts.unreadable)


def _text(value: Value) -> str:
    return "" if value is None else str(value)
