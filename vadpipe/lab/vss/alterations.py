"""The state tables of components and of writers: what can happen to one, and what follows from it.

A row changes the documents of a draft; `rules` and `doubts` are what is true afterwards. A row is added by a
function and its place in the table. Attribute spellings that no document confirms are drawn from several.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from .documents import listed_component
from .draft import Draft, Part, Standing
from .elements import Element
from .guest import Component
from .recipe import new_id

FAILURES = (  # the ending is known, the beginning is not
    "postSnapshotFailureMsg",
    "prepareForBackupFailureMsg",
    "PreRestoreFailureMsg",
    "asyncFAILUREMSG",
    "failureMsg",
)


class Doubts(Enum):
    """How far a row's doubt reaches."""

    NOTHING = auto()
    COMPONENT = auto()
    WRITER = auto()


@dataclass(frozen=True)
class ComponentRow:
    """What happens to one component of a listed writer; `of_databases`: only to one of SQL Server."""

    name: str
    rules: tuple[str, ...]
    doubts: Doubts
    fits: Callable[[Part, Component], bool]
    change: Callable[[Draft, Part, Component], None]
    of_databases: bool = False

    def apply(self, draft: Draft, part: Part, component: Component) -> None:
        self.change(draft, part, component)
        about = "" if self.doubts is Doubts.WRITER else component.full_path
        for rule in self.rules:
            part.standing.tell(rule, about)
            if self.doubts is not Doubts.NOTHING:
                part.standing.doubt(rule, about)


def _listed(part: Part, component: Component) -> Element:
    return next(
        one
        for one in part.listed_components()
        if (one.attributes.get("logicalPath", ""), one.attributes["componentName"])
        == (component.path, component.name)
    )


def _offered(part: Part, component: Component) -> Element:
    return next(
        one
        for one in part.offers().every("FILE_GROUP", "DATABASE")
        if (one.attributes.get("logicalPath", ""), one.attributes["componentName"])
        == (component.path, component.name)
    )


def _is_listed(part: Part, component: Component) -> bool:
    return component.listed


def _is_of_database(part: Part, component: Component) -> bool:
    return part.writer.stamps


def _must_be_selected(part: Part, component: Component) -> bool:
    return component.listed and component.selectable and not component.either


def _must_be_there(part: Part, component: Component) -> bool:
    return component.listed and not component.selectable and not component.either


def _has_nothing_below(part: Part, component: Component) -> bool:
    above = component.full_path.lower() + "\\"
    below = any((one.path.lower() + "\\").startswith(above) for one in part.writer.components)
    return component.listed and not below


def _take_out(draft: Draft, part: Part, component: Component) -> None:
    part.listed_components().remove(_listed(part, component))
    part.standing.missed.add(component.full_path.lower())


def _withdraw(draft: Draft, part: Part, component: Component) -> None:
    part.offers().children.remove(_offered(part, component))


def _tell_failure(draft: Draft, part: Part, component: Component) -> None:
    holder = _listed(part, component)
    if draft.rng.random() < 0.3:
        inner = Element("FAILURE_NOTE")
        holder.children.append(inner)
        holder = inner
    holder.attributes[draft.rng.choice(FAILURES)] = "0x800423F3: try\nagain"
    part.standing.missed.add(component.full_path.lower())


def _tell_no_failure(draft: Draft, part: Part, component: Component) -> None:
    _listed(part, component).attributes[draft.rng.choice(FAILURES)] = draft.rng.choice(("", " ", "\n"))


def _not_succeeded(draft: Draft, part: Part, component: Component) -> None:
    _listed(part, component).attributes["backupSucceeded"] = draft.rng.choice(("no", "No", "NO"))
    part.standing.missed.add(component.full_path.lower())


def _succeeded(draft: Draft, part: Part, component: Component) -> None:
    _listed(part, component).attributes["backupSucceeded"] = draft.rng.choice(("yes", "Yes", "", "unknown"))


def _swap_type(draft: Draft, part: Part, component: Component) -> None:
    spellings = ("filegroup", "FileGroup") if component.kind == "DATABASE" else ("database", "DATABASE")
    _listed(part, component).attributes["componentType"] = draft.rng.choice(spellings)


def _spell_type_oddly(draft: Draft, part: Part, component: Component) -> None:
    spellings = ["undefined", "", "file-group", "db", component.kind.replace("_", "").title()]
    _listed(part, component).attributes["componentType"] = draft.rng.choice(spellings)


