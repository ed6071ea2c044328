"""`python -m vadpipe.lab.faults.mutations --count N --seed S`: stored files are altered, one at a time.

Two small repositories, one of them sealed, with points, held and forgotten ones, a removal that waits for a run
that died, and key slots, are altered in one place: bytes are flipped, also with right checksums afterwards, JSON is
forged, files are cut, extended, deleted, exchanged, put back as they were once, or replaced by what is no file at
all. Then every disk is restored, `verify` reads everything, `prune` runs twice, all is restored again, and a backup
runs.

Promised: no disk is restored with wrong bytes. A damaged file costs no more than a lost one: every other disk is
restored. What hits a disk is noticed: by an error, by `verify`, or by the heads that somebody remembered; and the
file is named. What `verify` calls sound can be restored. `prune` takes nothing away that could be restored. The
next run ends well or with an error of vadpipe; nothing hangs.
Not promised: that a run notices damage in frames that it refers to without reading them (`verify` does).
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import click
import trio

from pipeline.errors import are_ours, leaves
from vadpipe.repository import Repository, RepositoryReader, open_repository, verify
from vadpipe.repository.format import slot_changes, slots
from vadpipe.repository.format.config import Origin
from vadpipe.repository.maintenance.forgetting import compare_heads, forget, heads, hold, read_heads
from vadpipe.repository.maintenance.prune import prune
from vadpipe.repository.runs import Run

from . import forked
from .aftermath import work_in_the_event_loop
from .forging import with_right_checksums
from .history import (
    HISTORIES,
    KEYS,
    REWRITE_BELOW,
    back_up,
    digests,
    key_file,
    make,
    opened,
    prune_once,
    repository,
    restored_digest,
    scratch,
    small_files,
    write_keys,
)

BACKUPS = 5

# An altered repository is checked in a fraction of a second; what takes this long has hung.
HANGS_AFTER_S = 60.0


@dataclass(frozen=True)
class Mutation:
    """What was done to which files."""

    name: str
    files: tuple[str, ...]


# --- altering ---


@dataclass(frozen=True)
class _Scene:
    """A repository that is altered, and the files that it had once."""

    root: Path
    earlier: Path
    draw: random.Random

    def name(self, path: Path) -> str:
        return str(path.relative_to(self.root))


def mutate(root: Path, earlier: Path, draw: random.Random) -> Mutation:
    """Alter one thing in the repository at `root`; `earlier` has versions of its files, each below a number."""
    scene = _Scene(root, earlier, draw)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    # Each kind of file as often as the others: packs would else hide the small files.
    kind = draw.choice(sorted({_kind(root, path) for path in files}))
    same = [path for path in files if _kind(root, path) == kind]
    path = draw.choice(same)
    name, act = draw.choice(_ACTS)
    return Mutation(name, tuple(scene.name(each) for each in act(scene, path, same)))


def _kind(root: Path, path: Path) -> str:
    """The directory, where waiting lists, slots, their secrets and epochs count apart."""
    parts = path.relative_to(root).parts
    if parts[0] == "keys":
        return f"keys {len(parts)} {parts[1] == 'epochs'}"
    return f"{parts[0]} {path.name.endswith('-waiting.json')}"


def _changed(
    how: Callable[[bytearray, random.Random], None], *, checksums: bool = False
) -> Callable[[_Scene, Path, Sequence[Path]], Sequence[Path]]:
    """What alters the content of a file, and makes its checksums right where that is wanted."""

    def act(scene: _Scene, path: Path, same: Sequence[Path]) -> Sequence[Path]:
        content = bytearray(path.read_bytes())
        how(content, scene.draw)
        if checksums:
            with_right_checksums(path.name, content)
        path.write_bytes(content)
        return [path]

    return act


def _flip_bit(content: bytearray, draw: random.Random) -> None:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def _overwrite(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(content))
    length = min(len(content) - start, 1 << draw.randrange(13))
    content[start : start + length] = draw.choice([bytes(length), b"\xff" * length, draw.randbytes(length)])


def _copy_inside(content: bytearray, draw: random.Random) -> None:
    length = min(len(content) // 2, 1 << draw.randrange(13)) or 1
    source, target = (draw.randrange(len(content) - length + 1) for _ in range(2))
    content[target : target + length] = content[source : source + length]


def _cut(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def _cut_front(content: bytearray, draw: random.Random) -> None:
    del content[: draw.randrange(1, len(content))]


def _extend(content: bytearray, draw: random.Random) -> None:
    length = draw.randrange(1, 5000)
    content += draw.choice([bytes(length), draw.randbytes(length)])


def _forge_json(content: bytearray, draw: random.Random) -> None:
    """Another value in a document, in the right form and with the old seal. What is no JSON gets a flipped bit."""
    try:
        fields = json.loads(content)
        name = draw.choice(sorted(fields))
    except (ValueError, IndexError, AttributeError, TypeError):
        _flip_bit(content, draw)
        with_right_checksums("", content)
        return
    value = fields[name]
    if isinstance(value, bool | None):
        fields[name] = not value
    elif isinstance(value, int | float):
        fields[name] = draw.choice([value + 1, -1, 0, 1 << 70])
    elif isinstance(value, str):
        fields[name] = draw.choice(["", value[::-1], value.replace("0", "1"), "../" + value])
    elif isinstance(value, list):
        fields[name] = draw.choice([[], value[1:], [*value, *value[:1]], [*value, "00" * 12]])
    else:
        fields[name] = draw.choice([{}, None, []])
    content[:] = (json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def _delete(scene: _Scene, path: Path, same: Sequence[Path]) -> Sequence[Path]:
    path.unlink()
    return [path]


def _exchange(scene: _Scene, path: Path, same: Sequence[Path]) -> Sequence[Path]:
    other = scene.draw.choice([each for each in same if each != path] or same)
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)
    return [path, other]


def _replace_by_other(scene: _Scene, path: Path, same: Sequence[Path]) -> Sequence[Path]:
    other = scene.draw.choice([each for each in same if each != path] or same)
    if other != path:
        shutil.copyfile(other, path)
    return [path]


def _replay(scene: _Scene, path: Path, same: Sequence[Path]) -> Sequence[Path]:
    """A file is put back as it was: one that is gone now, or is another one by now."""
    old = {
        (name, content)
        for version in scene.earlier.iterdir()
        for each in version.rglob("*")
        if each.is_file()
        for name, content in [(str(each.relative_to(version)), each.read_bytes())]
        if not (scene.root / name).is_file() or (scene.root / name).read_bytes() != content
    }
    name, content = scene.draw.choice(sorted(old))
    again = scene.root / name
    again.parent.mkdir(parents=True, exist_ok=True)
    again.write_bytes(content)
    return [again]


def _replace_by_directory(scene: _Scene, path: Path, same: Sequence[Path]) -> Sequence[Path]:
    path.unlink()
    path.mkdir()
    return [path]


def _replace_by_pipe(scene: _Scene, path: Path, same: Sequence[Path]) -> Sequence[Path]:
    path.unlink()
    os.mkfifo(path)
    return [path]


def _replace_by_dangling_link(scene: _Scene, path: Path, same: Sequence[Path]) -> Sequence[Path]:
    path.unlink()
    path.symlink_to("nowhere")
    return [path]


def _replace_by_hole(scene: _Scene, path: Path, same: Sequence[Path]) -> Sequence[Path]:
    os.truncate(path, 0)
    os.truncate(path, scene.draw.choice([1, 64, 5000, 1 << 30]))
    return [path]


_ACTS: list[tuple[str, Callable[[_Scene, Path, Sequence[Path]], Sequence[Path]]]] = [
    ("flip a bit", _changed(_flip_bit)),
    ("flip a bit, checksums right", _changed(_flip_bit, checksums=True)),
    ("overwrite", _changed(_overwrite)),
    ("overwrite, checksums right", _changed(_overwrite, checksums=True)),
    ("copy inside, checksums right", _changed(_copy_inside, checksums=True)),
    ("forge JSON", _changed(_forge_json)),
    ("cut the end", _changed(_cut)),
    ("cut the front", _changed(_cut_front)),
    ("extend", _changed(_extend)),
    ("delete", _delete),
    ("exchange two files", _exchange),
    ("replace by another file", _replace_by_other),
    ("replay", _replay),
    ("replace by a directory", _replace_by_directory),
    ("replace by a pipe", _replace_by_pipe),
    ("replace by a dangling link", _replace_by_dangling_link),
    ("replace by a hole", _replace_by_hole),
]


# --- the repositories ---


def build(root: Path, history: str, seed: int) -> None:
    """The repository `main` below `root` that is altered; in a process that ends, as the run of it is dead then.

    Beside `root` are `keys`, `earlier` with versions of its files, `heads`, and `right`: the digests of all disks.
    """
    root.mkdir(parents=True)
    write_keys(root.parent / "keys", seed)
    origin = Origin(random=random.Random(seed).randbytes)  # a seed gives the same names each time
    make(root, history, origin=origin)
    main = repository(root, history, origin=origin)
    right: dict[str, str] = {}

    def back_up_and_keep(step: int) -> None:
        point = trio.run(back_up, main, seed, step)
        right.update({f"{point}/{key}": digest for key, digest in digests(seed, step)})
        shutil.copytree(main.path, root.parent / "earlier" / str(step))

    for step in range(1, BACKUPS):
        back_up_and_keep(step)
    if history == "sealed":
        backend, config, secrets = opened(main)
        slot_changes.add_slot(backend, config.id, secrets, key_file(root, KEYS[1]), KEYS[1], origin=origin)
        slot_changes.new_epoch(backend, config.id, secrets, origin=origin)
    reader = RepositoryReader.of(main.backend(), main.unlock)
    forget(reader.objects, reader.config, origin, reader.points[:1])
    hold(reader.objects, reader.config, origin, reader.points[1], "asked for")
    with main.open_for_maintenance() as (objects, config):
        Run(objects, config, origin, "machine")  # it never ends
        prune(objects, config, origin, rewrite_below=REWRITE_BELOW)
    back_up_and_keep(BACKUPS)
    with main.open_for_maintenance() as (objects, config):
        Run(objects, config, origin, "machine")
    reader = RepositoryReader.of(main.backend(), main.unlock)
    (root.parent / "heads").write_text(json.dumps(heads(reader.config, reader.points).as_dict()))
    (root.parent / "right").write_text(json.dumps(right))


async def _restored(
    where: Repository, right: dict[str, str], wrong: list[str]
) -> tuple[set[str], set[str], list[str]]:
    """Disks that were restored, those that are listed, and what errors said. Raises what opening raises."""
    done: set[str] = set()
    listed: set[str] = set()
    said: list[str] = []
    async with open_repository(where.backend(), unlock=where.unlock) as reader:
        said += map(str, reader.damaged)
        for point in reader.points:
            for disk in point.disks:
                name = f"{point.id}/{disk.key}"
                listed.add(name)
                try:
                    digest = await restored_digest(reader, point, disk.key)
                except Exception as exc:
                    said += map(str, leaves(exc))
                    wrong += _foreign(exc, "restoring")
                    continue
                done.add(name)
                if digest != right.get(name, digest):
                    wrong.append(f"disk {name} is restored with wrong bytes")
    return done, listed, said


@cache
def restorable_without(original: Path, history: str, files: tuple[str, ...]) -> frozenset[str]:
    """The disks that can be restored when some files are lost."""
    with tempfile.TemporaryDirectory(dir=original.parent.parent) as directory:
        root = _copied(original, Path(directory))
        for name in files:
            (root / "main" / name).unlink(missing_ok=True)
        try:
            return frozenset(trio.run(_restored, repository(root, history), {}, [])[0])
        except Exception:
            return frozenset()


def lost_too_much(files: Sequence[str], lost: set[str]) -> bool:
    """Whether the loss of files may not cost these disks."""
    if any(name == "config.json" or name.startswith(("packs/", "index/")) for name in files):
        return False
    if len({name.split("/")[1] for name in files if name.startswith("keys/")}) > 1:
        return False  # of both slots
    points = {Path(name).stem for name in files if name.startswith("points/")}
    return not {name.partition("/")[0] for name in lost} <= points


def _copied(original: Path, directory: Path) -> Path:
    """A copy of the original's root with its keys."""
    for name in ("keys", "heads"):
        os.symlink(original.parent / name, directory / name)
    return Path(shutil.copytree(original, directory / "root"))  # with the times


