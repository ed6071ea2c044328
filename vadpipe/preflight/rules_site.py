"""Rules about what surrounds the VM: the server, the hosts that serve the disks, the VDDK, and this machine.

A transport's conditions count only where the job allows no other: with a choice, VDDK takes one that works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vadpipe.rules import Outcome, RuleTable, Severity, Unknown, Violation
from vadpipe.words import counted

from .facts import EX_SINCE, Case, HostFacts, Version, VmFacts, dotted

_QUIESCING_SINCE = (4, 1)
_NEWEST_KNOWN = (9, 0)
_FREE_EDITION = "esxBasic"
_CLOCK_S = 300.0  # what Kerberos and single sign-on tolerate
HTTPS, NFC = 443, 902
SAN, HOTADD = "san", "hotadd"
_API = "vSphere API reference"
_EX = "VDDK programming guide, VSS Support: CreateSnapshotEx_Task"
_PORTS = "VDDK programming guide, NBD transport: ports 443 and 902"
_OPEN = "Open the port in the firewalls between this machine and the host."
_SECOND_REDO_LOG: Version = (1, 2)
_SLOTS = 15
_NOT_ON_SAN = ("vsan", "vsanD", "VVOL")
_TRANSPORTS = "VDDK programming guide, transport methods"
_POLICY = (
    "VDDK release notes: a release works with the two vSphere generations before its own and the next one"
)
_OTHER = "Name another transport beside it, for example san:nbdssl or hotadd:nbdssl."
# Generations of vSphere in their order. The vendor supports N-2 to N+1, without new features of the next one.
_GENERATIONS: tuple[Version, ...] = ((5, 0), (5, 1), (5, 5), (6, 0), (6, 5), (6, 7), (7, 0), (8, 0), (9, 0))
_BEFORE, _AFTER = 2, 1

RULES: RuleTable[Case, Violation] = RuleTable()


@RULES.rule(
    "api-without-ex", Severity.WARNING, wanted="a vSphere API of 6.5 or later",
    remedy="Update the server, or look at what the manifest proves.", source=_EX,
)  # fmt: skip
def _without_ex(case: Case) -> Iterator[Outcome]:
    if case.quiesces and case.server.api_version < EX_SINCE and case.job.backup_type == "copy":
        yield Violation(
            f"its API is {dotted(case.server.api_version)}: VMware Tools choose the kind of quiescing"
        )


@RULES.rule(
    "backup-type-needs-ex", Severity.ERROR, wanted="a vSphere API of 6.5 or later for a VSS backup type",
    remedy="Ask for the backup type copy, or update the server.", source=_EX, tags={"quiescing"},
)  # fmt: skip
def _backup_type_without_ex(case: Case) -> Iterator[Outcome]:
    if case.quiesces and case.server.api_version < EX_SINCE and case.job.backup_type != "copy":
        version, asked = dotted(case.server.api_version), case.job.backup_type
        yield Violation(f"its API is {version}, and the job requests the VSS backup type {asked}")


@RULES.rule(
    "api-untested", Severity.INFO, wanted=f"a vSphere API of {dotted(EX_SINCE)} to {dotted(_NEWEST_KNOWN)}",
    remedy="Look closely at the first runs.", source="own: newer than what vadpipe was made for",
)  # fmt: skip
def _untested(case: Case) -> Iterator[Outcome]:
    if case.server.api_version[:2] > _NEWEST_KNOWN:
        yield Violation(f"its API is {dotted(case.server.api_version)}")


@RULES.rule(
    "licence-free", Severity.ERROR, wanted="a licence with the storage APIs",
    remedy="Give the host a licence, or back its VMs up from inside their guests.",
    source=f"{_API}, RestrictedVersion; LicenseManager.licenses",
)  # fmt: skip
def _free_licence(case: Case) -> Iterator[Outcome]:
    if case.server.is_vcenter:
        return  # it manages no host with that licence
    if case.server.editions is None:
        yield Unknown("the host's licences cannot be read")
    elif _FREE_EDITION in case.server.editions:
        yield Violation("it runs with the free licence, whose API is read-only")


@RULES.rule(
    "clock-differs", Severity.WARNING, wanted=f"the server's clock within {_CLOCK_S:.0f} s of ours",
    remedy="Let both follow the same time source (NTP).",
    source="own: what logins and the order of events tolerate",
)  # fmt: skip
def _clock(case: Case) -> Iterator[Outcome]:
    ahead_s = case.server.clock_ahead_s
    if ahead_s is None:
        yield Unknown("the server's clock was not read")
    elif abs(ahead_s) > _CLOCK_S:
        yield Violation(f"its clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} ours")


@RULES.rule(
    "host-disconnected", Severity.ERROR, wanted="the VM's host is connected",
    remedy="Reconnect the host to the vCenter.", source=f"{_API}, HostSystem.runtime.connectionState",
)  # fmt: skip
def _host_disconnected(case: Case) -> Iterator[Outcome]:
    if case.host and case.host.connection != "connected":
        yield Violation(f"its connection state is {case.host.connection}", case.host.name)


@RULES.rule(
    "host-in-maintenance", Severity.WARNING, wanted="the VM's host is not in maintenance mode",
    remedy="Wait until it has left it: such a host ends the sessions that read disks.",
    source="VDDK error codes 14014 and 14015",
)  # fmt: skip
def _host_in_maintenance(case: Case) -> Iterator[Outcome]:
    if case.host and case.host.maintenance:
        yield Violation("it is in maintenance mode", case.host.name)


@RULES.rule(
    "host-older-than-4.1", Severity.ERROR, wanted="application quiescing: ESXi 4.1 or later",
    remedy="Update the host.", source="VDDK programming guide, Working with Microsoft Shadow Copy",
    tags={"quiescing"},
)  # fmt: skip
def _host_too_old(case: Case) -> Iterator[Outcome]:
    if not case.application or case.host is None:
        return
    if case.host.version is None:
        yield Unknown(f"the version of {case.host.name} cannot be read")
    elif case.host.version < _QUIESCING_SINCE:
        yield Violation(f"it is ESXi {dotted(case.host.version)}", case.host.name)


def _over_network(case: Case) -> bool:
    return case.job.vddk is not None and not case.only("file", SAN, HOTADD)


def _is_another(case: Case, host: HostFacts) -> bool:
    """Not the VM's own host, which serves its disks unless the vCenter chooses another one."""
    return case.host is not None and host.moref != case.host.moref


