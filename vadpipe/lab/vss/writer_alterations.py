"""The state table, writers: what can happen to a whole one, and what the facts say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .alterations import FAILURES, Doubts
from .documents import listed_component
from .draft import Draft, Part, Standing
from .elements import Element
from .guest import Component
from .recipe import new_id


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
