"""Rules about the servers: the vCenter or host we talk to, the hosts that serve the disks, and our privileges."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .facts import Case, HostFacts
from .rule import (
    Breach,
    Outcome,
    Rule,
    Severity,
    Unknown,
)
from .rules_tools import EX_SINCE

_QUIESCING_SINCE = (4, 1)
_NEWEST_KNOWN = (9, 0)
_FREE_EDITION = "esxBasic"
_CLOCK_S = 300.0  # what Kerberos and single sign-on tolerate
HTTPS, NFC = 443, 902
SAN, HOTADD = "san", "hotadd"

# Privileges by what they are for; the names are those of the vSphere API.
PRIVILEGES: dict[str, tuple[str, ...]] = {
    "snapshot": ("VirtualMachine.State.CreateSnapshot", "VirtualMachine.State.RemoveSnapshot"),
    "read": ("VirtualMachine.Provisioning.DiskRandomRead", "VirtualMachine.Provisioning.GetVmFiles"),
    "tracking": ("VirtualMachine.Config.ChangeTracking",),
    "manifest": ("Datastore.Browse", "Datastore.FileManagement"),
    "lock": ("Global.DisableMethods", "Global.EnableMethods"),
}


def _without_ex(case: Case) -> Iterator[Outcome]:
    if case.quiesces and case.server.api_version < EX_SINCE and case.job.backup_type == "copy":
        yield Breach(
            f"its API is {_dotted(case.server.api_version)}: VMware Tools choose the kind of quiescing"
        )


def _backup_type_without_ex(case: Case) -> Iterator[Outcome]:
    if case.quiesces and case.server.api_version < EX_SINCE and case.job.backup_type != "copy":
        version, asked = _dotted(case.server.api_version), case.job.backup_type
        yield Breach(f"its API is {version}, and the VSS backup type {asked} is asked for")


def _untested(case: Case) -> Iterator[Outcome]:
    if case.server.api_version[:2] > _NEWEST_KNOWN:
        yield Breach(f"its API is {_dotted(case.server.api_version)}")


def _free_licence(case: Case) -> Iterator[Outcome]:
    if case.server.is_vcenter:
        return  # it manages no host with that licence
    if case.server.editions is None:
        yield Unknown("the host's licences cannot be read")
    elif _FREE_EDITION in case.server.editions:
        yield Breach("it runs with the free licence, whose API is read-only")


def _clock(case: Case) -> Iterator[Outcome]:
    ahead_s = case.server.clock_ahead_s
    if ahead_s is None:
        yield Unknown("the server's clock was not asked")
    elif abs(ahead_s) > _CLOCK_S:
        yield Breach(f"its clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} ours")


def _host_disconnected(case: Case) -> Iterator[Outcome]:
    if case.host and case.host.connection != "connected":
        yield Breach(f"its connection state is {case.host.connection}", case.host.name)


def _host_in_maintenance(case: Case) -> Iterator[Outcome]:
    if case.host and case.host.maintenance:
        yield Breach("it is in maintenance mode", case.host.name)


def _host_too_old(case: Case) -> Iterator[Outcome]:
    if not case.application or case.host is None:
        return
    if case.host.version is None:
        yield Unknown(f"the version of {case.host.name} cannot be read")
    elif case.host.version < _QUIESCING_SINCE:
        yield Breach(f"it is ESXi {_dotted(case.host.version)}", case.host.name)


def _over_network(case: Case) -> bool:
    return case.job.vddk is not None and not case.only("file", SAN, HOTADD)


def _is_another(case: Case, host: HostFacts) -> bool:
    """Not the VM's own host, which serves its disks unless the vCenter chooses another one."""
    return case.host is not None and host.moref != case.host.moref


def _unresolved(case: Case) -> Iterator[Outcome]:
    for host in case.hosts if _over_network(case) else ():
        if host.unresolved is None:
            yield Unknown(f"the name {host.name} was not looked up")
        elif host.unresolved:
            yield Breach(host.unresolved, host.name, may_pass=_is_another(case, host))


def _port(port: int) -> Callable[[Case], Iterator[Outcome]]:
    def closed(case: Case) -> Iterator[Outcome]:
        for host in case.hosts if _over_network(case) else ():
            if host.unresolved:
                continue  # said by the rule about names
            reason = host.closed_ports.get(port)
            if reason is None:
                yield Unknown(f"port {port} of {host.name} was not tried")
            elif reason:
                yield Breach(reason, f"{host.name}:{port}", may_pass=_is_another(case, host))

    return closed


