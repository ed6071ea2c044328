"""The structure of the code, read from its imports: rooms, floors, circles, and imports that run upward.

    python tests/structure.py [ROOT]        a table of the checkout at ROOT, this one by default

A *room* is a directory with Python files. Imports are read from the syntax tree; those for type checkers alone
(`if TYPE_CHECKING:`) are left out, since they do nothing at run time; so are entry points (`__main__.py`), which
nobody imports. Of `from package import name` the module that defines the name counts, not the package that
re-exports it. *Floors*: how many rooms or files the longest chain of imports has; a circle counts as one.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

Graph = Mapping[str, set[str]]

# From the lowest to the highest. A room imports rooms below it, and rooms beside it where that makes no circle.
FLOORS = [
    ["pipeline", "pipeline/testing"],
    ["vadpipe", "vadpipe/kernels", "vadpipe/fleet"],
    ["vadpipe/repository/backends"],
    ["vadpipe/repository/format"],
    ["vadpipe/repository/index"],
    [
        "vadpipe/vmdk",
        "vadpipe/vddk",
        "vadpipe/nbd",
        "vadpipe/vss",
        "vadpipe/repository",
        "vadpipe/replica",
        "vadpipe/proxy",
    ],
    ["vadpipe/repository/maintenance", "vadpipe/serve"],
    [
        f"vadpipe/vsphere{room}"
        for room in ("", "/api", "/inventory", "/journal", "/snapshot", "/manifest", "/guest", "/plan")
    ],
    ["vadpipe/vsphere/vm", "vadpipe/vsphere/restore"],
    ["vadpipe/preflight"],
    ["stages"],
    ["sinks"],
    ["vadpipe/cli"],
    [
        "bench",
        "tools",
        "vadpipe/bench",
        "vadpipe/lab",
        "vadpipe/lab/campaigns",
        "vadpipe/lab/faults",
        "vadpipe/lab/tools",
        "vadpipe/lab/vcenter",
        *(f"vadpipe/lab/vcenter/{room}" for room in ("faults", "state", "api", "objects", "web")),
        "vadpipe/lab/vss",
    ],
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

NOT_PRODUCT = ("tests", "lab", "bench", "tools", "examples", "vadpipe/lab", "vadpipe/bench")


@dataclass(frozen=True)
class Import:
    """One import: the file and line where it stands, and the dotted name that it asks for."""

    path: Path
    line: int
    name: str


class Structure:
    """The Python files of a checkout below `root`, tests left out, and what they import of each other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, Path] = {}
        for path in sorted(root.rglob("*.py")):
            place = path.relative_to(root)
            if place.parts[0].startswith(".") or place.parts[0] in ("tests", "build", "docs", "examples"):
                continue
            if place.name != "__main__.py":
                self.files[_module(place)] = place
        self._trees = {module: ast.parse((root / path).read_text()) for module, path in self.files.items()}

    def imports(self, module: str) -> Iterator[Import]:
        """Every import of the module that happens at run time, also inside functions, by its absolute name."""
        path = self.files[module]
        for node in _run_time(self._trees[module]):
            if isinstance(node, ast.Import):
                yield from (Import(path, node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = _absolute(module, path.name == "__init__.py", node)
                yield from (Import(path, node.lineno, f"{base}.{alias.name}") for alias in node.names)

    def defining(self, name: str, seen: frozenset[str] = frozenset()) -> str | None:
        """The module of this checkout that an imported dotted name comes from; None: another library's."""
        if name in self.files and self.files[name].name != "__init__.py":
            return name
        package, _, last = name.rpartition(".")
        if package in self.files:
            reexported = self._names(package).get(last)
            if reexported is not None and reexported not in seen:
                return self.defining(reexported, seen | {name}) or package
            return package
        return name if name in self.files else None

    def _names(self, module: str) -> dict[str, str]:
        if self.files[module].name != "__init__.py":
            return {}
        return {found.name.rpartition(".")[2]: found.name for found in self.imports(module)}

    @cached_property
    def modules(self) -> Graph:
        """Which module imports which."""
        graph: dict[str, set[str]] = {module: set() for module in self.files}
        for module, path in self.files.items():
            if path.name == "__init__.py":
                continue  # it re-exports; who imports a name is linked to where it is defined
            for found in self.imports(module):
                target = self.defining(found.name)
                if target is not None and target != module:
                    graph[module].add(target)
        return graph

    def room(self, module: str) -> str:
        return self.files[module].parent.as_posix()

    @cached_property
    def rooms(self) -> Graph:
        """Which room imports which."""
        graph: dict[str, set[str]] = {self.room(module): set() for module in self.files}
        for module, targets in self.modules.items():
            graph[self.room(module)] |= {self.room(target) for target in targets} - {self.room(module)}
        return graph

    def upward(self) -> Iterator[str]:
        """Imports that run from a room to one on a higher floor, each with its file and line."""
        for module, path in self.files.items():
            if path.name == "__init__.py":
                continue
            own = floor_of(self.room(module))
            for found in self.imports(module):
                target = self.defining(found.name)
                if target is not None and floor_of(self.room(target)) > own:
                    yield f"{found.path}:{found.line} imports {found.name}"

    def is_product(self, room: str) -> bool:
        return not any(room == other or room.startswith(f"{other}/") for other in NOT_PRODUCT)

    def product(self, graph: Graph) -> Graph:
        """The part of a graph of modules or rooms that users install to run."""
        inside = {node for node in graph if self.is_product(self.room(node) if node in self.files else node)}
        return {node: targets & inside for node, targets in graph.items() if node in inside}


def floor_of(room: str) -> int:
    """The floor of a room. One that FLOORS does not have, of an older checkout, is placed by its last names."""
    parts = Path(room).parts
    for end in range(len(parts), 0, -1):
        for start in range(end):
            for name in ("/".join(parts[start:end]), "/".join(("vadpipe", *parts[start:end]))):
                if name in FLOOR_OF:
                    return FLOOR_OF[name]
    raise KeyError(room)


def circles(graph: Graph) -> list[list[str]]:
    """Groups of nodes that reach each other (strongly connected, by Tarjan), each sorted."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in order:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], order[target])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def floors(graph: Graph) -> int:
    """How many nodes the longest chain of imports has; a circle counts as one."""
    group_of = {node: node for node in graph}
    for circle in circles(graph):
        group_of.update(dict.fromkeys(circle, circle[0]))
    below: dict[str, set[str]] = defaultdict(set)
    for node, targets in graph.items():
        below[group_of[node]] |= {group_of[target] for target in targets} - {group_of[node]}
    height: dict[str, int] = {}

    def measure(node: str) -> int:
        if node not in height:
            height[node] = 1 + max((measure(target) for target in below[node]), default=0)
        return height[node]

    return max((measure(group_of[node]) for node in graph), default=0)


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _absolute(module: str, is_package: bool, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")[: None if is_package else -1]
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a syntax tree without the bodies of `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield other
                yield from _run_time(other)
            continue
        yield child
        yield from _run_time(child)


def table(structure: Structure) -> Iterable[str]:
    """The structure for people: a line per room, then what is counted over the product."""
    yield f"{'room':32} files  lines  floors inside  imports"
    for room in sorted(structure.rooms):
        inside = [module for module in structure.files if structure.room(module) == room]
        lines = sum(
            len((structure.root / structure.files[module]).read_text().splitlines()) for module in inside
        )
        graph = {module: structure.modules[module] & set(inside) for module in inside}
        yield f"{room:32} {len(inside):5}  {lines:5}  {floors(graph):13}  {' '.join(sorted(structure.rooms[room]))}"
    product = structure.product(structure.modules)
    files = [structure.root / structure.files[module] for module in product]
    yield ""
    yield f"product: {len(files)} files, {sum(len(file.read_text().splitlines()) for file in files)} lines"
    yield f"largest room of the product: {max(_sizes(structure).values())} files"
    yield f"floors of rooms: {floors(structure.product(structure.rooms))}"
    upward = list(structure.upward())
    yield f"imports that run upward: {len(upward) or 'none'}"
    yield from (f"    {line}" for line in upward)
    yield f"circles of modules: {circles(product) or 'none'}"
    yield f"circles of rooms: {circles(structure.product(structure.rooms)) or 'none'}"


def _sizes(structure: Structure) -> dict[str, int]:
    """Files of each room of the product, without its `__init__.py`."""
    sizes: dict[str, int] = defaultdict(int)
    for module, path in structure.files.items():
        if structure.is_product(structure.room(module)) and path.name != "__init__.py":
            sizes[structure.room(module)] += 1
    return sizes


if __name__ == "__main__":
    print("\n".join(table(Structure(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1])))))
