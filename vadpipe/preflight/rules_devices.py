"""Rules about the VM's devices: which disks a snapshot holds, and which devices prevent quiescing.

Free SCSI slots: a controller has 16 unit numbers and takes one of them itself. A paravirtual controller of
hardware version 14 or later has 64 targets. Whether VMware Tools use those above 15 is not documented, so a VM
that has enough slots only with them is reported as unknown.
"""

from __future__ import annotations

from collections.abc import Iterator

from vadpipe.exclude import matching_keys
from vadpipe.rules import Outcome, RuleTable, Severity, Unknown, Violation
from vadpipe.vsphere.inventory.hardware import VmController, VmDisk
from vadpipe.words import counted

from .facts import Case, Version

_SLOTS = 15
_SLOTS_PARAVIRTUAL = 63
_PARAVIRTUAL_SINCE = 14  # hardware version
_PARAVIRTUAL = "ParaVirtualSCSIController"
# Windows Server 2022 quiesces applications behind an NVMe boot controller from this build on.
_NVME_BUILD: Version = (20348, 2582)
_SERVER_2022 = "Windows Server 2022"
_GUIDE = "VDDK programming guide, The VMware VSS Implementation"
_ADMIN = "vSphere administration guide, snapshot limitations"
_GOSV = "VMware's published guest-OS tests, quiesced snapshots"
_INSIDE = "Back it up from inside the guest, or make it a dependent disk; the point will name it as left out."

RULES: RuleTable[Case, Violation] = RuleTable()


@RULES.rule(
    "disk-none", Severity.ERROR, wanted="the VM has a disk", remedy="Add its disks, or leave it out of the jobs.",
    source="own: there is nothing to read",
)  # fmt: skip
def _no_disk(case: Case) -> Iterator[Outcome]:
    if case.vm.readable and not case.vm.disks:
        yield Violation("it has no disk")


@RULES.rule(
    "disk-none-in-snapshot", Severity.ERROR, wanted="a snapshot holds a disk of the VM",
    remedy="Back the VM up from inside the guest.", source=_ADMIN,
)  # fmt: skip
def _no_disk_in_snapshot(case: Case) -> Iterator[Outcome]:
    if case.disks and all(disk.left_out for disk in case.disks):
        yield Violation(f"a snapshot holds none of its disks ({counted(len(case.disks), 'disk')})")


@RULES.rule(
    "disk-excluded", Severity.INFO, wanted="the job excludes no disk",
    remedy="Nothing to do: the configuration leaves it out on purpose, and a restore will not have it.",
    source="own: exclude= of the VM",
)  # fmt: skip
def _excluded(case: Case) -> Iterator[Outcome]:
    kept = {disk.key for disk in case.disks}
    for disk in case.vm.disks:
        if disk.key not in kept:
            yield Violation(f"the job excludes it ({disk.key})", disk.label)


@RULES.rule(
    "exclude-wrong", Severity.ERROR, wanted="the job excludes disks that the VM has, and not all of them",
    remedy="Correct exclude= of the VM; a key ('scsi0:1'), a label or a pattern of them names a disk.",
    source="own: exclude= of the VM",
)  # fmt: skip
def _exclude_wrong(case: Case) -> Iterator[Outcome]:
    if not case.vm.disks:
        return
    for pattern in case.job.exclude:
        if not matching_keys(case.vm.disks, pattern):
            yield Violation(f"it has no disk {pattern!r}")
    if not case.disks:
        yield Violation("the job excludes every disk")


@RULES.rule(
    "disk-independent", Severity.WARNING, wanted="no disk is independent", remedy=_INSIDE, source=_ADMIN
)
def _independent(case: Case) -> Iterator[Outcome]:
    for disk in case.disks:
        if "independent" in disk.left_out:
            yield Violation(disk.left_out, disk.label)


@RULES.rule(
    "disk-raw-physical", Severity.WARNING, wanted="no raw device mapping in physical mode", remedy=_INSIDE,
    source=_ADMIN,
)  # fmt: skip
def _raw_physical(case: Case) -> Iterator[Outcome]:
    for disk in case.disks:
        if disk.raw == "physical":
            yield Violation(
                "it is a raw device mapping in physical mode, which snapshots do not hold", disk.label
            )


@RULES.rule(
    "disk-raw-virtual", Severity.INFO, wanted="disks are files on a datastore",
    remedy="Nothing to do: it is backed up like a file, and restored as one.", source=_ADMIN,
)  # fmt: skip
def _raw_virtual(case: Case) -> Iterator[Outcome]:
    for disk in case.disks:
        if disk.raw == "virtual":
            yield Violation("it is a raw device mapping in virtual mode", disk.label)


@RULES.rule(
    "disk-without-file", Severity.WARNING, wanted="every disk has a file on a datastore", remedy=_INSIDE,
    source=_ADMIN,
)  # fmt: skip
def _without_file(case: Case) -> Iterator[Outcome]:
    for disk in case.disks:
        if disk.left_out and not disk.raw and "independent" not in disk.left_out:
            yield Violation(disk.left_out, disk.label)


