"""What becomes of each type of device of a saved VM, as a table. See `policy`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from .policy import FIELDS, SETTINGS, Rule
from .values import Outcome

_API: Final = "vSphere Web Services API"
_GUIDE: Final = "VDDK programming guide 8.0"
_OURS: Final = "a decision of vadpipe"


def _all(outcome: Outcome, reason: str, source: str, *names: str) -> tuple[Rule, ...]:
    return tuple(Rule(name, outcome, outcome, reason, source) for name in names)


# By the API's name of the type. A type without a row is left out by name, as is a base type: the server answered
# with it because the API version that was asked for does not have the exact type.
DEVICES: Final[Mapping[str, Rule]] = {
    rule.name: rule
    for rule in (
        Rule(
            "VirtualDisk",
            "mapped",
            "mapped",
            "It is added when the VM exists, with a file that the server names.",
        ),
        *_all(
            "left out",
            "The server makes it itself.",
            _GUIDE,
            "VirtualPCIController",
            "VirtualIDEController",
            "VirtualPS2Controller",
            "VirtualSIOController",
            "VirtualKeyboard",
            "VirtualPointingDevice",
            "VirtualVMCIDevice",
        ),
        *_all(
            "left out",
            "The server makes its own card; its video memory and 3D settings have to be set again.",
            _OURS,
            "VirtualVideoCard",
        ),
        *_all(
            "carried",
            "Type, number and sharing stay, because the guest finds its disks by them.",
            _API,
            "ParaVirtualSCSIController",
            "VirtualLsiLogicController",
            "VirtualLsiLogicSASController",
            "VirtualBusLogicController",
            "VirtualAHCIController",
            "VirtualNVMEController",
        ),
        *_all(
            "carried",
            "It is virtual, and nothing of a host is behind it.",
            _API,
            "VirtualUSBController",
            "VirtualUSBXHCIController",
        ),
        *_all(
            "mapped",
            "It is connected to a network of the target.",
            _API,
            "VirtualE1000",
            "VirtualE1000e",
            "VirtualPCNet32",
            "VirtualVmxnet2",
            "VirtualVmxnet3",
        ),
        *_all(
            "changed",
            "An image or a device of the old host is not there: it becomes a client device, not connected.",
            _OURS,
            "VirtualCdrom",
            "VirtualFloppy",
        ),
        *_all(
            "left out",
            "What it is connected to is a file, a pipe or a device of the old host.",
            _OURS,
            "VirtualSerialPort",
            "VirtualParallelPort",
            "VirtualUSB",
            "VirtualSoundBlaster16",
            "VirtualEnsoniq1371",
            "VirtualHdAudioCard",
        ),
        *_all(
            "left out",
            "It is a device of the old host.",
            _OURS,
            "VirtualPCIPassthrough",
            "VirtualSriovEthernetCard",
            "VirtualSCSIPassthrough",
            "VirtualVmxnet3Vrdma",
        ),
        Rule(
            "VirtualTPM", "asked", "asked", "Its content is encrypted with keys that are not stored.", _GUIDE
        ),
        *_all(
            "left out",
            "It holds or needs what a point does not have, or what servers give up.",
            _OURS,
            "VirtualNVDIMM",
            "VirtualNVDIMMController",
            "VirtualPrecisionClock",
            "VirtualWDT",
            "VirtualVMIROM",
        ),
        *_all(
            "left out",
            "Its exact type is not known.",
            _OURS,
            "VirtualDevice",
            "VirtualController",
            "VirtualSCSIController",
            "VirtualSATAController",
            "VirtualEthernetCard",
            "VirtualVmxnet",
            "VirtualSoundCard",
        ),
    )
}

UNKNOWN: Final = Rule("*", "left out", "left out", "This version does not know the type.", _OURS)


def rule_of_device(type_name: str) -> Rule:
    """The row that decides about a device of this type."""
    return DEVICES.get(type_name, UNKNOWN)


def tables() -> dict[str, str]:
    """The three tables in Markdown by their titles, as `docs/restore.md` shows them."""
    parts = {"Fields": FIELDS.values(), "Settings": SETTINGS, "Devices": DEVICES.values()}
    return {title: _table(rules) for title, rules in parts.items()}


def _table(rules: Iterable[Rule]) -> str:
    """A row per reason; the names of one reason stand together, in the order of the table."""
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for rule in rules:
        rows.setdefault((rule.copy, rule.replace, rule.reason, rule.source), []).append(f"`{rule.name}`")
    lines = ["| Name | In a copy | In place of a lost VM | Why | By |", "|---|---|---|---|---|"]
    for (copy, replace, reason, source), names in rows.items():
        lines.append(f"| {', '.join(names)} | {copy} | {replace} | {reason} | {source} |")
    return "\n".join(lines) + "\n"
