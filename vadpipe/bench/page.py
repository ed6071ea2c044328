"""A document of a benchmark as one self-contained page: tables, and plots as SVG inside it. No script, no request.

The plots are made by matplotlib, the extra `bench`, which is imported when a page is asked for. Names come from
users: they are escaped in the page, and are plain text in the plots.
"""

from __future__ import annotations

import html
import io
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ConfigError
from pipeline.units import MiB, format_size
from vadpipe.words import printable

from .documents import FIGURES, Row, by_case, limited_by, spread, values
from .jobs import report_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart with every kind of colour vision (Okabe and Ito, 2008).
_BUSY, _STARVED, _BLOCKED = "#0072B2", "#CCCCCC", "#E69F00"

# Of throughput over time: seconds of a step where that gives neither fewer nor more steps than these.
_BIN_S, _BINS = 0.2, (8, 100)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd }
th, td { text-align: right } th:first-child, td:first-child { text-align: left }
svg { max-width: 100%; height: auto } h2 { margin-top: 2.5rem }
"""


def expect_plots() -> None:
    """Raises ConfigError when matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as exc:
        raise ConfigError(
            "A page with plots needs the Python package matplotlib, which is not installed.",
            remedy="Run: pip install 'vadpipe[bench]'",
        ) from exc


def page_of(document: Row) -> str:
    """The page as HTML. Raises ConfigError without matplotlib."""
    expect_plots()
    facts = {name: document.get(name) for name in ("about", "config", "job", "to")}
    parts = [f"<h1>vadpipe {_text(document['kind'])}</h1>"]
    parts += [f"<p>{_text(name)}: {_text(fact)}</p>" for name, fact in facts.items() if fact]
    parts += [_table(document), *_sections(document)]
    head = f'<meta charset="utf-8"><title>vadpipe {_text(document["kind"])}</title><style>{_STYLE}</style>'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _sections(document: Row) -> Iterator[str]:
    cases = by_case(document)
    if document["kind"] == "bench source":
        yield _section("Throughput by reads in flight", _source_curves(document["results"]))
    elif document["kind"] == "bench kernels":
        yield _section("MiB per CPU-second", _bars(cases))
    else:
        for name, curves in _sweeps(document["results"]):
            yield _section(f"Throughput by {name}", _sweep(name, curves))
        for case, rows in cases.items():
            last = rows[-1]
            if "stages" in last:
                yield f"<h2>{_text(case)}</h2><p>The last round. Limited by {_text(limited_by(rows))}.</p>"
                yield svg_of(_stages(last))
                yield svg_of(_over_time(last))


def _text(value: object) -> str:
    return html.escape(printable(str(value)))


def _section(title: str, figure: Figure) -> str:
    return f"<h2>{_text(title)}</h2>\n{svg_of(figure)}"


def _table(document: Row) -> str:
    figures = FIGURES[document["kind"]]
    lines = [_cells("th", ["case", *(figure.title.lower() for figure in figures)])]
    for case, rows in by_case(document).items():
        found = ([value / figure.divisor for value in values(rows, figure.name)] for figure in figures)
        spreads = (spread(some, figure.digits) for some, figure in zip(found, figures, strict=True))
        lines.append(_cells("td", [case, *spreads]))
    said = "<p>Medians, and in brackets the least and the most of all rounds.</p>"
    return f"{said}<table>{''.join(lines)}</table>"


def _cells(tag: str, texts: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_text(text)}</{tag}>' for text in texts)}</tr>"