@RULES.rule(
    "host-unresolved", Severity.ERROR, wanted="the names of the hosts that see the datastores have addresses",
    remedy="Add the host to the name service that this machine asks.", source=_PORTS,
)  # fmt: skip
def _unresolved(case: Case) -> Iterator[Outcome]:
    for host in case.hosts if _over_network(case) else ():
        if host.unresolved is None:
            yield Unknown(f"the name {host.reached_at} was not looked up")
        elif host.unresolved:
            yield Violation(host.unresolved, host.reached_at, may_pass=_is_another(case, host))


def _port(port: int) -> Callable[[Case], Iterator[Outcome]]:
    def closed(case: Case) -> Iterator[Outcome]:
        for host in case.hosts if _over_network(case) else ():
            if host.unresolved:
                continue  # the rule about names reports it
            reason = host.closed_ports.get(port)
            if reason is None:
                yield Unknown(f"port {port} of {host.reached_at} was not tried")
            elif reason:
                yield Violation(reason, f"{host.reached_at}:{port}", may_pass=_is_another(case, host))

    return closed


RULES.rule(
    "host-port-443", Severity.ERROR, wanted="port 443 of every host that sees the datastores", remedy=_OPEN,
    source=_PORTS,
)(_port(HTTPS))  # fmt: skip


RULES.rule(
    "host-port-902", Severity.ERROR, wanted="port 902 of every host that sees the datastores", remedy=_OPEN,
    source=_PORTS,
)(_port(NFC))  # fmt: skip


