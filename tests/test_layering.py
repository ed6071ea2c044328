"""One direction of imports: pipeline <- stages <- sinks; nobody imports lab, tests or bench."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {"pipeline", "stages", "sinks", "lab", "bench", "tests"}
ALLOWED = {
    "pipeline": {"pipeline"},
    "stages": {"pipeline", "stages"},
    "sinks": {"pipeline", "sinks"},
    "lab": ROOMS - {"tests"},
    "bench": ROOMS - {"tests"},
}
# The engine knows no vendor and no format.
ENGINE_LIBRARIES = {"trio", "numpy", "click", "rich"}


def imported(path):
    """(line, top-level name) of every absolute import of a file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module.partition(".")[0]


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_lies_below(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for line, name in imported(path)
        if name in ROOMS - ALLOWED[room]
    ]
    assert wrong == []


def test_the_engine_uses_no_other_library():
    known = set(sys.stdlib_module_names) | ENGINE_LIBRARIES | {"pipeline"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / "pipeline").rglob("*.py"))
        for line, name in imported(path)
        if name not in known
    ]
    assert wrong == []


def test_the_vddk_child_starts_with_the_standard_library_alone():
    """It shares a process with a library that brings its own OpenSSL, and has to start fast."""
    for file in ("child.py", "child_log.py", "abi.py", "wire.py"):
        names = {name for _, name in imported(ROOT / "stages" / "vddk" / file)}
        assert names <= set(sys.stdlib_module_names) | {
            "abi",
            "child_log",
            "wire",
            "stages",
        }  # the last for type checkers
        assert not names & {"ssl", "http", "urllib", "asyncio"}
