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

`floor` is one thread of C (bench/floor.c). It and `vadpipe-1` are pinned to one core; the others have all.
CPU-seconds are user and system time of the command from its start to its end. borg and restic read every hole, so
they are left out where the disk has 4 TiB, and of the 16 disks. A restored image is compared with the original in
the first round.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository: bench is not installed

from bench.growth import data_of
from bench.scoreboard_goals import (
    FLOOR,
    RELEASES,
    goal_lines,
    goals_of,
    keep_release,
    matrix,
    release_lines,
)
from bench.scoreboard_images import Images, images_of, steps_of
from bench.scoreboard_tools import (
    ROOT,
    Tool,
    environment_of,
    measure,
    missing,
    settle,
    size_of,
    tools,
    versions,
)
from pipeline import ConfigError, MiB
from vadpipe.bench.documents import comparison, comparison_lines, median_lines, read_document
from vadpipe.bench.machine import machine_line

STEPS = (
    *("tiny", "tiny-discard", "tiny-verify"),
    *("full", "discard", "restore", "verify", "nothing", "blocks", "writes", "sibling"),
    *("incompressible", "contiguous", "scattered", "disks"),
)
_OF_FULL = frozenset(STEPS[STEPS.index("discard") : STEPS.index("incompressible")])
_OF_TINY = frozenset(("tiny-discard", "tiny-verify"))

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
        for image in step.image.parent.glob("*.raw"):
            warm(image)
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


def warm(image: Path) -> None:
    """Read an image, so that the first tool does not pay for what the system had dropped from its cache."""
    with image.open("rb", buffering=0) as file:
        for offset, length in data_of(image):
            for at in range(offset, offset + length, MiB):
                os.pread(file.fileno(), MiB, at)


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
