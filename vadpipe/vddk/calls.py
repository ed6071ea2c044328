"""A single call about a VM, in a child process that lives for it alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import trio

from . import wire
from .client import LOG_TAIL, Child, ChildLost
from .failures import answered, call_lost, not_started
from .limits import Limits


async def call_once(
    library: Path, call: str, order: Mapping[str, object], limits: Limits, subject: str
) -> Mapping[str, object]:
    """Make the `call` that `order` describes and return its answer. `subject`: what it is about, for messages.

    Raises VddkError, with the code of the library; code None: the process was lost, and whether the call took
    effect is not known. Cancelled, or at the end, the process is gone.
    """
    log: deque[str] = deque(maxlen=LOG_TAIL)
    secrets = [str(order[name]) for name in ("password", "cookie") if order[name]]
    try:
        child = await Child.spawn(library.parent, None, secrets, log, lambda done: None, limits)
    except OSError as exc:
        raise not_started(subject, exc) from exc
    answer: dict[str, object] | None = None
    message = {**order, "call": call, "grace_s": limits.end_timeout_s}
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.listen)
            with suppress(ChildLost):
                answer, _ = await child.call(wire.ACCESS, message, limits.open_timeout_s)
            child.end()
    finally:
        await child.reap()
    if answer is None:
        raise call_lost(call, child.ending_of_it, subject, log)
    if "error" in answer:
        raise answered(answer, subject, log)
    return answer
