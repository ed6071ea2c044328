"""Serve a lab directory as a process of its own."""

import json
import os
import select
import signal
import sys
from pathlib import Path

import click

from .server import LabVcenter


def serve(root: Path, port: int, user: str, password_env: str | None) -> None:
    """Print the content of `server.json` as one line, and serve until standard input ends or SIGTERM comes.

    Ending with standard input means that the server never outlives the process that started it.

    Args:
        root: Directory of the lab, with `datastores/` in it.
        port: TCP port on loopback; 0 takes a free one.
        user: Name of the one account.
        password_env: Environment variable with its password; None: the password is 'lab'.

    Raises:
        click.UsageError: The environment has no such variable.
    """
    if password_env is not None and password_env not in os.environ:
        raise click.UsageError(f"The environment has no variable {password_env}.")
    password = os.environ[password_env] if password_env else "lab"
    wakeup_read, wakeup_write = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(wakeup_write, b"\0"))
    with LabVcenter(root, user=user, password=password, port=port) as vcenter:
        click.echo(json.dumps(vcenter.description()))
        sys.stdout.flush()
        _wait_for_end(wakeup_read)


def _wait_for_end(wakeup: int) -> None:
    """Return when standard input ends or `wakeup` becomes readable."""
    while True:
        readable, _, _ = select.select([sys.stdin.fileno(), wakeup], [], [])
        if wakeup in readable or not os.read(sys.stdin.fileno(), 4096):
            return
