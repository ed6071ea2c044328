"""Merging index segments, so that their number stays small however many runs there were.

Every run adds a segment, and every search looks into all of them. When there are more than MOST, a new run first
merges the smallest ones: at least FEWEST, and more as long as the next one is no larger than all before together.
So a row is written anew about once for every doubling of the index, and a run with little to store pays little.

The segments are sorted alike, so one range of digests after the other is merged, in memory that does not depend on
their size. The merged segment is published like any other. Then the old ones are moved to `index/merged/`, where
runs and readers that listed them before find them (segments.open_segment), and are removed a week later. A merge
that is killed leaves a temporary file, which a sweep removes, or segments beside the one that holds all they have.

Only segments of ended runs are merged: a sweep asks the segments of a dead run which of its packs are in use.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from pipeline import DIGEST_SIZE, Digests, IntegrityError, KiB, MiB, SinkError
from vadpipe.files import flush_directory

from .files import Layout, make_directory, publish, run_of, sink_errors
from .segments import (
    CHUNKS,
    FRAMES,
    HEADS,
    ID_FRAMES,
    ID_HEADS,
    MERGED,
    Cells,
    Segment,
    sorted_rows,
    write_columns,
)

log = logging.getLogger(__name__)

MOST: Final = 16
FEWEST: Final = 8
AT_ONCE: Final = 256  # segments in one merge
ROWS: Final = 256 * KiB  # rows in memory at a time, on average: 12 MiB
MERGED_AGE_S: Final = 7 * 24 * 3600

_SERIAL: Final = 0x8000_0000  # numbers of merged segments in their run; a run's own begin at 0
_PIECE: Final = 1 * MiB


def merge_segments(layout: Layout, repository_id: bytes, run_id: str, now: float) -> int:
    """Merge segments until there are at most MOST, if that can be done. Returns how many were merged.

    Only what the run needs is worth failing for: what keeps a merge from being made is logged.
    """
    merged = 0
    try:
        while group := _smallest(layout):
            serial = _SERIAL + merged
            log.info("merging %d index segments of %s", len(group), layout.root)
            merge(layout, repository_id, layout.segment(run_id, serial), group)
            merged += len(group)
        if merged:
            _remove_old(layout, now)
    except (SinkError, IntegrityError) as exc:
        log.warning("index segments could not be merged: %s", exc)
    return merged


def merge(layout: Layout, repository_id: bytes, final: Path, paths: Sequence[Path]) -> None:
    """Replace segments by one. Raises SinkError, IntegrityError; then they are as they were."""
    cells = Cells(8 * MiB)
    temporary = layout.tmp / final.name
    try:
        with sink_errors(temporary, "write"):
            segments = [Segment(path, repository_id, cells) for path in paths]
            _write(temporary, repository_id, final, segments)
            publish(temporary, final)
        aside = layout.index / MERGED
        with sink_errors(aside, "move merged segments to"):
            make_directory(aside)
            for path in paths:
                with suppress(FileNotFoundError):  # another run merged it, too
                    path.rename(aside / path.name)
            flush_directory(aside)
            flush_directory(layout.index)
    except (SinkError, IntegrityError):
        temporary.unlink(missing_ok=True)
        raise
    finally:
        cells.close()


def _smallest(layout: Layout) -> list[Path]:
    """The segments to merge next; none when they are few enough."""
    paths = list(layout.index.glob("*.idx"))
    if len(paths) <= MOST:
        return []
    sized: list[tuple[int, Path]] = []
    for path in paths:
        run_id = run_of(path)
        try:
            if run_id is not None and not layout.lock(run_id).exists():
                sized.append((path.stat().st_size, path))
        except FileNotFoundError:  # another run merged it
            continue
    group: list[Path] = []
    total = 0
    for size, path in sorted(sized)[:AT_ONCE]:
        if len(group) >= FEWEST and size > total:
            break
        group.append(path)
        total += size
    return group if len(group) >= FEWEST else []


def _write(path: Path, repository_id: bytes, final: Path, segments: Sequence[Segment]) -> None:
    packs: dict[str, int] = {}
    numbers = [
        np.array([packs.setdefault(name, len(packs)) for name in segment.packs()], dtype=np.uint32)
        for segment in segments
    ]
    frames = sum(segment.frames for segment in segments)
    base = np.cumsum([0, *(segment.frames for segment in segments)]).tolist()
    with tempfile.TemporaryFile(dir=path.parent) as heads, tempfile.TemporaryFile(dir=path.parent) as rows:
        chunks = 0
        for digest, row in _chunks(segments, base):
            heads.write(np.ascontiguousarray(digest[:, :8]).view(">u8").astype("<u8").tobytes())
            rows.write(row.tobytes())
            chunks += len(row)

        def id_frames() -> Iterator[NDArray[np.generic]]:
            return (frame for _, frame in _ids(segments, base))

        columns = (
            _pieces(heads),
            _pieces(rows),
            _views(head for head, _ in _ids(segments, base)),
            _views(id_frames()),
            _views(_frames(segments, numbers)),
            [memoryview(b"".join(bytes.fromhex(name) for name in packs))],
        )
        run_id, serial = final.name[:16], int(final.name[16:24], 16)
        write_columns(path, (repository_id, run_id, serial), (chunks, frames, len(packs)), columns)


def _ranges(
    segments: Sequence[Segment], section: int, rows: Sequence[int]
) -> Iterator[list[tuple[int, int]]]:
    """The rows of each segment, one range of digests after the other."""
    parts = max(1, -(-sum(rows) // ROWS))
    borders = np.array([part * (1 << 64) // parts for part in range(1, parts)], dtype=np.uint64)
    bounds = [
        [0, *segment.lower_bound(section, borders).tolist(), count] if count else [0] * (parts + 1)
        for segment, count in zip(segments, rows, strict=True)
    ]
    for part in range(parts):
        yield [(bound[part], bound[part + 1]) for bound in bounds]


def _chunks(segments: Sequence[Segment], base: Sequence[int]) -> Iterator[tuple[Digests, NDArray[np.void]]]:
    """The chunks of all segments, ascending, each once."""
    for ranges in _ranges(segments, HEADS, [segment.chunks for segment in segments]):
        digests: list[Digests] = [np.empty((0, DIGEST_SIZE), np.uint8)]
        rows: list[NDArray[np.void]] = []
        for segment, low, (first, last) in zip(segments, base, ranges, strict=False):
            row = segment.column(CHUNKS, first, last).copy()
            row["frame"] += low
            head = segment.column(HEADS, first, last).astype(">u8").view(np.uint8).reshape(-1, 8)
            digests.append(np.concatenate((head, row["rest"]), axis=1))
            rows.append(row)
        digest, row = np.concatenate(digests), np.concatenate(rows)
        order = sorted_rows(digest)
        digest, row = digest[order], row[order]
        first_of_equals = np.ones(len(row), dtype=np.bool_)
        first_of_equals[1:] = (digest[1:] != digest[:-1]).any(axis=1)
        yield digest[first_of_equals], row[first_of_equals]


def _ids(
    segments: Sequence[Segment], base: Sequence[int]
) -> Iterator[tuple[NDArray[np.generic], NDArray[np.generic]]]:
    """The heads of the frames' ids, ascending, and the frames."""
    for ranges in _ranges(segments, ID_HEADS, [segment.frames for segment in segments]):
        parts = list(zip(segments, base, ranges, strict=False))
        head = np.concatenate([segment.column(ID_HEADS, *rows) for segment, _, rows in parts])
        frame = np.concatenate([segment.column(ID_FRAMES, *rows) + low for segment, low, rows in parts])
        order = np.argsort(head, kind="stable")
        yield head[order], frame[order].astype("<u4")


def _frames(
    segments: Sequence[Segment], numbers: Sequence[NDArray[np.uint32]]
) -> Iterator[NDArray[np.generic]]:
    for segment, number in zip(segments, numbers, strict=True):
        for low in range(0, segment.frames, ROWS):
            rows = segment.column(FRAMES, low, low + ROWS).copy()
            rows["pack"] = number[rows["pack"]]
            yield rows


def _pieces(file: BinaryIO) -> Iterator[memoryview]:
    file.seek(0)
    while piece := file.read(_PIECE):
        yield memoryview(piece)


def _views(arrays: Iterator[NDArray[np.generic]]) -> Iterator[memoryview]:
    for array in arrays:
        yield np.ascontiguousarray(array).view(np.uint8).data


def _remove_old(layout: Layout, now: float) -> None:
    """Segments that were merged long ago: nothing that began before that still runs."""
    with sink_errors(layout.index / MERGED, "clean up"):
        for path in (layout.index / MERGED).glob("*.idx"):
            if now - os.stat(path).st_ctime > MERGED_AGE_S:
                path.unlink(missing_ok=True)