def new_plot(height: float = 3.6) -> tuple[Figure, Axes]:
    """An empty plot, `height` inches high."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure, axes


def svg_of(figure: Figure) -> str:
    """The figure as an element of a page. Text stays text."""
    from matplotlib import rc_context

    drawn = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "vadpipe", "text.parse_math": False}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue().partition("<svg")[1] + drawn.getvalue().partition("<svg")[2]


def _plain(text: object) -> str:
    """A label; one that begins with a line below would be left out of the legend."""
    label = printable(str(text))
    return f" {label}" if label.startswith("_") else label


def _stages(row: Row) -> Figure:
    """Busy, starved and blocked of each stage; the one that limits has a mark."""
    report = report_of(row["stages"])
    limiting = report.bottleneck
    figure, axes = new_plot(0.9 + 0.45 * len(report.stages))
    stages = list(reversed(report.stages))
    names = [_wrapped(stage.name) + (" (limits)" if stage is limiting else "") for stage in stages]
    left = [0.0] * len(stages)
    for share, colour in (("busy", _BUSY), ("starved", _STARVED), ("blocked", _BLOCKED)):
        widths = [getattr(stage, f"{share}_s") / (report.wall_s or 1) for stage in stages]
        axes.barh(names, widths, left=left, color=colour, label=share, height=0.6)
        left = [reached + width for reached, width in zip(left, widths, strict=True)]
    axes.set_xlabel(f"share of the time; limited by {_plain(row['limited_by'])}")
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=3, frameon=False)
    return figure


def _wrapped(name: str) -> str:
    """A stage as a label; the names of fused stages in lines."""
    parts = _plain(name).split("+")
    return "+\n".join("+".join(parts[at : at + 3]) for at in range(0, len(parts), 3))


def _over_time(row: Row) -> Figure:
    """MiB/s of each stage over time. The source of extents sends all at once, so it is left out."""
    figure, axes = new_plot()
    samples = np.array([[0.0] * (len(row["stages"]) + 1), *row["samples"]])
    end_s = float(samples[-1, 0])
    edges = np.linspace(0.0, end_s, min(max(int(end_s / _BIN_S), _BINS[0]), _BINS[1]) + 1)
    for at, stage in enumerate(row["stages"][1:], start=2):
        rates = np.diff(np.interp(edges, samples[:, 0], samples[:, at])) / MiB / np.diff(edges)
        width = 1 + len(row["stages"]) - at  # where lines cover each other, all of them can be seen
        axes.stairs(rates, edges, baseline=None, label=_wrapped(stage["name"]), linewidth=width)
    axes.set_xlabel("seconds")
    axes.set_ylabel("MiB/s")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    return figure


Curves = Mapping[str, Mapping[str, list[float]]]  # of each curve: throughputs by value


def _sweeps(rows: Sequence[Row]) -> Iterator[tuple[str, Curves]]:
    """For each setting with several values: a curve for each combination of the other settings."""
    for name in dict.fromkeys(name for row in rows for name in row.get("settings", {})):
        curves: dict[str, dict[str, list[float]]] = {}
        for row in rows:
            others = " ".join(f"{other}={value}" for other, value in row["settings"].items() if other != name)
            curve = curves.setdefault(others or "MiB/s", {})
            curve.setdefault(row["settings"][name], []).append(row["mib_per_s"])
        if any(len(curve) > 1 for curve in curves.values()):
            yield name, curves


def _sweep(name: str, curves: Curves) -> Figure:
    figure, axes = new_plot()
    for label, curve in curves.items():
        _curve(axes, list(curve), list(curve.values()), label)
    axes.set_xlabel(_plain(name))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    return figure


def _source_curves(rows: Sequence[Row]) -> Figure:
    figure, axes = new_plot(4.5)
    for at, size in enumerate(dict.fromkeys(row["size"] for row in rows)):
        found: dict[int, list[Row]] = {}
        for row in rows:
            if row["size"] == size:
                found.setdefault(row["depth"], []).append(row)
        depths = [str(depth) for depth in found]
        _curve(
            axes, depths, [values(some, "mib_per_s") for some in found.values()], format_size(size), f"C{at}"
        )
        ideal = [statistics.median(values(some, "ideal_mib_per_s")) for some in found.values()]
        axes.plot(
            depths, ideal, linestyle=":", color=f"C{at}", label=f"{format_size(size)}: depth x size / latency"
        )
    axes.set_yscale("log")
    axes.set_xlabel("reads in flight")
    axes.legend(fontsize="small")
    return figure


def _curve(
    axes: Axes, places: Sequence[str], found: Sequence[Sequence[float]], label: str, colour: str | None = None
) -> None:
    """Medians with bars from the least to the most."""
    middle = [statistics.median(some) for some in found]
    below = [median - min(some) for median, some in zip(middle, found, strict=True)]
    above = [max(some) - median for median, some in zip(middle, found, strict=True)]
    axes.errorbar(
        list(map(_plain, places)),
        middle,
        yerr=[below, above],
        marker="o",
        capsize=3,
        label=_plain(label),
        color=colour,
    )
    axes.set_ylabel("MiB/s")


def _bars(cases: Mapping[str, Sequence[Row]]) -> Figure:
    figure, axes = new_plot(0.8 + 0.3 * len(cases))
    rates = [statistics.median(values(rows, "mib_per_cpu_s")) for rows in cases.values()]
    bars = axes.barh(list(map(_plain, cases)), rates, color=_BUSY)
    axes.bar_label(bars, fmt="{:.0f}", padding=3)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("MiB per CPU-second of one thread")
    return figure
