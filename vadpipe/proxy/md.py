"""Whether software RAID assembles a guest's arrays: kernels over mdadm's configuration.

udev's rules hand every RAID member that appears to `mdadm --incremental`. The configuration's AUTO line says
which arrays it may assemble; those in ARRAY lines it always may. So `AUTO -all` is right as soon as the proxy's own
arrays have such lines, and harden refuses before that: the machine might not boot.

Source: mdadm.conf(5) and the udev rules of mdadm 4.2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

ACTIVE_ARRAYS = ("mdadm", "--detail", "--scan")

_NOTHING_FOREIGN = "AUTO -all"


@dataclass(frozen=True, slots=True)
class MdFacts:
    """`rules`: the udev rules files in force that assemble. `unlisted`: active arrays without an ARRAY line."""

    rules: Sequence[str]
    configuration: str
    auto: Sequence[str] | None
    unlisted: Sequence[str]

    @property
    def assembles_guest_arrays(self) -> bool:
        return bool(self.rules) and not assembles_nothing_foreign(self.auto)


def assembles_by_rule(rules: str) -> bool:
    """Whether the text of a udev rules file hands disks to mdadm."""
    lines = [line for line in rules.splitlines() if not line.lstrip().startswith("#")]
    return any(re.search(r"\bmdadm\s+(--incremental|-I)\b", line) for line in lines)


def configuration_lines(text: str) -> list[list[str]]:
    """The words of each line; a line that begins with white space continues the one before."""
    lines: list[list[str]] = []
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if words and line[0].isspace() and lines:
            lines[-1] += words
        elif words:
            lines.append(words)
    return lines


def auto_policy(text: str) -> Sequence[str] | None:
    """The words of the AUTO line that counts: the first one. None: there is none."""
    return next((words[1:] for words in configuration_lines(text) if _is_keyword(words[0], "auto")), None)


def assembles_nothing_foreign(auto: Sequence[str] | None) -> bool:
    """Whether the policy forbids to assemble another machine's array. The first word that matches decides."""
    for word in auto or ():
        if word.lower() == "-all":
            return True
        if word.startswith("+") and word.lower() != "+homehost":
            return False
    return False  # what no word matches may be assembled


def unlisted_arrays(active: str, configuration: str) -> list[str]:
    """Devices of the active arrays (`mdadm --detail --scan`) whose UUID no ARRAY line names."""
    listed = {uuid for _, uuid in _arrays(configuration)}
    return [device for device, uuid in _arrays(active) if uuid not in listed]


def _arrays(text: str) -> list[tuple[str, str]]:
    found = []
    for words in configuration_lines(text):
        if _is_keyword(words[0], "array"):
            device = words[1] if len(words) > 1 and "=" not in words[1] else ""
            uuids = [word[5:].lower() for word in words if word.lower().startswith("uuid=")]
            found.append((device, uuids[0] if uuids else ""))
    return found


def forbid_foreign(text: str) -> str:
    """The configuration with `AUTO -all`, in place of its AUTO lines or at its end."""
    lines: list[str] = []
    started = within = replaced = False
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if words and not (started and line[0].isspace()):
            started, within = True, _is_keyword(words[0], "auto")
        if not (words and within):
            lines.append(line)
        elif not replaced:
            lines.append(_NOTHING_FOREIGN)
            replaced = True
    if not replaced:
        lines += [
            "# Only the arrays listed here are assembled, not those of guests (vadpipe).",
            _NOTHING_FOREIGN,
        ]
    return "\n".join(lines) + "\n"


def _is_keyword(word: str, keyword: str) -> bool:
    """Three letters are enough for mdadm, in any case."""
    return len(word) >= 3 and keyword.startswith(word.lower())
