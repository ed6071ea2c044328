"""Rules about the guest: what its operating system, its virtual hardware and its volumes let quiescing reach."""

from __future__ import annotations

from collections.abc import Iterator

from .facts import Case
from .guests import (
    GUESTS,
    OTHER,
    agree,
    guest_os,
)
from .rule import (
    Breach,
    Outcome,
    Rule,
    Severity,
    Unknown,
)

_HARDWARE_WITHOUT_UUIDS = 4
_HARDWARE_OF_4_1 = 8  # hardware version 7 came with 4.0 and 4.1 alike, 8 with 5.0
_BUILD_7_0_U3C = "19193900"
_VOLUME_ROOM = 50 << 20  # what VSS needs at least on a volume of its own
_SERVICES = ("VSS", "vmvss", "swprv", "EventSystem", "COMSysApp")


def _client(case: Case) -> Iterator[Outcome]:
    guest = case.vm.guest
    if case.job.quiescing == "application" and guest and guest.reaches == "file-system":
        yield Breach(f"{guest.name} ({case.vm.guest_id}) reaches file-system quiescing at most")


def _crash_only(case: Case) -> Iterator[Outcome]:
    if case.quiesces and case.vm.guest is OTHER:
        yield Breach(f"{case.vm.guest_id} is crash-consistent at best, whatever is asked for")


def _not_in_table(case: Case) -> Iterator[Outcome]:
    if not case.quiesces or case.vm.guest is not None:
        return
    if case.vm.guest_id:
        yield Breach(f"no source says what quiescing {case.vm.guest_id} reaches")
    else:
        yield Unknown("the VM's configured guest operating system cannot be read")


def _sync_driver(case: Case) -> Iterator[Outcome]:
    guest = case.vm.guest
    if case.quiesces and guest and guest.driver == "sync driver":
        yield Breach(f"{guest.name} is quiesced by the sync driver, which leaves no manifest as evidence")


def _mismatch(case: Case) -> Iterator[Outcome]:
    reported = case.vm.reported_guest_id
    if not case.application or reported is None:
        return
    configured, running = case.vm.guest, guest_os(reported)
    if configured and running and not agree(configured, running):
        yield Breach(f"configured is {configured.name}, and {running.name} ({reported}) runs")


def _uuid_off(case: Case) -> Iterator[Outcome]:
    guest = case.vm.guest
    if not case.application or guest is None or not guest.needs_disk_uuids:
        return
    if case.vm.enable_uuid is None:
        yield Unknown("the VM's flag diskUuidEnabled cannot be read")
    elif not case.vm.enable_uuid:
        yield Breach(f"disk.EnableUUID is not TRUE, and the guest is {guest.name}")


def _uuid_left_out(case: Case) -> Iterator[Outcome]:
    build = case.host.build if case.host else ""
    is_2022 = case.vm.guest is GUESTS["windows2019srvNext_64Guest"]
    if case.application and is_2022 and build == _BUILD_7_0_U3C:
        yield Breach("ESXi 7.0 Update 3c makes VMs of this guest without disk.EnableUUID")


def _hardware_4(case: Case) -> Iterator[Outcome]:
    version = case.vm.hardware_version
    if case.application and version is not None and version <= _HARDWARE_WITHOUT_UUIDS:
        yield Breach(f"its hardware version is {version}")


def _created_before_4_1(case: Case) -> Iterator[Outcome]:
    version, guest = case.vm.hardware_version, case.vm.guest
    if not case.application or guest is None or not guest.needs_disk_uuids or version is None:
        return
    if _HARDWARE_WITHOUT_UUIDS < version < _HARDWARE_OF_4_1:
        yield Breach(f"its hardware version {version} may stem from vSphere 4.0")


def _encrypted(case: Case) -> Iterator[Outcome]:
    if not case.application:
        return
    if case.vm.encrypted is None:
        yield Unknown("whether the VM is encrypted cannot be read")
    elif case.vm.encrypted or any(disk.encrypted for disk in case.vm.disks):
        yield Breach("it is encrypted")


def _dynamic_disks(case: Case) -> Iterator[Outcome]:
    """A volume over several disks is dynamic or of Storage Spaces; a dynamic one on one disk shows nowhere."""
    if not case.application:
        return
    spanning = [volume for volume in case.vm.volumes or () if volume.disks and len(volume.disks) > 1]
    for volume in spanning:
        yield Breach(f"it lies on {len(volume.disks or ())} virtual disks", volume.path)
    if not spanning:
        yield Unknown("VMware Tools do not report whether a disk is dynamic")


def _storage_spaces(case: Case) -> Iterator[Outcome]:
    guest = case.vm.guest
    if not case.application or guest is None or not guest.needs_new_tools:
        return
    told = [volume for volume in case.vm.volumes or () if volume.disks]
    if not told:
        yield Unknown("VMware Tools do not report on which virtual disks the guest's volumes lie")
        return
    for volume in case.vm.volumes or ():
        if not volume.disks:
            yield Breach(
                "it lies on no virtual disk: on a storage space, or on a disk that the guest itself attached",
                volume.path,
            )


