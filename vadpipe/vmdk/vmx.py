"""The .vmx: a VM's own configuration file, lines of `key = "value"`."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import SourceError

from .descriptor import decode_text

_LINE = re.compile(r'(?P<key>[^\s="]+)\s*=\s*"?(?P<value>.*?)"?')
_ESCAPE = re.compile(r"\|([0-9a-fA-F]{2})")  # how the format writes a quotation mark, a bar or a control
_DEVICE = re.compile(r"((?:scsi|sata|nvme|ide)\d+:\d+)\.filename")

# Settings whose values are or may hold secrets. guestinfo carries vApp properties and cloud-init user data,
# machine.id whatever a provisioning script was given, encryption and vtpm wrapped keys, vnc.key a password.
_SECRET = re.compile(
    r"^guestinfo\.|^machine\.id$|^encrypt|^vtpm|^crypto|^cloud-?init|user-?data"
    r"|pass(w(or)?d|phrase|code)|\bpwd|pwd$|secret|token|cookie|credential|ticket|authori[sz]ation|vnc\.key"
    r"|(private|access|api|crypto|data_?file|license|shared)[._-]?key|key_?safe|\bpsk\b",
    re.IGNORECASE,
)

# Values that are secrets under any name: a private key, a URI with a password.
_SECRET_VALUE = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]*:[^/\s@]+@")

# The documents of a point that hold a VM's own files.
VMX_DOCUMENT = "vm.vmx"
NVRAM_DOCUMENT = "vm.nvram"
REDACTED = "(not stored: it may be a secret)"


def redacted(key: str, value: str) -> str:
    """The value of a setting of a .vmx or of extraConfig, or `REDACTED` where it may be a secret."""
    return REDACTED if value and (_SECRET.search(key) or _SECRET_VALUE.search(value)) else value


@dataclass(frozen=True)
class Vmx:
    """Settings of a VM; `settings` has lower-case keys, because the format ignores their case."""

    settings: Mapping[str, str]

    @property
    def display_name(self) -> str | None:
        return self.settings.get("displayname")

    @property
    def uuid(self) -> str | None:
        """The BIOS UUID in its usual form, from '56 4d .. ..-.. ..'; None where it is missing or malformed."""
        digits = re.sub(r"[\s-]", "", self.settings.get("uuid.bios", ""))
        return str(uuid.UUID(digits)) if re.fullmatch(r"[0-9a-fA-F]{32}", digits) else None

    def disks(self) -> Sequence[tuple[str, str]]:
        """(device, file name) of each disk that is present, e.g. ('scsi0:0', 'web01.vmdk')."""
        found = []
        for setting, name in self.settings.items():
            device = _DEVICE.fullmatch(setting)
            if device is None or not name.lower().endswith(".vmdk"):
                continue
            kind = self.settings.get(f"{device[1]}.devicetype", "disk").lower()
            if self.settings.get(f"{device[1]}.present", "").upper() == "TRUE" and "disk" in kind:
                found.append((device[1], name))
        return sorted(
            found, key=lambda disk: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", disk[0])]
        )

    def facts(self) -> Mapping[str, str]:
        """The settings, without the values that may be secrets."""
        return {key: redacted(key, value) for key, value in self.settings.items()}

    def text(self) -> str:
        """The settings as a .vmx in UTF-8, without the values that may be secrets."""
        settings = {**self.facts(), ".encoding": "UTF-8"}
        return "".join(f'{key} = "{_escaped(value)}"\n' for key, value in settings.items())


def _escaped(value: str) -> str:
    return re.sub(r'["|\x00-\x1f]', lambda found: f"|{ord(found[0]):02X}", value)


def parse_vmx(content: bytes, file: str) -> Vmx:
    """Parse a .vmx. Raises SourceError with `file` and line."""
    settings: dict[str, str] = {}
    for number, raw in enumerate(decode_text(content, file).split("\n"), 1):
        line = raw.strip(" \t\r\0\ufeff")
        if not line or line.startswith("#"):
            continue
        setting = _LINE.fullmatch(line)
        if setting is None:  # it may be the one that names a disk
            raise SourceError(
                f'Line {number} of {file} cannot be parsed: {line[:80]!r} is not `key = "value"`.',
                remedy="Repair that line, or restore the file.",
                file=file,
                line=number,
            )
        value = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), setting["value"])
        settings.setdefault(setting["key"].lower(), value)
    return Vmx(settings)
