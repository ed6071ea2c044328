"""This project beside other tools and beside a floor in C: what each costs in turns, and the ratios.

    python bench/scoreboard.py [--size 2] [--rounds 5] [--seed 1] [--only full,verify] [--tools floor,vadpipe,borg]
                               [--json FILE] [--pictures DIR] [--release]
    python bench/scoreboard.py compare A.json B.json
    python bench/scoreboard.py releases

Images are made from a seed and files of this machine. In every round each step is done by all tools, one after the
other, so that a busy minute slows all of them down; a ratio is that of two costs of the same round. The steps:

    tiny            a disk of 1 MiB: what a run costs that has hardly anything to do
    tiny-discard    the same for a restore to nothing
    tiny-verify     and for reading it back
    full            a file system of --size GiB
    discard         restore that to nothing
    restore         restore it to a raw image
    verify          read the store back and prove it
    nothing         the same image again; nothing tells that it did not change
    blocks          random blocks of 64 KiB of its data are rewritten; nothing tells which
    writes          random writes of 4 KiB; change tracking tells us of the 64 KiB around each, others find them
    sibling         another image: the same files in other places
    incompressible  random bytes, an eighth of --size
    contiguous      a disk of 4 TiB with a quarter of --size as data, side by side
    scattered       the same data in pieces of 1 MiB over all of the disk
    disks           the same data on 16 disks of one VM

`floor` is one thread of C (bench/floor.c). It and `vadpipe, 1 core` are pinned to one core; the others have all.
CPU-seconds are user and system time of the command from its start to its end. borg and restic read every hole, so
they are left out where the disk has 4 TiB, and of the 16 disks. A restored image is compared with the original in
the first round.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository: bench is not installed

from bench.growth import BLOCK, rewrite
from bench.scoreboard_tools import (
    ROOT,
    Step,
    Tool,
    environment_of,
    measure,
    missing,
    settle,
    size_of,
    tools,
    versions,
)
from pipeline import CLUSTER, ConfigError, GiB, MiB, TiB
from vadpipe.bench.documents import (
    by_case,
    comparison,
    comparison_lines,
    median_lines,
    read_document,
    values,
)
from vadpipe.bench.images import describe, ext4_image
from vadpipe.bench.kernels import first_data
from vadpipe.bench.machine import machine_line
from vadpipe.cli.output import table

RELEASES = ROOT / "bench" / "releases.json"
STEPS = (
    *("tiny", "tiny-discard", "tiny-verify"),
    *("full", "discard", "restore", "verify", "nothing", "blocks", "writes", "sibling"),
    *("incompressible", "contiguous", "scattered", "disks"),
)
_OF_FULL = frozenset(STEPS[STEPS.index("discard") : STEPS.index("incompressible")])
_OF_TINY = frozenset(("tiny-discard", "tiny-verify"))
# The step that tells what a step's commands cost for their start.
_START = {"discard": "tiny-discard", "restore": "tiny-discard", "verify": "tiny-verify"}
CAPACITY = 4 * TiB
DISKS = 16
LARGEST_RSS = 256 * MiB

ONE, OURS, FLOOR = "vadpipe, 1 core", "vadpipe", "floor"

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
        """The ratio of each round; none where a part of it was not measured."""
        try:
            return [self.ratio(one) for one in rounds]
        except KeyError:
            return []

    def is_met(self, ratio: float) -> bool:
        return ratio >= self.limit if self.at_least else ratio <= self.limit


# Issue 12 of the project. A run of a tiny disk is 0.4 CPU-seconds there, in all.
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


# ---- the images


@dataclass(frozen=True)
class Images:
    """Images that all rounds share. Those that a step does not need are not made."""

    tiny: Path
    base: Path
    sibling: Path
    noise: Path
    contiguous: Path
    scattered: Path
    disks: Path


def images_of(directory: Path, scratch: Path, given: argparse.Namespace) -> Images:
    size, chance = int(given.size * GiB), np.random.default_rng(given.seed)
    names = ("tiny", "noise", "contiguous", "scattered", "disks")
    found = {name: scratch / name / "disk.raw" for name in names}
    base = ext4_image(directory, size, given.fill * MiB, given.seed)
    sibling = base
    if "sibling" in given.only:
        sibling = ext4_image(directory, size, given.fill * MiB, given.seed, layout=1)
    if "tiny" in given.only:
        write_flat(found["tiny"], 1 * MiB, [(0, first_data(base, 1 * MiB).tobytes())])
    if "incompressible" in given.only:
        length = max(size // 8 // MiB, 1) * MiB
        pieces = ((offset, chance.bytes(MiB)) for offset in range(0, length, MiB))
        write_flat(found["noise"], length, pieces)
    if {"contiguous", "scattered", "disks"} & set(given.only):
        data = first_data(base, max(size // 4 // MiB, 1) * MiB).tobytes()
        count = len(data) // MiB
        apart = CAPACITY // count
        for name, distance in (("contiguous", MiB), ("scattered", apart // CLUSTER * CLUSTER)):
            pieces = ((at * distance, data[at * MiB : (at + 1) * MiB]) for at in range(count))
            write_flat(found[name], CAPACITY, pieces)
        share = len(data) // DISKS // CLUSTER * CLUSTER
        for number in range(DISKS):
            part = (
                data[number * share : (number + 1) * share] if number < DISKS - 1 else data[number * share :]
            )
            write_flat(found["disks"].with_stem(f"disk{number:02}"), len(part), [(0, part)])
    found["disks"] = found["disks"].with_stem("disk00")
    return Images(base=base, sibling=sibling, **found)


def write_flat(image: Path, size: int, pieces: Iterator[tuple[int, bytes]] | list[tuple[int, bytes]]) -> None:
    """A sparse raw image with these bytes at these offsets, and its descriptor."""
    image.parent.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
    describe(image, size)


def steps_of(images: Images, place: Path, given: argparse.Namespace) -> Iterator[Step]:
    """The steps of one round. An image is changed when the step that needs the change is asked for."""
    chance = np.random.default_rng(given.seed)
    image = place / "vm" / "disk.raw"
    image.parent.mkdir()
    describe(image, images.base.stat().st_size)
    subprocess.run(["cp", "--sparse=always", images.base, image], check=True)
    full = Step("full", "back up", image)
    if "tiny" in given.only:
        yield Step("tiny", "back up", images.tiny, vm="tiny")
    for action in ("discard", "verify"):
        if f"tiny-{action}" in given.only:
            yield Step(f"tiny-{action}", action, images.tiny, vm="tiny")
    if "full" in given.only:
        yield full
    for step in (Step(name, name, image) for name in ("discard", "restore", "verify")):
        if step.name in given.only:
            yield step
    if "nothing" in given.only:
        yield replace(full, name="nothing", known=image)
    if "blocks" in given.only:
        rewrite(image, BLOCK, given.blocks, chance)
        yield replace(full, name="blocks", known=images.base)
    if "writes" in given.only:
        offsets = np.array(rewrite(image, CLUSTER, given.writes, chance))
        blocks = np.unique(offsets // BLOCK) * BLOCK
        written, areas = place / "written.npy", place / "areas" / "disk.raw"
        np.save(written, blocks)
        with image.open("rb") as file:

            def area(offset: int) -> bytes:
                file.seek(offset)
                return file.read(BLOCK)

            write_flat(areas, image.stat().st_size, [(at, area(at)) for at in blocks.tolist()])
        yield replace(full, name="writes", known=images.base, written=written, areas=areas)
    if "sibling" in given.only:
        yield replace(full, name="sibling", image=images.sibling, known=image)
    if "incompressible" in given.only:
        yield Step("incompressible", "back up", images.noise, vm="noise")
    for name in ("contiguous", "scattered", "disks"):
        if name in given.only:
            yield Step(name, "back up", getattr(images, name), vm=name, huge=True)


# ---- the rounds


def run_round(
    number: int, images: Images, chosen: Sequence[Tool], scratch: Path, given: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """All steps by all tools in turn, the first of them another one each time."""
    place = scratch / f"round-{number}"
    place.mkdir()
    environment = environment_of(place)
    first = number % len(chosen)
    for step in steps_of(images, place, given):
        rows = []
        for tool in [*chosen[first:], *chosen[:first]]:
            if step.huge and tool.reads_holes:
                continue
            store = place / "stores" / f"{step.vm} {tool.name}"
            target = place / "target"
            target.mkdir()
            if not store.exists():
                store.mkdir(parents=True)
                for command in tool.prepare(store, target):
                    subprocess.run(command, cwd=target, env=environment, check=True, capture_output=True)
            if commands := tool.commands(step, store, target):
                settle()
                before = size_of(store)
                row = measure(tool, commands, target, environment)
                grew = size_of(store) - before if step.action == "back up" and tool.growth else None
                if step.action == "restore" and number == 0:
                    expect_equal(step.image, target, tool)
                case = {"case": f"{step.name}, {tool.name}", "step": step.name, "tool": tool.name}
                rows.append({**case, "round": number, "growth": grew, **row})
            shutil.rmtree(target)
        floor = [row["cpu_s"] for row in rows if row["tool"] == FLOOR]
        for row in sorted(rows, key=lambda row: [tool.name for tool in chosen].index(row["tool"])):
            yield {**row, "of_floor": row["cpu_s"] / floor[0] if floor and floor[0] else None}
    shutil.rmtree(place)


def expect_equal(image: Path, target: Path, tool: Tool) -> None:
    """Raises ConfigError unless a restore wrote the image."""
    restored = max(
        (path for path in target.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    if subprocess.run(["cmp", "-s", image, restored], check=False).returncode:
        raise ConfigError(f"{tool.name} restored {restored}, which differs from the image.")


def score(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The document of a run, after each round with the rounds until then."""
    directory = given.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    every = tools(built_floor(), given.level)
    if unknown := set(given.tools or ()) - set(every):
        raise ConfigError(
            f"There is no tool {', '.join(sorted(unknown))}.", remedy=f"There are: {', '.join(every)}."
        )
    wanted = [tool for name, tool in every.items() if given.tools is None or name in given.tools]
    left_out = {tool.name: missing(tool) for tool in wanted if missing(tool)}
    chosen = [tool for tool in wanted if tool.name not in left_out]
    for name, programs in left_out.items():
        print(f"left out: {name}, because {' and '.join(programs)} is not installed", file=sys.stderr)
    about = (
        f"{machine_line()}; ext4 image of {given.size:g} GiB with {given.fill} MiB of files, seed {given.seed}, "
        f"{given.blocks} blocks of 64 KiB, {given.writes} writes of 4 KiB; zstd level {given.level}"
    )
    results: list[dict[str, Any]] = []
    rooms = [ROOT / room for room in ("pipeline", "stages", "sinks", "vadpipe")]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *rooms], check=True)  # as an installation does
    with tempfile.TemporaryDirectory(dir=directory) as made:
        scratch = Path(made)
        images = images_of(directory, scratch, given)
        for number in range(given.rounds):
            for row in run_round(number, images, chosen, scratch, given):
                results.append(row)
                told = f"round {number + 1} of {given.rounds}: {row['case']}: {row['cpu_s']:.2f} CPU-s"
                print(told, file=sys.stderr, flush=True)
            document: dict[str, Any] = {
                "kind": "bench scoreboard",
                "about": about,
                "version": version("vadpipe"),
                "tools": versions(chosen),
                "left_out": left_out,
                "rounds": number + 1,
                "results": results,
            }
            yield {**document, "goals": goals_of(document)}


