"""What becomes of each field of a saved configuration and of each of its settings, as tables.

`docs/restore.md` shows the same tables; `policy_devices` has the one for devices. A row is the rule; `plan` applies
it and may have to deviate, e.g. where an identity is in use. It always says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from .values import Mode, Outcome

_API: Final = "vSphere Web Services API"
_GUIDE: Final = "VDDK programming guide 8.0"
_OURS: Final = "a decision of vadpipe"


@dataclass(frozen=True)
class Rule:
    """A row. `name`: a field of `VirtualMachineConfigInfo`, a pattern of settings, or a type of devices."""

    name: str
    copy: Outcome
    replace: Outcome
    reason: str
    source: str = _API

    def outcome(self, mode: Mode) -> Outcome:
        return self.copy if mode == "copy" else self.replace

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The name as a pattern: '*' stands for any text, '#' for a number; upper and lower case are the same."""
        text = re.escape(self.name).replace(r"\*", ".*").replace(r"\#", r"\d+")
        return re.compile(text, re.IGNORECASE)


def _all(outcome: Outcome, reason: str, *names: str, source: str = _API) -> Iterator[Rule]:
    for name in names:
        yield Rule(name, outcome, outcome, reason, source)


# Fields of VirtualMachineConfigInfo, in groups of one reason. `hardware` and `extraConfig` have further tables.
FIELDS: Final[Mapping[str, Rule]] = {
    rule.name: rule
    for rule in (
        Rule(
            "name", "changed", "carried", "A copy stands beside the original, in a folder a name is unique."
        ),
        Rule("uuid", "left out", "carried", "Guests and licences know their machine by its BIOS UUID."),
        Rule("instanceUuid", "left out", "carried", "A vCenter allows an instance UUID once."),
        Rule(
            "version",
            "carried",
            "carried",
            "The hardware is never upgraded, and downgraded only when allowed.",
        ),
        Rule("annotation", "changed", "changed", "A line says from which point the VM was restored.", _OURS),
        Rule(
            "files",
            "changed",
            "changed",
            "The server makes the directory and its name: a name that exists fails.",
        ),
        Rule(
            "hardware",
            "carried",
            "carried",
            "Its numbers are carried; its devices have a table of their own.",
        ),
        Rule("extraConfig", "changed", "changed", "Each setting is judged by the table of settings."),
        Rule(
            "bootOptions",
            "changed",
            "changed",
            "The boot order names devices, so it is set when the disks exist.",
        ),
        Rule(
            "cpuFeatureMask",
            "changed",
            "changed",
            "The specification wants each entry as an addition.",
            _GUIDE,
        ),
        Rule("vAppConfig", "changed", "changed", "The specification wants each entry as an addition."),
        Rule("numaInfo", "changed", "changed", "It is called virtualNuma in the specification."),
        Rule(
            "changeTrackingEnabled",
            "changed",
            "changed",
            "It is off while data are written, and on afterwards.",
            _GUIDE,
        ),
        Rule(
            "cpuAllocation", "asked", "carried", "A reservation can keep a VM from starting elsewhere.", _OURS
        ),
        Rule(
            "memoryAllocation",
            "asked",
            "carried",
            "A reservation can keep a VM from starting elsewhere.",
            _OURS,
        ),
        Rule("memoryReservationLockedToMax", "asked", "carried", "It reserves all of the memory.", _OURS),
        Rule(
            "latencySensitivity", "carried", "carried", "A level of 'custom' is refused, so it is left out."
        ),
        Rule(
            "tools",
            "carried",
            "carried",
            "When to run scripts, upgrade and set the clock; not what is installed.",
        ),
        Rule(
            "flags", "carried", "carried", "Without what belongs to record and replay and to fault tolerance."
        ),
        Rule("defaultPowerOps", "carried", "carried", "It is called powerOpInfo in the specification."),
        Rule("guestId", "carried", "carried", "One that the target does not know becomes otherGuest64."),
        Rule(
            "keyId",
            "left out",
            "left out",
            "The stored data are clear and their keys are not stored.",
            _GUIDE,
        ),
        Rule("template", "left out", "left out", "It comes back as a VM; mark it as a template afterwards."),
        *_all(
            "carried",
            "It describes the VM and means the same anywhere.",
            "alternateGuestName",
            "firmware",
            "memoryHotAddEnabled",
            "cpuHotAddEnabled",
            "cpuHotRemoveEnabled",
            "nestedHVEnabled",
            "vPMCEnabled",
            "vcpuConfig",
            "swapPlacement",
            "consolePreferences",
            "maxMksConnections",
            "guestAutoLockEnabled",
            "messageBusTunnelEnabled",
            "migrateEncryption",
            "ftEncryptionMode",
            "pmemFailoverEnabled",
            "vmxStatsCollectionEnabled",
            "vmOpNotificationToAppEnabled",
            "vmOpNotificationTimeout",
            "pmem",
            source=_OURS,
        ),
        *_all(
            "carried",
            "The host must support it; the server refuses the VM otherwise.",
            "sgxInfo",
            "sevEnabled",
            "sevSnpEnabled",
            "tdxEnabled",
        ),
        *_all(
            "left out",
            "The server answers it and takes it from nobody.",
            "dynamicType",
            "dynamicProperty",
            "modified",
            "guestFullName",
            "hotPlugMemoryLimit",
            "hotPlugMemoryIncrementSize",
            "datastoreUrl",
            "initialOverhead",
            "vmxConfigChecksum",
            "vmxRuntimeConfig",
            "guestIntegrityInfo",
            "guestArchitecture",
        ),
        *_all(
            "left out",
            "The server sets it anew for each VM.",
            "changeVersion",
            "createDate",
            "locationId",
            "deviceSwap",
            source=_OURS,
        ),
        *_all(
            "left out",
            "It names objects of the old storage.",
            "vmStorageObjectId",
            "swapStorageObjectId",
            "vFlashCacheReservation",
            "forkConfigInfo",
            "contentLibItemInfo",
        ),
        *_all(
            "left out",
            "It names world wide names of the old VM in the storage network.",
            "npivNodeWorldWideName",
            "npivPortWorldWideName",
            "npivWorldWideNameType",
            "npivDesiredNodeWwns",
            "npivDesiredPortWwns",
            "npivTemporaryDisabled",
            "npivOnNonRdmDisks",
            source=_OURS,
        ),
        *_all(
            "left out",
            "It is bound to the processors or devices of one host.",
            "cpuAffinity",
            "memoryAffinity",
            "deviceGroups",
            "fixedPassthruHotPlugEnabled",
            "guestMonitoringModeInfo",
            source=_OURS,
        ),
        *_all(
            "left out",
            "It is a relation to another object, which has to be set up again.",
            "managedBy",
            "ftInfo",
            "repConfig",
            "metroFtEnabled",
            "metroFtHostGroup",
            source=_OURS,
        ),
        *_all(
            "left out",
            "It concerns one moment, or what servers no longer have.",
            "scheduledHardwareUpgradeInfo",
            "rebootPowerOff",
            "vAssertsEnabled",
            "networkShaper",
            source=_OURS,
        ),
    )
}
UNKNOWN_FIELD: Final = Rule("*", "left out", "left out", "This version does not know the field.", _OURS)

