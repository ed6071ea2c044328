"""Rules about reading the disks: the VDDK, and what the machine that it runs on must be for each transport.

A transport's conditions count only where the job leaves no other: with a choice, VDDK takes one that works.
"""

from __future__ import annotations

from collections.abc import Iterator

from .facts import Case, Version, VmFacts
from .rule import (
    Breach,
    Outcome,
    Rule,
    Severity,
    Unknown,
)
from .rules_site import HOTADD, SAN
from .vddk_versions import compare

_SECOND_REDO_LOG: Version = (1, 2)
_SLOTS = 15
_NOT_ON_SAN = ("vsan", "vsanD", "VVOL")


def _no_vddk(case: Case) -> Iterator[Outcome]:
    if case.job.vddk and case.job.vddk.problem:
        yield Breach(case.job.vddk.problem)


def _too_old_for_redo_logs(case: Case) -> Iterator[Outcome]:
    version = case.job.vddk.version if case.job.vddk else None
    if case.application and version is not None and version < _SECOND_REDO_LOG:
        yield Breach(f"VDDK is version {_dotted(version)}")


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
        found = compare(vddk.version, version)
        if found is None:
            yield Unknown(
                f"whether VDDK {_dotted(vddk.version)} works with vSphere {_dotted(version)} is not known"
            )
        elif found == wrong:
            yield Breach(f"VDDK is {_dotted(vddk.version)}, and this is vSphere {_dotted(version)}", name)


def _server_too_old(case: Case) -> Iterator[Outcome]:
    yield from _unsupported(case, -1)


def _server_too_new(case: Case) -> Iterator[Outcome]:
    for outcome in _unsupported(case, 1):
        if isinstance(outcome, Breach):  # what is not known was said by the rule before
            yield outcome


def _virtual_for_san(case: Case) -> Iterator[Outcome]:
    if not case.only(SAN):
        return
    if case.proxy is None or case.proxy.virtual is None:
        yield Unknown("whether this machine is virtual cannot be told")
    elif case.proxy.virtual:
        yield Breach("this machine is virtual")


def _datastore_for_san(case: Case) -> Iterator[Outcome]:
    for datastore in case.datastores if case.only(SAN) else ():
        if datastore.kind in _NOT_ON_SAN:
            yield Breach(f"it is a {datastore.kind} datastore", datastore.name)


def _encrypted_for_san(case: Case) -> Iterator[Outcome]:
    if case.only(SAN) and (case.vm.encrypted or any(disk.encrypted for disk in case.vm.disks)):
        yield Breach("it is encrypted")


def _physical_for_hotadd(case: Case) -> Iterator[Outcome]:
    if not case.only(HOTADD):
        return
    if case.proxy is None or case.proxy.virtual is None:
        yield Unknown("whether this machine is virtual cannot be told")
    elif not case.proxy.virtual:
        yield Breach("this machine is not virtual")
    elif case.proxy.vm is None:
        yield Unknown(f"which VM of {case.server.name} this machine is cannot be told")


def _hotadd_proxy(case: Case) -> VmFacts | None:
    return case.proxy.vm if case.proxy and case.only(HOTADD) else None


def _blind_for_hotadd(case: Case) -> Iterator[Outcome]:
    proxy = _hotadd_proxy(case)
    for datastore in case.datastores if proxy else ():
        if proxy and proxy.host is not None and proxy.host not in datastore.hosts:
            yield Breach(f"the host of the proxy {proxy.name} does not see it", datastore.name)


def _ide_for_hotadd(case: Case) -> Iterator[Outcome]:
    for disk in case.vm.disks if case.only(HOTADD) else ():
        if disk.bus == "ide" and not disk.left_out:
            yield Breach(f"it is an IDE disk ({disk.key})", disk.label)


def _encrypted_for_hotadd(case: Case) -> Iterator[Outcome]:
    proxy = _hotadd_proxy(case)
    if proxy and case.vm.encrypted and not proxy.encrypted:
        yield Breach(f"it is encrypted, and the proxy {proxy.name} is not")


def _slots_for_hotadd(case: Case) -> Iterator[Outcome]:
    proxy = _hotadd_proxy(case)
    if proxy is None:
        return
    free = sum(max(_SLOTS - one.attached, 0) for one in proxy.controllers if one.is_scsi)
    wanted = sum(1 for disk in case.vm.disks if not disk.left_out)
    if free < wanted:
        yield Breach(f"the proxy {proxy.name} has {free} free SCSI slots for {wanted} disks")


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


_TRANSPORTS = "VDDK programming guide, transport methods"
_POLICY = (
    "VDDK release notes: a release works with the two vSphere generations before its own and the next one"
)
_OTHER = "Name another transport beside it, for example san:nbdssl or hotadd:nbdssl."

RULES: tuple[Rule, ...] = (
    Rule(
        "vddk-missing", Severity.ERROR, "a VDDK library where the job looks for it",
        "Install VDDK and set libdir to its distribution directory.", "own: the job reads through it", _no_vddk,
    ),
    Rule(
        "vddk-older-than-1.2", Severity.ERROR, "VDDK 1.2 or later for the second redo log of a quiesced snapshot",
        "Install a VDDK for this vSphere.", "VDDK programming guide, Working with Microsoft Shadow Copy",
        _too_old_for_redo_logs,
    ),
    Rule(
        "vddk-too-new", Severity.ERROR, "a vSphere that is not older than the VDDK supports",
        "Install an older VDDK: reads of hosts that are too old fail with I/O errors.", _POLICY, _server_too_old,
    ),
    Rule(
        "vddk-too-old", Severity.WARNING, "a vSphere that is not newer than the VDDK supports",
        "Install a newer VDDK.", _POLICY, _server_too_new,
    ),
    Rule(
        "san-virtual-proxy", Severity.ERROR, "SAN transport: a physical machine",
        _OTHER, _TRANSPORTS, _virtual_for_san,
    ),
    Rule(
        "san-datastore", Severity.ERROR, "SAN transport: no vSAN and no virtual volumes", _OTHER, _TRANSPORTS,
        _datastore_for_san,
    ),
    Rule(
        "san-encrypted", Severity.ERROR, "SAN transport: no encrypted disks",
        _OTHER, _TRANSPORTS, _encrypted_for_san,
    ),
    Rule(
        "hotadd-physical-proxy", Severity.ERROR, "hot-add: this machine is a VM of the same server", _OTHER,
        _TRANSPORTS, _physical_for_hotadd,
    ),
    Rule(
        "hotadd-datastore-unseen", Severity.ERROR, "hot-add: the proxy's host sees the VM's datastores",
        "Run on a proxy whose host mounts the datastore.", _TRANSPORTS, _blind_for_hotadd,
    ),
    Rule("hotadd-ide", Severity.ERROR, "hot-add: SCSI disks", _OTHER, _TRANSPORTS, _ide_for_hotadd),
    Rule(
        "hotadd-encrypted", Severity.ERROR, "hot-add: an encrypted proxy for an encrypted VM",
        "Encrypt the proxy, or name nbdssl beside hotadd.", _TRANSPORTS, _encrypted_for_hotadd,
    ),
    Rule(
        "hotadd-slots", Severity.WARNING, "hot-add: a free SCSI slot of the proxy for every disk",
        "Add SCSI controllers to the proxy, paravirtual ones if possible.", _TRANSPORTS, _slots_for_hotadd,
    ),
)  # fmt: skip
