"""What a ConfigSpec said of a VM besides its devices: kept as text, and shown again in the VM's configuration.

A value of the API is kept as the XML that it travels in, so that any field of any type survives a restart.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from pyVmomi import SoapAdapter, VmomiSupport, vim, vmodl

_VIM25 = "urn:vim25"
_VERSION = str(VmomiSupport.versionMap["vim25/8.0.3.0"])
_NAMESPACES = {**SoapAdapter.SOAP_NSMAP, _VIM25: ""}
_DECLARED = f' xmlns="{_VIM25}"' + "".join(
    f' xmlns:{prefix}="{uri}"' for uri, prefix in SoapAdapter.SOAP_NSMAP.items()
)
_RENAMED = {
    "numCPUs": "hardware.numCPU",
    "numCoresPerSocket": "hardware.numCoresPerSocket",
    "memoryMB": "hardware.memoryMB",
    "virtualICH7MPresent": "hardware.virtualICH7MPresent",
    "virtualSMCPresent": "hardware.virtualSMCPresent",
    "motherboardLayout": "hardware.motherboardLayout",
    "simultaneousThreads": "hardware.simultaneousThreads",
    "powerOpInfo": "defaultPowerOps",
}
# What a `VmState` itself remembers, and what is no setting.
_ELSEWHERE = {
    "changeVersion", "name", "version", "uuid", "instanceUuid", "guestId", "files", "deviceChange",
    "extraConfig", "changeTrackingEnabled", "dynamicType", "dynamicProperty", "repConfig", "ftInfo",
}  # fmt: skip
_MERGED = ("flags", "tools", "bootOptions", "defaultPowerOps", "cpuAllocation", "memoryAllocation")
_EFI_SINCE, _SECURE_BOOT_SINCE = 8, 13
_MOST_CPUS = 768  # hardware version 19 and later
GUEST_IDS: tuple[str, ...] = tuple(vim.vm.GuestOsDescriptor.GuestOsIdentifier.values)  # type: ignore[attr-defined]


def to_text(value: object) -> str:
    """The XML of a value of the API."""
    return str(SoapAdapter.SerializeToStr(value, None, _VERSION, _NAMESPACES))


def from_text(text: str) -> object:
    """The value whose XML `to_text` made."""
    end = text.index("<obj") + len("<obj")
    return SoapAdapter.Deserialize(f"{text[:end]}{_DECLARED}{text[end:]}")


def wrong(field: str, message: str = "") -> vmodl.fault.InvalidArgument:
    """The fault for a field of the spec that the server does not accept."""
    name = f"configSpec.{field}"
    return vmodl.fault.InvalidArgument(
        invalidProperty=name, msg=message or f"A specified parameter was not correct: {name}"
    )


def check(spec: vim.vm.ConfigSpec, version: int, firmware: str) -> None:
    """Refuse values that no server accepts. version, firmware: what the VM has when the spec was applied.

    Raises InvalidArgument, InvalidVmConfig.
    """
    if spec.guestId and spec.guestId not in GUEST_IDS:
        raise wrong("guestId")
    if spec.firmware and spec.firmware not in ("bios", "efi"):
        raise wrong("firmware")
    if firmware == "efi" and version < _EFI_SINCE:
        raise wrong("firmware", f"Hardware version {version} has no EFI firmware.")
    secure = bool(getattr(spec.bootOptions, "efiSecureBootEnabled", False))
    if secure and (firmware != "efi" or version < _SECURE_BOOT_SINCE):
        raise wrong("bootOptions.efiSecureBootEnabled")
    if spec.latencySensitivity is not None and spec.latencySensitivity.level == "custom":
        raise wrong("latencySensitivity.level")
    cpus, cores, memory = (getattr(spec, name) for name in ("numCPUs", "numCoresPerSocket", "memoryMB"))
    if cpus is not None and not 0 < cpus <= _MOST_CPUS:
        raise _impossible("numCPUs")
    if cores and cpus and cpus % cores:
        raise _impossible("numCoresPerSocket")
    if memory is not None and (memory <= 0 or memory % 4):
        raise _impossible("memoryMB")


def _impossible(field: str) -> vim.fault.InvalidVmConfig:
    return vim.fault.InvalidVmConfig(
        property=f"configSpec.{field}", msg=f"Invalid virtual machine configuration: {field}."
    )


def settings_of(spec: vim.vm.ConfigSpec, before: dict[str, str]) -> dict[str, str]:
    """The settings by their path in a ConfigInfo, as XML: those kept before, changed by `spec`."""
    settings = dict(before)
    for path, value in _said(spec):
        old = from_text(settings[path]) if path in _MERGED and path in settings else None
        settings[path] = to_text(value if old is None else merged(old, value))
    if spec.vAppConfigRemoved:
        settings.pop("vAppConfig", None)
    return settings


def _said(spec: vim.vm.ConfigSpec) -> Iterator[tuple[str, object]]:
    """Each value that `spec` sets, with its path in a ConfigInfo; what that has no place for is dropped."""
    known = {one.name: one.type for one in vim.vm.ConfigInfo._GetPropertyList()}
    for one in vim.vm.ConfigSpec._GetPropertyList():
        value: Any = getattr(spec, one.name)
        if one.name in _ELSEWHERE or value is None or (isinstance(value, list) and not value):
            continue
        if one.name in _RENAMED:
            yield _RENAMED[one.name], value
        elif one.name == "cpuFeatureMask":
            masks = [mask.info for mask in value if mask.info is not None]
            yield one.name, VmomiSupport.GetVmodlType("vim.host.CpuIdInfo[]")(masks)
        elif isinstance(value, vim.vApp.VmConfigSpec):
            yield one.name, _vapp_info(value)
        elif known.get(one.name) is one.type:
            yield one.name, value


def _vapp_info(spec: vim.vApp.VmConfigSpec) -> vim.vApp.VmConfigInfo:
    return vim.vApp.VmConfigInfo(
        product=[one.info for one in spec.product if one.info is not None],
        property=[one.info for one in spec.property if one.info is not None],
        ipAssignment=spec.ipAssignment or vim.vApp.IPAssignmentInfo(),
        eula=spec.eula,
        ovfSection=[one.info for one in spec.ovfSection if one.info is not None],
        ovfEnvironmentTransport=spec.ovfEnvironmentTransport,
        installBootRequired=bool(spec.installBootRequired),
        installBootStopDelay=spec.installBootStopDelay or 0,
    )


def merged(old: object, new: object) -> object:
    """A copy of a data object with the fields that the other one sets."""
    result = copy.copy(new)
    for one in new._GetPropertyList():  # type: ignore[attr-defined]
        value = getattr(new, one.name)
        if (value is None or (isinstance(value, list) and not value)) and hasattr(old, one.name):
            setattr(result, one.name, getattr(old, one.name))
    return result


def show(info: vim.vm.ConfigInfo, settings: dict[str, str]) -> vim.vm.ConfigInfo:
    """Enter the kept settings into a configuration."""
    for path, text in settings.items():
        *holders, name = path.split(".")
        holder = info
        for one in holders:
            holder = getattr(holder, one)
        value, old = from_text(text), getattr(holder, name, None)
        setattr(holder, name, merged(old, value) if path in _MERGED and old is not None else value)
    return info


# The newest hardware version of each ESXi release, knowledge-base article 315655.
_NEWEST = (
    ((9, 0, 0), 22), ((8, 0, 2), 21), ((8, 0, 0), 20), ((7, 0, 2), 19), ((7, 0, 1), 18), ((7, 0, 0), 17),
    ((6, 7, 2), 15), ((6, 7, 0), 14), ((6, 5, 0), 13),
)  # fmt: skip


def newest_version(release: str) -> int:
    """The newest hardware version of an ESXi of this release, as in "8.0.3"."""
    numbers = tuple(int(part) for part in release.split(".")[:3])
    return next((version for since, version in _NEWEST if numbers >= since), 11)


def version_number(text: str) -> int:
    """19 for "vmx-19". Raises ValueError."""
    return int(text.removeprefix("vmx-"))
