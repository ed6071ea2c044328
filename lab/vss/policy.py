"""What a job may require of a manifest, drawn, and whether that is reached: told from the truth of the draft."""

from __future__ import annotations

import random
from dataclasses import dataclass

from lab.vss.draft import Draft
from lab.vss.truth import Application, applications
from stages.vss import Require, RequireApplication
from stages.vss.require import LevelName, MissingWriter

_LEVELS: tuple[LevelName, ...] = ("none", "file-system", "application-partial", "application")
_ASKED = {"none": "none", "file-system": "file-system", "auto": "file-system", "application": "application"}
_REACHES: dict[str, set[str]] = {  # level of the manifest -> what it suffices for
    "unknown": {"none"},
    "crash": {"none"},
    "file-system": {"none", "file-system"},
    "application-partial": {"none", "file-system", "application-partial"},
    "application": set(_LEVELS),
}


@dataclass(frozen=True)
class Policy:
    """`asked`: the quiescing that the job asks for. `satisfied`: whether nothing may fall short."""

    kind: str
    require: Require
    asked: str
    missing_writer: MissingWriter
    satisfied: bool


def draw_policy(draft: Draft, rng: random.Random) -> Policy:
    asked = rng.choice(("application", "application", "auto", "file-system", "none"))
    missing_writer: MissingWriter = rng.choice(("fail", "continue"))
    kind = rng.choice(("level", "application", "database"))
    found = applications(draft)
    if kind == "level":
        level = rng.choice((None, *_LEVELS))
        satisfied = _suffices(draft, level or _ASKED[asked], missing_writer)
        return Policy(kind, Require(level), asked, missing_writer, satisfied)
    name = rng.choice([*found, "SQL Server", "SQL Server", "Exchange", "Nobody's Application"])
    one, databases = found.get(name), (_database(rng, found.get(name)),) if kind == "database" else ()
    satisfied = one is not None and (
        _proven(draft, one, databases[0]) if databases else one.level == "application"
    )
    spelled = rng.choice((name, name.upper(), name.lower()))
    required = Require(applications=(RequireApplication(spelled, databases),))
    return Policy(kind, required, asked, missing_writer, satisfied)


def _suffices(draft: Draft, level: str, missing_writer: MissingWriter) -> bool:
    """That writers took no part may be passed over, when that is all that is short."""
    reached = draft.verdict()[0]
    if level in _REACHES[reached]:
        return True
    doubts = {rule for standing in draft.standings if standing.counts for rule in standing.doubts}
    only_missing = not draft.doubted and doubts == {"writer-not-included"}
    return missing_writer == "continue" and reached == "application-partial" and only_missing


def _database(rng: random.Random, one: Application | None) -> str:
    """A component by its name, by the end of its path, or by all of it; or one that is not there."""
    if one is None or rng.random() < 0.2:
        return rng.choice(("sales", "archive", "PROD"))
    parts = rng.choice(sorted(one.covered + one.uncovered)).split("\\")
    called = "\\".join(parts[rng.randrange(len(parts)) :])
    return rng.choice((called, called.upper()))


def _proven(draft: Draft, one: Application, database: str) -> bool:
    """Everything that is called so is covered, and something is."""

    def has(paths: list[str]) -> bool:
        return any(f"\\{path}".endswith(f"\\{database}".lower()) for path in paths)

    return has(one.covered) and not has(one.uncovered) and not draft.told["component-mode-unstated"]
