"""Giving chunks their places: which are stored already, and how the new ones are put together in frames."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline import DIGEST_SIZE, NO_FRAME, Assignment, Digests, MiB, PlannedFrame

# One frame is compressed, sealed, indexed and stored as a whole (docs/design.md, section 3).
FRAME = 1 * MiB

Column = NDArray[np.int64]
Lookup = Callable[[Digests], tuple[NDArray[np.uint64], Column]]
AddFrame = Callable[[Column, Digests], int]


def assign(
    digest: Digests, offset: Column, length: Column, *, lookup: Lookup, add_frame: AddFrame
) -> Assignment:
    """Place the chunks of a span, in the order of the disk.

    Args:
        digest, offset, length: one row per chunk; offsets on the disk ascend, in bytes.
        lookup: frame number (NO_FRAME where unknown) and byte place in the frame, for each digest.
        add_frame: promises a frame that holds chunks of these lengths and digests; returns its number.
    """
    frame, place = lookup(digest)
    unknown = np.flatnonzero(frame == NO_FRAME)
    frames: list[PlannedFrame] = []
    new = np.zeros(len(frame), dtype=np.bool_)
    if len(unknown):
        first, inverse = _first_of_equals(digest[unknown])
        new[unknown[first]] = True
        for low, high in frame_borders(new, offset, length):
            number = add_frame(length[low:high], digest[low:high])
            frame[low:high] = number
            place[low:high] = np.cumsum(length[low:high]) - length[low:high]
            frames.append(PlannedFrame(number, low, high))
        originals = unknown[first][inverse]
        frame[unknown] = frame[originals]
        place[unknown] = place[originals]
    return Assignment(frame, place, ~new, frames)


def frame_borders(new: NDArray[np.bool_], offset: Column, length: Column) -> list[tuple[int, int]]:
    """Rows [low, high) of the frames: new chunks side by side on the disk, as many as fit."""
    end = offset + length
    starts_run = new & ~np.concatenate(([False], new[:-1] & (end[:-1] == offset[1:])))
    borders: list[tuple[int, int]] = []
    run_of = np.cumsum(starts_run)
    for low in np.flatnonzero(starts_run).tolist():
        last = int(np.searchsorted(run_of, run_of[low], side="right"))
        stop = low + int(np.argmin(new[low:last])) if not new[low:last].all() else last
        while low < stop:
            high = int(np.searchsorted(end[low:stop], offset[low] + FRAME, side="right")) + low
            borders.append((low, max(high, low + 1)))
            low = borders[-1][1]
    return borders


def _first_of_equals(digest: Digests) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows where each distinct digest stands first, and for every row which of those it equals."""
    heads = np.ascontiguousarray(digest[:, :8]).view(np.uint64).ravel()
    if len(np.unique(heads)) == len(heads):  # nearly always, and much cheaper to see
        every = np.arange(len(heads))
        return every, every
    rows = np.ascontiguousarray(digest).view(np.dtype((np.void, DIGEST_SIZE))).ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    return first, inverse
