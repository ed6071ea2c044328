"""The tools of the scoreboard: what each of them runs in a step, and what a command costs.

A step backs up, discards (restores to nothing), restores to a raw image, or verifies. A tool answers with its
commands, or with none where it does not do that. Flags are those that a user takes who wants speed: restic with
its own compression, borg with zstd,1, qemu-img into a qcow2 compressed by zstd, nbdcopy from a server of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import ConfigError
from pipeline.units import KiB

ROOT = Path(__file__).resolve().parent.parent

Command = Sequence[str | Path]
Action = Literal["back up", "discard", "restore", "verify"]


@dataclass(frozen=True)
class Step:
    """One row of the scoreboard.

    Args:
        name: Of the row.
        action: What is done.
        image: Is backed up; or was, into the store that is read. Its directory may hold more disks.
        vm: Whose store takes it or has it.
        known: An image whose chunks are stored already.
        written: File with the areas that change tracking tells of.
        areas: An image that holds nothing but them.
        huge: The image is far larger than what it holds, or one of many: nothing for tools that read holes.
    """

    name: str
    action: Action
    image: Path
    vm: str = "vm"
    known: Path | None = None
    written: Path | None = None
    areas: Path | None = None
    huge: bool = False

    @property
    def first(self) -> str:
        """The name of the backup that is read."""
        return "tiny" if self.vm == "tiny" else "full"


class Tool(ABC):
    """A program that backs up images. Each method gives the commands of an action; none: it does not do that.

    `one_core` pins it to one core. `programs` have to be installed. `reads_holes`: a hole costs it as much as data.
    """

    name: str
    one_core = False
    programs: Sequence[str] = ()
    reads_holes = False
    growth = True  # whether what it writes can be compared with a repository

    def prepare(self, store: Path, scratch: Path) -> Sequence[Command]:
        """Make the store; it costs nothing."""
        return []

    @abstractmethod
    def commands(self, step: Step, store: Path, target: Path) -> Sequence[Command]:
        """The commands of a step. They run in the empty directory `target`; a restore writes one image below it."""


# ---- ours

_CONFIG = """\
import sys

sys.path.insert(0, {root!r})

from pipeline import Job
from sinks import *
from stages import *
{tracked}

def path(disk, point):
{lines}
    return (
        {source}
        | ReadSpans(disk)
        | MarkZeros()
        | CutChunks()
        | Digest(point)
        | Refine(point, disk)
        | Dedupe(point)
        | Compress(Zstd({level}))
        | IntoRepository(point, disk)
    )


job = Job(LocalVm({directory!r}), path, into=Repository({store!r}))
"""

_TRACKED = """
import numpy as np

from bench.growth import BLOCK, Tracked
from pipeline import Extents

blocks = np.load({written!r})
written = Extents.from_columns(blocks, np.full(len(blocks), BLOCK))

"""


class Vadpipe(Tool):
    """This project's command."""

    def __init__(self, level: int, one_core: bool) -> None:
        self.name = "vadpipe-1" if one_core else "vadpipe"
        self.one_core = one_core
        self._level = level

    def prepare(self, store: Path, scratch: Path) -> Sequence[Command]:
        return [_vadpipe("init", store / "repository")]

    def commands(self, step: Step, store: Path, target: Path) -> Sequence[Command]:
        repository = store / "repository"
        if step.action == "back up":
            config = target / "config.py"
            config.write_text(self._config(step, repository))
            return [_vadpipe("-q", "run", config)]
        if step.action == "verify":
            return [_vadpipe("-q", "verify", repository)]
        to = "null:" if step.action == "discard" else f"raw:{target}"
        return [_vadpipe("-q", "restore", repository, "latest", to)]

    def _config(self, step: Step, repository: Path) -> str:
        tracked, lines, source = "", "", "AllocatedExtents(disk)"
        if step.written:
            tracked = _TRACKED.format(written=str(step.written))
            lines = "    disk = Tracked(disk, written)"
            source = "ChangedExtents(disk, point.previous(disk))"
        return _CONFIG.format(
            root=str(ROOT),
            tracked=tracked,
            lines=lines,
            source=source,
            level=self._level,
            directory=str(step.image.parent),
            store=str(repository),
        )


