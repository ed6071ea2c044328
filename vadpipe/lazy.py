"""Names of a package that are loaded when they are first used (PEP 562), as its stub lists them.

A package's `__init__.pyi` holds plain imports: type checkers read it as it is, and at run time each name comes from
where the stub says. So `import vadpipe` costs no vendor's library, and there is one list of names.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path


def lazy_names(package: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of the package with this name and `__init__.py`."""
    origin: dict[str, tuple[str, str]] = {}
    for node in ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            origin.update({alias.asname or alias.name: (module, alias.name) for alias in node.names})
    names = sorted(origin)
    beside = {
        path.name for path in Path(file).parent.iterdir()
    }  # `Point` beside point.py is fine on any system
    shadowed = [name for name in names if f"{name}.py" in beside]
    assert not shadowed, (
        f"{shadowed} in {package} would be hidden by modules of the same name once those are imported"
    )

    def load(name: str) -> object:
        if name not in origin:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, original = origin[name]
        value = getattr(importlib.import_module(module, package), original)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: names, names
