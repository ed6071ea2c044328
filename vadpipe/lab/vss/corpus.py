"""Manifests with known verdicts, drawn from a seed: a guest, an outfit, and rows of the state tables.

Case n of a seed always contains row n of the tables (counted around), so any few hundred cases contain each row
several times; further rows are drawn at random. Rows that could hide one another never meet: one row per
component, one per writer, and what happens to the whole manifest comes last. What VSS was run with, what was sent,
whom the user leaves out and what the job requires is drawn for each; what follows of all together is in `truth`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from .alterations import COMPONENT_ROWS, WRITER_ROWS, ComponentRow, WriterRow
from .calamities import CALAMITIES, Calamity
from .circumstances import draw_circumstances
from .dependencies import DEPENDENCIES, DependencyRow
from .draft import Draft, Part, draft_of
from .elements import Outfit
from .guest import APPLICATIONS, THIRD_PARTY, Component, Writer, sql_server, system_writers
from .policy import Policy, draw_policy
from .recipe import new_id
from .truth import conclude

Row = ComponentRow | WriterRow | DependencyRow | Calamity
ROWS: tuple[Row, ...] = (*COMPONENT_ROWS, *WRITER_ROWS, *DEPENDENCIES, *CALAMITIES)

# Trees of third-party writers, one for each statement of Microsoft's page on selectability.
_TREES: tuple[tuple[Component, ...], ...] = (
    (Component("one", selectable=True), Component("two", selectable=True, flags=4)),  # no system state
    (Component("store"), Component("cache", selectable=True)),
    (
        Component("app", selectable=True),
        Component("data", "app", True, listed=False, under="app"),
        Component("logs", "app", listed=False, under="app"),
        Component("deep", "app\\not a component", listed=False, under="app"),
    ),
    (Component("top"), Component("leaf", "top", True)),
    (Component("top"), Component("part", "top", either=True)),
    (Component("top"), Component("part", "top", listed=False, either=True)),
    (
        Component("db", "HOST\\INSTANCE", True, kind="DATABASE"),
        Component("db", "HOST", True, kind="DATABASE"),
    ),
)
_PREFIXES = ("", "", "", "vss", "x-1")
_OUTFITS = (
    Outfit(),
    Outfit(declaration="UTF-8"),
    Outfit(declaration="UTF-16", trailing_nul=True),
    Outfit(bom=True),
    Outfit("utf-16-le", trailing_nul=True),
    Outfit("utf-16-le", bom=True, declaration="UTF-16"),
    Outfit("utf-16-be", bom=True),
    Outfit("utf-16-be", declaration="UTF-8", trailing_nul=True),
)


@dataclass
class Case:
    """One manifest, what happened to it, what is true of it, and what a job requires."""

    number: int
    draft: Draft
    policy: Policy
    happened: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"case {self.number}: {'; '.join(self.happened) or 'nothing happened'}"


def corpus(seed: int, count: int) -> Iterator[Case]:
    """The cases of a seed, each independent of the others."""
    return (case(seed, number) for number in range(count))


def case(seed: int, number: int) -> Case:
    rng = random.Random(f"{seed}/{number}")
    first = ROWS[number % len(ROWS)]
    writers = list(_guest(rng, first))
    draft = draft_of(writers, rng)
    draft.circumstances = draw_circumstances(rng, writers)
    draft.circumstances.write(draft.backup)
    happened = [draft.circumstances.name]
    shuffle = rng.choice((None, rng.getrandbits(32)))
    draft.outfit = replace(rng.choice(_OUTFITS), prefix=rng.choice(_PREFIXES), shuffle=shuffle)
    calamities = [first] if isinstance(first, Calamity) else []
    if not (calamities and calamities[0].alone):
        happened += _alter(draft, rng, first)
        happened += _depend(draft, rng, first)
        for calamity in rng.sample([one for one in CALAMITIES if not one.alone], rng.choice((0, 0, 1, 2))):
            if not any(one is calamity or (one.about and one.about == calamity.about) for one in calamities):
                calamities.append(calamity)
    for calamity in calamities:
        calamity.apply(draft)
        happened.append(calamity.name)
    conclude(draft)
    return Case(number, draft, draw_policy(draft, rng), happened)


def _guest(rng: random.Random, first: Row) -> Iterator[Writer]:
    """The system writers, some applications, and writers of nobody's; what the first row needs is there."""
    stamped = isinstance(first, ComponentRow) and first.of_databases
    yield from system_writers(rng.choice((2, 4, 40)))
    if stamped or rng.random() < 0.6:
        databases = ["master", *rng.sample(["hr", 'q"<&>', "Zürich", "a b", "sales"], rng.randrange(4))]
        lost = rng.choice(([], [], ["archive"], ["archive", "old"]))
        yield sql_server(databases, instance=rng.choice(("", "PROD")), excluded=lost)
    for writer in APPLICATIONS.values():
        if rng.random() < 0.4:
            yield writer
    for number in range(len(_TREES)):
        # The trees with implicit components and with a system state in part are there when a row may need them.
        needed = isinstance(first, ComponentRow) and number in (0, 2)
        if needed or rng.random() < 0.2:
            yield _third_party(rng, number)


def _third_party(rng: random.Random, number: int) -> Writer:
    schema, source, types = rng.choice(THIRD_PARTY)
    return Writer(
        new_id(rng),
        f"Own Writer {number}",
        rng.choice(("OTHER", "USER_DATA", "SYSTEM_SERVICE", "BOOTABLE_SYSTEM_STATE")),
        source,
        schema=schema,
        components=_TREES[number],
        types=types,
    )


def _alter(draft: Draft, rng: random.Random, first: Row) -> Iterator[str]:
    """The first row, and a few others at other writers and components."""
    rows: list[ComponentRow | WriterRow] = [first] if isinstance(first, ComponentRow | WriterRow) else []
    rows += rng.choices((*COMPONENT_ROWS, *WRITER_ROWS), k=rng.choice((0, 0, 1, 2, 4)))
    free = list(draft.parts)
    touched: dict[int, set[str]] = {}
    for row in rows:
        rng.shuffle(free)
        if isinstance(row, ComponentRow):
            if found := _component_for(row, free, touched):
                part, component = found
                touched.setdefault(id(part), set()).update({component.full_path, component.under} - {""})
                row.apply(draft, part, component)
                yield f"{part.writer.name}, {component.full_path}: {row.name}"
        elif whole := next((one for one in free if id(one) not in touched and row.fits(one)), None):
            free.remove(whole)
            row.apply(draft, whole)
            yield f"{whole.writer.name}: {row.name}"


def _depend(draft: Draft, rng: random.Random, first: Row) -> Iterator[str]:
    """Dependencies, whatever else happened to the components."""
    rows = [first] if isinstance(first, DependencyRow) else []
    rows += rng.choices(DEPENDENCIES, k=rng.choice((0, 0, 1, 2)))
    for row in rows:
        need = row.apply(draft)
        yield f"{need.standing.writer.name}, {need.path}: {row.name} {need.on}"


def _component_for(
    row: ComponentRow, free: list[Part], touched: dict[int, set[str]]
) -> tuple[Part, Component] | None:
    for part in free:
        for component in part.writer.components if part.listed is not None else ():
            paths = {component.full_path, component.under} - {""}
            if row.fits(part, component) and not paths & touched.get(id(part), set()):
                return part, component
    return None
