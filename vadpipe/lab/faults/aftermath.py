"""What has to hold after a crash: everything that was published is there, and the next runs mend the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import trio

from pipeline import MoverError
from pipeline.errors import are_ours
from sinks.copying import copy_points
from stages import Zstd
from vadpipe.repository import Repository, RepositoryReader, open_repository, verify
from vadpipe.repository.format import slot_changes, slots

from .history import (
    HISTORIES,
    back_up,
    digests,
    key_file,
    make,
    opened,
    prune_once,
    repository,
    restored_digests,
)

T = TypeVar("T")


def work_in_the_event_loop() -> None:
    """From now on this process calls functions that are meant for worker threads directly: a check of a small
    repository makes hundreds of such calls, and changing threads costs more than what they do."""

    async def run_sync(function: Callable[..., T], *arguments: object, **settings: object) -> T:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    trio.to_thread.run_sync = run_sync  # type: ignore[assignment]


@dataclass(frozen=True)
class Expected:
    """What holds at a moment, by the marks before it.

    Attributes:
        created: The names of the repositories that are there for certain.
        begun: Steps whose points may be there.
        published: Steps whose points must be there.
        gone: Steps whose points must not be there.
        sure_keys: Keys that open the sealed repository for certain.
        dead_keys: Keys that must not.
        copying, keys: Whether a copy, or a command about keys, had begun and not ended.
    """

    created: frozenset[str]
    begun: tuple[int, ...]
    published: tuple[int, ...]
    gone: tuple[int, ...]
    sure_keys: tuple[str, ...]
    dead_keys: tuple[str, ...]
    copying: bool
    keys: bool

    @classmethod
    def of(cls, marks: Sequence[str]) -> Expected:
        said = [mark.split() for mark in marks]

        def steps(what: str) -> list[int]:
            return [int(word[1]) for word in said if word[0] == what]

        def names(what: str) -> list[str]:
            return [word[1] for word in said if word[0] == what]

        def underway(what: str) -> bool:
            return names(what)[-1:] == ["begun"]

        sure = ["first", *names("added")]
        return cls(
            frozenset(names("created")),
            tuple(steps("begun")),
            tuple(step for step in steps("published") if step not in steps("forgetting")),
            tuple(steps("forgotten")),
            tuple(name for name in sure if name not in names("removing")),
            tuple(names("removed")),
            underway("copying"),
            underway("keys"),
        )


async def wrong_with(
    root: Path, history: str, seed: int, expected: Expected, *, thorough: bool = True
) -> list[str]:
    """What is wrong with the repositories below `root` after a crash, and with the next runs. Empty: nothing.

    Args:
        thorough: Restores every point again at the end. Else `verify` reads everything, and only the new point is
            restored.
    """
    if wrong := _begin_again(root, history, "main", expected):
        return wrong
    wrong = _wrong_keys(root, history, expected)
    main = repository(root, history, expected.sure_keys)
    steps = {digests(seed, step): step for step in expected.begun}
    last = len(HISTORIES[history])
    found = await _points(main, steps, wrong)
    held = set(found.values())
    wrong += [f"the point of step {step} is lost" for step in expected.published if step not in held]
    wrong += [f"the point of step {step} is back" for step in expected.gone if step in held]
    if expected.copying:
        wrong += await _copy_again(root, history, expected, steps)
    try:
        new = await back_up(main, seed, last)
        for _ in range(2):
            await trio.to_thread.run_sync(prune_once, main)
    except Exception as exc:
        return [*wrong, f"the next run fails: {_told(exc)}"]
    steps[digests(seed, last)] = last
    later: list[str] = []
    kept = await _points(main, steps, later, {} if thorough else found)
    later += [
        f"the point of step {step} is lost"
        for step in {**found, new: last}.values()
        if step not in kept.values()
    ]
    later += await _left(main)
    return wrong + [f"after the next runs: {sentence}" for sentence in later]


def _begin_again(root: Path, history: str, name: str, expected: Expected) -> list[str]:
    """Make a repository whose making was interrupted."""
    if name in expected.created:
        return []
    try:
        make(root, history, name)
    except MoverError as exc:
        try:  # the crash came after the last operation
            where = repository(root, history, name=name)
            RepositoryReader.of(where.backend(), where.unlock).close()
        except MoverError:
            return [f"init of {name} cannot be repeated: {exc}"]
    return []


def _wrong_keys(root: Path, history: str, expected: Expected) -> list[str]:
    """Which keys do not open a sealed repository, or do and should not; and whether keys can be changed."""
    if history == "plain":
        return []
    wrong = []
    for name in expected.sure_keys:
        try:
            opened(repository(root, history, [name]))
        except MoverError as exc:
            wrong.append(f"the key {name} opens nothing: {exc}")
    for name in expected.dead_keys:
        try:
            opened(repository(root, history, [name]))
        except MoverError:
            continue
        wrong.append(f"the key {name} still opens the repository")
    if wrong:
        return wrong
    backend, _, secrets = opened(repository(root, history, expected.sure_keys))
    wrong += slots.SlotTable.read(backend).problems(secrets.naming)
    if expected.keys:
        try:
            backend, config, secrets = opened(repository(root, history, expected.sure_keys))
            secrets = slot_changes.new_epoch(backend, config.id, secrets)
            slot_changes.add_slot(backend, config.id, secrets, key_file(root, "first"), "another")
            table = slots.SlotTable.read(backend)
            wrong += table.problems(secrets.naming)
            for slot in table.slots:
                if not set(table.in_use(secrets.naming)) <= table.wraps.get(slot.id, frozenset()):
                    wrong.append(f"slot {slot.label} lacks an epoch")
        except MoverError as exc:
            wrong.append(f"keys cannot be changed: {exc}")
    return wrong


async def _copy_again(
    root: Path, history: str, expected: Expected, steps: dict[tuple[tuple[str, str], ...], int]
) -> list[str]:
    """Carry on a copy that was interrupted."""
    if begun := _begin_again(root, history, "copy", expected):
        return begun
    main, copy = repository(root, history, expected.sure_keys), repository(root, history, name="copy")
    try:
        await copy_points(main, copy, codec=Zstd(level=-1))
        await trio.to_thread.run_sync(prune_once, copy)
        await trio.to_thread.run_sync(prune_once, copy)
    except Exception as exc:
        return [f"the copy cannot be carried on: {_told(exc)}"]
    wrong: list[str] = []
    source, target = await _points(main, steps, wrong), await _points(copy, steps, wrong)
    wrong += [
        f"the point of step {step} was not copied" for step in source.values() if step not in target.values()
    ]
    return [f"the copy: {sentence}" for sentence in wrong + await _left(copy)]


async def _points(
    where: Repository,
    steps: Mapping[tuple[tuple[str, str], ...], int],
    wrong: list[str],
    known: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, int]:
    """The steps of the points that hold what they should, by id; what is wrong with others is added to `wrong`.

    Args:
        known: Points that need not be restored again.
    """
    found: dict[str, int] = {}
    async with open_repository(where.backend(), unlock=where.unlock) as reader:
        wrong += [f"damaged: {damage}" for damage in reader.damaged]
        for point in reader.points:
            if point.id in known:
                found[point.id] = known[point.id]
                continue
            try:
                step = steps.get(await restored_digests(reader, point))
            except Exception as exc:
                wrong.append(f"point {point.id} cannot be restored: {exc!r}")
                continue
            if step is None:
                wrong.append(f"point {point.id} holds what no disk ever held")
            else:
                found[point.id] = step
    return found


async def _left(where: Repository) -> list[str]:
    """What would stay for ever: files without an owner, and damage that `verify` finds."""
    wrong = [
        f"left behind: {path.relative_to(where.path)}"
        for room in ("tmp", "runs", "removals")
        for path in (where.path / room).glob("*")
    ]
    async with open_repository(where.backend(), unlock=where.unlock) as reader:
        report = await verify(reader)
        named = {pack for segment in reader.index.segments for pack in segment.packs()}
    wrong += [f"verify: {line}" for line in report.lines() if report.damages]
    wrong += [
        f"no index segment names {path.name}"
        for path in (where.path / "packs").rglob("*.pack")
        if path.stem not in named
    ]
    return wrong


def _told(exc: BaseException) -> str:
    return str(exc) if are_ours(exc) else repr(exc)
