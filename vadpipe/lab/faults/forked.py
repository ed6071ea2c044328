"""A function in a forked process, with a deadline: what hangs or is killed costs that process only."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import traceback
from collections.abc import Callable
from typing import TypeVar

R = TypeVar("R")


class Hung(RuntimeError):
    """The process did not end in time, and was killed."""


def call(function: Callable[[], R], deadline_s: float) -> R:
    """What the function returns, in JSON's types, when it runs in a process of its own.

    For processes without threads. Raises Hung; RuntimeError with the traceback when the function raises or the
    process dies.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _run(function, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        try:
            if not select.select([answer], [], [], deadline_s)[0]:
                raise Hung(f"no answer after {deadline_s:.0f} s")
            text = answer.read()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
    if not text:
        raise RuntimeError(f"the process died: wait status {status}")
    told: dict[str, R] = json.loads(text)
    if "error" in told:
        raise RuntimeError(str(told["error"]))
    return told["result"]


def _run(function: Callable[[], object], writer: int) -> None:
    """The child. It never returns into its parent's code."""
    try:
        told: dict[str, object] = {"result": function()}
    except BaseException:
        told = {"error": traceback.format_exc()}
    with contextlib.suppress(BaseException), os.fdopen(writer, "w") as answer:
        json.dump(told, answer)
    os._exit(0)
