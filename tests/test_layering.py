"""Imports go one way, room by room; `python tests/structure.py` prints the same structure as a table."""

import sys
from pathlib import Path

import pytest

from tests.structure import FLOOR_OF, Structure, circles

ROOT = Path(__file__).parent.parent

# What each room may import besides the standard library and this project. The engine knows no vendor and no format.
LIBRARIES = {
    "pipeline": {"trio", "numpy"},
    "pipeline/testing": {"trio", "numpy"},
    "vadpipe/fleet": set(),
    "vadpipe/vss": {"defusedxml"},
    "vadpipe/vmdk": {"trio", "numpy"},
    "vadpipe/vddk": {"trio", "numpy", "xxhash"},
    "vadpipe/nbd": {"trio", "numpy"},
    "vadpipe/serve": {"trio", "numpy"},
}

# The child shares a process with a library that brings its own OpenSSL, and has to start fast.
CHILD = ["vadpipe.vddk.child", "vadpipe.vddk.child_log", "vadpipe.vddk.abi", "vadpipe.vddk.wire"]


@pytest.fixture(scope="module")
def structure():
    return Structure(ROOT)


def test_every_room_has_a_floor(structure):
    assert set(structure.rooms) == set(FLOOR_OF)


def test_no_import_runs_upward(structure):
    assert list(structure.upward()) == []


def test_the_product_has_no_circle_of_rooms(structure):
    assert circles(structure.product(structure.rooms)) == []


@pytest.mark.parametrize("room", LIBRARIES)
def test_a_room_uses_no_other_library(structure, room):
    known = set(sys.stdlib_module_names) | {"pipeline", "vadpipe"} | LIBRARIES[room]
    wrong = [
        f"{found.path}:{found.line} imports {found.name}"
        for module in structure.files
        if structure.room(module) == room and module not in CHILD
        for found in structure.imports(module)
        if found.name.partition(".")[0] not in known
    ]
    assert wrong == []


@pytest.mark.parametrize("module", CHILD)
def test_the_vddk_child_starts_with_the_standard_library_alone(structure, module):
    names = {found.name.partition(".")[0] for found in structure.imports(module)}
    assert names <= set(sys.stdlib_module_names) | {"abi", "child_log", "wire"}
    assert not names & {"ssl", "http", "urllib", "asyncio"}
