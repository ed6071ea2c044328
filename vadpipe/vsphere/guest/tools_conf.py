"""tools.conf, the configuration of VMware Tools in a guest, and the settings of its group [vmbackup]. Kernels.

The file belongs to the guest's administrator, so only the lines of changed keys are edited. Comments, order,
spacing, line ends and bytes of an unknown encoding (as surrogates) stay as they are. VMware Tools read the file
by the rules of GLib's key files: lines end at line feeds; a comment begins with '#' only; a group or a key can
occur several times, and the last value counts. One line that breaks the rules makes GLib refuse the whole file,
and so does a byte order mark.

No setting excludes a writer: KB 1031200 is said to explain how, but its text is not available.

Sources: GLib reference manual, "Key-value file parser", and what the library itself accepts (compared in the
tests); services/plugins/vmbackup and tools.conf of open-vm-tools (groups and keys); KB 2146204
(vss.disableAppQuiescing).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError, SourceError

GROUP = "vmbackup"

_SPACE = " \t\n\f\r"  # what GLib skips; not the vertical tab
_HEADER = re.compile(r"\[([^\[\]\x00-\x1f\x7f]+)\][ \t]*")
_PAIR = re.compile(r"(?P<key>[^=\[\]]+?(?:\[[\w.@-]*\])?)[ \t\f\r]*=[ \t\f\r]*(?P<value>.*)", re.DOTALL)
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_ESCAPED = {"s": " ", "n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


Value = bool | int | str
_TRUE, _FALSE = ("true", "1"), ("false", "0")  # GLib's booleans


class ToolsConfigUnreadable(SourceError):
    """A tools.conf that VMware Tools refuse to read. Facts: `line`, from 1 on, when one line is the cause."""


@dataclass(frozen=True)
class _Line:
    """One line without its end. `group`: the one it is in or begins. `key`, `value`: None for other lines."""

    number: int
    text: str
    group: str | None
    key: str | None = None
    value: str | None = None

    @property
    def is_header(self) -> bool:
        return self.key is None and self.text.lstrip(_SPACE).startswith("[")


@dataclass(frozen=True)
class ToolsConfig:
    """The text of a tools.conf. Immutable; use `parse`."""

    text: str

    @classmethod
    def parse(cls, content: bytes) -> ToolsConfig:
        """Raises ToolsConfigUnreadable where VMware Tools would ignore the file."""
        if (
            content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            or b"\0" in content
        ):
            raise _unreadable("it is not UTF-8 without a byte order mark", None)
        config = cls(content.decode("utf-8", "surrogateescape"))
        for _ in config._lines():
            pass
        return config

    @property
    def content(self) -> bytes:
        return self.text.encode("utf-8", "surrogateescape")

    def value(self, key: str, group: str = GROUP) -> str | None:
        """The value in effect, without escapes; None when the key is not set."""
        values = [line.value for line in self._lines() if (line.group, line.key) == (group, key)]
        return None if not values or values[-1] is None else unescaped(values[-1])

    def values(self, group: str = GROUP) -> dict[str, str]:
        """Every key of a group with its value in effect."""
        return {
            line.key: unescaped(line.value)
            for line in self._lines()
            if line.group == group and line.key is not None and line.value is not None
        }

    def with_values(
        self, wanted: Mapping[str, str | None], *, group: str = GROUP, line_end: str = "\n"
    ) -> ToolsConfig:
        """A copy with these values in effect. Keys that have their value already are not touched.

        Args:
            wanted: The value of each key; None removes the key.
            group: The group of the keys.
            line_end: The line end for a text without lines.
        """
        config = self
        for key, value in wanted.items():
            if config.value(key, group) == value:
                continue
            if value is None:
                config = config._without(key, group)
            elif config.value(key, group) is None:
                config = config._added(key, escaped(value), group, line_end)
            else:
                config = config._changed(key, escaped(value), group)
        return config

    def _lines(self) -> Iterator[_Line]:
        group: str | None = None
        raws = self.text.split("\n")
        for number, raw in enumerate(raws):
            text = raw.removesuffix("\r") if number + 1 < len(raws) else raw
            bare = text.lstrip(_SPACE)
            if not bare or bare.startswith("#"):
                yield _Line(number, text, group)
            elif header := _HEADER.fullmatch(bare):
                group = header[1]
                yield _Line(number, text, group)
            else:
                pair = _PAIR.fullmatch(bare)
                if pair is None:
                    raise _unreadable("it is neither a group, nor a key with a value, nor a comment", number)
                if group is None:
                    raise _unreadable("it stands before the first group", number)
                yield _Line(number, text, group, pair["key"], pair["value"])

    def _added(self, key: str, value: str, group: str, line_end: str) -> ToolsConfig:
        """A copy with one more line: after the last key of the group, or in a new group at the end."""
        raws = self.text.split("\n")
        end = "\r" if raws[0].endswith("\r") or (len(raws) == 1 and line_end == "\r\n") else ""
        inside = [
            line.number for line in self._lines() if line.group == group and (line.key or line.is_header)
        ]
        if inside:
            at = inside[-1] + 1
            if at == len(raws):  # the last line has no end yet
                raws[-1] += end
                return ToolsConfig("\n".join([*raws, f"{key}={value}{end}", ""]))
            return ToolsConfig("\n".join([*raws[:at], f"{key}={value}{end}", *raws[at:]]))
        before = [*raws[:-1], *([raws[-1] + end] if raws[-1] else [])]
        if self.text.strip(_SPACE):
            before.append(end)
        return ToolsConfig("\n".join([*before, f"[{group}]{end}", f"{key}={value}{end}", ""]))

    def _changed(self, key: str, value: str, group: str) -> ToolsConfig:
        """A copy with another value on the line in effect, whose spacing stays."""
        raws = self.text.split("\n")
        last = [line for line in self._lines() if (line.group, line.key) == (group, key)][-1]
        old = last.value or ""
        end = raws[last.number][len(last.text) :]
        raws[last.number] = last.text[: len(last.text) - len(old)] + value + end
        return ToolsConfig("\n".join(raws))

    def _without(self, key: str, group: str) -> ToolsConfig:
        """A copy without all lines of the key: otherwise an earlier one would take effect."""
        gone = {line.number for line in self._lines() if (line.group, line.key) == (group, key)}
        kept = [raw for number, raw in enumerate(self.text.split("\n")) if number not in gone]
        if kept and kept[-1]:  # a removed line followed it, so half a line end would be left
            kept[-1] = kept[-1].removesuffix("\r")
        return ToolsConfig("\n".join(kept))


def put_back(now: ToolsConfig, before: ToolsConfig, keys: Iterable[str]) -> tuple[ToolsConfig, bool]:
    """`now` with the values that `keys` had `before`. Changes by others stay.

    Returns:
        The text, and whether it is exactly the one from before. It is when only these keys changed since, in this
        order.
    """
    changed = {key: now.value(key) for key in keys if now.value(key) != before.value(key)}
    line_end = "\r\n" if "\r\n" in now.text else "\n"
    if before.with_values(changed, line_end=line_end) == now:
        return before, True
    return now.with_values({key: before.value(key) for key in changed}), False


def escaped(value: str) -> str:
    """A value as a key file spells it."""
    text = "".join(_ESCAPES.get(character, character) for character in value)
    leading = len(text) - len(text.lstrip(" "))
    return "\\s" * leading + text[leading:]


def unescaped(text: str) -> str:
    """A value without escapes. An escape that GLib does not know stays as it is."""
    return re.sub(r"\\(.)", lambda found: _ESCAPED.get(found[1], found[0]), text, flags=re.DOTALL)


def _unreadable(problem: str, number: int | None) -> ToolsConfigUnreadable:
    where = "tools.conf" if number is None else f"Line {number + 1} of tools.conf"
    return ToolsConfigUnreadable(
        f"{where} cannot be read: {problem}. VMware Tools ignore the whole file because of it.",
        remedy="Correct the file in the guest by hand.",
        line=None if number is None else number + 1,
    )


@dataclass(frozen=True)
class GuestSetting:
    """One key of [vmbackup].

    Args:
        key: Its name.
        kind: The type of its value.
        guests: The guests whose VMware Tools read it.
        older_call: It applies to snapshots by CreateSnapshot_Task only, the call before 6.5.
        meaning: What it controls.
    """

    key: str
    kind: type[Value]
    guests: Literal["all", "windows", "linux"]
    older_call: bool
    meaning: str

    def spelt(self, value: Value | None) -> str | None:
        """The value as tools.conf spells it; None when it is not set."""
        if value is None:
            return None
        return str(value).lower() if isinstance(value, bool) else str(value)

    def equals(self, text: str | None, value: Value | None) -> bool:
        """Whether the text in the file means `value`. None means "not set" in both."""
        if text is None or value is None:
            return text is None and value is None
        if isinstance(value, bool):
            return text.strip() in (_TRUE if value else _FALSE)
        return text.strip() == str(value).strip()


SETTINGS: Mapping[str, GuestSetting] = {
    setting.key: setting
    for setting in (
        GuestSetting("enableVSS", bool, "windows", False, "whether VSS is used; true when not set"),
        GuestSetting("vss.disableAppQuiescing", bool, "windows", False, "file systems only, no applications"),
        GuestSetting("excludedFileSystems", str, "all", False, "not frozen by file-system quiescing"),
        GuestSetting("enableSyncDriver", bool, "linux", False, "whether file systems are frozen"),
        GuestSetting("enableXmlManifest", bool, "linux", False, "whether a manifest is written"),
        GuestSetting("ignoreFrozenFileSystems", bool, "linux", False, "whether frozen ones are no error"),
        GuestSetting("execScripts", bool, "all", True, "whether freeze and thaw scripts run"),
        GuestSetting("scriptArg", str, "all", True, "argument of the scripts"),
        GuestSetting("timeout", int, "all", True, "time for quiescing"),
        GuestSetting("quiesceApps", bool, "all", True, "whether applications are quiesced"),
        GuestSetting("quiesceFS", bool, "all", True, "whether file systems are quiesced"),
        GuestSetting("allowHWProvider", bool, "windows", True, "whether VSS may use a hardware provider"),
        GuestSetting("enableNullDriver", bool, "all", True, "whether quiescing may do nothing"),
        GuestSetting("vssUseDefault", bool, "windows", True, "whether VSS chooses its own defaults"),
        GuestSetting("forceQuiesce", bool, "all", True, "whether a quiesce that is not possible fails"),
    )
}


def check_settings(wanted: Mapping[str, Value | None]) -> None:
    """Raise ConfigError for a key that VMware Tools do not know, or a value of another type."""
    for key, value in wanted.items():
        setting = SETTINGS.get(key)
        if setting is None:
            raise ConfigError(
                f"{key!r} is no key of [vmbackup] in tools.conf.",
                remedy=f"Choose from {', '.join(SETTINGS)}.",
            )
        if value is not None and type(value) is not setting.kind:
            raise ConfigError(
                f"{key} must be of type {setting.kind.__name__}, not {value!r}.",
                remedy="Give such a value, or None for 'not set'.",
            )
