"""`python -m vadpipe.lab.faults.mutations --count N --seed S`: stored files are altered, one at a time.

A small repository with three points is altered in one place: bytes are flipped, files are cut, extended, deleted,
exchanged, or replaced by what is no file at all. Then every point is restored, `verify` reads everything, and one
more backup runs and is restored.

Promised: no point is restored with wrong bytes; one that cannot be restored is named by an error of vadpipe; what
`verify` calls sound can be restored; the next run ends well or with an error of vadpipe; nothing hangs.
Not promised: that a run notices damage in frames that it refers to without reading them (`verify` does), and that
somebody misses the newest point when its file is deleted.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import click
import trio

from pipeline.errors import are_ours, leaves
from vadpipe.repository import Repository, RepositoryReader, RestorePoint, open_repository, verify

from . import forked
from .history import back_up, digests, restored_digests, scratch, small_files

BACKUPS = 3

# An altered repository is checked in a fraction of a second; what takes this long has hung.
HANGS_AFTER_S = 20.0


@dataclass(frozen=True)
class Mutation:
    """What was done to which files. `removes_newest`: it deleted the file of the newest point."""

    name: str
    files: tuple[str, ...]
    removes_newest: bool


def mutate(root: Path, draw: random.Random) -> Mutation:
    """Alter one thing in the repository at `root`."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    # Each kind of file as often as the others: packs would else hide the small files.
    kinds = sorted({_kind(root, path) for path in files})
    kind = draw.choice(kinds)
    same = [path for path in files if _kind(root, path) == kind]
    path = draw.choice(same)
    name, act = draw.choice(_ACTS)
    newest = kind == "points" and path == max(same, key=lambda one: one.stat().st_mtime_ns)
    others = act(path, same, draw)
    named = tuple(str(one.relative_to(root)) for one in (path, *others))
    return Mutation(name, named, newest and not path.exists())


def _kind(root: Path, path: Path) -> str:
    return path.relative_to(root).parts[0]


def _flip_bit(path: Path, same: list[Path], draw: random.Random) -> tuple[Path, ...]:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return ()


def _overwrite(path: Path, same: list[Path], draw: random.Random) -> tuple[Path, ...]:
    content = bytearray(path.read_bytes())
    start = draw.randrange(len(content))
    length = min(len(content) - start, 1 << draw.randrange(13))
    fill = draw.choice([bytes(length), b"\xff" * length, draw.randbytes(length)])
    content[start : start + length] = fill
    path.write_bytes(content)
    return ()


def _copy_inside(path: Path, same: list[Path], draw: random.Random) -> tuple[Path, ...]:
    content = bytearray(path.read_bytes())
    length = min(len(content) // 2, 1 << draw.randrange(13)) or 1
    source, target = (draw.randrange(len(content) - length + 1) for _ in range(2))
    content[target : target + length] = content[source : source + length]
    path.write_bytes(content)
    return ()


def _cut(path: Path, same: list[Path], draw: random.Random) -> tuple[Path, ...]:
    os.truncate(path, draw.randrange(path.stat().st_size))
    return ()


def _cut_front(path: Path, same: list[Path], draw: random.Random) -> tuple[Path, ...]:
    content = path.read_bytes()
    path.write_bytes(content[draw.randrange(1, len(content)) :])
    return ()


def _extend(path: Path, same: list[Path], draw: random.Random) -> tuple[Path, ...]:
    with path.open("ab") as file:
        file.write(draw.choice([bytes(draw.randrange(1, 5000)), draw.randbytes(draw.randrange(1, 5000))]))
    return ()


def _delete(path: Path, same: list[Path], draw: random.Random) -> tuple[Path, ...]:
    path.unlink()
    return ()


def _exchange(path: Path, same: list[Path], draw: random.Random) -> tuple[Path, ...]:
    other = draw.choice(same)
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)
    return (other,)


def _replace_by_other(path: Path, same: list[Path], draw: random.Random) -> tuple[Path, ...]:
    other = draw.choice(same)
    if other != path:
        shutil.copyfile(other, path)
    return (other,)


def _replace_by_directory(path: Path, same: list[Path], draw: random.Random) -> tuple[Path, ...]:
    path.unlink()
    path.mkdir()
    return ()


def _replace_by_pipe(path: Path, same: list[Path], draw: random.Random) -> tuple[Path, ...]:
    path.unlink()
    os.mkfifo(path)
    return ()


def _replace_by_dangling_link(path: Path, same: list[Path], draw: random.Random) -> tuple[Path, ...]:
    path.unlink()
    path.symlink_to("nowhere")
    return ()


def _replace_by_hole(path: Path, same: list[Path], draw: random.Random) -> tuple[Path, ...]:
    os.truncate(path, 0)
    os.truncate(path, draw.choice([1, 64, 5000, 1 << 30]))
    return ()


