"""Configurations to measure with: small disks made from a pattern, and paths as users write them."""

import json

from vadpipe.cli.main import main

CONFIG = """\
from pathlib import Path

import trio

from pipeline import Job
from pipeline.testing import FakeMachine, FaultyDisk, PatternDisk
from sinks import IntoRepository, Nowhere, NullSink, Repository
from stages import *

HERE = Path(__file__).parent

def told(name):
    def tell(receipt):
        with (HERE / name).open("a") as file:
            print(receipt.machine, file=file)
    return tell

class Machine(FakeMachine):
    def capture(self):
        told("captures")(Machine)
        return super().capture()

Machine.machine = "captured"

def path(disk, point):
    return (
        AllocatedExtents(disk) | ReadSpans(disk) | MarkZeros() | CutChunks() | Digest(point)
        | Refine(point, disk) | Dedupe(point) | Compress(Zstd(level=1), workers=2) | IntoRepository(point, disk)
    )

job = Job(
    Machine([PatternDisk(9 << 20)]),
    path,
    into=Repository(HERE / "repository"),
    on_success=[told("hooks")],
    name="web01",
)
"""


def config_in(directory, text=CONFIG):
    place = directory / "config.py"
    place.write_text(text)
    return place


def bench(capsys, *words):
    """Run `vadpipe bench` in this process: its exit code, and what it wrote to standard output and error."""
    try:
        main(["bench", *map(str, words)])
    except SystemExit as ended:
        shown = capsys.readouterr()
        return ended.code, shown.out, shown.err
    raise AssertionError("main ends the process")


def document(capsys, *words):
    """The JSON document of a benchmark that goes well."""
    code, out, err = bench(capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)
