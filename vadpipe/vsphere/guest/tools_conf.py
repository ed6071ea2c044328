"""tools.conf, the configuration of VMware Tools in a guest: read and rewritten with everything else left as it is.

The file belongs to the guest's administrator, so it is a list of lines that is edited, not a dictionary that is
written anew: comments, order, spacing, line ends and bytes of an unknown encoding come out as they came in; those
travel as surrogates. The rules are those of GLib's key files, which VMware Tools read the file by: lines end at
line feeds; a comment begins with '#' only; a group may come twice, and so may a key, whose last value counts; one
line that is none of these makes GLib refuse the whole file, and so does a byte order mark.

Sources: GLib reference manual, "Key-value file parser", and what the library itself accepts (compared in the
tests); tools.conf of open-vm-tools (groups and keys).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pipeline.errors import SourceError

GROUP = "vmbackup"

_SPACE = " \t\n\f\r"  # what GLib skips; not the vertical tab
_HEADER = re.compile(r"\[([^\[\]\x00-\x1f\x7f]+)\][ \t]*")
_PAIR = re.compile(r"(?P<key>[^=\[\]]+?(?:\[[\w.@-]*\])?)[ \t\f\r]*=[ \t\f\r]*(?P<value>.*)", re.DOTALL)
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_ESCAPED = {"s": " ", "n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


class ToolsConfigUnreadable(SourceError):
    """A tools.conf that VMware Tools cannot read as a whole; facts: `line`, from 1 on, where there is one."""


@dataclass(frozen=True)
class _Line:
    """One line without its end. `group`: the one it is in or opens; `key`, `value`: None for other lines."""

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
    """The text of a tools.conf. Made by `parse`; immutable."""

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
        """The value in effect, with its escapes resolved; None: the key is not set."""
        values = [line.value for line in self._lines() if (line.group, line.key) == (group, key)]
        return None if not values or values[-1] is None else unescaped(values[-1])

    def values(self, group: str = GROUP) -> dict[str, str]:
        """Every key of a group with the value in effect."""
        return {
            line.key: unescaped(line.value)
            for line in self._lines()
            if line.group == group and line.key is not None and line.value is not None
        }

    def with_values(
        self, wanted: Mapping[str, str | None], *, group: str = GROUP, line_end: str = "\n"
    ) -> ToolsConfig:
        """With these values in effect; None takes a key out. What has its value already is not touched.

        `line_end`: for a text that has no line yet.
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
                    raise _unreadable(
                        "it is neither a group, nor a key with its value, nor a comment", number
                    )
                if group is None:
                    raise _unreadable("it stands before the first group", number)
                yield _Line(number, text, group, pair["key"], pair["value"])

    def _added(self, key: str, value: str, group: str, line_end: str) -> ToolsConfig:
        """With one line more: after the last key of the group, or in a group of its own at the end."""
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
        """With another value on the line that counts; its spacing stays."""
        raws = self.text.split("\n")
        last = [line for line in self._lines() if (line.group, line.key) == (group, key)][-1]
        old = last.value or ""
        end = raws[last.number][len(last.text) :]
        raws[last.number] = last.text[: len(last.text) - len(old)] + value + end
        return ToolsConfig("\n".join(raws))

    def _without(self, key: str, group: str) -> ToolsConfig:
        """Without any of the key's lines: an earlier one would count otherwise."""
        gone = {line.number for line in self._lines() if (line.group, line.key) == (group, key)}
        kept = [raw for number, raw in enumerate(self.text.split("\n")) if number not in gone]
        if kept and kept[-1]:  # it was followed by what is gone, and would be left with half a line end
            kept[-1] = kept[-1].removesuffix("\r")
        return ToolsConfig("\n".join(kept))


def put_back(now: ToolsConfig, before: ToolsConfig, keys: Iterable[str]) -> tuple[ToolsConfig, bool]:
    """`now` with the values that `keys` had `before`; and whether that is exactly the text from before.

    It is, when nothing but these keys was changed since, in this order; else the changes of others stay.
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
    """A value as it is meant; an escape that GLib does not know stays as it is spelt."""
    return re.sub(r"\\(.)", lambda found: _ESCAPED.get(found[1], found[0]), text, flags=re.DOTALL)


def _unreadable(problem: str, number: int | None) -> ToolsConfigUnreadable:
    where = "tools.conf" if number is None else f"Line {number + 1} of tools.conf"
    return ToolsConfigUnreadable(
        f"{where} cannot be read: {problem}; VMware Tools ignore the whole file then.",
        remedy="Mend it in the guest by hand.",
        line=None if number is None else number + 1,
    )