# What is taken out of a field that is carried: facts of the old VM that a specification must not repeat.
TAKEN_OUT: Final[Mapping[str, Sequence[str]]] = {
    "tools": (
        "toolsVersion",
        "toolsInstallType",
        "pendingCustomization",
        "customizationKeyId",
        "lastInstallInfo",
    ),
    "flags": ("snapshotLocked", "recordReplayEnabled", "faultToleranceType"),
    "latencySensitivity": ("sensitivity",),
    "cpuAllocation": ("overheadLimit", "expandableReservation"),
    "memoryAllocation": ("overheadLimit", "expandableReservation"),
}

# The field of VirtualMachineConfigSpec for a field of VirtualMachineConfigInfo that is called otherwise.
RENAMED: Final[Mapping[str, str]] = {"defaultPowerOps": "powerOpInfo"}

# Fields of `hardware` that are carried, and what the specification calls them.
HARDWARE: Final[Mapping[str, str]] = {
    "numCPU": "numCPUs",
    "numCoresPerSocket": "numCoresPerSocket",
    "memoryMB": "memoryMB",
    "virtualICH7MPresent": "virtualICH7MPresent",
    "virtualSMCPresent": "virtualSMCPresent",
    "motherboardLayout": "motherboardLayout",
    "simultaneousThreads": "simultaneousThreads",
}