def _list_twice(draft: Draft, part: Part, component: Component) -> None:
    again = _listed(part, component).copied()
    again.attributes["componentName"] = component.name.upper()
    part.listed_components().append(again)


def _offer_twice(draft: Draft, part: Part, component: Component) -> None:
    again = _offered(part, component).copied()
    again.attributes["componentName"] = component.name.swapcase()
    part.offers().children.append(again)


def _list_in_other_case(draft: Draft, part: Part, component: Component) -> None:
    attributes = _listed(part, component).attributes
    for name in ("componentName", "logicalPath"):
        if name in attributes:
            attributes[name] = attributes[name].swapcase()


def _lose_stamp(draft: Draft, part: Part, component: Component) -> None:
    listed = _listed(part, component)
    match draft.rng.randrange(3):
        case 0:
            del listed.attributes["backupStamp"]
        case 1:
            listed.children.clear()
        case _:
            listed.children[0].attributes["metadata"] = ""


def _exclude_file(draft: Draft, part: Part, component: Component) -> None:
    directory, file = draft.rng.choice(component.files)
    entry = {"path": draft.rng.choice((directory, directory.lower() + "\\")), "filespec": file.upper()}
    part.offers().children.append(Element("EXCLUDE_FILES", entry))


def _exclude_other_files(draft: Draft, part: Part, component: Component) -> None:
    directory, _ = component.files[0]
    spec = draft.rng.choice((f"{component.name}.bak", f"{component.name}.mdf.old", "*.trc"))
    part.offers().children.append(Element("EXCLUDE_FILES", {"path": directory, "filespec": spec}))


def _list_too(draft: Draft, part: Part, component: Component) -> None:
    part.listed_components().append(listed_component(component, part.writer, draft.rng))
    part.standing.covered.add(component.full_path.lower())


def _hide_root_path(draft: Draft, part: Part, component: Component) -> None:
    _offered(part, component).attributes.setdefault("logicalPath", "")
    _listed(part, component).attributes.setdefault("logicalPath", "")


COMPONENT_ROWS = (
    ComponentRow("selectable component left out", ("component-not-included",), Doubts.COMPONENT,
                 _must_be_selected, _take_out),
    ComponentRow("component that is no system state left out", ("component-not-included",), Doubts.COMPONENT,
                 lambda part, component: _must_be_selected(part, component) and component.flags == 4, _take_out),
    ComponentRow("mandatory component left out", ("mandatory-component-missing",), Doubts.WRITER,
                 _must_be_there, _take_out),
    ComponentRow("component not offered", ("component-not-offered",), Doubts.COMPONENT,
                 _has_nothing_below, _withdraw),
    ComponentRow("failure message", ("component-failed",), Doubts.COMPONENT, _is_listed, _tell_failure),
    ComponentRow("empty failure message", (), Doubts.NOTHING, _is_listed, _tell_no_failure),
    ComponentRow("not succeeded", ("component-failed",), Doubts.COMPONENT, _is_listed, _not_succeeded),
    ComponentRow("succeeded or unsaid", (), Doubts.NOTHING, _is_listed, _succeeded),
    ComponentRow("other type", ("component-of-other-type",), Doubts.COMPONENT, _is_listed, _swap_type),
    ComponentRow("type in odd spelling", (), Doubts.NOTHING, _is_listed, _spell_type_oddly),
    ComponentRow("listed twice", ("component-twice",), Doubts.NOTHING, _is_listed, _list_twice),
    ComponentRow("offered twice", ("component-twice",), Doubts.NOTHING, _is_listed, _offer_twice),
    ComponentRow("listed in other letter case", (), Doubts.NOTHING, _is_listed, _list_in_other_case),
    ComponentRow("root path spelled out", (), Doubts.NOTHING, _is_listed, _hide_root_path),
    ComponentRow("stamp lost", ("sql-component-without-stamp",), Doubts.NOTHING,
                 _is_of_database, _lose_stamp, of_databases=True),
    ComponentRow("database file excluded", ("database-excluded",), Doubts.COMPONENT,
                 _is_of_database, _exclude_file, of_databases=True),
    ComponentRow("other files of the database excluded", (), Doubts.NOTHING,
                 _is_of_database, _exclude_other_files, of_databases=True),
    ComponentRow("implicit component listed", ("below-included-ancestor", "implicit-component-listed"),
                 Doubts.NOTHING, lambda _, component: bool(component.under) and not component.selectable,
                 _list_too),
    ComponentRow("selectable component listed below its ancestor", ("below-included-ancestor",),
                 Doubts.NOTHING, lambda _, component: bool(component.under) and component.selectable,
                 _list_too),
)  # fmt: skip


