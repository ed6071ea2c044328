"""Composition is typed: a wrong order is an error of the type checker at the very joint."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SKETCH = """\
from pipeline import CutSpan, Disk, DiskReceipt, Flow, Gap, Pipeline, Span
from pipeline.testing import PatternDisk
from sinks import NullSink
from stages import AllocatedExtents, Compress, CutChunks, Dedupe, Digest, MarkZeros, MemoryIndex, ReadSpans

disk: Disk = PatternDisk(1 << 20)
index = MemoryIndex()
flow: Flow[Span | Gap] = AllocatedExtents(disk) | ReadSpans(disk) | MarkZeros()
cut: Flow[CutSpan | Gap] = flow | CutChunks()
right: Pipeline[DiskReceipt] = cut | Digest(index) | Dedupe(index) | Compress() | NullSink()
digest_before_cut = flow | Digest(index)  # wrong
compress_before_dedupe = cut | Digest(index) | Compress()  # wrong
zeros_after_cut = cut | MarkZeros()  # wrong
cut_twice = cut | CutChunks()  # wrong
digest_twice = cut | Digest(index) | Dedupe(index) | Digest(index)  # wrong
Digest()  # wrong
Compress(3)  # wrong
windows_into_null: Pipeline[DiskReceipt] = AllocatedExtents(disk) | NullSink()
"""


@pytest.mark.slow
def test_deliberate_mistakes_are_flagged_and_nothing_else(tmp_path):
    sketch = tmp_path / "sketch.py"
    sketch.write_text(SKETCH)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", ROOT / "pyproject.toml", sketch]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    flagged = {int(line) for line in re.findall(r"sketch\.py:(\d+): error:", done.stdout)}
    wrong = {number for number, line in enumerate(SKETCH.splitlines(), 1) if line.endswith("# wrong")}
    assert flagged == wrong, done.stdout + done.stderr
