"""`jsonable`: every kind of value that a report holds, and those that it refuses."""

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, IntEnum
from pathlib import Path

import pytest

from vadpipe.jsonable import json_object, jsonable, without_empty


class Colour(Enum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


@dataclass(frozen=True)
class Inner:
    path: Path
    when: datetime


@dataclass(frozen=True, slots=True)
class Outer:
    name: str
    inner: Inner
    colours: tuple[Colour, ...]
    by_colour: dict[Colour, frozenset[str]]
    password: str = field(default="secret", repr=False)


@dataclass(frozen=True)
class OwnDocument:
    hidden: int = 1

    def as_dict(self):
        return {"colour": Colour.RED}


WHEN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
OUTER = Outer("a", Inner(Path("/x/y"), WHEN), (Colour.RED,), {Colour.RED: frozenset({"b", "a"})})


def test_a_dataclass_becomes_its_fields_in_their_order_without_those_that_repr_hides():
    document = jsonable(OUTER)
    assert document == {
        "name": "a",
        "inner": {"path": "/x/y", "when": "2024-05-06T07:08:09+00:00"},
        "colours": ["red"],
        "by_colour": {"red": ["a", "b"]},
    }
    assert list(document) == ["name", "inner", "colours", "by_colour"]
    assert "secret" not in json.dumps(document)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (1.5, 1.5),
        ("x", "x"),
        (Number.ONE, 1),
        (OrderedDict(a=(1, 2)), {"a": [1, 2]}),
        (range(3), [0, 1, 2]),
        ([OwnDocument()], [{"colour": "red"}]),
    ],
)
def test_plain_values_and_collections_become_json(value, expected):
    assert jsonable(value) == expected
    json.dumps(jsonable(value))


@pytest.mark.parametrize("value", [b"bytes", bytearray(1), object(), Inner, 1j])
def test_a_value_without_a_json_form_is_refused(value):
    with pytest.raises(TypeError, match="has no JSON form"):
        jsonable([value])


def test_an_object_is_always_an_object():
    assert json_object({1: Colour.RED}) == {"1": "red"}
    with pytest.raises(TypeError, match="becomes no JSON object"):
        json_object([1])


def test_empty_members_can_be_left_out():
    assert without_empty({"a": "", "b": 0, "c": [], "d": "x", "e": None}) == {"d": "x"}