# --- the check ---


async def outcome(
    root: Path, history: str, seed: int, mutation: Mutation, right: dict[str, str], wanted: frozenset[str]
) -> tuple[str, list[str]]:
    """How an altered repository behaves: in a word, and what is wrong with that.

    Args:
        right: The digests of all disks that there ever were.
        wanted: The disks that have to be restored.
    """
    wrong: list[str] = []
    said: list[str] = []  # what anything says of damage
    main = repository(root, history)
    done: set[str] = set()
    try:
        done, listed, told = await _restored(main, right, wrong)
        said += told
        async with open_repository(main.backend(), unlock=main.unlock) as reader:
            report = await verify(reader)
            remembered = read_heads(Path(root.parent / "heads"))
            said += compare_heads(reader.objects, reader.config, reader.points, remembered)
        said += report.lines()[1:]
        if not report.damages and done < listed:
            wrong.append("verify calls sound what cannot be restored")
    except Exception as exc:
        said += map(str, leaves(exc))
        wrong += _foreign(exc, "reading")
    missed = wanted - done
    # A damaged segment that is met on the way is an error, even where another one has the same rows.
    if missed and not (_of(mutation, "index/") and _located(main.path, mutation, said)):
        wrong.append(f"disks are lost that do not lie in it: {', '.join(sorted(missed))}; {said[:2]}")
    if history == "sealed":
        said += _said_of_keys(root)
    if said and not _located(main.path, mutation, said):
        wrong.append(f"what is said names no file that was altered: {said[:3]}")
    word = "noticed" if said else "harmless"
    for _ in range(2):
        try:
            prune_once(main)
        except Exception as exc:
            word = "noticed"
            wrong += _foreign(exc, "prune")
    try:
        later, _, told = await _restored(main, right, wrong)
    except Exception as exc:
        later, told = set(), [str(exc)]
    if done - later:
        wrong.append(f"prune lost {', '.join(sorted(done - later))}: {told[:2]}")
    try:
        point = await back_up(main, seed, BACKUPS + 1)
        new = {f"{point}/{key}": digest for key, digest in digests(seed, BACKUPS + 1)}
        await _restored(main, {**right, **new}, wrong)
    except Exception as exc:
        word = "noticed"
        wrong += _foreign(exc, "the next run")
    return word, wrong


