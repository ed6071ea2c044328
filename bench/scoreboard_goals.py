"""The figures of a scoreboard: tables, the ratios that the project wants, and those of each release."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.scoreboard_tools import ROOT
from pipeline import MiB
from vadpipe.bench.documents import by_case, values
from vadpipe.cli.output import table

RELEASES = ROOT / "bench" / "releases.json"
LARGEST_RSS = 256 * MiB

ONE, OURS, FLOOR = "vadpipe-1", "vadpipe", "floor"
# The step that tells what a step's commands cost for their start.
_START = {"discard": "tiny-discard", "restore": "tiny-discard", "verify": "tiny-verify"}


def matrix(document: Mapping[str, Any], name: str, unit: float = 1) -> list[str]:
    """The medians of a figure: a line for each step, a column for each tool."""
    cases, rows = by_case(document), document["results"]
    tools = list(dict.fromkeys(row["tool"] for row in rows if row[name] is not None))
    lines = []
    for step in dict.fromkeys(row["step"] for row in rows):
        cells = []
        for tool in tools:
            found = cases.get(f"{step}, {tool}", [])
            cell = f"{median(values(found, name)) / unit:.2f}" if values(found, name) else ""
            if cell and name == "cpu_s" and tool != FLOOR and (ratios := values(found, "of_floor")):
                cell += f" ({median(ratios):.2f})"
            cells.append(cell)
        if any(cells):
            lines.append([step, *cells])
    return table(["STEP", *tools], lines, right=tools)


# ---- the goals


class Round:
    """The rows of one round by step and tool. A figure that was not measured raises KeyError.

    With `less_start` the CPU-seconds are those beyond what the same tool spends on the same with a tiny disk.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], less_start: bool = False) -> None:
        self._rows = {(row["step"], row["tool"]): row for row in rows}
        self._less_start = less_start

    def cpu(self, step: str, tool: str) -> float:
        start = self._rows[_START.get(step, "tiny"), tool]["cpu_s"] if self._less_start else 0.0
        return float(self._rows[step, tool]["cpu_s"] - start)

    def of(self, step: str, tool: str, other: str) -> float:
        """CPU-seconds of a tool as a ratio to another's."""
        return self.cpu(step, tool) / self.cpu(step, other)

    def wall(self, step: str, tool: str) -> float:
        return float(self._rows[step, tool]["wall_s"])

    def growth(self, step: str, tool: str) -> float:
        return float(self._rows[step, tool]["growth"])

    def peak_rss(self) -> float:
        """The largest of ours."""
        ours = [float(row["peak_rss"]) for (_, tool), row in self._rows.items() if tool in (ONE, OURS)]
        if not ours:
            raise KeyError(OURS)
        return max(ours)


@dataclass(frozen=True)
class Goal:
    """A ratio that the project wants, at most or at least. `starts`: it has a meaning without the start as well."""

    name: str
    limit: float
    ratio: Callable[[Round], float]
    at_least: bool = False
    starts: bool = True

    def of(self, rounds: Sequence[Round]) -> list[float]:
        """The ratio of each round; none where a part of it was not measured, or took no time."""
        try:
            return [self.ratio(one) for one in rounds]
        except (KeyError, ZeroDivisionError):
            return []

    def is_met(self, ratio: float) -> bool:
        return ratio >= self.limit if self.at_least else ratio <= self.limit


