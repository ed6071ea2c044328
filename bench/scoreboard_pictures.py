"""The scoreboard as pictures: SVG files for the documentation. They are made by matplotlib, the extra `bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pipeline.units import MiB
from vadpipe.bench.documents import by_case, values
from vadpipe.bench.page import expect_plots, new_plot, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Told apart with every kind of colour vision (Okabe and Ito, 2008).
COLOURS = {
    "floor": "#000000",
    "vadpipe": "#0072B2",
    "vadpipe-1": "#56B4E9",
    "restic": "#E69F00",
    "borg": "#009E73",
    "qemu-img": "#CC79A7",
    "nbdcopy": "#999999",
}
_GROWS = ("full", "nothing", "blocks", "writes", "sibling")  # steps that are compared by what they store


def write_pictures(document: Mapping[str, Any], directory: Path) -> list[Path]:
    """`scoreboard-cpu.svg` and `scoreboard-stored.svg`. Raises ConfigError without matplotlib."""
    expect_plots()
    rows: Sequence[Mapping[str, Any]] = document["results"]
    steps = list(dict.fromkeys(row["step"] for row in rows))
    tools = [tool for tool in COLOURS if any(row["tool"] == tool for row in rows)]
    cases = by_case(document)
    directory.mkdir(parents=True, exist_ok=True)
    written = []

    figure, axes = new_plot(1.2 + 0.45 * len(steps))
    for tool in tools:
        _dots(axes, steps, tool, [values(cases.get(f"{step}, {tool}", ()), "cpu_s") for step in steps])
    axes.set_xscale("log")
    axes.set_xlabel("CPU-seconds, logarithmic: medians, and lines from the least to the most")
    _finish(axes, steps, len(tools))
    written.append(directory / "scoreboard-cpu.svg")
    written[-1].write_text(svg_of(figure))

    steps = [step for step in steps if step in _GROWS]
    figure, axes = new_plot(1.2 + 0.45 * max(len(steps), 1))
    tools = [tool for tool in tools if tool not in ("vadpipe-1", "nbdcopy", "floor")]
    for tool in tools:
        found = [values(cases.get(f"{step}, {tool}", ()), "growth") for step in steps]
        # A run that stores nothing cannot stand on a logarithmic axis.
        _dots(axes, steps, tool, [[max(size / MiB, 0.001) for size in sizes] for sizes in found])
    axes.set_xscale("log")
    axes.set_xlabel("MiB that the store grew by, logarithmic")
    _finish(axes, steps, len(tools))
    written.append(directory / "scoreboard-stored.svg")
    written[-1].write_text(svg_of(figure))
    return written


def _dots(axes: Axes, steps: Sequence[str], tool: str, found: Sequence[Sequence[float]]) -> None:
    """The figures of a tool, on the line of each step that it did."""
    drawn = [(place, some) for place, some in enumerate(found) if some]
    if not drawn:
        return
    middle = [median(some) for _, some in drawn]
    least = [value - min(some) for value, (_, some) in zip(middle, drawn, strict=True)]
    most = [max(some) - value for value, (_, some) in zip(middle, drawn, strict=True)]
    axes.errorbar(
        middle,
        [place for place, _ in drawn],
        xerr=[least, most],
        fmt="|" if tool == "floor" else "o",
        markersize=16 if tool == "floor" else 6,
        markeredgewidth=2 if tool == "floor" else 1,
        color=COLOURS[tool],
        label=tool,
        alpha=0.85,
    )


def _finish(axes: Axes, steps: Sequence[str], count: int) -> None:
    axes.set_yticks(range(len(steps)), steps)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=count, frameon=False, fontsize="small")
