"""The settings of a job that a benchmark may vary, by name, and the job with other values of them.

A setting is a field of a stage or of its codec, of the machine, of the reader that the machine opens its disks
with, or `disks_at_once` of the job. Its name is `workers`, `Compress.workers` or, of a codec or a reader,
`Compress.codec.level`, `Compress.level` or `Zstd.level`: any that means one setting only.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pipeline.composition import has_methods
from pipeline.contracts import Flow, Pipeline
from pipeline.errors import ConfigError, MoverError
from pipeline.job import Job
from pipeline.units import UNITS
from vadpipe.kernels.codecs import codec_named, codec_names

Settings = Mapping[str, str]
"""Values as they were written, by the names that were written."""

_PLAIN: Mapping[str, type] = {"bool": bool, "int": int, "float": float, "str": str}
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Setting:
    """A setting that can be varied.

    `part` is 'job', 'machine' or the class of a part of the path; `fields` lead from there to the setting; `owner`
    is the class that has it; `kind` the type of its values, `choices` all of them where they are listed.
    """

    part: str
    title: str
    fields: tuple[str, ...]
    owner: str
    kind: type
    choices: tuple[object, ...] = ()

    @property
    def name(self) -> str:
        return ".".join((self.title, *self.fields))

    @property
    def names(self) -> set[str]:
        """What it may be called, in lower case."""
        last = self.fields[-1]
        return {name.casefold() for name in (self.name, f"{self.title}.{last}", f"{self.owner}.{last}", last)}

    def value(self, text: str) -> object:
        """The value that a text of the command line means. Raises ConfigError."""
        if self.choices and text in map(str, self.choices):
            return next(choice for choice in self.choices if str(choice) == text)
        wanted = "one of " + ", ".join(map(str, self.choices)) if self.choices else _WANTED[self.kind]
        if not self.choices:
            if self.kind is str:
                return text
            if self.kind is bool and text.casefold() in _WORDS:
                return _WORDS[text.casefold()]
            if self.kind is int and (size := _size(text)) is not None:
                return size
            if self.kind is float and re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", text):
                return float(text)
            if self.kind is object and text in codec_names():
                return codec_named(text)
        raise ConfigError(f"--vary {self.name}={text} is impossible.", remedy=f"Its values are {wanted}.")


def _size(text: str) -> int | None:
    found = re.fullmatch(r"([+-]?\d+)(|KiB|MiB|GiB)", text)
    return int(found[1]) * UNITS[found[2] or "B"] if found else None


def sizes_of(option: str, text: str) -> list[int]:
    """The whole numbers of a list such as '64KiB,1MiB'. Raises ConfigError."""
    found = [_size(part.strip()) for part in text.split(",")]
    sizes = [size for size in found if size is not None and size > 0]
    if len(sizes) < len(found):
        raise ConfigError(f"{option} {text} is no list of sizes.", remedy="Write for example 64KiB,1MiB.")
    return sizes


_WANTED: Mapping[type, str] = {
    bool: "true and false",
    int: "whole numbers; sizes may end in KiB, MiB or GiB",
    float: "numbers",
    str: "texts",
    object: f"names of codecs: {', '.join(codec_names())}",
}


def settings_of(job: Job[Any, Any]) -> Sequence[Setting]:
    """What can be varied of a job. Raises ConfigError when its path is wrong, or depends on a real disk."""
    pipeline, problem = job.planned()
    if pipeline is None:
        raise ConfigError(
            f"The settings of {job.title} cannot be varied. {problem}",
            remedy="Write a path whose stages do not depend on facts of the disk.",
        )
    found = [Setting("job", "Job", ("disks_at_once",), "Job", int), *_machine_settings(job.machine)]
    for part in pipeline.parts:
        found += _fields_of(part, type(part).__name__, type(part).__name__, ())
    return found


def _machine_settings(machine: object) -> Sequence[Setting]:
    title = type(machine).__name__
    found = list(_fields_of(machine, "machine", title, ()))
    if not dataclasses.is_dataclass(type(machine)) and "pool_size" in vars(machine):
        found.append(Setting("machine", title, ("pool_size",), title, int))
    return found


def with_machine_setting(machine: Any, name: str, value: object) -> Any:  # noqa: ANN401 - of any class
    """The machine with another value of its settings of that name, its reader's included; unchanged without one."""
    for setting in _machine_settings(machine):
        if setting.fields[-1] == name:
            machine = _replaced(machine, setting.fields, value)
    return machine


def undisturbed(machine: Any) -> Any:  # noqa: ANN401 - of any class
    """The machine for reading alone: its guest is not quiesced, and change tracking is not switched on."""
    if dataclasses.is_dataclass(machine) and hasattr(machine, "quiesce"):
        machine = dataclasses.replace(machine, quiesce=type(machine.quiesce).none())  # type: ignore[type-var]
    return with_machine_setting(machine, "enable_change_tracking", False)


