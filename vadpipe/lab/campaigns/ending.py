"""How a run ended: with a receipt, with errors that say why, with a defect, or not at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

from pipeline import ContractError, MoverError
from pipeline.errors import leaves
from sinks import open_repository
from sinks.restoring import RestoreReceipt, RestoreTarget, restore

HANGS_AFTER_S = 60.0

_R = TypeVar("_R")


@dataclass(frozen=True)
class Ending:
    """`outcome`: in a word. `wrong`: what is wrong with it. `told`: what the run said."""

    outcome: str
    wrong: list[str]
    told: str = ""


def attempt(work: Callable[[], Awaitable[_R]]) -> _R | list[BaseException]:
    """What it returns, or the errors that it ends with."""

    async def watched() -> _R:
        with trio.fail_after(HANGS_AFTER_S):
            return await work()

    try:
        return trio.run(watched)
    except BaseExceptionGroup as exc:
        return leaves(exc)
    except Exception as exc:
        return [exc]


def failed(errors: Iterable[BaseException]) -> Ending:
    """The end of a run with errors."""
    errors = list(errors)
    if any(isinstance(error, trio.TooSlowError) for error in errors):
        return Ending("hung", [f"the run did not end within {HANGS_AFTER_S:.0f} s"])
    notes = [note for error in errors for note in getattr(error, "__notes__", ())]
    wrong = [
        f"a {type(error).__name__} came out: {error}"
        for error in errors
        if not isinstance(error, MoverError) or isinstance(error, ContractError)
    ]
    return Ending("failed", wrong, " ".join([*map(str, errors), *notes]))


async def restored(repository: Path, into: RestoreTarget) -> RestoreReceipt:
    """Restore the last point."""
    async with open_repository(repository) as reader:
        return await restore(reader, reader.points[-1], into)


def ending(result: RestoreReceipt | list[BaseException]) -> Ending:
    """The end of a restore."""
    if isinstance(result, list):
        return failed(result)
    if result.failures:
        return failed(leaf for failure in result.failures for leaf in leaves(failure))
    said = " ".join([*result.remarks, *result.attention])
    return Ending("attention" if result.attention else "done", [], said)


def unclean(result: RestoreReceipt | list[BaseException]) -> list[str]:
    """What is wrong with a restore that nothing disturbed."""
    if isinstance(result, list):
        return [f"the clean restore failed: {'; '.join(map(str, result)) or 'it hung'}"]
    wrong = [f"the clean restore failed: {failure}" for failure in result.failures]
    return wrong + [f"the clean restore says: {sentence}" for sentence in result.attention]
