"""The documents of benchmarks: figures with median and spread as tables, and the comparison of two documents.

A document has `kind`, e.g. 'bench run'; `about`, the machine and what was measured; and `results`, one row for each
measurement, with its `case` and its figures. A case stands in it once for each round, in order.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.units import MiB
from vadpipe.cli.output import table

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A figure of a result: its name in the document, its title for people, its divisor and its digits."""

    name: str
    title: str
    divisor: float = 1
    digits: int = 2


_RATE = Figure("mib_per_s", "MIB/S", digits=0)
_CPU_RATE = Figure("mib_per_cpu_s", "MIB/CPU-S", digits=0)
_RUN = (
    _RATE,
    _CPU_RATE,
    Figure("wall_s", "S"),
    Figure("cpu_s", "CPU-S"),
    Figure("peak_rss", "MIB RSS", MiB, 0),
)

FIGURES: Mapping[str, Sequence[Figure]] = {
    "bench path": _RUN,
    "bench run": (*_RUN, Figure("stored", "MIB STORED", MiB, 1)),
    "bench scoreboard": (
        Figure("cpu_s", "CPU-S"),
        Figure("of_floor", "OF THE FLOOR"),
        Figure("wall_s", "S"),
        Figure("growth", "MIB GREW", MiB, 1),
        Figure("peak_rss", "MIB RSS", MiB, 0),
    ),
    "bench kernels": (_CPU_RATE, Figure("ratio", "RATIO")),
    "bench source": (
        _RATE,
        Figure("latency_ms", "MS MEDIAN"),
        Figure("latency_99_ms", "MS 99 %"),
        Figure("ideal_mib_per_s", "DEPTH X SIZE / LATENCY", digits=0),
    ),
}


def by_case(document: Row) -> dict[str, list[Row]]:
    """The rows of each case, in their order."""
    cases: dict[str, list[Row]] = {}
    for row in document["results"]:
        cases.setdefault(row["case"], []).append(row)
    return cases


def values(rows: Sequence[Row], name: str) -> list[float]:
    """A figure of these rows, where they have it."""
    return [row[name] for row in rows if row.get(name) is not None]


def median_lines(document: Row) -> list[str]:
    """A line for each case: the median of each figure, and in brackets the least and the most of several rounds."""
    figures = [
        figure
        for figure in FIGURES[document["kind"]]
        if any(values(rows, figure.name) for rows in by_case(document).values())
    ]
    limiting = any("limited_by" in row for row in document["results"])
    header = ["CASE", *(figure.title for figure in figures), *(["LIMITED BY"] if limiting else [])]
    rows = [
        [
            case,
            *(
                spread([value / figure.divisor for value in values(found, figure.name)], figure.digits)
                for figure in figures
            ),
            *([limited_by(found)] if limiting else []),
        ]
        for case, found in by_case(document).items()
    ]
    return table(header, rows, right=[figure.title for figure in figures])


def limited_by(rows: Sequence[Row]) -> str:
    """The stage that limited most of these runs; the others behind it."""
    counted = statistics.multimode(row["limited_by"] for row in rows)
    others = sorted({row["limited_by"] for row in rows} - set(counted[:1]))
    return " ".join([counted[0], *([f"(also {', '.join(others)})"] if others else [])])


def spread(found: Sequence[float], digits: int) -> str:
    """The median, and in brackets the least and the most where there are several."""
    if not found:
        return ""
    middle = f"{statistics.median(found):.{digits}f}"
    if len(found) == 1:
        return middle
    return f"{middle} ({min(found):.{digits}f}-{max(found):.{digits}f})"


def read_document(path: Path) -> Row:
    """A document that a benchmark wrote with --json. Raises ConfigError for anything else."""
    try:
        document: Any = json.loads(path.read_text())
    except OSError as exc:
        raise ConfigError(
            f"{path} cannot be read: {exc.strerror}.", remedy="Name a file that was written with --json."
        ) from exc
    except ValueError as exc:
        raise ConfigError(
            f"{path} is no JSON document.", remedy="Name a file that was written with --json."
        ) from exc
    kind = document.get("kind") if isinstance(document, dict) else None
    rows = document.get("results") if isinstance(document, dict) else None
    figures = FIGURES.get(kind) if isinstance(kind, str) else None
    if not (figures and isinstance(rows, list) and rows and all(_is_result(row, figures) for row in rows)):
        raise ConfigError(
            f"{path} is no result of a benchmark.",
            remedy="Name a file that `vadpipe bench run --json` or another benchmark wrote.",
        )
    found: Row = document
    return found


def _is_result(row: object, figures: Sequence[Figure]) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("case"), str)
        and all(isinstance(row.get(figure.name), int | float | None) for figure in figures)
    )


def comparison(before: Row, after: Row) -> Row:
    """Each figure of the second document as a ratio to that of the first one, round by round.

    Returns:
        A document: for each case that both have and each figure the ratios, their median, least and most.

    Raises:
        ConfigError: They are results of different benchmarks, or have no case in common.
    """
    kind = before["kind"]
    if after["kind"] != kind:
        raise ConfigError(
            f"Results of `{kind}` cannot be compared with those of `{after['kind']}`.",
            remedy="Compare two files of one benchmark.",
        )
    first, second = by_case(before), by_case(after)
    common = [case for case in first if case in second]
    if not common:
        raise ConfigError(
            f"The files have no case in common: {', '.join(first)} and {', '.join(second)}.",
            remedy="Measure the same settings both times.",
        )
    results = []
    for case in common:
        for figure in FIGURES[kind]:
            pairs = zip(values(first[case], figure.name), values(second[case], figure.name), strict=False)
            ratios = [b / a for a, b in pairs if a and b]
            if ratios:
                found = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
                results.append({"case": case, "figure": figure.name, **found, "ratios": ratios})
    return {
        "kind": "bench compare",
        "of": kind,
        "about": {name: [before.get(name), after.get(name)] for name in ("about", "config", "job", "to")},
        "only_one_has": sorted({*first, *second} - set(common)),
        "results": results,
    }


def comparison_lines(document: Row) -> list[str]:
    """A comparison for people."""
    titles = {figure.name: figure.title for figure in FIGURES[document["of"]]}
    lines = ["second / first, pair by pair: median (least-most)"]
    lines += [
        f"note: {name} differs: {before}; {after}"
        for name, (before, after) in document["about"].items()
        if before != after
    ]
    lines += [f"note: only one file has the case {case}" for case in document["only_one_has"]]
    rows = [
        [
            row["case"],
            titles[row["figure"]],
            f"{row['median']:.3f}",
            f"{row['least']:.3f}-{row['most']:.3f}",
            str(len(row["ratios"])),
        ]
        for row in document["results"]
    ]
    right = ["MEDIAN", "SPREAD", "PAIRS"]
    return [*lines, *table(["CASE", "FIGURE", *right], rows, right=right)]
