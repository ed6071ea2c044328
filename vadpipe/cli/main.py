"""The command `vadpipe`: one group whose commands the rooms register by entry points.

A command is a click command. What all of them share is here: how a coroutine is run so that a signal cancels it in
order, how results and errors are shown to people and to machines, and what the exit code is.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import entry_points, version
from typing import Any, NoReturn, TypeVar

import click
import trio

from pipeline.errors import (
    EXIT_ATTENTION,
    EXIT_FAILED,
    EXIT_USAGE,
    MoverError,
    are_ours,
    leaves,
)

from .allocator import keep_freed_memory

T = TypeVar("T")

GROUP = "vadpipe.commands"
EXIT_INTERRUPTED = 130


class RoomCommands(click.Group):
    """Commands found by their entry points, loaded when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(point.name for point in entry_points(group=GROUP))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for point in entry_points(group=GROUP, name=cmd_name):
            command = point.load()
            assert isinstance(command, click.Command)
            return command
        return None


@click.group(cls=RoomCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("vadpipe"), prog_name="vadpipe")
def vadpipe() -> None:
    """Streaming data mover for VMware virtual machines.

    Exit codes: 0 done as asked; 1 failed, nothing published; 2 usage or configuration;
    3 published, but something needs attention.
    """


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")


class Interrupted(MoverError):
    """A signal ended the run; everything was cleaned up in order."""

    exit_code = EXIT_INTERRUPTED


def run_async(function: Callable[..., Awaitable[T]], *args: object) -> T:
    """Run a coroutine function; SIGINT and SIGTERM cancel it in order. Raises Interrupted then."""
    return trio.run(_with_signals, function, args)


async def _with_signals(function: Callable[..., Awaitable[T]], args: Sequence[object]) -> T:
    caught: list[signal.Signals] = []
    result: list[T] = []
    error: list[BaseException] = []

    async def watch(task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                caught.append(signal.Signals(number))
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(watch)
        try:
            result.append(await function(*args))
        except Exception as exc:  # kept aside, so that the nursery does not wrap it
            error.append(exc)
        nursery.cancel_scope.cancel()
    if error:
        raise error[0]
    if caught and not result:
        raise Interrupted(f"Ended by {caught[0].name}; nothing was published.")
    return result[0]


def printable(text: str) -> str:
    """The text without what moves a terminal's cursor or worse, for names that come out of a guest."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def show(document: Mapping[str, object], lines: Sequence[str], as_json: bool) -> None:
    """The result of a command: the document for machines, the lines for people."""
    if as_json:
        click.echo(json.dumps(document, indent=2, default=str))
    else:
        for line in lines:
            click.echo(line)


def error_lines(exc: BaseException) -> list[str]:
    """What people are told of an error: one message per failure, with its notes."""
    lines: list[str] = []
    for leaf in leaves(exc):
        notes = getattr(leaf, "__notes__", [])
        text = str(leaf) if isinstance(leaf, MoverError) else f"{type(leaf).__name__}: {leaf}"
        lines.append(f"{text} ({'; '.join(notes)})" if notes else text)
    return lines


def exit_code(exc: BaseException) -> int:
    """That of the worst failure: failed before usage before attention."""
    codes = {leaf.exit_code if isinstance(leaf, MoverError) else EXIT_FAILED for leaf in leaves(exc)}
    for code in (EXIT_INTERRUPTED, EXIT_FAILED, EXIT_USAGE):
        if code in codes:
            return code
    return EXIT_ATTENTION


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The entry point of the command."""
    keep_freed_memory()
    arguments = list(sys.argv[1:] if args is None else args)
    as_json = "--json" in arguments
    try:
        code: Any = vadpipe.main(arguments, prog_name="vadpipe", standalone_mode=False)
    except click.UsageError as exc:
        exc.show()
        code = EXIT_USAGE
    except click.Abort:
        code = EXIT_INTERRUPTED
    except Exception as exc:
        code = exit_code(exc)
        if not are_ours(exc):
            traceback.print_exception(exc)  # a defect of ours, not a user's mistake
        for line in error_lines(exc):
            click.echo(f"vadpipe: {line}", err=True)
        if as_json:
            show({"ok": False, "exit_code": code, "errors": error_lines(exc)}, [], True)
    sys.exit(code if isinstance(code, int) else 0)
