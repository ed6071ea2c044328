"""Checks of a path, made at `|`, and of settings.

Most configurations are run by people without a type checker, so `|` compares at run time what a type checker
compares: the types of items that a class gives for the parameters of Source, Stage and Sink. A type that is not
known at run time (a type variable, a name in quotes, Any) fits everywhere.
"""

from __future__ import annotations

import functools
import operator
import re
import types
from collections.abc import Iterator, Sequence
from typing import Any, Union, get_args, get_origin

import numpy as np

from .errors import ConfigError
from .values import CutSpan, DedupedSpan, DigestedSpan, FramedSpan, Span, Unchanged, Window, Zeros

# The values of a path in their order, and the stage that makes each from the one before it.
_MADE_BY = {
    Window: "AllocatedExtents",
    Span: "ReadSpans",
    CutSpan: "CutChunks",
    DigestedSpan: "Digest",
    DedupedSpan: "Dedupe",
    FramedSpan: "Compress",
}
_ORDER = list(_MADE_BY)
_GAPS = {Zeros, Unchanged}


def type_arguments(kind: type, generic: type) -> tuple[Any, ...]:
    """What a class gives for the type parameters of a generic class above it.

    >>> from pipeline import Stage
    >>> class Doubles(Stage[int, float]): ...
    >>> type_arguments(Doubles, Stage)
    (<class 'int'>, <class 'float'>)
    """
    for base in vars(kind).get("__orig_bases__", kind.__bases__):
        origin = get_origin(base) or base
        if not isinstance(origin, type) or not issubclass(origin, generic):
            continue
        if origin is generic:
            return get_args(base) or tuple(generic.__parameters__)  # type: ignore[attr-defined]  # it is generic
        bound: dict[object, object] = dict(
            zip(getattr(origin, "__parameters__", ()), get_args(base), strict=False)
        )
        return tuple(_substituted(form, bound) for form in type_arguments(origin, generic))
    return ()


def check_joint(before: object, sent: object, after: object, taken: object, parts: Sequence[object]) -> None:
    """Raise ConfigError unless `after`, which takes items of one type, can follow `before`, which sends another.

    `parts` stand before `after`, the last of them is `before`.
    """
    sends, takes = set(_members(sent)), set(_members(taken))
    # A source may never send a gap that its type allows: a full read leaves nothing unchanged.
    if None in sends or None in takes or all(_fits(kind, takes) for kind in sends - _GAPS):
        return
    first, second = type(before).__name__, type(after).__name__
    got = [kind for kind in _ORDER if kind in sends]
    needed = [kind for kind in _ORDER if kind in takes]
    detail = f"{second} takes {_names(takes)}, gets {_names(sends)}."
    if got and needed and _ORDER.index(needed[0]) > _ORDER.index(got[0]):
        missing = [_MADE_BY[kind] for kind in _ORDER[_ORDER.index(got[0]) + 1 : _ORDER.index(needed[0]) + 1]]
        listed = ", ".join(missing[:-1]) + " and " * (len(missing) > 1) + missing[-1]
        listed += " is" if len(missing) == 1 else " are"
        raise ConfigError(f"{listed} missing between {first} and {second}: {detail}")
    if any(type(part) is type(after) for part in parts):
        raise ConfigError(f"{second} stands twice in the path: {detail}", remedy="Remove one of the two.")
    if got and needed:
        raise ConfigError(
            f"{second} cannot follow {first}: {detail}",
            remedy=f"Put {second} directly behind {_MADE_BY[needed[0]]}.",
        )
    raise ConfigError(f"{second} cannot follow {first}: {detail}")


