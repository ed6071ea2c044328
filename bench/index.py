"""What the index of a repository costs: look-ups per second, memory, opening, merging.

    python bench/index.py --chunks 20000000 --seed 1 [--sealed] [--directory DIR]

An index of so many random chunks (16 to a frame) is written: one large segment, merged from segments of a
million chunks, and some smaller ones. Then a process of its own opens it as a run does, and looks up chunks of
each kind, in batches as the stages ask for them: 64 is a span of 4 MiB. `missing`: in no segment. `random`: known,
in no order. `sequential`: known, in the order in which they were stored. `beside_own`: missing, when the run has
written a segment. Rates are per second and per CPU-second of that process; the first missing ones pay for loading
the filters. Its memory is the largest resident set, at the end with a draft of the run that was nearly full and is
written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline import DIGEST_SIZE, NO_FRAME, KiB, MiB
from vadpipe.bench.machine import machine_line
from vadpipe.repository.backends.local import LocalBackend
from vadpipe.repository.format.config import Keys
from vadpipe.repository.format.frames import chunk_table, frame_id
from vadpipe.repository.format.objects import Objects, pack_id, segment_name
from vadpipe.repository.format.packs import FRAME_ROW
from vadpipe.repository.format.sealing import Sealing, Secrets
from vadpipe.repository.index.lookup import DRAFT_ROWS, RunIndex
from vadpipe.repository.index.merging import AT_ONCE, merge
from vadpipe.repository.index.segment_writer import TemporarySegment, publish, write_segment

CHUNK: Final = 64 * KiB
PER_FRAME: Final = 16  # a frame has 1 MiB
FRAMES_PER_PACK: Final = 100
LARGEST_PIECE: Final = 1_000_000
SMALL: Final = 8  # segments beside the large one, each half as large as the one before
REPOSITORY: Final = bytes(16)
KEYS: Final = Keys.derive(bytes(DIGEST_SIZE))
BATCHES: Final = (64, 4096)
BLOCK: Final = 16 * KiB  # chunks made together: what asks should not need much memory itself

Digests = NDArray[np.uint8]


def digests(seed: int, piece: int, block: int, count: int = BLOCK) -> Digests:
    """A block of the chunks of a piece of the index; a piece that is not in it gives missing ones."""
    return np.random.default_rng((seed, piece, block)).integers(0, 256, (count, DIGEST_SIZE), dtype=np.uint8)


def piece_of(seed: int, piece: int, count: int) -> Digests:
    blocks = [digests(seed, piece, block) for block in range(-(-count // BLOCK))]
    return np.concatenate(blocks)[:count]


def pieces_of(chunks: int) -> list[int]:
    """How many chunks each piece has: those of the large segment, then the small segments."""
    small = [chunks >> (6 + number) for number in range(SMALL)]
    small = [count // PER_FRAME * PER_FRAME for count in small if count >= PER_FRAME]
    large = chunks - sum(small)
    size = min(LARGEST_PIECE, max(PER_FRAME, large // 8 // PER_FRAME * PER_FRAME))
    return [min(size, large - low) for low in range(0, large, size)] + small


def opened(place: Path, sealed: bool) -> tuple[Objects, Sealing | None]:
    secrets = Secrets(bytes(32), {1: bytes(32)})
    return Objects(LocalBackend(place)), Sealing(REPOSITORY, secrets) if sealed else None


def build(place: Path, chunks: int, seed: int, sealed: bool) -> dict[str, float]:
    """Write the index. Returns the CPU-seconds of writing and merging for a million chunks."""
    objects, sealing = opened(place, sealed)
    sizes = pieces_of(chunks)
    spent = time.process_time()
    names: list[str] = []
    for piece, count in enumerate(sizes):
        digest = piece_of(seed, piece, count)
        frames = np.zeros(-(-count // PER_FRAME), FRAME_ROW)
        frames["chunks"] = np.diff(np.append(np.arange(0, count, PER_FRAME), count))
        frames["length"], frames["size"] = frames["chunks"] * CHUNK, frames["chunks"] * 50_000
        frames["pack"] = np.arange(len(frames)) // FRAMES_PER_PACK
        frames["offset"] = 48 + np.arange(len(frames)) % FRAMES_PER_PACK * 800_000
        for number in range(len(frames)):
            part = digest[number * PER_FRAME : (number + 1) * PER_FRAME]
            table = chunk_table(np.full(len(part), CHUNK), part)
            frames["id"][number] = np.frombuffer(frame_id(table, KEYS), np.uint8)
        run_id = f"{piece:016x}"
        packs = [pack_id(run_id, number) for number in range(int(frames["pack"].max()) + 1)]
        name = segment_name(run_id, 0)
        temporary = TemporarySegment(name, place)
        in_frame = np.arange(count) % PER_FRAME * CHUNK
        write_segment(temporary.file, name, REPOSITORY, digest, frames, in_frame, packs, sealing)
        publish(objects, temporary)
        temporary.close()
        names.append(name)
    written = time.process_time() - spent
    large = names[: len(names) - sum(count < sizes[0] for count in sizes[-SMALL:])]
    merged = sum(sizes[: len(large)])
    done = again(place, "merge", str(len(large)), *["--sealed"] * sealed)
    objects.backend.delete(large)
    return {
        "write_cpu_s_per_million": written / chunks * 1e6,
        "merge_cpu_s_per_million": done["cpu_s"] / merged * 1e6,
        "merge_rss_mib": done["rss_mib"],
        "index_bytes_per_chunk": sum(each.size for each in objects.backend.list("index/")) / chunks,
        "segments": len(list(objects.backend.list("index/"))),
    }


def merge_first(place: Path, many: int, sealed: bool) -> dict[str, float]:
    """In a process of its own: merge the first segments."""
    objects, sealing = opened(place, sealed)
    names = [segment_name(f"{piece:016x}", 0) for piece in range(many)]
    spent = time.process_time()
    for low in range(0, many, AT_ONCE):
        final = segment_name("ff" * 8, low)
        merge(objects, REPOSITORY, names[low : low + AT_ONCE], final, sealing=sealing, directory=place)
    return {"cpu_s": time.process_time() - spent, "rss_mib": rss_mib()}


def again(place: Path, *words: str) -> dict[str, float]:
    """What a part of this program gives in a process of its own."""
    part = [word for word in words if not word.startswith("--")]
    options = [word for word in words if word.startswith("--")]
    command = [sys.executable, __file__, f"--directory={place}", *options, "--part", *part]
    result: dict[str, float] = json.loads(subprocess.check_output(command))
    return result


def measure(place: Path, chunks: int, seed: int, sealed: bool, lookups: int) -> dict[str, float]:
    """In a process of its own: open the index as a run does, and look up."""
    objects, sealing = opened(place, sealed)
    sizes = pieces_of(chunks)
    result: dict[str, float] = {"rss_before_mib": rss_mib()}
    started = time.perf_counter()
    index = RunIndex(objects, REPOSITORY, "ee" * 8, KEYS, sealing, directory=place)
    result["open_ms"] = (time.perf_counter() - started) * 1e3
    random = np.random.default_rng(seed)
    for batch in BATCHES:
        for kind in ("sequential", "random", "missing"):
            many = lookups // {"sequential": 1, "missing": 5, "random": 50}[kind]
            cpu = wall = 0.0
            asked = found = 0
            for wanted in queries(kind, seed, sizes, random, many, batch):
                spent, started = time.process_time(), time.perf_counter()
                numbers, _ = index.lookup(wanted)
                cpu += time.process_time() - spent
                wall += time.perf_counter() - started
                asked += len(wanted)
                found += int((numbers != NO_FRAME).sum())
            assert found == (0 if kind == "missing" else asked), (
                f"{found} of {asked} {kind} chunks were found"
            )
            result[f"{kind}_{batch}_per_s"] = asked / wall
            result[f"{kind}_{batch}_per_cpu_s"] = asked / max(cpu, 1e-9)
            result[f"{kind}_{batch}_rss_mib"] = rss_mib()
    new = digests(seed, 3 * len(sizes), 0)
    for low in range(0, DRAFT_ROWS - BLOCK, PER_FRAME):
        if low % BLOCK == 0:
            new = digests(seed, 3 * len(sizes), low // BLOCK)
        part = new[low % BLOCK : low % BLOCK + PER_FRAME]
        number = index.add_frame(np.full(len(part), CHUNK), part, bytes(DIGEST_SIZE))
        index.stored(number, low // PER_FRAME // FRAMES_PER_PACK, 48, 1)
        if low % 1024 == 0:
            index.lookup(part)
    spent = time.process_time()
    for draft in index.last():
        index.replace(draft, index.write(draft))
    result["publish_cpu_s"] = time.process_time() - spent
    cpu, asked = 0.0, 0
    for wanted in queries("missing", seed + 1, sizes, random, lookups // 20, BATCHES[0]):
        spent = time.process_time()
        assert (index.lookup(wanted)[0] == NO_FRAME).all()
        cpu += (time.process_time() - spent) * (asked > 0)  # the first one loads the filter
        asked += len(wanted)
    result["beside_own_64_per_cpu_s"] = asked / max(cpu, 1e-9)
    result["filters_mib"] = index.filters.loaded / MiB
    spent = time.process_time()
    index.publish()
    result["publish_cpu_s"] += time.process_time() - spent
    result["rss_mib"] = rss_mib()
    index.close()
    return result


def queries(
    kind: str, seed: int, sizes: list[int], random: np.random.Generator, many: int, batch: int
) -> Iterator[Digests]:
    """Batches of digests, `many` chunks in all."""
    while True:
        piece = int(random.choice(len(sizes), p=np.array(sizes) / sum(sizes)))
        block = int(random.integers(-(-sizes[piece] // BLOCK)))
        known = digests(seed, piece + len(sizes) * (kind == "missing"), block)
        if kind != "missing":
            known = known[: sizes[piece] - block * BLOCK]
        if kind == "random":  # few of many places
            known = known[random.permutation(len(known))[: max(1, batch // 64)]]
            others = [digests(seed, piece, block)[:0]]
            while sum(map(len, others)) + len(known) < batch:
                piece = int(random.choice(len(sizes), p=np.array(sizes) / sum(sizes)))
                block = int(random.integers(-(-sizes[piece] // BLOCK)))
                there = digests(seed, piece, block)[: sizes[piece] - block * BLOCK]
                others.append(there[random.permutation(len(there))[: max(1, batch // 16)]])
            known = np.concatenate((known, *others))
            known = known[random.permutation(len(known))[:batch]]
        for low in range(0, len(known), batch):
            if many <= 0:
                return
            yield known[low : low + batch]
            many -= batch


def rss_mib() -> float:
    """The largest resident set of this process so far; getrusage may tell that of the process it came from."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--lookups", type=int, default=1_000_000, help="sequential; a fifth missing, a fiftieth random"
    )
    parser.add_argument("--sealed", action="store_true")
    parser.add_argument("--directory", type=Path, help="where the index is written; by default the system's")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part, *words = options.part
        if part == "merge":
            done = merge_first(options.directory, int(words[0]), options.sealed)
        else:
            done = measure(options.directory, options.chunks, options.seed, options.sealed, options.lookups)
        print(json.dumps(done))
        return
    needed = 60 * options.chunks * 3  # the pieces, the large segment, and the temporary files of merging
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        if shutil.disk_usage(scratch).free < needed:
            sys.exit(f"{scratch} has less than the {needed / 1e9:.0f} GB that so many chunks need")
        made = build(Path(scratch), options.chunks, options.seed, options.sealed)
        words = [f"--{name}={getattr(options, name)}" for name in ("chunks", "seed", "lookups")]
        found = again(Path(scratch), "measure", *words, *["--sealed"] * options.sealed)
    print(machine_line())
    sealed = "sealed" if options.sealed else "not sealed"
    print(f"{options.chunks} chunks, {sealed}, seed {options.seed}, load", *os.getloadavg())
    for name, value in {**made, **found}.items():
        print(f"{name:28} {value:14,.1f}" if value < 1000 else f"{name:28} {value:14,.0f}")


if __name__ == "__main__":
    main()
