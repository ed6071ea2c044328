"""Reading by plan: every run of a plan into its place of a span, on the calling thread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .grains import damaged
from .layout import Source
from .runs import Runs


def read_plan(plan: Runs, sources: Sequence[Source], target: NDArray[np.uint8], offset: int) -> None:
    """Fill `target`, whose first byte is disk offset `offset`, with the runs of `plan`.

    One system call per run. A packed grain that several runs share is unpacked once.

    Raises:
        SourceError: A file cannot be read, or was changed since it was opened.
    """
    columns = (plan.start, plan.end, plan.source, plan.place, plan.skip, plan.packed)
    unpacked: tuple[int, int, NDArray[np.uint8]] | None = None
    for start, end, number, place, skip, packed in zip(*(column.tolist() for column in columns), strict=True):
        part = target[start - offset : end - offset]
        if number < 0:
            part.fill(0)
        elif not packed:
            sources[number].file.read_into(part, place + skip)
        else:
            if unpacked is None or unpacked[:2] != (number, place):
                unpacked = number, place, np.frombuffer(sources[number].unpack(place), np.uint8)
            content = unpacked[2][skip : skip + len(part)]
            if len(content) < len(part):
                raise damaged(sources[number].file.name, f"the compressed grain at {place} is too short")
            part[:] = content
    for number in np.unique(plan.source[plan.source >= 0]).tolist():
        sources[number].file.check_unchanged()