@RULES.rule(
    "vddk-missing", Severity.ERROR, wanted="a VDDK library where the job looks for it",
    remedy="Install VDDK and set libdir to its distribution directory.", source="own: the job reads through it",
)  # fmt: skip
def _no_vddk(case: Case) -> Iterator[Outcome]:
    if case.job.vddk and case.job.vddk.problem:
        yield Violation(case.job.vddk.problem)


@RULES.rule(
    "vddk-older-than-1.2", Severity.ERROR,
    wanted="VDDK 1.2 or later for the second redo log of a quiesced snapshot",
    remedy="Install a VDDK for this vSphere.", source="VDDK programming guide, Working with Microsoft Shadow Copy",
)  # fmt: skip
def _too_old_for_redo_logs(case: Case) -> Iterator[Outcome]:
    version = case.job.vddk.version if case.job.vddk else None
    if case.application and version is not None and version < _SECOND_REDO_LOG:
        yield Violation(f"VDDK is version {dotted(version)}")


def _unsupported(case: Case, wrong: int) -> Iterator[Outcome]:
    """Servers and hosts that are too old (-1) or too new (1) for the VDDK."""
    vddk = case.job.vddk
    if vddk is None or vddk.problem or (vddk.version is not None and vddk.version < _SECOND_REDO_LOG):
        return
    if vddk.version is None:
        yield Unknown("the library's file does not name the version of VDDK")
        return
    places = {case.server.name: case.server.version}
    places |= {host.name: host.version for host in case.hosts if host.version is not None}
    for name, version in places.items():
        found = compare_generations(vddk.version, version)
        if found is None:
            yield Unknown(
                f"whether VDDK {dotted(vddk.version)} works with vSphere {dotted(version)} is not known"
            )
        elif found == wrong:
            yield Violation(f"VDDK is {dotted(vddk.version)}, and this is vSphere {dotted(version)}", name)


@RULES.rule(
    "vddk-too-new", Severity.ERROR, wanted="a vSphere that is not older than the VDDK supports",
    remedy="Install an older VDDK: reads of hosts that are too old fail with I/O errors.", source=_POLICY,
)  # fmt: skip
def _server_too_old(case: Case) -> Iterator[Outcome]:
    yield from _unsupported(case, -1)


@RULES.rule(
    "vddk-too-old", Severity.WARNING, wanted="a vSphere that is not newer than the VDDK supports",
    remedy="Install a newer VDDK.", source=_POLICY,
)  # fmt: skip
def _server_too_new(case: Case) -> Iterator[Outcome]:
    for outcome in _unsupported(case, 1):
        if isinstance(outcome, Violation):  # the rule before reports what is not known
            yield outcome


@RULES.rule(
    "san-virtual-proxy", Severity.ERROR, wanted="SAN transport: a physical machine", remedy=_OTHER,
    source=_TRANSPORTS,
)  # fmt: skip
def _virtual_for_san(case: Case) -> Iterator[Outcome]:
    if not case.only(SAN):
        return
    if case.proxy is None or case.proxy.virtual is None:
        yield Unknown("it is not known whether this machine is virtual")
    elif case.proxy.virtual:
        yield Violation("this machine is virtual")


@RULES.rule(
    "san-datastore", Severity.ERROR, wanted="SAN transport: no vSAN and no virtual volumes", remedy=_OTHER,
    source=_TRANSPORTS,
)  # fmt: skip
def _datastore_for_san(case: Case) -> Iterator[Outcome]:
    for datastore in case.datastores if case.only(SAN) else ():
        if datastore.kind in _NOT_ON_SAN:
            yield Violation(f"it is a {datastore.kind} datastore", datastore.name)


@RULES.rule(
    "san-encrypted", Severity.ERROR, wanted="SAN transport: no encrypted disks", remedy=_OTHER, source=_TRANSPORTS,
)  # fmt: skip
def _encrypted_for_san(case: Case) -> Iterator[Outcome]:
    if case.only(SAN) and (case.vm.encrypted or any(disk.encrypted for disk in case.disks)):
        yield Violation("it is encrypted")


