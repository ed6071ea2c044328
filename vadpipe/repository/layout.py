"""Where everything of a repository lies, and what its files may be called.

Every file that a run writes begins with the id of the run. So what a dead run left is found by name, without a
journal that would have to be flushed before each file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

RUN_ID_SIZE = 8
PACK_ID_SIZE = RUN_ID_SIZE + 4

_RUN_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Layout:
    """The paths of the repository in directory `root`."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def packs(self) -> Path:
        return self.root / "packs"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def points(self) -> Path:
        return self.root / "points"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def directories(self) -> tuple[Path, ...]:
        return (self.packs, self.index, self.points, self.runs, self.tmp)

    def pack(self, pack_id: str) -> Path:
        """The last two digits spread the packs of one run, whose ids begin alike, over 256 directories."""
        return self.packs / pack_id[-2:] / f"{pack_id}.pack"

    def segment(self, run_id: str, serial: int) -> Path:
        return self.index / f"{run_id}{serial:08x}.idx"

    def point(self, machine_uuid: str, point_id: str) -> Path:
        return self.points / machine_directory(machine_uuid) / f"{point_id}.json"

    def lock(self, run_id: str) -> Path:
        return self.runs / f"{run_id}.lock"

    def segments_of(self, run_id: str) -> list[Path]:
        return sorted(self.index.glob(f"{run_id}*.idx"))

    def packs_of(self, run_id: str) -> list[Path]:
        return sorted(self.packs.glob(f"??/{run_id}*.pack"))

    def temporary_of(self, run_id: str) -> list[Path]:
        return sorted(self.tmp.glob(f"{run_id}*"))


def pack_id(run_id: str, serial: int) -> str:
    """Pack number `serial` of a run."""
    return f"{run_id}{serial:08x}"


def run_of(path: Path) -> str | None:
    """The id of the run that wrote a file, if its name begins with one."""
    found = _RUN_ID.match(path.name)
    return found.group() if found else None


def machine_directory(uuid: str) -> str:
    """A VM's UUID as a file name. UUIDs come from configuration files: none may name another directory."""
    name = quote(uuid, safe="")
    return name.replace(".", "%2E") if name.strip(".") == "" else name
