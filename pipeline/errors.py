"""Errors of the mover.

Facts are attributes, the text is built from them and ends with the remedy. An error of a library is translated in
one place per library, and keeps its cause. Only the retry wrappers use `transient`.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Failure:
    """One error as texts. `notes`: where it happened, and what else was found."""

    text: str
    notes: Sequence[str]

    def __str__(self) -> str:
        return self.text


def failures(exc: BaseException) -> list[Failure]:
    """The errors inside any nesting of groups, in order. One that is not ours is named with its type."""
    return [
        Failure(
            str(leaf) if isinstance(leaf, MoverError) else f"{type(leaf).__name__}: {leaf}".rstrip(": "),
            list(getattr(leaf, "__notes__", ())),
        )
        for leaf in leaves(exc)
    ]


def are_ours(exc: BaseException) -> bool:
    """True for a failure that users can act on: a MoverError, or a group of nothing else; false for a defect."""
    return all(isinstance(leaf, MoverError) for leaf in leaves(exc))