def _lacking(purpose: str, wanted: Callable[[Case], bool]) -> Callable[[Case], Iterator[Outcome]]:
    def lacking(case: Case) -> Iterator[Outcome]:
        if not wanted(case):
            return
        if case.vm.missing_privileges is None:
            yield Unknown("the server does not tell which privileges the account has")
            return
        for privilege in PRIVILEGES[purpose]:
            if privilege in case.vm.missing_privileges:
                yield Breach(f"the account lacks {privilege}")

    return lacking


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


_API = "vSphere API reference"
_EX = "VDDK programming guide, VSS Support: CreateSnapshotEx_Task"
_PORTS = "VDDK programming guide, NBD transport: ports 443 and 902"
_ROLES = "vSphere API reference, required privileges"
_GRANT = "Give the account's role that privilege on the VM, or on a folder above it with propagation."
_OPEN = "Open the port in the firewalls between this machine and the host."

RULES: tuple[Rule, ...] = (
    Rule(
        "api-without-ex", Severity.WARNING, "a vSphere API of 6.5 or later",
        "Update the server, or look at what the manifest proves.", _EX, _without_ex,
    ),
    Rule(
        "backup-type-needs-ex", Severity.ERROR, "a vSphere API of 6.5 or later for a VSS backup type",
        "Ask for the backup type copy, or update the server.", _EX, _backup_type_without_ex, about_quiescing=True,
    ),
    Rule(
        "api-untested", Severity.INFO, f"a vSphere API of {_dotted(EX_SINCE)} to {_dotted(_NEWEST_KNOWN)}",
        "Look closely at the first runs.", "own: newer than what vadpipe was made for", _untested,
    ),
    Rule(
        "licence-free", Severity.ERROR, "a licence with the storage APIs",
        "Give the host a licence, or back its VMs up from inside their guests.",
        f"{_API}, RestrictedVersion; LicenseManager.licenses", _free_licence,
    ),
    Rule(
        "clock-differs", Severity.WARNING, f"the server's clock within {_CLOCK_S:.0f} s of ours",
        "Let both follow the same time source (NTP).", "own: what logins and the order of events tolerate", _clock,
    ),
    Rule(
        "host-disconnected", Severity.ERROR, "the VM's host is connected", "Bring the host back into the vCenter.",
        f"{_API}, HostSystem.runtime.connectionState", _host_disconnected,
    ),
    Rule(
        "host-in-maintenance", Severity.WARNING, "the VM's host is not in maintenance mode",
        "Wait until it has left it: such a host ends the sessions that read disks.",
        "VDDK error codes 14014 and 14015", _host_in_maintenance,
    ),
    Rule(
        "host-older-than-4.1", Severity.ERROR, "application quiescing: ESXi 4.1 or later", "Update the host.",
        "VDDK programming guide, Working with Microsoft Shadow Copy", _host_too_old, about_quiescing=True,
    ),
    Rule(
        "host-unresolved", Severity.ERROR, "the names of the hosts that see the datastores have addresses",
        "Add the host to the name service that this machine asks.", _PORTS, _unresolved,
    ),
    Rule(
        "host-port-443", Severity.ERROR, "port 443 of every host that sees the datastores",
        _OPEN, _PORTS, _port(HTTPS),
    ),
    Rule(
        "host-port-902", Severity.ERROR, "port 902 of every host that sees the datastores",
        _OPEN, _PORTS, _port(NFC),
    ),
    Rule(
        "privilege-snapshot", Severity.ERROR, "the account may create and remove snapshots", _GRANT, _ROLES,
        _lacking("snapshot", lambda case: True),
    ),
    Rule(
        "privilege-read", Severity.ERROR, "the account may read disks", _GRANT, _ROLES,
        _lacking("read", lambda case: case.job.vddk is not None),
    ),
    Rule(
        "privilege-tracking", Severity.WARNING, "the account may enable change tracking", _GRANT, _ROLES,
        _lacking("tracking", lambda case: case.job.enable_change_tracking and not case.vm.change_tracking),
    ),
    Rule(
        "privilege-manifest", Severity.ERROR, "the account may fetch the VSS manifest from the datastore",
        "Give the account's role that privilege on the datastore: without the manifest quiescing is not proved.",
        "vSphere documentation, HTTPS access to datastores", _lacking("manifest", lambda case: case.quiesces),
        about_quiescing=True,
    ),
    Rule(
        "privilege-lock", Severity.INFO, "the account may keep the VM from being moved while it is read",
        "Give the account's role that privilege on the vCenter.",
        "VDDK programming guide, PrepareForAccess and EndAccess",
        _lacking("lock", lambda case: case.server.is_vcenter and case.job.vddk is not None),
    ),
)  # fmt: skip