def _services(case: Case) -> Iterator[Outcome]:
    if not case.application:
        return
    if case.vm.services is None:
        yield Unknown("vSphere does not report the services of a guest")
        return
    for name in _SERVICES:
        mode = case.vm.services.get(name, "missing")
        if mode in ("missing", "disabled"):
            yield Breach(f"the service is {mode}", name)


def _volume_full(case: Case) -> Iterator[Outcome]:
    for volume in (case.vm.volumes or ()) if case.application else ():
        if volume.free < _VOLUME_ROOM:
            yield Breach(f"it has {volume.free >> 20} MiB free", volume.path)


_TABLE = "VDDK programming guide, quiescing mechanisms; VMware's guest-OS tests for clients from 8 on"
_CONDITIONS = "VDDK programming guide, conditions of application quiescing"
_UUIDS = "VDDK programming guide, Enable Virtual Machine Application Consistent Quiescing"
_GOSV = "VMware's published guest-OS tests, quiesced snapshots"
_CHECKLIST = "public troubleshooting guides for VSS in VMware guests"
_LOWER = "Ask for Quiesce.file_system()"
_PREPARE = "Run: vadpipe prepare CONFIG.py --enable-uuid --allow-power-off (it restarts the guest)."

RULES: tuple[Rule, ...] = (
    Rule(
        "guest-client", Severity.ERROR, "application quiescing: a Windows Server", f"{_LOWER}.", _TABLE, _client,
        about_quiescing=True,
    ),
    Rule(
        "guest-crash-consistent", Severity.WARNING, "quiescing: a Windows guest",
        "Ask for Quiesce.none(), or quiesce applications by scripts in the guest.", _TABLE, _crash_only,
        about_quiescing=True,
    ),
    Rule(
        "guest-unknown", Severity.WARNING, "a guest whose quiescing is documented",
        "Look at what the manifest proves after the run.", _TABLE, _not_in_table, about_quiescing=True,
    ),
    Rule(
        "guest-sync-driver", Severity.WARNING, "quiescing that leaves a manifest",
        "Nothing helps on so old a Windows: its points count as crash-consistent.", _TABLE, _sync_driver,
        about_quiescing=True,
    ),
    Rule(
        "guest-mismatch", Severity.WARNING, "the configured guest is the one that runs",
        "Power the VM off and set the guest operating system in its options.", _GOSV, _mismatch,
        about_quiescing=True,
    ),
    Rule(
        "enable-uuid-off", Severity.ERROR, "disk.EnableUUID is TRUE for Windows Server 2008 and later", _PREPARE,
        _UUIDS, _uuid_off, about_quiescing=True,
    ),
    Rule(
        "enable-uuid-left-out", Severity.INFO, "the host makes VMs with disk.EnableUUID",
        "Update the host to 7.0 Update 3d, and set disk.EnableUUID on the VMs that it made.", _GOSV, _uuid_left_out,
    ),
    Rule(
        "hardware-version-4", Severity.ERROR, "a hardware version later than 4",
        "Upgrade the virtual hardware, then run vadpipe prepare CONFIG.py --enable-uuid --allow-power-off.",
        "VDDK programming guide, The VMware VSS Implementation", _hardware_4, about_quiescing=True,
    ),
    Rule(
        "hardware-version-of-4.0", Severity.WARNING, "a VM created on vSphere 4.1 or later",
        "Upgrade the virtual hardware, and see that disk.EnableUUID is TRUE.", _UUIDS, _created_before_4_1,
        about_quiescing=True,
    ),
    Rule(
        "vm-encrypted", Severity.ERROR, "application quiescing: the VM is not encrypted", f"{_LOWER}.",
        "VDDK programming guide for vSphere 8.0, quiescing mechanisms", _encrypted, about_quiescing=True,
    ),
    Rule(
        "disk-dynamic", Severity.ERROR, "application quiescing: no dynamic disks",
        f"{_LOWER}, or move the data to basic disks.", _CONDITIONS,
        _dynamic_disks, about_quiescing=True,
    ),
    Rule(
        "storage-spaces", Severity.ERROR, "application quiescing: no disks managed by Storage Spaces", f"{_LOWER}.",
        _TABLE, _storage_spaces, about_quiescing=True,
    ),
    Rule(
        "vss-services", Severity.ERROR, "the services of VSS are installed and not disabled",
        "Repair VMware Tools with its VSS component, and set the service to manual.", _CHECKLIST, _services,
        about_quiescing=True,
    ),
    Rule(
        "guest-volume-full", Severity.WARNING, f"every volume of the guest has {_VOLUME_ROOM >> 20} MiB free",
        "Free space on it, or make it larger.", _CHECKLIST, _volume_full,
    ),
)  # fmt: skip
