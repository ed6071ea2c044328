"""How much memory a command and all of its children hold together."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_S = 0.02


@dataclass(frozen=True)
class Measured:
    """A finished command. `peak_rss` is the largest sum of resident bytes of its process tree that was seen;
    memory that processes share counts once for each of them."""

    returncode: int
    stdout: str
    stderr: str
    peak_rss: int


def run_measured(command: Sequence[str | Path], environment: Mapping[str, str]) -> Measured:
    """Run a command to its end and watch its memory."""
    with subprocess.Popen(
        command, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        peak = [0]
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, ended, peak))
        watcher.start()
        try:
            stdout, stderr = process.communicate()
        finally:
            ended.set()
            watcher.join()
    return Measured(process.returncode, stdout, stderr, peak[0])


def _watch(pid: int, ended: threading.Event, peak: list[int]) -> None:
    while not ended.wait(SAMPLE_S):
        peak[0] = max(peak[0], sum(_resident(one) for one in tree(pid)))


def tree(pid: int) -> list[int]:
    """The process and its descendants, as far as they live."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue  # it ended meanwhile
    return found


def _resident(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0  # it ended meanwhile
    return 0