@RULES.rule(
    "bus-sharing", Severity.ERROR, wanted="no controller shares its bus",
    remedy="Such a cluster is backed up from inside its guests: bus sharing prevents snapshots.", source=_ADMIN,
)  # fmt: skip
def _bus_sharing(case: Case) -> Iterator[Outcome]:
    for controller in case.vm.controllers:
        if controller.sharing not in ("", "noSharing"):
            yield Violation(f"its bus sharing is {controller.sharing}", controller.key)


@RULES.rule(
    "disk-multi-writer", Severity.ERROR, wanted="no disk is shared by several VMs",
    remedy="Back it up from inside one of the guests: shared disks cannot have snapshots.",
    source=f"{_ADMIN}; VMware KB 1034165",
)  # fmt: skip
def _multi_writer(case: Case) -> Iterator[Outcome]:
    for disk in case.vm.disks:
        if disk.multi_writer:
            yield Violation("other VMs may write to it (multi-writer)", disk.label)


@RULES.rule(
    "device-passthrough", Severity.ERROR, wanted="no device is passed through",
    remedy="Remove the device, or back the VM up from inside the guest.", source=_ADMIN,
)  # fmt: skip
def _passthrough(case: Case) -> Iterator[Outcome]:
    for label in case.vm.passthrough:
        yield Violation("it is passed through from the host", label)


def _on(case: Case, bus: str) -> Iterator[VmDisk]:
    for disk in case.vm.disks if case.application else ():
        if disk.bus == bus and not disk.left_out:
            yield disk


@RULES.rule(
    "disk-on-ide", Severity.ERROR, wanted="application quiescing: no IDE disks",
    remedy="Move the disk to a SCSI controller, or ask for Quiesce.file_system().", source=_GUIDE,
    tags={"quiescing"},
)  # fmt: skip
def _ide(case: Case) -> Iterator[Outcome]:
    for disk in _on(case, "ide"):
        yield Violation(f"it is an IDE disk ({disk.key})", disk.label)


@RULES.rule(
    "disk-on-sata", Severity.ERROR, wanted="application quiescing: SCSI disks only",
    remedy="Move the disk to a SCSI controller, or ask for Quiesce.file_system().",
    source="VDDK programming guide, conditions of application quiescing", tags={"quiescing"},
)  # fmt: skip
def _sata(case: Case) -> Iterator[Outcome]:
    for disk in _on(case, "sata"):
        yield Violation(f"it is a SATA disk ({disk.key})", disk.label)


@RULES.rule(
    "boot-from-nvme", Severity.ERROR, wanted="application quiescing: the system does not boot from NVMe",
    remedy="Move the boot disk to a SCSI controller, or update Windows Server 2022 to build 20348.2582 or later.",
    source=_GOSV, tags={"quiescing"},
)  # fmt: skip
def _nvme_boot(case: Case) -> Iterator[Outcome]:
    if not any(_on(case, "nvme")):
        return
    build, guest = case.vm.guest_build, case.vm.guest
    is_2022 = guest is not None and guest.name == _SERVER_2022
    if is_2022 and build is not None and build >= _NVME_BUILD:
        return
    if case.vm.boot_bus is None:
        yield Unknown("it has NVMe disks, and its configuration does not tell which disk it boots from")
    elif case.vm.boot_bus == "nvme" and is_2022 and build is None:
        yield Unknown("it boots from NVMe, and VMware Tools do not tell the build of Windows")
    elif case.vm.boot_bus == "nvme":
        yield Violation("it boots from an NVMe disk")


@RULES.rule(
    "disk-on-nvme", Severity.WARNING, wanted="application quiescing: SCSI disks only",
    remedy="Move the disk to a SCSI controller, or look at what the manifest proves.",
    source="VDDK programming guide, conditions of application quiescing", tags={"quiescing"},
)  # fmt: skip
def _nvme_data(case: Case) -> Iterator[Outcome]:
    for disk in _on(case, "nvme") if case.vm.boot_bus not in (None, "nvme") else ():
        yield Violation(f"it is an NVMe disk ({disk.key})", disk.label)


@RULES.rule(
    "scsi-slots-short", Severity.ERROR, wanted="application quiescing: as many free SCSI slots as disks",
    remedy="Add a SCSI controller, or take unused devices off the existing ones.", source=_GUIDE,
    tags={"quiescing"},
)  # fmt: skip
def _slots(case: Case) -> Iterator[Outcome]:
    disks = [disk for disk in case.vm.disks if not disk.left_out]
    if not case.application or not disks:
        return
    scsi = [controller for controller in case.vm.controllers if controller.is_scsi]
    certain = sum(max(_SLOTS - controller.attached, 0) for controller in scsi)
    at_most = sum(_slots_at_most(case, controller) - controller.attached for controller in scsi)
    if at_most < len(disks):
        yield Violation(f"{counted(at_most, 'free SCSI slot')} for {counted(len(disks), 'disk')}")
    elif certain < len(disks):
        yield Unknown(
            f"{counted(certain, 'free slot')} among the first {_SLOTS} of its SCSI controllers for "
            f"{counted(len(disks), 'disk')}: whether VMware Tools use the targets above them is not documented"
        )


def _slots_at_most(case: Case, controller: VmController) -> int:
    modern = (case.vm.hardware_version or 0) >= _PARAVIRTUAL_SINCE
    return _SLOTS_PARAVIRTUAL if modern and controller.kind == _PARAVIRTUAL else _SLOTS