def _vadpipe(*words: str | Path) -> Command:
    return [sys.executable, "-m", "vadpipe", *words]


class Floor(Tool):
    """bench/floor.c. Each backup is a pack of its own; a restore and a verify decode that of the first."""

    name = "floor"
    one_core = True

    def __init__(self, program: Path, level: int) -> None:
        self._program = program
        self._level = level

    def commands(self, step: Step, store: Path, target: Path) -> Sequence[Command]:
        if step.action != "back up":
            pack = store / f"{step.first}.pack"
            raw = step.action == "restore"
            return [
                [self._program, "restore", pack, target / "raw"] if raw else [self._program, "decode", pack]
            ]
        words: list[str | Path]
        if step.areas:
            words = ["full", step.areas]
        elif step.known is None:
            words = ["full", step.image]
        elif step.known == step.image:
            return [[self._program, "scan", step.image]]
        else:
            words = ["again", step.known, step.image]
        if step.image.with_stem("disk01").exists():
            images = sorted(step.image.parent.glob("*.raw"))
            return [
                [self._program, "full", one, store / f"{one.stem}.pack", str(self._level)] for one in images
            ]
        return [[self._program, *words, store / f"{step.name}.pack", str(self._level)]]


# ---- the others


class Restic(Tool):
    name = "restic"
    programs = ("restic",)
    reads_holes = True

    def prepare(self, store: Path, scratch: Path) -> Sequence[Command]:
        return [_restic(store, "init", "--repository-version", "2")]

    def commands(self, step: Step, store: Path, target: Path) -> Sequence[Command]:
        if step.action == "back up":  # --force: as a user has to, whose images keep their times
            return [_restic(store, "backup", "--force", step.image)]
        if step.action == "discard":
            return [_restic(store, "dump", "latest", step.image)]
        if step.action == "restore":
            return [_restic(store, "restore", "latest", "--target", target)]
        return [_restic(store, "check", "--read-data")]


def _restic(store: Path, *words: str | Path) -> Command:
    return ["restic", "-q", "-r", store / "repository", *words]


class Borg(Tool):
    name = "borg"
    programs = ("borg",)
    reads_holes = True

    def prepare(self, store: Path, scratch: Path) -> Sequence[Command]:
        return [["borg", "init", "-e", "none", store / "repository"]]

    def commands(self, step: Step, store: Path, target: Path) -> Sequence[Command]:
        repository = store / "repository"
        if step.action == "back up":
            options = ["-C", "zstd,1", "--files-cache", "disabled", "--sparse"]
            return [["borg", "create", *options, f"{repository}::{step.name}", step.image]]
        if step.action == "verify":
            return [["borg", "check", "--verify-data", repository]]
        options = ["--stdout"] if step.action == "discard" else ["--sparse"]
        return [["borg", "extract", *options, f"{repository}::{step.first}"]]


class QemuImg(Tool):
    """Copies: no deduplication, and no second point. It has no check that reads the data."""

    name = "qemu-img"
    programs = ("qemu-img",)

    def commands(self, step: Step, store: Path, target: Path) -> Sequence[Command]:
        image = store / "full.qcow2"
        convert = ["qemu-img", "convert"]
        if step.action == "back up" and step.known is None and step.vm in ("vm", "noise"):
            options = ["-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd"]
            return [[*convert, *options, step.image, image]]
        if step.action == "restore" and step.vm == "vm":
            return [[*convert, "-f", "qcow2", "-O", "raw", image, target / "raw"]]
        if step.action == "discard" and step.vm == "vm":
            size = step.image.stat().st_size
            source = ["--image-opts", f"driver=qcow2,file.driver=file,file.filename={image}"]
            return [[*convert, "-n", *source, "--target-image-opts", f"driver=null-co,size={size}"]]
        return []