# Settings (extraConfig), the first row that fits counts.
SETTINGS: Final[Sequence[Rule]] = (
    *_all(
        "left out",
        "It is bound to the old host or to the old files.",
        "sched.swap.*",
        "migrate.*",
        "numa.autosize.*",
        "numa.nodeAffinity",
        "sched.cpu.affinity",
        "sched.node.affinity",
        "checkpoint.*",
        "workingDir",
        "snapshot.*",
        "log.fileName",
        "vmxstats.filename",
        "viv.moid",
        "vmotion.checkpoint*",
        "monitor.phys_bits_used",
        "*.fileName",
        "*.redo",
        "extendedConfigFile",
        source=_OURS,
    ),
    Rule(
        "nvram",
        "left out",
        "left out",
        "The server names the file; its content has a step of its own.",
        _OURS,
    ),
    *_all(
        "left out",
        "Change tracking is off while data are written.",
        "ctkEnabled",
        "*.ctkEnabled",
        source=_GUIDE,
    ),
    *_all(
        "left out",
        "VMware Tools or the server derive it again.",
        "vmware.tools.*",
        "toolsInstallManager.*",
        "guestinfo.vmtools.*",
        "guestinfo.driver.*",
        "guestinfo.appInfo",
        "guestinfo.detailed.data",
        "svga.vramSize",
        "svga.guestBackedPrimaryAware",
        "softPowerOff",
        "cleanShutdown",
        "replay.*",
        "vmci#.id",
        "uuid.*",
        "vc.uuid",
        "config.readOnly",
        source=_OURS,
    ),
    *_all(
        "left out",
        "Guests such as domain controllers see by a new generation ID that they were restored.",
        "vm.genid*",
        source=_OURS,
    ),
    *_all("left out", "It belongs to another restore.", "vadpipe.*", source=_OURS),
    *_all(
        "left out",
        "It opens a console with a port and a password of its own.",
        "RemoteDisplay.*",
        source=_OURS,
    ),
    *_all(
        "left out",
        "It needs the keys of the old VM, which are not stored.",
        "encryption.*",
        "vtpm.*",
        "dataFileKey",
        source=_GUIDE,
    ),
    *_all(
        "left out",
        "It belongs to a device of the host, or to a filter of the old network.",
        "pciPassthru#.*",
        "ethernet#.filter*",
        "ethernet#.dvfilter*",
        source=_OURS,
    ),
    *_all(
        "carried",
        "The guest depends on it, and it means the same anywhere.",
        "disk.EnableUUID",
        "monitor_control.*",
        "hpet#.*",
        "svga.present",
        "svga.autodetect",
        "tools.*",
        "isolation.*",
        "vhv.*",
        "vvtd.*",
        "windows.vbs.*",
        "time.synchronize.*",
        "acpi.*",
        source=_OURS,
    ),
    *(
        Rule(
            name,
            "left out",
            "carried",
            "Guests know their devices by the slot; a copy may number anew.",
            _OURS,
        )
        for name in ("*.pciSlotNumber", "pciBridge#.*")
    ),
    Rule(
        "guestinfo.*",
        "left out",
        "carried",
        "Whoever set it in the guest or from outside may rely on it.",
        _OURS,
    ),
    Rule(
        "*", "left out", "carried", "It is not known: a lost VM keeps it, a copy is made without it.", _OURS
    ),
)


def rule_of_setting(key: str) -> Rule:
    """The row that decides about a setting."""
    return next(rule for rule in SETTINGS if rule.pattern.fullmatch(key))