def built_floor() -> Path:
    """bench/floor.c as a program. Raises ConfigError where it cannot be built."""
    program = ROOT / "build" / "floor" / "floor"
    done = subprocess.run(
        [ROOT / "bench" / "build_floor", program], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ConfigError(f"The floor cannot be built: {done.stderr.strip()}")
    return program


def lines_of(document: Mapping[str, Any]) -> list[str]:
    """A document for people."""
    others = ", ".join(f"{name} {number}" for name, number in document["tools"].items())
    lines = [document["about"], f"vadpipe {document['version']}; {others}"]
    lines += [f"left out, not installed: {name}" for name in document["left_out"]]
    lines += ["", "CPU-seconds, and in brackets the median ratio to the floor's", *matrix(document, "cpu_s")]
    lines += ["", "MiB that the store grew by", *matrix(document, "growth", MiB)]
    return [*lines, "", *median_lines(document), "", *goal_lines(document["goals"])]


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


# ---- the command line


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("action", nargs="?", choices=["run", "compare", "releases"], default="run")
    arguments.add_argument("files", nargs="*", type=Path, help="two documents to compare")
    arguments.add_argument("--size", type=float, default=2, metavar="GIB", help="of the image (2)")
    arguments.add_argument("--fill", type=int, metavar="MIB", help="of files in it (308 for each GiB)")
    arguments.add_argument("--blocks", type=int, help="of 64 KiB that are rewritten (100 for each GiB)")
    arguments.add_argument("--writes", type=int, help="of 4 KiB (1,667 for each GiB)")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--level", type=int, default=1, help="of zstd, ours and the floor's (1)")
    arguments.add_argument("--only", type=lambda text: text.split(","), default=STEPS, metavar="STEPS")
    arguments.add_argument("--tools", type=lambda text: text.split(","), help="all that are installed")
    arguments.add_argument(
        "--directory", type=Path, default=Path("build/bench"), help="for images and stores"
    )
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write the document")
    arguments.add_argument("--pictures", type=Path, metavar="DIR", help="write plots; needs vadpipe[bench]")
    arguments.add_argument("--release", action="store_true", help=f"keep the ratios in bench/{RELEASES.name}")
    given = arguments.parse_args()
    given.fill = given.fill or round(given.size * 3700 / 12)
    given.blocks = given.blocks or round(given.size * 1200 / 12)
    given.writes = given.writes or round(given.size * 20_000 / 12)
    if unknown := set(given.only) - set(STEPS):
        arguments.error(f"unknown steps: {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    for needed, needing in (("full", _OF_FULL), ("tiny", _OF_TINY)):
        if needing & set(given.only):
            given.only = [*given.only, needed]  # they read what it stored
    if (given.action == "compare") != (len(given.files) == 2) or (given.files and given.action != "compare"):
        arguments.error("`compare` takes two files, and nothing else takes any")
    if given.rounds < 1:
        arguments.error("there is at least one round")
    try:
        print("\n".join(act(given)))
    except ConfigError as error:
        arguments.error(str(error))


def act(given: argparse.Namespace) -> Sequence[str]:
    if given.action == "releases":
        return release_lines()
    if given.action == "compare":
        return comparison_lines(comparison(*map(read_document, given.files)))
    document: dict[str, Any] = {}
    for document in score(given):
        if given.json:  # after each round: whoever ends a long run keeps what it measured
            given.json.write_text(json.dumps(document, indent=1) + "\n")
    if given.pictures:
        from bench.scoreboard_pictures import write_pictures

        write_pictures(document, given.pictures)
    if given.release:
        keep_release(document)
    return lines_of(document)


if __name__ == "__main__":
    main()
