"""The lab's commands: the demo, and a vCenter to try configurations against."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.errors import EXIT_FAILED
from pipeline.units import MiB

from .demo import DemoFailed, run_demo
from .vcenter.__main__ import main as serve


@click.group()
def lab() -> None:
    """A vCenter, a VDDK and a VM to try things on, without any of them."""


@lab.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--fill", default=300, show_default=True, metavar="MIB", help="Files on the VM's disks.")
def demo(directory: Path, fill: int) -> int:
    """Run the main job on a lab built in DIRECTORY: two backups, two restores, compared."""
    try:
        run_demo(directory.resolve(), fill * MiB)
    except DemoFailed as exc:
        click.echo(f"vadpipe: the demo failed: {exc}.", err=True)
        return EXIT_FAILED
    return 0


lab.add_command(serve, "vcenter")
