"""The state table, dependencies: one component needs another, of the guest or not.

No document confirms how a dependency is spelled, so spellings are drawn. Whether it is met is told at the end, in
`truth`: that hangs on everything that happens to either component.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .draft import Draft, Need, Part
from .elements import Element
from .recipe import new_id

_ELEMENTS = ("DEPENDENCY", "COMPONENT_DEPENDENCY", "dependency", "Needs")
_ATTRIBUTES = (  # of the writer class, the logical path, the name
    ("writerId", "logicalPath", "componentName"),
    ("onWriterId", "onLogicalPath", "onComponentName"),
    ("WRITER", "Path", "Name"),
)

Target = tuple[str, str, str]  # writer class, logical path, name


@dataclass(frozen=True)
class DependencyRow:
    """`on` draws what is needed."""

    name: str
    on: Callable[[Draft], Target]

    def apply(self, draft: Draft) -> Need:
        writer_id, path, name = self.on(draft)
        part, group = draft.rng.choice([(part, one) for part in draft.parts for one in _offered(part)])
        told = zip(draft.rng.choice(_ATTRIBUTES), (writer_id, path, name), strict=True)
        attributes = {attribute: value for attribute, value in told if value}
        group.children.insert(0, Element(draft.rng.choice(_ELEMENTS), attributes))
        need = Need(
            part.standing,
            _path(group.attributes.get("logicalPath", ""), group.attributes["componentName"]),
            writer_id,
            _path(path, name),
            remote=path.startswith("\\\\"),
        )
        draft.needs.append(need)
        return need


def _offered(part: Part) -> list[Element]:
    if part.document is None:
        return []
    return list(part.document.every("FILE_GROUP", "DATABASE"))


def _path(path: str, name: str) -> str:
    return (f"{path}\\{name}" if path else name).lower()


def _any(draft: Draft) -> Target:
    return draft.rng.choice(
        [
            (part.writer.writer_id, one.path, draft.rng.choice((one.name, one.name.upper())))
            for part in draft.parts
            for one in part.writer.components
        ]
    )


def _doubted(draft: Draft) -> Target:
    """Nobody lists what describes the disk layout, so there is one unless its document was lost."""
    doubted = [
        (standing.writer_id, *_split(path))
        for standing in draft.standings
        for path in sorted(standing.uncovered)
    ]
    return draft.rng.choice(doubted) if doubted else _unknown(draft)


def _split(path: str) -> tuple[str, str]:
    above, _, name = path.rpartition("\\")
    return above, name


def _unknown(draft: Draft) -> Target:
    writer_id, path, name = _any(draft)
    return draft.rng.choice(((new_id(draft.rng), path, name), (writer_id, path, "of another life")))


def _remote(draft: Draft) -> Target:
    writer_id, path, name = _any(draft)
    return writer_id, rf"\\db01\{path}".rstrip("\\"), name


DEPENDENCIES = (
    DependencyRow("needs a component of the guest:", _any),
    DependencyRow("needs what is not shown consistent:", _doubted),
    DependencyRow("needs what is not there:", _unknown),
    DependencyRow("needs what is on another machine:", _remote),
)
