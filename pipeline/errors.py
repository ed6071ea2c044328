"""Errors of the mover.

Facts are attributes, the text is built from them and ends with the remedy. An error of a library is translated in
one place per library, and keeps its cause. Only the retry wrappers use `transient`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass

EXIT_DONE = 0
EXIT_FAILED = 1  # nothing was published
EXIT_USAGE = 2  # usage or configuration
EXIT_ATTENTION = 3  # published, but something needs attention


class MoverError(Exception):
    """An error with a remedy. `remedy` is a full sentence or empty; `facts` are for programs."""

    transient = False
    exit_code = EXIT_FAILED

    def __init__(self, problem: str, *, remedy: str = "", **facts: object) -> None:
        self.problem = problem
        self.remedy = remedy
        self.facts = facts
        super().__init__(f"{problem} {remedy}" if remedy else problem)


class ConfigError(MoverError):
    """The configuration or the command line is wrong; raised before any I/O."""

    exit_code = EXIT_USAGE


class SourceError(MoverError):
    """The VM, its disks or their server failed."""


class QuiescingShort(SourceError):
    """A capture is less consistent than required.

    `retry_after_s`: when to take another one; None: not again, the job fails.
    """

    def __init__(
        self, problem: str, *, retry_after_s: float | None = None, remedy: str = "", **facts: object
    ) -> None:
        super().__init__(problem, remedy=remedy, **facts)
        self.retry_after_s = retry_after_s


class LeftBehind(SourceError):
    """Something that vadpipe created on a server could not be removed; a finished backup is not affected."""

    exit_code = EXIT_ATTENTION


class ChangeTrackingInvalid(SourceError):
    """The changed areas cannot be trusted; the disk has to be read in full."""


class IntegrityError(MoverError):
    """Stored or read bytes are not what they must be."""


class SinkError(MoverError):
    """The target failed: it is full, read-only, damaged, or no repository."""


class ContractError(MoverError):
    """A stage broke the rules of the engine, e.g. returned before its input ended."""


class TransferFailed(ExceptionGroup[Exception]):
    """One or more stages of a pipeline failed; nothing was published."""

    def derive(self, excs: Sequence[Exception], /) -> TransferFailed:  # type: ignore[override]  # one type only
        return TransferFailed(self.message, excs)


def leaves(exc: BaseException) -> list[BaseException]:
    """The exceptions inside any nesting of groups, in order."""
    if isinstance(exc, BaseExceptionGroup):
        return [leaf for child in exc.exceptions for leaf in leaves(child)]
    return [exc]


# Errors of the system that mean a limit of this process or machine, and what raises it.
_LIMITS = {
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`) and run again.",
    errno.ENFILE: "Raise the machine's limit of open files (sysctl fs.file-max) and run again.",
    errno.EFBIG: "Raise the limit of file sizes (`ulimit -f`) and run again.",
    errno.ENOMEM: "Raise the limit of memory (`ulimit -v`, MemoryMax of a unit), or add memory, and run again.",
    errno.EAGAIN: "Raise the limits of processes and memory (`ulimit -u`, `ulimit -v`) and run again.",
}


class LimitReached(MoverError):
    """A limit of this process or machine was reached; the remedy names it."""


def limit_reached(exc: BaseException) -> LimitReached | None:
    """A foreign error as the limit that it stands for; None for any other error."""
    number: int | None = None
    text = str(exc)
    if isinstance(exc, MemoryError):
        number = errno.ENOMEM
    elif isinstance(exc, OSError):
        number = exc.errno
    elif isinstance(exc, RuntimeError) and "start new thread" in text:
        number = errno.EAGAIN
    elif isinstance(exc, ImportError):  # the dynamic loader tells numbers as words
        number = next((number for number in _LIMITS if os.strerror(number) in text), None)
        number = errno.ENOMEM if "failed to map segment" in text else number
    if number in _LIMITS:
        return LimitReached(f"{os.strerror(number)}.", remedy=_LIMITS[number])
    cause = exc.__cause__
    return None if cause is None or isinstance(exc, MoverError) else limit_reached(cause)


@dataclass(frozen=True)
class Failure:
    """One error as texts. `notes`: where it happened, and what else was found."""

    text: str
    notes: Sequence[str]

    def __str__(self) -> str:
        return self.text


def failures(exc: BaseException) -> list[Failure]:
    """The errors inside any nesting of groups, in order. A foreign error is the limit it means, or its type."""
    found = []
    for leaf in leaves(exc):
        ours = leaf if isinstance(leaf, MoverError) else limit_reached(leaf)
        text = str(ours) if ours else f"{type(leaf).__name__}: {leaf}".rstrip(": ")
        found.append(Failure(text, list(getattr(leaf, "__notes__", ()))))
    return found


def are_ours(exc: BaseException) -> bool:
    """True for a failure that users can act on: MoverErrors, limits of the system; false for a defect."""
    return all(isinstance(leaf, MoverError) or limit_reached(leaf) for leaf in leaves(exc))