# What the project aims at. Of a run with hardly anything to do that is 0.4 CPU-seconds in all.
GOALS = (
    Goal("full, one core: CPU of the floor's", 1.15, lambda r: r.of("full", ONE, FLOOR)),
    Goal(
        "full: throughput of all cores to one core's",
        1.85,
        lambda r: r.wall("full", ONE) / r.wall("full", OURS),
        at_least=True,
        starts=False,
    ),
    Goal("full: CPU of all cores to one core's", 1.05, lambda r: r.of("full", OURS, ONE)),
    Goal("full: CPU of borg's", 0.40, lambda r: r.of("full", OURS, "borg")),
    Goal(
        "full: stored, of the smaller of restic's and borg's",
        1.0,
        lambda r: r.growth("full", OURS) / min(r.growth("full", "restic"), r.growth("full", "borg")),
        starts=False,
    ),
    Goal("nothing changed, one core: CPU of the floor's", 1.25, lambda r: r.of("nothing", ONE, FLOOR)),
    Goal(
        "tracked writes, one core: CPU of 0.5 s + 2 x the floor's",
        1.0,
        lambda r: r.cpu("writes", ONE) / (0.5 + 2 * r.cpu("writes", FLOOR)),
        starts=False,
    ),
    Goal("incompressible, one core: CPU of the floor's", 1.3, lambda r: r.of("incompressible", ONE, FLOOR)),
    Goal(
        "scattered, one core: CPU of contiguous",
        1.1,
        lambda r: r.cpu("scattered", ONE) / r.cpu("contiguous", ONE),
    ),
    Goal(
        "16 disks: throughput of the same data on one",
        0.95,
        lambda r: r.wall("contiguous", OURS) / r.wall("disks", OURS),
        at_least=True,
        starts=False,
    ),
    Goal("restore to nothing, one core: CPU of the floor's", 1.3, lambda r: r.of("discard", ONE, FLOOR)),
    Goal("restore to raw, one core: CPU of the floor's", 1.3, lambda r: r.of("restore", ONE, FLOOR)),
    Goal("verify, one core: CPU of the floor's", 1.3, lambda r: r.of("verify", ONE, FLOOR)),
    Goal("a tiny disk: CPU of 0.4 s", 1.0, lambda r: r.cpu("tiny", OURS) / 0.4, starts=False),
    Goal("largest RSS: of 256 MiB", 1.0, lambda r: r.peak_rss() / LARGEST_RSS, starts=False),
)


def goals_of(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each goal that was measured: name, limit, the rounds' ratios, their median, and whether it is met.

    `less_start` is the median without what the tools spend on a tiny disk.
    """
    numbers = sorted({row["round"] for row in document["results"]})
    of_round = [[row for row in document["results"] if row["round"] == number] for number in numbers]
    rounds, later = [Round(rows) for rows in of_round], [Round(rows, less_start=True) for rows in of_round]
    found = []
    for goal in GOALS:
        if ratios := goal.of(rounds):
            middle = median(ratios)
            wanted = {"limit": goal.limit, "at_least": goal.at_least, "met": goal.is_met(middle)}
            less = goal.of(later) if goal.starts else []
            row = {"goal": goal.name, "median": middle, "ratios": ratios, **wanted}
            found.append({**row, "less_start": median(less) if less else None})
    return found


def goal_lines(goals: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [
            goal["goal"],
            f"{goal['median']:.2f}",
            f"{min(goal['ratios']):.2f}-{max(goal['ratios']):.2f}",
            "" if goal["less_start"] is None else f"{goal['less_start']:.2f}",
            f"{'at least' if goal['at_least'] else 'at most'} {goal['limit']:.2f}",
            "yes" if goal["met"] else "no",
        ]
        for goal in goals
    ]
    right = ["MEDIAN", "SPREAD", "LESS START-UP"]
    return table(["RATIO", *right, "WANTED", "MET"], rows, right=right)


# ---- releases


def read_releases() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(RELEASES.read_text()) if RELEASES.exists() else []
    return found


def keep_release(document: Mapping[str, Any]) -> None:
    """Keep the medians of the ratios under the version of the package, in the place of earlier ones of it."""
    entry = {
        "version": document["version"],
        "about": document["about"],
        "rounds": document["rounds"],
        "goals": {goal["goal"]: round(goal["median"], 3) for goal in document["goals"]},
        "of_floor": {
            case: round(median(found), 3)
            for case, rows in by_case(document).items()
            if rows[0]["tool"] != FLOOR and (found := values(rows, "of_floor"))
        },
    }
    others = [release for release in read_releases() if release["version"] != entry["version"]]
    RELEASES.write_text(json.dumps([*others, entry], indent=1) + "\n")


def release_lines() -> list[str]:
    """The ratios of each release, side by side."""
    kept = read_releases()
    names = [release["version"] for release in kept]
    rows = []
    for goal in GOALS:
        cells = [release["goals"].get(goal.name) for release in kept]
        rows.append(
            [goal.name, *("" if cell is None else f"{cell:.2f}" for cell in cells), f"{goal.limit:.2f}"]
        )
    return table(["RATIO", *names, "WANTED"], rows, right=[*names, "WANTED"])
