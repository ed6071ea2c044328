"""One way from values to JSON: dataclasses, enums, paths, times and collections as plain documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from enum import Enum
from pathlib import PurePath
from typing import Protocol, TypeAlias, cast, runtime_checkable

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


@runtime_checkable
class Document(Protocol):
    """A value that writes its own document, because the document is more, or less, than its fields."""

    def as_dict(self) -> Mapping[str, object]: ...


def jsonable(value: object) -> Json:
    """The value as what `json.dumps` takes.

    A dataclass becomes an object with its fields, in their order; fields with `repr=False` are left out, because
    secrets are hidden that way. A value with a method `as_dict` is replaced by what it returns. Enums become their
    values, paths texts, times ISO 8601, sets sorted lists.

    Args:
        value: Any combination of the above.

    Raises:
        TypeError: For a type that has no JSON form, bytes among them.
    """
    match value:
        case None | bool() | int() | float() | str() if not isinstance(value, Enum):
            return value
        case Enum():
            return jsonable(value.value)
        case PurePath():
            return str(value)
        case datetime():
            return value.isoformat()
        case Document():
            return jsonable(value.as_dict())
        case Mapping():
            return {_key(name): jsonable(one) for name, one in value.items()}
        case Set():
            return sorted((jsonable(one) for one in value), key=str)
        case Sequence() if not isinstance(value, bytes | bytearray | memoryview):
            return [jsonable(one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: jsonable(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.repr
        }
    raise TypeError(f"{type(value).__name__} has no JSON form")


def json_object(value: object) -> dict[str, Json]:
    """`jsonable` of a dataclass, a mapping or a value with `as_dict`: always a JSON object.

    Raises:
        TypeError: For a value that becomes anything else.
    """
    document = jsonable(value)
    if not isinstance(document, dict):
        raise TypeError(f"{type(value).__name__} becomes no JSON object")
    return document


def without_empty(document: Mapping[str, Json]) -> dict[str, Json]:
    """The members that say something: neither empty nor null nor false."""
    return {name: value for name, value in document.items() if value}


def _key(name: object) -> str:
    return str(cast(object, name.value) if isinstance(name, Enum) else name)