def _said_of_keys(root: Path) -> list[str]:
    """What keys and slots say of damage."""
    said: list[str] = []
    for key in KEYS:
        try:
            backend, _, secrets = opened(repository(root, "sealed", [key]))
            said += slots.SlotTable.read(backend).problems(secrets.naming)
        except Exception as exc:
            said.append(str(exc))
    return said


def _located(main: Path, mutation: Mutation, said: Sequence[str]) -> bool:
    """Whether one of the sentences names an altered file: by its name or its id, or the index as a whole."""
    ids = [Path(name).name.partition(".")[0].removesuffix("-waiting") for name in mutation.files]
    if _of(mutation, "index/"):
        ids += [f"{main}/index/", "in the index"]
    if _of(mutation, "keys/"):
        ids += ["key"]
    if _of(mutation, "config.json"):
        ids += [str(main)]
    if _of(mutation, "forgotten/"):  # then nobody says any more why a point is gone
        ids += ["was made from it"]
    return any(each in sentence for each in ids for sentence in said)


def _of(mutation: Mutation, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in mutation.files)


def _foreign(exc: BaseException, doing: str) -> list[str]:
    """An error that is not one of ours."""
    if are_ours(exc):
        return []
    return [f"{doing}: {leaf!r}" for leaf in leaves(exc)]