# Whole writers


@dataclass(frozen=True)
class WriterRow:
    """What happens to a whole writer."""

    name: str
    rules: tuple[str, ...]
    doubts: Doubts
    fits: Callable[[Part], bool]
    change: Callable[[Draft, Part], None]

    def apply(self, draft: Draft, part: Part) -> None:
        self.change(draft, part)
        for rule in self.rules:
            part.standing.tell(rule)
            if self.doubts is Doubts.WRITER:
                part.standing.doubt(rule)


def _writer_listed(part: Part) -> bool:
    return part.listed is not None


def _fail(draft: Draft, part: Part) -> None:
    assert part.listed is not None
    part.listed.attributes[draft.rng.choice(FAILURES)] = "0x800423F4"
    part.standing.missed |= part.standing.covered


def _lose_document(draft: Draft, part: Part) -> None:
    part.document = None
    part.standing.described = False
    if part.listed is None:
        draft.parts.remove(part)  # nobody knows that the writer exists


def _repeat_document(draft: Draft, part: Part) -> None:
    part.copies = draft.rng.choice((2, 3))
    if part.copies == 3:
        part.standing.tell("writer-described-twice")  # of one twin the row tells


def exchange_document(draft: Draft, part: Part) -> None:
    """The writer's document is one of another run: an instance that nobody listed."""
    assert part.document is not None
    other = new_id(draft.rng)
    next(part.document.every("IDENTIFICATION")).attributes["instanceId"] = other
    part.standing.described = False
    stray = Standing(part.writer, other)
    stray.leave_out()
    if stray.uncovered:
        stray.tell("writer-not-included")
    draft.strays.append(stray)


def _differ_in_schema(draft: Draft, part: Part) -> None:
    assert part.listed is not None
    part.listed.attributes["backupSchema"] = str(part.writer.schema ^ 0x10)


def _list_in_two_elements(draft: Draft, part: Part) -> None:
    assert part.listed is not None
    half = Element("WRITER_COMPONENTS", dict(part.listed.attributes))
    cut = draft.rng.randrange(len(part.listed.children) + 1)
    half.children, part.listed.children = part.listed.children[cut:], part.listed.children[:cut]
    draft.backup.children.append(half)


def _list_unoffered(draft: Draft, part: Part) -> None:
    extra = Component("of another life", draft.rng.choice(("", "gone")))
    part.listed_components().append(listed_component(extra, part.writer, draft.rng))
    part.standing.tell("component-not-offered", extra.full_path)
    part.standing.doubt("component-not-offered", extra.full_path)


def _add_unknown_elements(draft: Draft, part: Part) -> None:
    unknown = Element("SNAPSHOT_DESCRIPTION", {"snapshotId": new_id(draft.rng)})
    if part.listed is not None:
        part.listed.children.insert(0, unknown)
    part.offers().children.insert(0, Element("NEW_IN_NEXT_VERSION", {"componentName": "x"}, [unknown]))


WRITER_ROWS = (
    WriterRow("left out of the backup document", ("writer-not-included",), Doubts.WRITER, _writer_listed,
              Draft.leave_out),
    WriterRow("failure message at the writer", ("writer-failed",), Doubts.WRITER, _writer_listed, _fail),
    WriterRow("own document lost", ("writer-without-metadata",), Doubts.WRITER, _writer_listed, _lose_document),
    WriterRow("document of an idle writer lost", (), Doubts.NOTHING,
              lambda part: not part.writer.included, _lose_document),
    WriterRow("own document twice", ("writer-described-twice",), Doubts.WRITER, lambda _: True, _repeat_document),
    WriterRow("document of another run", ("writer-without-metadata",), Doubts.WRITER, _writer_listed,
              exchange_document),
    WriterRow("schema differs", ("schema-differs",), Doubts.NOTHING, _writer_listed, _differ_in_schema),
    WriterRow("listed in two elements", (), Doubts.NOTHING, _writer_listed, _list_in_two_elements),
    WriterRow("unoffered component listed", (), Doubts.NOTHING, _writer_listed, _list_unoffered),
    WriterRow("unknown elements", (), Doubts.NOTHING, lambda _: True, _add_unknown_elements),
)  # fmt: skip