def _fields_of(owner: object, part: str, title: str, before: tuple[str, ...]) -> Iterator[Setting]:
    if isinstance(owner, Mapping):  # the disks of an NbdVm: all of them get the value
        for one in itertools.islice(owner.values(), 1):
            yield from _fields_of(one, part, title, before)
    if not dataclasses.is_dataclass(owner) or isinstance(owner, type):
        return
    for each in dataclasses.fields(owner):
        value = getattr(owner, each.name)
        fields = (*before, each.name)
        if _is_codec(value):
            yield Setting(part, title, fields, type(owner).__name__, object)
        kind = type(value) if type(value) in _PLAIN.values() else _kind(each) if value is None else None
        if kind is not None and each.init:
            choices = _choices(type(owner), each.name)
            yield Setting(part, title, fields, type(owner).__name__, kind, choices)
        if _is_codec(value) or has_methods(value, "open") or isinstance(value, Mapping):
            yield from _fields_of(value, part, title, fields)


def _is_codec(value: object) -> bool:
    return has_methods(value, "encode", "decode")


def _kind(each: dataclasses.Field[Any]) -> type | None:
    """The type of a setting that is None now, from its annotation such as 'str | None'."""
    words = str(each.type).replace(" ", "").split("|")
    return next((_PLAIN[word] for word in words if word in _PLAIN), None)


def _choices(owner: type, name: str) -> tuple[object, ...]:
    try:
        hint = get_type_hints(owner).get(name)
    except NameError:  # a name for type checkers alone
        return ()
    return get_args(hint) if get_origin(hint) is Literal else ()


def parse(texts: Sequence[str]) -> list[Settings]:
    """The grid of values of --vary NAME=V1,V2 options: all combinations, the last name changing fastest.

    Raises:
        ConfigError: A text is no NAME=V1,V2, or names or values stand twice.
    """
    axes: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        listed = [value.strip() for value in values.split(",")]
        if not equals or not name.strip() or not all(listed):
            raise ConfigError(f"--vary {text} is no setting with values.", remedy="Write NAME=V1,V2.")
        if name.strip() in axes or len(set(listed)) < len(listed):
            raise ConfigError(f"--vary {text} stands twice, or has a value twice.", remedy="Name it once.")
        axes[name.strip()] = listed
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def varied(job: Job[Any, Any], settings: Settings) -> Job[Any, Any]:
    """The job with other values of these settings; it is composed, so that a wrong value is found now.

    Raises:
        ConfigError: A setting does not exist or its name means several, or a value is impossible.
    """
    for name, text in sorted(settings.items(), key=_codecs_first):
        setting = _resolved(job, name)
        value = setting.value(text)
        try:
            job = _with(job, setting, value)
            job.planned()
        except MoverError as exc:
            raise ConfigError(f"--vary {name}={text}: {exc.problem}", remedy=exc.remedy) from exc
    return job


def _codecs_first(setting: tuple[str, str]) -> bool:
    """A codec has settings of its own, so it is chosen before them."""
    return setting[0].casefold().rpartition(".")[2] != "codec"


def _resolved(job: Job[Any, Any], name: str) -> Setting:
    known = settings_of(job)
    found = [setting for setting in known if name.casefold() in setting.names]
    if len(found) == 1:
        return found[0]
    if found:
        named = ", ".join(setting.name for setting in found)
        raise ConfigError(f"--vary {name} means several settings: {named}.", remedy="Write one of these.")
    near = difflib.get_close_matches(name.casefold(), sorted({n for s in known for n in s.names}), n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"{job.title} has no setting {name} that can be varied.{meant}",
        remedy=f"There are: {', '.join(setting.name for setting in known)}.",
    )


def _with(job: Job[Any, Any], setting: Setting, value: object) -> Job[Any, Any]:
    if setting.part == "job":
        changed: Job[Any, Any] = _replaced(job, setting.fields, value)
        return changed
    if setting.part == "machine":
        return dataclasses.replace(job, machine=_replaced(job.machine, setting.fields, value))
    return with_parts(job, partial(_part_replaced, setting, value))


def _part_replaced(setting: Setting, value: object, parts: Sequence[Any]) -> Sequence[Any]:
    changed = [
        _replaced(part, setting.fields, value) if type(part).__name__ == setting.part else part
        for part in parts
    ]
    if all(one is other for one, other in zip(parts, changed, strict=True)):
        raise ConfigError(f"The path of this disk has no {setting.part}, so its setting cannot be varied.")
    return changed


def with_parts(job: Job[Any, Any], change: Callable[[Sequence[Any]], Sequence[Any]]) -> Job[Any, Any]:
    """The job whose path composes what `change` makes of the parts: source, stages, sink."""

    def path(disk: Any, point: Any) -> Any:  # noqa: ANN401 - whatever the path of the user takes
        pipeline: object = job.path(disk, point)
        if not isinstance(pipeline, Pipeline):
            return pipeline  # the job says what is wrong with it
        source, *stages, sink = change(pipeline.parts)
        return Pipeline(Flow(source, *stages), sink)

    return dataclasses.replace(job, path=path)


def _replaced(owner: Any, fields: tuple[str, ...], value: object) -> Any:  # noqa: ANN401 - of any class
    """A copy of the owner with the setting that the fields lead to."""
    name, *rest = fields
    if rest:
        value = _inner(getattr(owner, name), tuple(rest), value)
    if dataclasses.is_dataclass(owner) and not isinstance(owner, type):
        return dataclasses.replace(owner, **{name: value})
    owner = copy.copy(owner)
    setattr(owner, name, value)
    return owner


def _inner(held: object, fields: tuple[str, ...], value: object) -> object:
    if isinstance(held, Mapping):
        return {key: _replaced(one, fields, value) for key, one in held.items()}
    return _replaced(held, fields, value)
