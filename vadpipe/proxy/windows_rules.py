"""What makes Windows unfit as a proxy: the facts and the rules.

Sources: "VDDK guide" is VMware's Virtual Disk Development Kit programming guide, chapter on Windows backup and best
practices; "Microsoft" its public reference, page named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

from vadpipe.rules import RuleTable, Severity

from .report import ANY, HOTADD, SAN, Unfit
from .settings import AUTOMOUNT, AUTOMOUNT_SCRUBBED, REMOTE_DESKTOP, SAN_POLICIES, SAN_POLICY, put

_ONLINE_ALL = 1
_AUTOMOUNT_FIXES = (put(AUTOMOUNT, 1), put(AUTOMOUNT_SCRUBBED, 1))


@dataclass(frozen=True, slots=True)
class WindowsFacts:
    """Registry values; None where there is none. `unreadable`: fact -> why it could not be read."""

    automount_off: bool
    scrubbed: bool
    rdp_denied: int | None
    rdp_denied_by_policy: int | None
    san_policy: int | None
    cluster_node: bool
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def known(self, *facts: str) -> bool:
        return self.unreadable.keys().isdisjoint(facts)

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "san_policy_name": self.san_policy_name}

    @property
    def san_policy_name(self) -> str:
        if self.san_policy is None:
            return "unknown" if "san_policy" in self.unreadable else "not set"
        return SAN_POLICIES.get(self.san_policy, str(self.san_policy))


RULES: RuleTable[WindowsFacts, Unfit] = RuleTable()


@RULES.rule(
    "automount-on", Severity.ERROR, wanted="automount disabled: Windows changes hot-added volumes that it mounts",
    remedy="In DiskPart: automount disable, automount scrub, exit.",
    source="VDDK guide, Disable Automount in Windows Proxy; Microsoft, VDS_SAN_POLICY", tags=HOTADD,
)  # fmt: skip
def _automount_on(facts: WindowsFacts) -> Iterator[Unfit]:
    if facts.known("automount_off") and not facts.automount_off:
        text = "Windows mounts new volumes by itself (NoAutoMount is 0 or not set)"
        yield Unfit(text, fixes=_AUTOMOUNT_FIXES)


@RULES.rule(
    "automount-not-scrubbed", Severity.WARNING,
    wanted="automount scrubbed: volumes that were mounted once are not mounted again",
    remedy="In DiskPart: automount scrub, exit.", source="VDDK guide, Disable Automount in Windows Proxy",
    tags=HOTADD,
)  # fmt: skip
def _automount_not_scrubbed(facts: WindowsFacts) -> Iterator[Unfit]:
    if facts.known("scrubbed") and not facts.scrubbed:
        text = "nothing shows that the mount points of earlier volumes were scrubbed"
        yield Unfit(text, fixes=_AUTOMOUNT_FIXES)


@RULES.rule(
    "cluster-node", Severity.WARNING,
    wanted="no cluster node: without automount the storage part of the cluster's validation can fail",
    remedy="Use another machine as the proxy, or expect the validation to complain.",
    source="Microsoft, DiskPart automount; [MS-CMRP] 3.1.3.2", tags=HOTADD,
)  # fmt: skip
def _cluster_node(facts: WindowsFacts) -> Iterator[Unfit]:
    if facts.cluster_node:
        yield Unfit("this machine is a node of a failover cluster")


@RULES.rule(
    "remote-desktop", Severity.ERROR, wanted="remote desktop off: fDenyTSConnections is 1",
    remedy=r"Set fDenyTSConnections to 1 in HKLM\SYSTEM\CurrentControlSet\Control\Terminal Server.",
    source="VDDK guide, Security and Remote Desktop", tags=ANY,
)  # fmt: skip
def _rdp_allowed(facts: WindowsFacts) -> Iterator[Unfit]:
    known = facts.known("rdp_denied", "rdp_denied_by_policy")
    if known and facts.rdp_denied_by_policy is None and not facts.rdp_denied:
        shown = "not set" if facts.rdp_denied is None else facts.rdp_denied
        text = f"remote desktop is allowed (fDenyTSConnections is {shown})"
        yield Unfit(text, fixes=[put(REMOTE_DESKTOP, 1)])


@RULES.rule(
    "remote-desktop-policy", Severity.ERROR, wanted="no group policy that allows remote desktop",
    remedy="Take this machine out of the policy `Allow users to connect remotely by using Remote Desktop "
    "Services`, or disable that policy.",
    source="VDDK guide, Security and Remote Desktop; Microsoft, Terminal Services policies", tags=ANY,
)  # fmt: skip
def _rdp_allowed_by_policy(facts: WindowsFacts) -> Iterator[Unfit]:
    if facts.rdp_denied_by_policy == 0:
        text = "a group policy allows remote desktop (its fDenyTSConnections is 0); a local value would not count"
        yield Unfit(text)


@RULES.rule(
    "san-policy", Severity.ERROR, wanted="SAN policy OnlineAll, else the LUNs of the datastores stay offline",
    remedy="In DiskPart: san policy=OnlineAll, exit; keep the LUNs read-only except for a restore.",
    source="VDDK guide, best practices for SAN transport; Microsoft, DiskPart san", tags=SAN,
)  # fmt: skip
def _san_policy(facts: WindowsFacts) -> Iterator[Unfit]:
    if facts.known("san_policy") and facts.san_policy != _ONLINE_ALL:
        yield Unfit(f"the SAN policy is {facts.san_policy_name}", fixes=[put(SAN_POLICY, _ONLINE_ALL)])


@RULES.rule(
    "facts-unreadable", Severity.WARNING, wanted="every fact can be read",
    remedy="Run it as administrator, and check what is named.", source="own", tags=ANY,
)  # fmt: skip
def _unreadable(facts: WindowsFacts) -> Iterator[Unfit]:
    yield from map(Unfit, facts.unreadable.values())