def check_agreement(parts: Sequence[object]) -> None:
    """Raise ConfigError unless all parts that have an `index` have the same one, and likewise an `identity`.

    A sink that stores chunks has them, and whatever names or finds chunks for it has to use its own.
    """
    for name in ("index", "identity"):
        having = [(part, getattr(part, name)) for part in parts if getattr(part, name, None) is not None]
        for part, own in having[:-1]:
            last, wanted = having[-1]
            if own == wanted:
                continue
            first, second = type(part).__name__, type(last).__name__
            problem = (
                f"{first} looks chunks up in {readable(own)}, but {second} stores them in {readable(wanted)}."
                if name == "index"
                else f"{first} names chunks with {readable(own)}, but {second} takes only those of its own "
                "identity: no others could be restored."
            )
            written = f"{first}(point, disk)" if hasattr(part, "disk") else f"{first}(point)"
            raise ConfigError(problem, remedy=f"Write {written} with the point that is given to {second}.")
    # Unchanged is what the previous point has of one disk: who finds it and who stores it mean the same disk.
    comparing = [(part, getattr(part, "disk", None)) for part in parts if hasattr(part, "index")]
    disks = [(part, disk) for part, disk in comparing if disk is not None]
    for part, disk in disks[:-1]:
        last, stored = disks[-1]
        if disk is not stored and disk.key != stored.key:
            first, second = type(part).__name__, type(last).__name__
            raise ConfigError(
                f"{first} compares with disk {disk.key}, but {second} stores disk {stored.key}.",
                remedy=f"Write {first}(point, disk) with the disk that is given to {second}.",
            )


def wrong_part(part: object, place: str) -> ConfigError:
    """The error for something in a path that does not belong at this place ('a stage or a sink')."""
    if isinstance(part, type):
        return ConfigError(
            f"{part.__name__} is a class.", remedy=f"Write {part.__name__}(...), with parentheses."
        )
    return ConfigError(f"{readable(part)} stands in a path where {place} belongs.")


def at_least(least: int, owner: object, name: str) -> None:
    """Raise ConfigError unless the setting `name` of `owner` is a whole number that large."""
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f"{type(owner).__name__}({name}={value!r}) is impossible.",
            remedy=f"{name} is a whole number from {least} on.",
        )


def readable(value: object) -> str:
    """The repr of a value, in one line: arrays shortened, and no addresses of objects."""
    with np.printoptions(threshold=6, edgeitems=2):
        text = " ".join(repr(value).split())
    text = re.sub(r"<[^<>]*?(\w+) object at 0x\w+>", r"\1(...)", text)
    return re.sub(r"<function (\S+) at 0x\w+>", r"\1", text)


def has_methods(value: object, *names: str) -> bool:
    """Whether `value` is an object, not a class, with all these methods."""
    return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in names)


def expect_disk(owner: object, disk: object) -> None:
    """Raise ConfigError unless `disk` can be one."""
    if not has_methods(disk, "allocated", "read"):
        raise ConfigError(
            f"{type(owner).__name__} takes an open disk, not {readable(disk)}.",
            remedy="A path gets the disk first and the point second: def path(disk, point).",
        )


def _members(form: object) -> Iterator[type | None]:
    """The classes of a union; None for what is not known at run time."""
    if isinstance(form, types.UnionType) or get_origin(form) is Union:
        for part in get_args(form):
            yield from _members(part)
    else:
        origin = get_origin(form) or form
        known = isinstance(origin, type) and origin is not Any and not getattr(origin, "_is_protocol", False)
        yield origin if known else None  # type: ignore[misc]  # a type where it is known


def _fits(kind: type | None, takes: set[type | None]) -> bool:
    return any(kind is not None and taken is not None and issubclass(kind, taken) for taken in takes)


def _names(kinds: set[type | None]) -> str:
    """The classes for people; gaps pass through every stage and are not worth a word."""
    shown = kinds - _GAPS or kinds
    return " | ".join(sorted(kind.__name__ for kind in shown if kind is not None))


def _substituted(form: object, bound: dict[object, object]) -> object:
    if isinstance(form, types.UnionType) or get_origin(form) is Union:
        return functools.reduce(operator.or_, [_substituted(part, bound) for part in get_args(form)])
    try:
        return bound.get(form, form)
    except TypeError:  # not hashable
        return form