_Act = Callable[[Path, list[Path], random.Random], tuple[Path, ...]]
_ACTS: list[tuple[str, _Act]] = [
    ("flip a bit", _flip_bit),
    ("overwrite", _overwrite),
    ("copy inside", _copy_inside),
    ("cut the end", _cut),
    ("cut the front", _cut_front),
    ("extend", _extend),
    ("delete", _delete),
    ("exchange two files", _exchange),
    ("replace by another file", _replace_by_other),
    ("replace by a directory", _replace_by_directory),
    ("replace by a pipe", _replace_by_pipe),
    ("replace by a dangling link", _replace_by_dangling_link),
    ("replace by a hole", _replace_by_hole),
]


async def outcome(root: Path, seed: int) -> tuple[str, list[str]]:
    """How an altered repository behaves: in a word, and what is wrong with that."""
    right = {tuple(sorted(digests(seed, step).items())) for step in range(1, BACKUPS + 2)}
    wrong: list[str] = []
    told = False  # whether anything said that the repository is altered
    restored = 0
    try:
        async with open_repository(root) as reader:
            told = bool(reader.damaged)
            for point in reader.points:
                held = await _restored(reader, point, wrong)
                told |= held is None
                if held is not None and held not in right:
                    wrong.append(f"point {point.id} is restored with wrong bytes")
                restored += held is not None
            report = await verify(reader)
            told |= bool(report.damages)
            if not report.damages and restored < len(reader.points):
                wrong.append("verify calls sound what cannot be restored")
    except Exception as exc:
        told = True
        wrong += _foreign(exc, "reading")
    try:
        identity = await back_up(Repository(str(root)), seed, BACKUPS + 1)
        async with open_repository(root) as reader:
            (new,) = [point for point in reader.points if point.id == identity]
            held = await _restored(reader, new, wrong)
        told |= held is None
        if held is not None and held not in right:
            wrong.append("the point of the next run is restored with wrong bytes")
    except Exception as exc:
        told = True
        wrong += _foreign(exc, "the next run")
    if not told and restored < BACKUPS:
        return "points missing", wrong
    return ("noticed" if told else "harmless"), wrong


async def _restored(
    reader: RepositoryReader, point: RestorePoint, wrong: list[str]
) -> tuple[tuple[str, str], ...] | None:
    try:
        return await restored_digests(reader, point)
    except Exception as exc:
        wrong += _foreign(exc, "restoring")
        return None


def _foreign(exc: BaseException, doing: str) -> list[str]:
    """An error that is not one of ours."""
    if are_ours(exc):
        return []
    return [f"{doing}: {leaf!r}" for leaf in leaves(exc)]


def build(root: Path, seed: int) -> None:
    """The repository that is altered."""
    small_files()
    repository = Repository(str(root))
    repository.init()
    for step in range(1, BACKUPS + 1):
        trio.run(back_up, repository, seed, step)


def _check(job: tuple[Path, int, int]) -> tuple[int, Mutation, str, list[str]]:
    original, seed, number = job
    logging.disable(logging.WARNING)  # damage that a run reports is no news here
    small_files()
    with tempfile.TemporaryDirectory(dir=original.parent) as directory:
        root = Path(directory, "repository")
        shutil.copytree(original, root)  # with the times, which tell the newest point
        mutation = mutate(root, random.Random(f"{seed}/{number}"))
        try:
            word, wrong = forked.call(lambda: trio.run(outcome, root, seed), HANGS_AFTER_S)
        except RuntimeError as exc:
            word, wrong = "failed", [str(exc)]
        return number, mutation, word, wrong


def campaign(count: int, seed: int, workers: int, only: int | None = None) -> tuple[Counter[str], list[str]]:
    """Check `count` mutations, or the one with the number `only`; outcomes by mutation, and what is wrong."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(dir=scratch()) as directory:
        original = Path(directory, "original")
        jobs = [(original, seed, number) for number in (range(count) if only is None else [only])]
        with get_context("spawn").Pool(workers) as pool:
            pool.apply(build, (original, seed))  # there, as it makes the files of its process small
            for number, mutation, word, found in pool.imap_unordered(_check, jobs, chunksize=8):
                counts[f"{mutation.name}: {word}"] += 1
                if found or (word == "points missing" and not mutation.removes_newest):
                    files = " and ".join(mutation.files)
                    wrong.append(f"mutation {number}, {mutation.name}, {files}: {word}; {'; '.join(found)}")
    return counts, wrong


@click.command()
@click.option("--count", default=20_000, show_default=True, help="How many mutations to check.")
@click.option("--seed", default=1, show_default=True)
@click.option("--only", type=int, help="Only the mutation with this number.")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True)
def main(count: int, seed: int, only: int | None, workers: int) -> None:
    """Alter a repository in many ways, and see that it is noticed."""
    counts, wrong = campaign(count, seed, workers, only)
    click.echo(f"{counts.total()} mutations, seed {seed}:")
    for name, number in sorted(counts.items()):
        click.echo(f"  {number:6}  {name}")
    for line in wrong:
        click.echo(f"WRONG {line}", err=True)
    click.echo(f"{len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
