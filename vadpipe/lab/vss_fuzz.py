"""`python -m vadpipe.lab.vss_fuzz --minutes M --seed S`: the reader and the classifier on manifests that mean harm.

Batches of manifests are drawn by `.vss.hostile` and, every other one, by hypothesis from the grammar of the
documents. Each is read and classified in a child process that measures itself: CPU time of the whole and of its
worst document, and the highest memory above what the process had with the manifest in hand. What breaks a promise
is printed with its number; `--only N` makes it again, `--keep DIR` writes it down.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

import click

from vadpipe.vss.archive import ManifestUnreadable, Member, read_members
from vadpipe.vss.classify import classify_documents
from vadpipe.vss.parse import parse_document, read_manifest
from vadpipe.vss.verdict import Verdict

from .vss.hostile import hostile
from .vss.strategies import examples

MOST_MEMORY = 64 << 20
MOST_CPU_S = 1.0  # of one document
_BATCH = 200  # manifests per child
_HANGS_AFTER_S = 120  # CPU-seconds of a child


@dataclass
class Measured:
    """What one manifest cost, and what was wrong. `cpu_s` is of the whole, `document_s` of its worst document."""

    number: int
    what: str
    length: int
    level: str = ""
    cpu_s: float = 0.0
    document_s: float = 0.0
    memory: int = 0
    wrong: str = ""


@dataclass
class Tally:
    """What a campaign found."""

    levels: Counter[str] = field(default_factory=Counter)
    documents: int = 0
    cpu_s: float = 0.0
    worst_cpu: Measured | None = None
    worst_document: Measured | None = None
    worst_memory: Measured | None = None
    wrong: list[Measured] = field(default_factory=list)

    def add(self, one: Measured) -> None:
        self.levels[one.level or "refused"] += 1
        self.documents += 1
        self.cpu_s += one.cpu_s
        if self.worst_cpu is None or one.cpu_s > self.worst_cpu.cpu_s:
            self.worst_cpu = one
        if self.worst_document is None or one.document_s > self.worst_document.document_s:
            self.worst_document = one
        if self.worst_memory is None or one.memory > self.worst_memory.memory:
            self.worst_memory = one
        if one.wrong:
            self.wrong.append(one)

    def lines(self) -> Iterator[str]:
        rate = self.documents / self.cpu_s if self.cpu_s else 0.0
        yield f"{self.documents} manifests, {rate:.0f} per CPU-second of reading and classifying"
        yield "verdicts: " + ", ".join(f"{level} {count}" for level, count in self.levels.most_common())
        if self.worst_cpu and self.worst_document and self.worst_memory:
            yield f"most CPU of a manifest: {self.worst_cpu.cpu_s:.3f} s ({_about(self.worst_cpu)})"
            yield f"most CPU of a document: {self.worst_document.document_s:.3f} s ({_about(self.worst_document)})"
            yield f"most memory: {self.worst_memory.memory / 2**20:.1f} MiB ({_about(self.worst_memory)})"
        yield f"promises broken: {len(self.wrong)}"
        for one in self.wrong:
            yield f"  {_about(one)}: {one.wrong}"


def _about(one: Measured) -> str:
    return f"number {one.number}, {one.what}"


def judge(content: bytes) -> Verdict | None:
    """Read and classify; None when the whole is refused, which is the only error there may be."""
    try:
        documents = read_manifest(content)
    except ManifestUnreadable:
        return None
    return classify_documents(documents)


def measure(number: int, what: str, content: bytes) -> Measured:
    """Judge one manifest and look whether the promises were kept."""
    one = Measured(number, what, len(content))
    before = _settled_memory()
    started_s = time.process_time()
    try:
        verdict = judge(content)
        one.level = "" if verdict is None else verdict.level.value
        del verdict
    except Exception:
        one.wrong = "".join(traceback.format_exc(limit=-3))
    one.cpu_s = time.process_time() - started_s
    one.memory = _status("VmHWM") - before
    one.document_s = one.cpu_s if one.cpu_s < MOST_CPU_S / 2 else _worst_document_s(content)
    if one.document_s > MOST_CPU_S:
        one.wrong = f"a document took {one.document_s:.2f} CPU-s"
    elif one.memory > MOST_MEMORY:
        one.wrong = f"took {one.memory / 2**20:.0f} MiB"
    return one


def _worst_document_s(content: bytes) -> float:
    worst_s = 0.0
    try:
        for member in read_members(content):
            if isinstance(member, Member):
                started_s = time.process_time()
                parse_document(member.name, member.data)
                worst_s = max(worst_s, time.process_time() - started_s)
    except ManifestUnreadable:
        pass
    return worst_s


def _settled_memory() -> int:
    """Bytes resident now, unused memory given back, the high-water mark set to it."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))


def drawn(seed: int, numbers: range) -> Iterator[tuple[int, str, bytes]]:
    """(number, what it is, the manifest) of these numbers of a seed."""
    batch = numbers.start // _BATCH
    if batch % 2:
        for offset, content in enumerate(examples(seed << 32 | batch, _BATCH)):
            if (number := batch * _BATCH + offset) in numbers:
                yield number, "drawn by hypothesis", content
    else:
        for number in numbers:
            yield number, *hostile(random.Random(f"{seed}/{number}"))


def campaign(seed: int, numbers: range, until_s: float) -> Iterator[Measured]:
    """Measure manifests in children of a batch each, until a time of the monotonic clock."""
    first = numbers.start
    while first < numbers.stop and time.monotonic() < until_s:
        batch = range(first, min(first - first % _BATCH + _BATCH, numbers.stop))
        yield from _in_child(seed, batch, until_s)
        first = batch.stop


def _in_child(seed: int, batch: range, until_s: float) -> Iterator[Measured]:
    """Measure a batch. A child that dies has one wrong number: the one after its last."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _measure_all(seed, batch, until_s, writing)
    os.close(writing)
    last = batch.start - 1
    with os.fdopen(reading) as results:
        for line in results:
            one = Measured(**json.loads(line))
            last = one.number
            yield one
    _, status = os.waitpid(child, 0)
    if status:
        yield Measured(last + 1, "?", 0, wrong=f"its process ended with status {status}")


def _measure_all(seed: int, batch: range, until_s: float, writing: int) -> NoReturn:
    resource.setrlimit(resource.RLIMIT_CPU, (_HANGS_AFTER_S, _HANGS_AFTER_S))
    try:
        with os.fdopen(writing, "w", buffering=1) as results:
            for number, what, content in drawn(seed, batch):
                if time.monotonic() >= until_s:
                    break
                print(json.dumps(asdict(measure(number, what, content))), file=results)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


@click.command()
@click.option("--minutes", default=20.0, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--only", type=int, help="Only this number of the seed.")
@click.option(
    "--keep", type=click.Path(path_type=Path, file_okay=False), help="Write what broke a promise there."
)
def main(minutes: float, seed: int, only: int | None, keep: Path | None) -> None:
    """The reader and the classifier on manifests that mean harm."""
    tally = Tally()
    numbers = range(1 << 40) if only is None else range(only, only + 1)
    started_s = time.monotonic()
    for one in campaign(seed, numbers, started_s + minutes * 60):
        tally.add(one)
        if one.wrong and keep:
            keep.mkdir(parents=True, exist_ok=True)
            for number, _, content in drawn(seed, range(one.number, one.number + 1)):
                (keep / f"{seed}-{number}.zip").write_bytes(content)
    click.echo(f"seed {seed}, {(time.monotonic() - started_s) / 60:.1f} minutes: ", nl=False)
    for line in tally.lines():
        click.echo(line)
    sys.exit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()
