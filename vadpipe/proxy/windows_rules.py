"""What makes Windows unfit as a proxy: the facts, and one row of RULES each.

Sources: "VDDK guide" is VMware's Virtual Disk Development Kit programming guide, chapter on Windows backup and best
practices; "Microsoft" its public reference, page named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from .settings import (
    AUTOMOUNT,
    AUTOMOUNT_SCRUBBED,
    REMOTE_DESKTOP,
    SAN_POLICY,
    Mend,
    put,
)
from .verdict import (
    ANY,
    HOTADD,
    SAN,
    Rule,
    Severity,
)

SAN_POLICIES = {1: "OnlineAll", 2: "OfflineShared", 3: "OfflineAll", 4: "OfflineInternal"}
ONLINE_ALL = 1


@dataclass(frozen=True, slots=True)
class WindowsFacts:
    """Registry values as they stand, None where there is none. `unreadable`: fact -> why it could not be read."""

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


def _automount_on(facts: WindowsFacts) -> Iterator[str]:
    if facts.known("automount_off") and not facts.automount_off:
        yield "Windows mounts new volumes by itself (NoAutoMount is 0 or not set)"


def _automount_not_scrubbed(facts: WindowsFacts) -> Iterator[str]:
    if facts.known("scrubbed") and not facts.scrubbed:
        yield "nothing tells that the mount points of earlier volumes were scrubbed"


def _automount(_: WindowsFacts) -> Sequence[Mend]:
    return put(AUTOMOUNT, 1), put(AUTOMOUNT_SCRUBBED, 1)


def _cluster_node(facts: WindowsFacts) -> Iterator[str]:
    if facts.cluster_node:
        yield "this machine is a node of a failover cluster"


def _rdp_allowed(facts: WindowsFacts) -> Iterator[str]:
    known = facts.known("rdp_denied", "rdp_denied_by_policy")
    if known and facts.rdp_denied_by_policy is None and not facts.rdp_denied:
        shown = "not set" if facts.rdp_denied is None else facts.rdp_denied
        yield f"remote desktop is allowed (fDenyTSConnections is {shown})"


def _rdp_allowed_by_policy(facts: WindowsFacts) -> Iterator[str]:
    if facts.rdp_denied_by_policy == 0:
        yield "a group policy allows remote desktop (its fDenyTSConnections is 0); a local value would not count"


def _san_policy(facts: WindowsFacts) -> Iterator[str]:
    if facts.known("san_policy") and facts.san_policy != ONLINE_ALL:
        yield f"the SAN policy is {facts.san_policy_name}"


def _unreadable(facts: WindowsFacts) -> Iterator[str]:
    yield from facts.unreadable.values()


RULES: tuple[Rule[WindowsFacts], ...] = (
    Rule(
        "automount-on", Severity.ERROR, HOTADD,
        "automount disabled: Windows changes hot-added volumes that it mounts",
        "In DiskPart: automount disable, automount scrub, exit.",
        "VDDK guide, Disable Automount in Windows Proxy; Microsoft, VDS_SAN_POLICY", _automount_on, _automount,
    ),
    Rule(
        "automount-not-scrubbed", Severity.WARNING, HOTADD,
        "automount scrubbed: volumes that were mounted once are not mounted again",
        "In DiskPart: automount scrub, exit.",
        "VDDK guide, Disable Automount in Windows Proxy", _automount_not_scrubbed, _automount,
    ),
    Rule(
        "cluster-node", Severity.WARNING, HOTADD,
        "no cluster node: without automount the storage part of the cluster's validation can fail",
        "Use another machine as the proxy, or expect the validation to complain.",
        "Microsoft, DiskPart automount; [MS-CMRP] 3.1.3.2", _cluster_node,
    ),
    Rule(
        "remote-desktop", Severity.ERROR, ANY, "remote desktop off: fDenyTSConnections is 1",
        r"Set fDenyTSConnections to 1 in HKLM\SYSTEM\CurrentControlSet\Control\Terminal Server.",
        "VDDK guide, Security and Remote Desktop", _rdp_allowed,
        lambda facts: [put(REMOTE_DESKTOP, 1)],
    ),
    Rule(
        "remote-desktop-policy", Severity.ERROR, ANY, "no group policy that allows remote desktop",
        "Take this machine out of the policy `Allow users to connect remotely by using Remote Desktop Services`, "
        "or disable that policy.",
        "VDDK guide, Security and Remote Desktop; Microsoft, Terminal Services policies", _rdp_allowed_by_policy,
    ),
    Rule(
        "san-policy", Severity.ERROR, SAN, "SAN policy OnlineAll, else the LUNs of the datastores stay offline",
        "In DiskPart: san policy=OnlineAll, exit; keep the LUNs read-only except for a restore.",
        "VDDK guide, best practices for SAN transport; Microsoft, DiskPart san", _san_policy,
        lambda facts: [put(SAN_POLICY, ONLINE_ALL)],
    ),
    Rule(
        "facts-unreadable", Severity.WARNING, ANY, "every fact can be read",
        "Run it as administrator, and look into what is named.", "own", _unreadable,
    ),
)  # fmt: skip
