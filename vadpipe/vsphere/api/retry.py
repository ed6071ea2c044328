"""Retry with growing pauses, for failures that pass by themselves: a server that restarts, a VM that is busy."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import trio

from pipeline.errors import MoverError

T = TypeVar("T")

log = logging.getLogger(__name__)

# A vCenter that restarts is back within some minutes.
PATIENCE_S = 300.0
_FIRST_S = 1.0


def backoff(patience_s: float) -> Iterator[float]:
    """Growing pauses in seconds, until `patience_s` have passed since the first was asked for."""
    deadline = trio.current_time() + patience_s
    pause_s = min(_FIRST_S, patience_s / 256)
    while (left_s := deadline - trio.current_time()) > 0:
        yield min(pause_s, left_s)
        pause_s = min(2 * pause_s, patience_s / 8)


async def retry(work: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """Repeat `work` while it fails with a transient error, for `patience_s` at most.

    Raises:
        MoverError: Its error, when that is not transient or the time is over.
    """
    waits = backoff(patience_s)
    while True:
        try:
            return await work()
        except MoverError as exc:
            if not exc.transient or (pause_s := next(waits, None)) is None:
                raise
            log.info("Trying again in %.1f s: %s", pause_s, exc.problem)
        await trio.sleep(pause_s)


# The names that `journal`, `snapshot`, `vm` and `stages` use.
patiently, pauses = retry, backoff
