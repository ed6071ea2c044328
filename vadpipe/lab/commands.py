"""`vadpipe lab`: the demo, and a vCenter to try configurations against.

The extra `lab` is imported by the commands themselves, so that `vadpipe --help` works without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from pipeline.errors import EXIT_FAILED, ConfigError
from pipeline.units import MiB


@click.group()
def lab() -> None:
    """A vCenter, a VDDK and a VM to try things on, without any of them."""


@contextmanager
def _needs_extra() -> Iterator[None]:
    """Turn a missing library of the extra `lab` into a ConfigError."""
    try:
        yield
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] not in ("cryptography", "hypothesis"):
            raise
        raise ConfigError(
            f"The lab needs the Python package {exc.name.partition('.')[0]}, which is not installed.",
            remedy="Run: pip install 'vadpipe[lab]'",
        ) from exc


@lab.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--fill", default=300, show_default=True, metavar="MIB", help="Files on the VM's disks.")
def demo(directory: Path, fill: int) -> int:
    """Back up and restore a lab VM in DIRECTORY, twice."""
    with _needs_extra():
        from .demo import DemoFailed, run_demo
    try:
        run_demo(directory.resolve(), fill * MiB)
    except DemoFailed as exc:
        click.echo(f"vadpipe: the demo failed: {exc}.", err=True)
        return EXIT_FAILED
    return 0


@lab.command()
@click.argument("root", type=click.Path(file_okay=False, path_type=Path))
@click.option("--port", default=0, help="TCP port on loopback; 0 takes a free one.")
@click.option("--user", default="backup", show_default=True, help="Name of the one account.")
@click.option(
    "--password-env", metavar="VAR", help="Environment variable with the password [default: 'lab']."
)
def vcenter(root: Path, port: int, user: str, password_env: str | None) -> None:
    """Serve the lab directory ROOT as a vCenter, until standard input ends."""
    with _needs_extra():
        from .vcenter.serving import serve
    serve(root, port, user, password_env)