def _begin_worker() -> None:
    logging.disable(logging.WARNING)  # damage that a run reports is no news here
    small_files()
    work_in_the_event_loop()


def _build(original: Path, history: str, seed: int) -> None:
    forked.call(lambda: build(original, history, seed), HANGS_AFTER_S)


def _check(job: tuple[Path, int, int]) -> tuple[int, str, Mutation, str, list[str]]:
    place, seed, number = job
    history = list(HISTORIES)[number % len(HISTORIES)]
    original = place / history / "root"
    right = json.loads((original.parent / "right").read_text())
    with tempfile.TemporaryDirectory(dir=place) as directory:
        root = _copied(original, Path(directory))
        mutation = mutate(root / "main", original.parent / "earlier", random.Random(f"{seed}/{number}"))
        whole, wanted = (restorable_without(original, history, files) for files in ((), mutation.files))
        wrong: list[str] = []
        if lost_too_much(mutation.files, set(whole - wanted)):
            wrong.append(f"the loss of {mutation.files} costs {sorted(whole - wanted)}")
        try:
            word, found = forked.call(
                lambda: trio.run(outcome, root, history, seed, mutation, right, wanted), HANGS_AFTER_S
            )
        except RuntimeError as exc:
            word, found = "failed", [str(exc)]
        return number, history, mutation, word, wrong + found


