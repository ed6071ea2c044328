"""The command `vadpipe`: one module per command or family of commands, and what they share.

main       the entry point: the process, exit codes     commands   the group, arguments, options, completion
process    coroutines that a signal ends in order       output     everything that is printed
config     jobs from a Python file                      progress   bars, lines, event files
"""

from __future__ import annotations

import signal

EXIT_INTERRUPTED = 130


def ending_signals() -> list[signal.Signals]:
    """The signals that end a command in order: all but those that the caller ignores, as `nohup` does."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [signal.Signals[name] for name in names if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
