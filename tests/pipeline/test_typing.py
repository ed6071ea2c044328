"""Composition is typed: a wrong order is an error of the type checker at the very joint."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SKETCH = """\
from pipeline import Disk, Flow, Gap, Pipeline, Span
from pipeline.testing import PatternDisk
from sinks import NullSink
from stages import AllocatedExtents, Blake3, Compress, CutChunks, Dedupe, Digest, MarkZeros, MemoryIndex, ReadSpans

disk: Disk = PatternDisk(1 << 20)
flow: Flow[Span | Gap] = AllocatedExtents(disk) | ReadSpans(disk) | MarkZeros()
right: Pipeline[int] = flow | CutChunks() | Digest(Blake3()) | Dedupe(MemoryIndex()) | Compress() | NullSink()
digest_before_cut = flow | Digest(Blake3())  # wrong
compress_before_dedupe = flow | CutChunks() | Digest() | Compress()  # wrong
windows_into_null: Pipeline[int] = AllocatedExtents(disk) | NullSink()
"""


@pytest.mark.slow
def test_two_deliberate_mistakes_are_flagged_and_nothing_else(tmp_path):
    sketch = tmp_path / "sketch.py"
    sketch.write_text(SKETCH)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", ROOT / "pyproject.toml", sketch]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    flagged = {int(line) for line in re.findall(r"sketch\.py:(\d+): error:", done.stdout)}
    wrong = {number for number, line in enumerate(SKETCH.splitlines(), 1) if line.endswith("# wrong")}
    assert flagged == wrong, done.stdout + done.stderr
