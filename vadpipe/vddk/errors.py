"""Failures of the library and of its process, as errors with a remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.errors import ConfigError, MoverError, SourceError

from .abi import CODE_MASK
from .codes import code_of

_QUOTED = 3  # log lines in a message; the error's facts hold all that were kept

_THUMBPRINT = (
    "The server's certificate thumbprint is most likely wrong or missing: compare it with the one in the"
    " library's log."
)


class VddkError(SourceError):
    """A call of the VDDK library failed. Facts: `call`, `code` (low 16 bits), `path`, `offset`, `length`."""

    def __init__(self, problem: str, *, transient: bool = False, remedy: str = "", **facts: object) -> None:
        super().__init__(problem, remedy=remedy, **facts)
        self.transient = transient


def call_failed(
    call: str, error: int, text: str, path: str, log: Iterable[str], **place: object
) -> MoverError:
    """The error of one call of the library.

    Args:
        call: The function, without its prefix.
        error: The VixError, all 64 bits.
        text: The library's own text for it.
        place: `offset` and `length` of a request, in bytes.
    """
    if call == "dlopen":
        return ConfigError(
            f"The VDDK library cannot be loaded: {text}.",
            remedy="Check that libdir holds a complete 64-bit VDDK 6.5 or later.",
        )
    lines = list(log)
    code = code_of(error)
    words = f"{code.name}: {code.meaning}"
    if text and text.lower() != code.meaning:
        words += f", text '{text}'"
    remedy = code.remedy
    quoted = quote(lines)
    if call == "Open" and code.name == "FAIL":
        remedy = _THUMBPRINT
        quoted = [line for line in lines if "thumbprint" in line.lower()][-1:] or quoted
    where = f" at offset {place['offset']}, length {place['length']}" if place else ""
    return VddkError(
        f"VDDK {call} of {path}{where} failed with code {error & CODE_MASK} ({words}).{said(quoted)}",
        transient=code.transient,
        remedy=remedy,
        call=call,
        code=error & CODE_MASK,
        path=path,
        log=lines,
        **place,
    )


def answered(answer: Mapping[str, object], path: str, log: Iterable[str]) -> MoverError:
    """The error in a child's answer to an order."""
    error = answer["error"]
    assert isinstance(error, int)
    return call_failed(str(answer["call"]), error, str(answer["text"]), path, log)


def not_started(path: str, cause: OSError) -> VddkError:
    """The error when the system refused to start a child process."""
    return VddkError(
        f"The VDDK process of {path} cannot be started: {cause.strerror}.",
        remedy="Check the limits of processes and open files (ulimit -u, ulimit -n).",
        path=path,
    )


def other_disk(path: str, was: int, now: int) -> VddkError:
    """The error when a disk has another capacity after reconnecting."""
    return VddkError(
        f"{path} had {was} bytes and has {now} after reconnecting: it is another disk.",
        remedy="Start the job again with a new snapshot.",
        call="GetInfo",
        path=path,
    )


def child_lost(call: str, how: str, path: str, log: Iterable[str], **place: object) -> VddkError:
    """The transient error when the child of an open disk crashed or hung."""
    where = f" at offset {place['offset']}" if place else ""
    return call_lost(call, f"{how}{where}", path, log, **place)


def call_lost(call: str, how: str, path: str, log: Iterable[str], **place: object) -> VddkError:
    """The transient error when the child crashed or hung during `call`."""
    lines = list(log)
    return VddkError(
        f"The VDDK process of {path} {how}.{said(quote(lines))}",
        transient=True,
        remedy="Look at the library's log and at the load of this machine and of the ESXi host.",
        call=call,
        code=None,
        path=path,
        log=lines,
        **place,
    )


def given_up(last: MoverError, restarts: int) -> MoverError:
    """The error after `restarts` + 1 failures in a row without a byte transferred in between."""
    if not last.transient or not restarts:
        return last
    return VddkError(
        f"{last.problem} {restarts} new connections did not help.",
        transient=True,
        remedy=last.remedy,
        **last.facts,
    )


def quote(log: list[str]) -> list[str]:
    """The lines for a message: the last ones above the level of information."""
    telling = dict.fromkeys(line for line in log if not line.startswith(("D ", "I ")))
    return list(telling)[-_QUOTED:]


def said(lines: list[str]) -> str:
    """Log lines as one sentence, without their tags."""
    words = [line[2:] if line[1:2] == " " else line for line in lines]
    return f" The library said: {' / '.join(words)}." if words else ""