@RULES.rule(
    "hotadd-physical-proxy", Severity.ERROR, wanted="hot-add: this machine is a VM of the same server",
    remedy=_OTHER, source=_TRANSPORTS,
)  # fmt: skip
def _physical_for_hotadd(case: Case) -> Iterator[Outcome]:
    if not case.only(HOTADD):
        return
    if case.proxy is None or case.proxy.virtual is None:
        yield Unknown("it is not known whether this machine is virtual")
    elif not case.proxy.virtual:
        yield Violation("this machine is not virtual")
    elif case.proxy.vm is None:
        yield Unknown(f"it is not known which VM of {case.server.name} this machine is")


def _hotadd_proxy(case: Case) -> VmFacts | None:
    return case.proxy.vm if case.proxy and case.only(HOTADD) else None


@RULES.rule(
    "hotadd-datastore-unseen", Severity.ERROR, wanted="hot-add: the proxy's host sees the VM's datastores",
    remedy="Run on a proxy whose host mounts the datastore.", source=_TRANSPORTS,
)  # fmt: skip
def _blind_for_hotadd(case: Case) -> Iterator[Outcome]:
    proxy = _hotadd_proxy(case)
    for datastore in case.datastores if proxy else ():
        if proxy and proxy.host is not None and proxy.host not in datastore.hosts:
            yield Violation(f"the host of the proxy {proxy.name} does not see it", datastore.name)


@RULES.rule("hotadd-ide", Severity.ERROR, wanted="hot-add: SCSI disks", remedy=_OTHER, source=_TRANSPORTS)
def _ide_for_hotadd(case: Case) -> Iterator[Outcome]:
    for disk in case.disks if case.only(HOTADD) else ():
        if disk.bus == "ide" and not disk.left_out:
            yield Violation(f"it is an IDE disk ({disk.key})", disk.label)


@RULES.rule(
    "hotadd-encrypted", Severity.ERROR, wanted="hot-add: an encrypted proxy for an encrypted VM",
    remedy="Encrypt the proxy, or name nbdssl beside hotadd.", source=_TRANSPORTS,
)  # fmt: skip
def _encrypted_for_hotadd(case: Case) -> Iterator[Outcome]:
    proxy = _hotadd_proxy(case)
    if proxy and case.vm.encrypted and not proxy.encrypted:
        yield Violation(f"it is encrypted, and the proxy {proxy.name} is not")


@RULES.rule(
    "hotadd-slots", Severity.WARNING, wanted="hot-add: a free SCSI slot of the proxy for every disk",
    remedy="Add SCSI controllers to the proxy, paravirtual ones if possible.", source=_TRANSPORTS,
)  # fmt: skip
def _slots_for_hotadd(case: Case) -> Iterator[Outcome]:
    proxy = _hotadd_proxy(case)
    if proxy is None:
        return
    free = sum(max(_SLOTS - one.attached, 0) for one in proxy.controllers if one.is_scsi)
    wanted = sum(1 for disk in case.disks if not disk.left_out)
    if free < wanted:
        yield Violation(
            f"the proxy {proxy.name} has {counted(free, 'free SCSI slot')} for {counted(wanted, 'disk')}"
        )


def compare_generations(vddk: Version, vsphere: Version) -> int | None:
    """Which vSphere a VDDK works with: its own generation, the two before it, and the next one.

    Returns:
        -1: this vSphere is too old for the VDDK; 1: too new; 0: supported; None: not known.
    """
    ours, theirs = _place(vddk), _place(vsphere)
    if ours is None or theirs is None:
        return None
    if theirs < ours - _BEFORE:
        return -1
    return 1 if theirs > ours + _AFTER else 0


def _place(version: Version) -> int | None:
    """The newest generation that is not newer, -1 before the first; None where a bare major leaves it open."""
    majors = [generation for generation in _GENERATIONS if generation[0] == version[0]]
    if len(version) == 1 and len(majors) > 1:
        return None
    places = [place for place, generation in enumerate(_GENERATIONS) if generation <= (*version, 0)]
    return places[-1] if places else -1