class Nbdcopy(Tool):
    """Copies the bytes: no compression, so what it wrote compares with nothing. The server's time is part of it."""

    name = "nbdcopy"
    programs = ("nbdcopy", "nbdkit")
    growth = False

    def commands(self, step: Step, store: Path, target: Path) -> Sequence[Command]:
        if step.action == "back up" and step.known is None and step.vm in ("vm", "noise"):
            served: Command = ["[", "nbdkit", "--exit-with-parent", "file", step.image, "]"]
            return [["nbdcopy", "--", *served, store / "copy.raw"]]
        return []


def tools(floor: Path, level: int) -> dict[str, Tool]:
    """All tools by name, the floor first."""
    every = [
        Floor(floor, level),
        Vadpipe(level, one_core=True),
        Vadpipe(level, one_core=False),
        Restic(),
        Borg(),
        QemuImg(),
        Nbdcopy(),
    ]
    return {tool.name: tool for tool in every}


def missing(tool: Tool) -> list[str]:
    """Its programs that are not installed."""
    return [program for program in tool.programs if shutil.which(program) is None]


# ---- what a command costs

# A small process starts the command: of a child, getrusage begins with the size of the process that started it.
_METER = """
import json, os, sys, time
cores, output, *words = sys.argv[1:]
os.sched_setaffinity(0, map(int, cores.split(",")))
begun = time.perf_counter()
opened = [(os.POSIX_SPAWN_OPEN, 1, output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)]
child = os.posix_spawnp(words[0], words, os.environ, file_actions=opened)
_, status, used = os.wait4(child, 0)
wall_s = time.perf_counter() - begun
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, wall_s, used.ru_maxrss]))
"""


def measure(
    tool: Tool, commands: Sequence[Command], place: Path, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Run commands of a tool one after the other, in the directory `place`.

    Returns:
        `cpu_s` and `wall_s`, their sums; `peak_rss`, the largest, in bytes; and of the floor its `steps`.

    Raises:
        ConfigError: A command failed; says what it wrote.
    """
    cores = sorted(os.sched_getaffinity(0))
    chosen = ",".join(map(str, cores[-1:] if tool.one_core else cores))
    floor = isinstance(tool, Floor)
    output = place / ".output" if floor else Path("/dev/null")
    total: dict[str, Any] = {"cpu_s": 0.0, "wall_s": 0.0, "peak_rss": 0}
    for command in commands:
        words = [sys.executable, "-I", "-S", "-c", _METER, chosen, output, *command]
        done = subprocess.run(words, check=False, cwd=place, env=environment, capture_output=True, text=True)
        code, cpu_s, wall_s, peak = json.loads(done.stdout) if done.returncode == 0 else (1, 0, 0, 0)
        if code:
            raise ConfigError(f"{' '.join(map(str, command))} failed: {done.stderr.strip()}")
        if floor:  # it knows what it spent on the work itself
            own = json.loads(output.read_text())
            output.unlink()
            cpu_s, wall_s, total["steps"] = own["cpu_s"], own["wall_s"], own["steps"]
        total["cpu_s"] += cpu_s
        total["wall_s"] += wall_s
        total["peak_rss"] = max(total["peak_rss"], peak * KiB)
    return total


def environment_of(scratch: Path) -> dict[str, str]:
    """Passwords and caches of the tools, and this repository's own packages."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RESTIC_PASSWORD": "bench",
        "RESTIC_CACHE_DIR": f"{scratch}/restic-cache",
        "BORG_BASE_DIR": f"{scratch}/borg-base",
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    }


def versions(chosen: Sequence[Tool]) -> dict[str, str]:
    """The versions of the programs of other people."""
    found = {}
    for tool in chosen:
        if tool.programs:
            asked = [tool.programs[0], "version" if tool.name == "restic" else "--version"]
            said = subprocess.run(asked, check=False, capture_output=True, text=True).stdout
            found[tool.name] = next(iter(re.findall(r"\d+(?:\.\d+)+", said)), "")
    return found


def size_of(store: Path) -> int:
    """The bytes of the files in a store."""
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


def settle() -> None:
    """Let what was written reach the disk, so that no later command pays for it."""
    os.sync()
    time.sleep(0.1)
