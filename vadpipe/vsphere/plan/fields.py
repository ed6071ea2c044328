"""The fields and settings of the restored VM, by the tables of `policy`. Kernels."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from pyVmomi import vim
from pyVmomi.VmomiSupport import DataObject, versionIdMap

from vadpipe.vmdk.vmx import REDACTED, redacted

from .places import Findings
from .policy import FIELDS, HARDWARE, RENAMED, TAKEN_OUT, UNKNOWN_FIELD, rule_of_setting
from .saved import SavedVm
from .values import Decision, Outcome, Problem, Site, Wanted

_SHOWN: Final = 80  # characters of a value in a decision
_UNKNOWN_GUEST: Final = "otherGuest64"


def planned_fields(saved: SavedVm, wanted: Wanted, site: Site, found: Findings) -> vim.vm.ConfigSpec:
    """The specification without name, files and devices. Decides about every field that is set."""
    work = _Fields(saved, wanted, site, found)
    work.spec.annotation = f"{saved.config.annotation or ''}\n{origin_line(saved)}".strip()
    for one in vim.vm.ConfigInfo._GetPropertyList():
        value = getattr(saved.config, one.name)
        if value is None or value == [] or value == "":
            continue
        outcome = FIELDS.get(one.name, UNKNOWN_FIELD).outcome(wanted.mode)
        handler = work.handlers.get(one.name)
        if handler is not None:
            handler(one.name)
        elif outcome in ("carried", "asked"):
            work.carry(one.name)
        else:
            work.decide(one.name, "left out", value, None)
    return work.spec


class _Fields:
    def __init__(self, saved: SavedVm, wanted: Wanted, site: Site, found: Findings) -> None:
        self.saved, self.wanted, self.site, self.found = saved, wanted, site, found
        self.config = saved.config
        self.spec = vim.vm.ConfigSpec()
        self.handlers: Mapping[str, Callable[[str], None]] = {
            "name": self._name,
            "uuid": self._identity,
            "instanceUuid": self._identity,
            "version": self._version,
            "guestId": self._guest_id,
            "annotation": self._annotation,
            "files": self._files,
            "hardware": self._hardware,
            "extraConfig": self._settings,
            "bootOptions": self._boot_options,
            "cpuFeatureMask": self._cpu_mask,
            "vAppConfig": self._vapp,
            "numaInfo": self._numa,
            "changeTrackingEnabled": self._change_tracking,
            "cpuAllocation": self._reservation,
            "memoryAllocation": self._reservation,
            "memoryReservationLockedToMax": self._reservation,
            "latencySensitivity": self._latency,
            "sgxInfo": self._enclave,
            "keyId": self._key,
        }

    def carry(
        self, name: str, value: object = None, *, outcome: Outcome = "carried", new: object = None
    ) -> None:
        """Put a field into the specification, unless the target's API is older than it."""
        target = RENAMED.get(name, name)
        value = getattr(self.config, name) if value is None else value
        since = vim.vm.ConfigSpec._GetPropertyInfo(target).version
        if not _speaks(self.site.api_version, since):
            reason = f"The target speaks version {self.site.api_version} of the API, which does not have it."
            self.decide(name, "left out", value, None, reason)
            return
        kept = self._without(name, value)
        setattr(self.spec, target, kept)
        self.decide(name, outcome, value, kept if new is None else new)

    def decide(self, name: str, outcome: Outcome, old: object, new: object, reason: str = "") -> None:
        top = name.partition(".")[0]
        why = reason or FIELDS.get(top, UNKNOWN_FIELD).reason
        self.found.decisions.append(Decision("VM", name, outcome, shown(old), shown(new), why))

    def _without(self, name: str, value: object) -> object:
        """A copy of a field's value without what a specification must not repeat."""
        taken = TAKEN_OUT.get(name, ())
        if not taken:
            return value
        kept = {}
        for part in value._GetPropertyList():  # type: ignore[attr-defined]
            content = getattr(value, part.name)
            if content is None or content == []:
                continue
            if part.name in taken:
                self.decide(
                    f"{name}.{part.name}", "left out", content, None, "The server knows it by itself."
                )
            else:
                kept[part.name] = content
        return type(value)(**kept)

    def _name(self, name: str) -> None:
        new = self.wanted.name or self.saved.name
        self.decide(name, "carried" if new == self.saved.name else "changed", self.saved.name, new)

    def _identity(self, name: str) -> None:
        value = str(getattr(self.config, name))
        if self.wanted.mode == "copy":
            self.decide(name, "left out", value, None)
            return
        other = self.site.uuids.get(value.lower())
        if other is None:
            self.carry(name)
            return
        self.decide(name, "left out", value, None, f"The VM {other} has it.")
        self.found.warnings.append(f"The VM gets a new {name}: {other} has {value}.")

    def _version(self, name: str) -> None:
        saved, newest = _hardware_number(self.config.version), 0
        for one in self.site.hardware_versions:
            newest = max(newest, _hardware_number(one))
        if not newest or saved <= newest:
            self.carry(name)
            return
        lower = f"vmx-{newest:02}"
        if self.wanted.lower_hardware:
            self.spec.version = lower
            self.decide(name, "changed", self.config.version, lower, "The target has no newer one.")
            self.found.warnings.append(
                f"The hardware version is lowered from {self.config.version} to {lower}: devices of the newer one "
                "may not work."
            )
            return
        self.decide(name, "asked", self.config.version, None, "The target has no such version.")
        self.found.problems.append(
            Problem(
                "hardware version",
                f"{self.saved.name} has hardware version {self.config.version}, and {self.site.server} makes "
                f"{lower} at most.",
                "Restore it on a newer host, or allow an older version with lower_hardware.",
            )
        )

    def _guest_id(self, name: str) -> None:
        known = self.site.guest_ids
        if not known or self.config.guestId in known:
            self.carry(name)
            return
        self.spec.guestId = _UNKNOWN_GUEST
        self.decide(name, "changed", self.config.guestId, _UNKNOWN_GUEST, "The target does not know it.")
        self.found.warnings.append(
            f"The target does not know the guest {self.config.guestId}: it is called {_UNKNOWN_GUEST}."
        )

    def _annotation(self, name: str) -> None:
        self.decide(name, "changed", self.config.annotation, self.spec.annotation)

    def _files(self, name: str) -> None:
        path = self.config.files.vmPathName if self.config.files else None
        self.decide(name, "changed", path, "a directory that the server makes")

    def _hardware(self, _: str) -> None:
        hardware = self.config.hardware
        for old, new in HARDWARE.items():
            value = getattr(hardware, old)
            if (
                value is None
                or value is False
                or (old == "numCoresPerSocket" and hardware.autoCoresPerSocket)
            ):
                continue
            since = vim.vm.ConfigSpec._GetPropertyInfo(new).version
            known = _speaks(self.site.api_version, since)
            if known:
                setattr(self.spec, new, value)
            self.decide(
                f"hardware.{old}",
                "carried" if known else "left out",
                value,
                value if known else None,
                FIELDS["hardware"].reason if known else "The target speaks an older version of the API.",
            )

    def _boot_options(self, _: str) -> None:
        options = vim.vm.BootOptions()
        for part in vim.vm.BootOptions._GetPropertyList():
            value = getattr(self.config.bootOptions, part.name)
            if value is None or value == []:
                continue
            if part.name == "bootOrder":
                kinds = [type(one).__name__.rpartition(".")[2] for one in value]
                self.decide(f"bootOptions.{part.name}", "mapped", kinds, kinds, FIELDS["bootOptions"].reason)
            elif part.name == "enterBIOSSetup":  # it concerns the next start only
                self.decide(f"bootOptions.{part.name}", "left out", value, None, "It concerns one start.")
            elif not _speaks(self.site.api_version, part.version):
                self.decide(f"bootOptions.{part.name}", "left out", value, None, "The target's API is older.")
            else:
                setattr(options, part.name, value)
                self.decide(f"bootOptions.{part.name}", "carried", value, value, "It describes the VM.")
        self.spec.bootOptions = options

    def _cpu_mask(self, name: str) -> None:
        added = [
            vim.vm.ConfigSpec.CpuIdInfoSpec(operation="add", info=one) for one in self.config.cpuFeatureMask
        ]
        self.spec.cpuFeatureMask = added
        self.decide(name, "changed", f"{len(self.config.cpuFeatureMask)} entries", "the same, added")

    def _vapp(self, name: str) -> None:
        info, spec = self.config.vAppConfig, vim.vApp.VmConfigSpec()
        assert info is not None
        for part in (
            "eula",
            "ovfEnvironmentTransport",
            "installBootRequired",
            "installBootStopDelay",
            "ipAssignment",
        ):
            value = getattr(info, part)
            if value is not None and value != []:
                setattr(spec, part, value)
        spec.product = [vim.vApp.ProductSpec(operation="add", info=one) for one in info.product]
        spec.ovfSection = [vim.vApp.OvfSectionSpec(operation="add", info=one) for one in info.ovfSection]
        for one in info.property:
            hidden = [part for part in ("value", "defaultValue") if getattr(one, part) == REDACTED]
            carried = vim.vApp.PropertyInfo(key=one.key)
            for field in vim.vApp.PropertyInfo._GetPropertyList():
                if field.name not in hidden and (value := getattr(one, field.name)) not in (None, []):
                    setattr(carried, field.name, value)
            spec.property.append(vim.vApp.PropertySpec(operation="add", info=carried))
            for part in hidden:
                what = f"{name}.property {one.id}.{part}"
                self.decide(what, "left out", None, None, "Its value may be a secret and was not stored.")
        self.spec.vAppConfig = spec
        self.decide(name, "changed", f"{len(info.property)} properties", "the same, added")

    def _numa(self, name: str) -> None:
        since = vim.vm.ConfigSpec._GetPropertyInfo("virtualNuma").version
        info = self.config.numaInfo
        assert info is not None
        if not _speaks(self.site.api_version, since):
            self.decide(name, "left out", info, None, "The target speaks an older version of the API.")
            return
        numa = vim.vm.VirtualNuma(exposeVnumaOnCpuHotadd=info.vnumaOnCpuHotaddExposed)
        if not info.autoCoresPerNumaNode:
            numa.coresPerNumaNode = info.coresPerNumaNode
        self.spec.virtualNuma = numa
        self.decide(name, "changed", info, numa)

    def _change_tracking(self, name: str) -> None:
        self.spec.changeTrackingEnabled = False
        self.decide(name, "changed", self.config.changeTrackingEnabled, False)

    def _reservation(self, name: str) -> None:
        keep = self.wanted.mode == "replace" if self.wanted.reservations is None else self.wanted.reservations
        if keep:
            self.carry(name)
        else:
            self.decide(name, "asked", getattr(self.config, name), None)

    def _latency(self, name: str) -> None:
        latency = self.config.latencySensitivity
        if latency is not None and str(latency.level) == "custom":
            self.decide(name, "left out", self.config.latencySensitivity, None)
        else:
            self.carry(name)

    def _enclave(self, name: str) -> None:
        info = self.config.sgxInfo
        if info is not None and info.epcSize:
            self.carry(name)
        else:
            self.decide(name, "left out", info, None, "The VM has no enclave memory.")

    def _key(self, name: str) -> None:
        provider = f"encrypted, key provider {self.saved.key_provider or 'unknown'}"
        self.decide(name, "left out" if self.wanted.drop_encryption else "asked", provider, None)

    def _settings(self, _: str) -> None:
        for option in self.config.extraConfig:
            key, value = str(option.key), str(option.value)
            rule = rule_of_setting(key)
            outcome, reason = rule.outcome(self.wanted.mode), rule.reason
            if _matches(key, self.wanted.drop):
                outcome, reason = "left out", "It was named to be left out."
            elif outcome == "left out" and _matches(key, self.wanted.keep):
                outcome, reason = "carried", "It was named to be kept."
            if value == REDACTED:
                outcome, reason = "left out", "Its value may be a secret and was not stored."
            if outcome == "carried":
                self.spec.extraConfig.append(vim.option.OptionValue(key=key, value=value))
            text = "" if value == REDACTED else shown(redacted(key, value))
            new = text if outcome == "carried" else ""
            self.found.decisions.append(Decision("extraConfig", key, outcome, text, new, reason))


def origin_line(saved: SavedVm) -> str:
    """The line that a restored VM's notes end with."""
    of = f" of {saved.created}" if saved.created else ""
    point = f" from point {saved.point}{of}" if saved.point else ""
    return f"Disks restored by vadpipe{point} of {saved.name}."


def shown(value: object) -> str:
    """A value as short text for people."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        text = ", ".join(shown(one) for one in value)
    elif isinstance(value, DataObject):
        parts = [(one.name, getattr(value, one.name)) for one in value._GetPropertyList()]
        text = ", ".join(f"{name}={shown(part)}" for name, part in parts if part is not None and part != [])
    else:
        text = redacted("", str(value))
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _speaks(api_version: str, since: str) -> bool:
    """Whether a server with this version of the API has what pyVmomi says exists since a version of its own."""
    known, wanted = _numbers(api_version), _numbers(versionIdMap.get(since, ""))
    return not known or not wanted or known >= wanted


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split("."))) if re.fullmatch(r"\d+(\.\d+)*", version) else ()


def _hardware_number(version: str | None) -> int:
    digits = re.fullmatch(r"vmx-0*(\d+)", version or "")
    return int(digits[1]) if digits else 0


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key.lower(), pattern.lower()) for pattern in patterns)
