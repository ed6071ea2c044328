"""How a command runs a coroutine so that a signal ends it in order.

The first SIGINT, SIGTERM or SIGHUP cancels the work, and says at once what is cleaned up: half-written data is
discarded and snapshots are removed, under deadlines of their own. Further signals do not shorten that; each is
answered with a line that says that clean-up is going on. SIGQUIT (Ctrl-\\) and SIGKILL end the process at once;
the next run, or `vadpipe cleanup`, undoes what then stays behind. Signals that are ignored at the start (`nohup`)
stay ignored.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from pipeline.errors import MoverError, leaves

from . import EXIT_INTERRUPTED, ending_signals
from .output import report

T = TypeVar("T")


class Interrupted(MoverError):
    """A signal ended the work; everything was cleaned up in order."""

    exit_code = EXIT_INTERRUPTED


def run_async(
    function: Callable[..., Awaitable[T]],
    *args: object,
    cleaning: Callable[[], Sequence[str]] = tuple,
) -> T:
    """Run a coroutine function; SIGINT, SIGTERM and SIGHUP cancel it in order.

    Args:
        cleaning: Sentences on what is cleaned up, asked for at the first signal.

    Raises:
        Interrupted: A signal ended the work; in a group with the errors of the clean-up, if there were any.
    """
    return trio.run(_with_signals, function, args, cleaning)


async def _with_signals(
    function: Callable[..., Awaitable[T]],
    args: Sequence[object],
    cleaning: Callable[[], Sequence[str]],
) -> T:
    caught: list[signal.Signals] = []
    result: list[T] = []
    error: list[Exception] = []
    work = trio.CancelScope()

    async def watch(signals: AsyncIterator[int]) -> None:
        first = 0.0
        async for number in signals:
            caught.append(signal.Signals(number))
            if len(caught) == 1:
                first = trio.current_time()
                work.cancel()
                report(" ".join([f"Stopping on {caught[0].name}.", *cleaning()]))
            else:
                report(
                    f"{caught[-1].name}: clean-up has been going on for {trio.current_time() - first:.0f} s. "
                    "It is not cut short, so that no snapshot stays behind."
                )

    with trio.open_signal_receiver(*ending_signals()) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, signals)
            with work:
                try:
                    result.append(await function(*args))
                except Exception as exc:  # kept aside, so that the nursery does not wrap it
                    error.append(exc)
                except BaseExceptionGroup as group:  # Cancelled beside failures of the clean-up
                    cancelled, others = group.split(trio.Cancelled)
                    error += [leaf for leaf in leaves(group) if isinstance(leaf, Exception)]
                    if cancelled is None or (others and len(leaves(others)) > len(error)):
                        raise
                    raise cancelled from None
            nursery.cancel_scope.cancel()
    if caught and not result:
        ended = Interrupted(f"Ended by {caught[0].name}, after clean-up.")
        if error:
            raise ExceptionGroup("Interrupted, and its clean-up failed", [ended, *error])
        raise ended
    if error:
        raise error[0]
    return result[0]
