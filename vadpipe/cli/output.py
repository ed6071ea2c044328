"""Everything that a command prints: results, errors, tables; and the settings of the output.

Names come out of guests and servers, so every line passes `echo`, which takes out what moves a terminal's cursor,
and secrets. Output that cannot be written (a full disk, a closed pipe, a terminal that is gone) never ends a job.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import click

from pipeline.errors import (
    EXIT_ATTENTION,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_USAGE,
    MoverError,
    are_ours,
    failures,
    leaves,
)
from pipeline.secrets import blotted
from vadpipe import logs
from vadpipe.jsonable import jsonable
from vadpipe.words import printable

from . import EXIT_INTERRUPTED


class Bars(Protocol):
    """Progress bars, which have to make room for a line."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


@dataclass
class _Output:
    """The output of this process. `broken`: why standard output cannot be written any more."""

    progress: bool = True
    verbose: bool = False
    broken: OSError | None = None
    bars: Bars | None = None


_output = _Output()


def configure(
    *, verbose: int = 0, quiet: bool = False, no_progress: bool = False, log_file: Path | None = None
) -> None:
    """Set up progress and the log, as the options of the command line say."""
    logging_here = verbose and not quiet and log_file is None
    _output.verbose = bool(verbose)
    _output.progress = not (quiet or no_progress or logging_here)
    logs.configure(verbose, quiet=quiet, file=log_file)


def wants_progress() -> bool:
    return _output.progress


def is_verbose() -> bool:
    return _output.verbose


def echo(line: str, *, err: bool = False) -> None:
    """Print one line. No line is lost silently: see `code_after_output`."""
    with _room():
        try:
            click.echo(blotted(printable(line)), err=err)
        except OSError as exc:
            output_is_broken(exc, err=err)


@contextmanager
def beside(bars: Bars) -> Iterator[None]:
    """Inside the block, lines are printed above these bars."""
    _output.bars = bars
    try:
        yield
    finally:
        _output.bars = None


@contextmanager
def _room() -> Iterator[None]:
    """Take the bars off the terminal for a moment."""
    bars = _output.bars
    with suppress(OSError):
        if bars:
            bars.stop()
    yield
    with suppress(OSError):
        if bars:
            bars.start()


def report(line: str) -> None:
    """Print one line on standard error, as the command's word."""
    echo(f"vadpipe: {line}", err=True)


def output_is_broken(problem: OSError, *, err: bool = False) -> None:
    """Go on without standard output, or without standard error."""
    stream = sys.stderr if err else sys.stdout
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # what the stream still buffers goes there
        os.close(null)
    if not err and _output.broken is None:
        _output.broken = problem
        if problem.errno != errno.EPIPE:
            report(f"Standard output cannot be written: {problem.strerror}. What follows is not shown.")


def code_after_output(code: int) -> int:
    """The exit code of a command, with lost output in mind: 0 becomes 3, unless the reader closed the pipe."""
    try:
        sys.stdout.flush()
    except OSError as exc:
        output_is_broken(exc)
    lost = _output.broken is not None and _output.broken.errno != errno.EPIPE
    return EXIT_ATTENTION if lost and code == EXIT_DONE else code


def show(document: object, lines: Sequence[str], as_json: bool) -> None:
    """Print the result of a command: the document for machines (see `jsonable`), or the lines for people."""
    if not as_json:
        for line in lines:
            echo(line)
        return
    try:
        click.echo(blotted(json.dumps(jsonable(document), indent=2)))
    except OSError as exc:
        output_is_broken(exc)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> list[str]:
    """Aligned columns as lines; those of `right` are numbers and stand to the right. No lines without rows."""
    if not rows:
        return []
    cells = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(row, widths, header, strict=True)
        ).rstrip()

    return [line(row) for row in cells]


def error_lines(exc: BaseException) -> list[str]:
    """An error for people: one line per failure of a group, with its notes."""
    lines = (
        f"{failure.text} ({'; '.join(failure.notes)})" if failure.notes else failure.text
        for failure in failures(exc)
    )
    return list(dict.fromkeys(blotted(line) for line in lines))


def exit_code(exc: BaseException) -> int:
    """The exit code of an error or a group of errors. Precedence: interrupted, failed, usage, attention."""
    codes = {leaf.exit_code if isinstance(leaf, MoverError) else EXIT_FAILED for leaf in leaves(exc)}
    for code in (EXIT_INTERRUPTED, EXIT_FAILED, EXIT_USAGE):
        if code in codes:
            return code
    return EXIT_ATTENTION


def report_defect(exc: BaseException) -> None:
    """Print the traceback of an error that is no failure of ours, so that the defect can be found."""
    if not are_ours(exc):
        text = blotted("".join(traceback.format_exception(exc)))
        with _room(), suppress(OSError):
            click.echo(text, err=True, nl=False)


def report_failure(exc: BaseException, as_json: bool) -> int:
    """Print an error that ended a command, and return its exit code."""
    code = exit_code(exc)
    report_defect(exc)
    for line in error_lines(exc):
        report(line)
    if as_json:
        show({"ok": False, "exit_code": code, "errors": error_lines(exc)}, [], True)
    return code