def campaign(count: int, seed: int, workers: int, only: int | None = None) -> tuple[Counter[str], list[str]]:
    """Check `count` mutations, or the one with the number `only`.

    Returns:
        How often each outcome was seen, as `directory, mutation: word`, and what is wrong.
    """
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(dir=scratch()) as directory:
        place = Path(directory)
        jobs = [(place, seed, number) for number in (range(count) if only is None else [only])]
        with get_context("spawn").Pool(workers, _begin_worker) as pool:
            for history in HISTORIES:  # there, as it makes the files of its process small
                pool.apply(_build, (place / history / "root", history, seed))
            for number, history, mutation, word, found in pool.imap_unordered(_check, jobs, chunksize=8):
                counts[f"{mutation.files[0].partition('/')[0]}, {mutation.name}: {word}"] += 1
                if found:
                    files = " and ".join(mutation.files)
                    wrong.append(
                        f"mutation {number} ({history}), {mutation.name}, {files}: {word}; {'; '.join(found)}"
                    )
    return counts, wrong


@click.command()
@click.option("--count", default=100_000, show_default=True, help="How many mutations to check.")
@click.option("--seed", default=1, show_default=True)
@click.option("--only", type=int, help="Only the mutation with this number.")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True)
def main(count: int, seed: int, only: int | None, workers: int) -> None:
    """Alter repositories in many ways, and see that it is noticed."""
    started = time.monotonic()
    counts, wrong = campaign(count, seed, workers, only)
    click.echo(f"{counts.total()} mutations in {time.monotonic() - started:.0f} s, seed {seed}:")
    tables = Counter[str](), Counter[str]()
    for told, number in counts.items():
        what, word = told.rsplit(": ", 1)
        for table, name in zip(tables, what.split(", ", 1), strict=True):
            table[f"{name}: {word}"] += number
    for table in tables:
        for name, number in sorted(table.items()):
            click.echo(f"  {number:6}  {name}")
    for line in wrong:
        click.echo(f"WRONG {line}", err=True)
    click.echo(f"{len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
