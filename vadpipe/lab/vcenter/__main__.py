"""`python -m vadpipe.lab.vcenter ROOT`: the lab's vCenter as a process of its own.

Prints one line of JSON, the content of `server.json`, when it listens. Ends when its standard input closes, so
that it never outlives who started it, or on SIGTERM.
"""

import json
import os
import select
import signal
import sys
from pathlib import Path

import click

from .server import LabVcenter


@click.command()
@click.argument("root", type=click.Path(file_okay=False, path_type=Path))
@click.option("--port", default=0, help="TCP port on loopback; 0 takes a free one.")
@click.option("--user", default="backup", show_default=True, help="Name of the one account.")
@click.option(
    "--password-env", metavar="VAR", help="Environment variable with the password [default: 'lab']."
)
def main(root: Path, port: int, user: str, password_env: str | None) -> None:
    """Serve the lab directory ROOT."""
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


if __name__ == "__main__":
    main()
