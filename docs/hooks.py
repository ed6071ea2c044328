"""Hooks of mkdocs: the start page is the README, and the API reference is made from `__all__` of each room.

A name is documented in the room that defines it; where another room offers it too, that page links to it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent

ROOMS = {
    "pipeline": "The engine",
    "pipeline.testing": "Testing kit",
    "stages": "Stages",
    "sinks": "Sinks",
    "vadpipe.repository": "Repository",
    "vadpipe.vmdk": "VMDK files",
    "vadpipe.nbd": "NBD",
    "vadpipe.replica": "Replicas",
    "vadpipe.serve": "Serving points",
    "vadpipe.vddk": "VDDK",
    "vadpipe.vsphere": "vSphere",
    "vadpipe.vss": "VSS manifests",
    "vadpipe.preflight": "Preflight",
    "vadpipe.proxy": "Backup proxies",
    "vadpipe.fleet": "Scheduling",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for room, title in ROOMS.items():
        page = _reference(importlib.import_module(room), title)
        files.append(File.generated(config, f"api/{room.removeprefix('vadpipe.')}.md", content=page))
    files.append(File.generated(config, "index.md", content=_start()))
    files.append(File.generated(config, "contributing.md", content=_linked(ROOT / "CONTRIBUTING.md")))
    files.append(File.generated(config, "changelog.md", content=_linked(ROOT / "CHANGELOG.md")))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links from `docs/` to the page that is made from CONTRIBUTING.md."""
    return markdown.replace("](../CONTRIBUTING.md", "](contributing.md")


def _start() -> str:
    return _linked(ROOT / "README.md")


def _linked(path: Path) -> str:
    """A page of the repository's root, with its links made relative to `docs/`."""
    text = path.read_text().replace("](docs/", "](").replace('src="docs/', 'src="')
    text = text.replace("](CONTRIBUTING.md", "](contributing.md").replace("](CHANGELOG.md", "](changelog.md")
    return re.sub(r"\[([^\]]+)\]\((?:LICENSE|SECURITY\.md|examples/[\w.]*|bench/?[\w.]*)\)", r"\1", text)


def _reference(room: ModuleType, title: str) -> str:
    """The page of one room: its docstring, then every public name."""
    summary = inspect.getdoc(room) or ""
    own: list[str] = []
    others: list[str] = []
    for name in sorted(room.__all__, key=str.lower):
        found = getattr(room, name)
        if not (inspect.isclass(found) or inspect.isfunction(found)):
            continue  # constants and type aliases are named where they are used
        path = f"{found.__module__}.{found.__qualname__}"
        if found.__module__.startswith(f"{room.__name__}.") and _room(found.__module__) == room.__name__:
            own.append(f"::: {path}\n")
        elif _room(found.__module__) and name in importlib.import_module(_room(found.__module__)).__all__:
            others.append(f"* [`{name}`][{path}]")
    parts = [f"# {title}", f"```text\n{summary}\n```", *own]
    if others:
        parts += ["## Names of other rooms offered here", "\n".join(others)]
    return "\n\n".join(parts) + "\n"


def _room(module: str) -> str:
    """The documented room that a module belongs to; empty: none."""
    return max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len, default="")
