"""What a job may require of a manifest, drawn, and whether that is reached: told from the truth of the draft."""

from __future__ import annotations

import random
from dataclasses import dataclass

from vadpipe.vss.require import LevelName, Require, RequireApplication
from vadpipe.vss.verdict import Verdict

from .draft import Draft
from .truth import Application, applications

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
    """`asked`: the quiescing that the job asks for. `satisfied`: nothing falls short. `passed_over`: nothing does
    when the job may go on without a writer that took no part."""

    kind: str
    require: Require
    asked: str
    satisfied: bool
    passed_over: bool

    @property
    def expected(self) -> tuple[bool, bool]:
        return self.satisfied, self.passed_over

    def outcome(self, verdict: Verdict) -> tuple[bool, bool]:
        """(satisfied, passed over) by the product's own judgement."""
        short = self.require.shortfalls(verdict, self.asked, "fail")
        still_short = self.require.shortfalls(verdict, self.asked, "continue")
        return not short, not still_short


def draw_policy(draft: Draft, rng: random.Random) -> Policy:
    asked = rng.choice(("application", "application", "auto", "file-system", "none"))
    kind = rng.choice(("level", "application", "database"))
    found = applications(draft)
    if _misses_writers_only(draft):  # rare, and nothing but this level shows what becomes of it
        return Policy("missing writer", Require("application"), asked, satisfied=False, passed_over=True)
    if kind == "level":
        level = rng.choice((None, *_LEVELS))
        satisfied = (level or _ASKED[asked]) in _REACHES[draft.verdict()[0]]
        return Policy(kind, Require(level), asked, satisfied, satisfied)
    name = rng.choice([*found, "SQL Server", "SQL Server", "Exchange", "Nobody's Application"])
    one, databases = found.get(name), (_database(rng, found.get(name)),) if kind == "database" else ()
    satisfied = one is not None and (
        _proven(draft, one, databases[0]) if databases else one.level == "application"
    )
    spelled = rng.choice((name, name.upper(), name.lower()))
    required = Require(applications=(RequireApplication(spelled, databases),))
    return Policy(kind, required, asked, satisfied, satisfied)


def _misses_writers_only(draft: Draft) -> bool:
    """That writers took no part is all that is short: a job may pass over it."""
    doubts = {rule for standing in draft.standings if standing.counts for rule in standing.doubts}
    partial = draft.verdict()[0] == "application-partial" and not draft.doubted
    return partial and doubts == {"writer-not-included"}


def _database(rng: random.Random, one: Application | None) -> str:
    """A component by its name or the end of its path, by a part of a name, which is none; or what is not there."""
    if one is None or rng.random() < 0.2:
        return rng.choice(("sales", "archive", "PROD"))
    parts = rng.choice(sorted(one.covered + one.uncovered)).split("\\")
    called = "\\".join(parts[rng.randrange(len(parts)) :])
    return rng.choice((called, called, called.upper(), called[1:].strip() or called))


def _proven(draft: Draft, one: Application, database: str) -> bool:
    """Everything that is called so is covered, and something is."""

    def has(paths: list[str]) -> bool:
        return any(f"\\{path}".endswith(f"\\{database}".lower()) for path in paths)

    return has(one.covered) and not has(one.uncovered) and not draft.told["component-mode-unstated"]
