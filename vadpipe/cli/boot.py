"""The command boot: a point as a running machine, without a restore."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import trio

from pipeline.errors import EXIT_DONE, ConfigError
from sinks.images import image_name
from sinks.restoring import disks_of
from vadpipe.boot.machine import BUSES, BootDisk, BootPlan, Choices, shell_lines
from vadpipe.boot.run import SOCKET, claim, plan_for, run_plan, served_for_boot
from vadpipe.nbd.server import Server
from vadpipe.repository.format.restore_point import RestorePoint, StoredDisk

from .commands import OnRepository, disk_option, json_option, point_argument, repository_argument, vm_option
from .maintenance import parse_size
from .output import report, show
from .process import run_async
from .repository import opened_point

_KVM = "/dev/kvm"


@click.command(cls=OnRepository)
@repository_argument
@point_argument
@vm_option
@click.option("--kvm", is_flag=True, help="Boot it here, under QEMU; with KVM where the machine has it.")
@click.option("--run", "run_it", is_flag=True, help="Run it; the point is served as long as it runs.")
@disk_option
@click.option(
    "--overlay",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep what the guest writes in this directory; else it is thrown away at the end.",
)
@click.option(
    "--network", is_flag=True, help="Connect its network cards, behind NAT. Else they have no cable."
)
@click.option("--memory", metavar="SIZE", help="Other than the VM had, e.g. 4GiB.")
@click.option(
    "--bus", type=click.Choice(list(BUSES)), help="Controllers of its disks, other than the VM had."
)
@click.option(
    "--emulate", is_flag=True, help="In software, without KVM: slow. So it is where there is no KVM."
)
@click.option("--console", is_flag=True, help="No display: its first serial port on this terminal.")
@json_option
@click.argument("further", nargs=-1, metavar="[-- QEMU OPTIONS]")
def boot(
    repository: str,
    point: str,
    vm: str | None,
    kvm: bool,
    run_it: bool,
    keys: tuple[str, ...],
    overlay: Path | None,
    network: bool,
    memory: str | None,
    bus: str | None,
    emulate: bool,
    console: bool,
    as_json: bool,
    further: tuple[str, ...],
) -> int:
    """Print the command that boots a restore point under QEMU, or run it; the point stays as it is.

    POINT is an id, a unique prefix of one, or `latest`. Firmware, controllers, network cards, memory and processors
    are those of the VM, as far as QEMU has them; what differs is told. What the guest writes goes into qcow2 images
    over the served disks. Its network cards are not connected, so that it cannot meet the VM that it is a copy of.

    \b
    vadpipe boot /srv/backup latest --vm web01 --kvm --run
    vadpipe boot /srv/backup latest --vm web01 --kvm --run --console --overlay /var/tmp/web01
    """
    if not kvm:
        raise ConfigError("Where it boots is missing.", remedy="Add --kvm: under QEMU, on this machine.")
    if run_it and as_json:
        raise ConfigError("--run and --json exclude each other.", remedy="Leave one out.")
    size = None if memory is None else parse_size(memory)
    emulate = emulate or not os.access(_KVM, os.R_OK | os.W_OK)
    choices = Choices(network, size, bus, emulate, console, further)

    async def work() -> None:
        async with opened_point(repository, point, vm) as (reader, found):
            disks = disks_of(found, keys)
            if not run_it:
                directory = overlay or Path("/var/tmp") / f"vadpipe-{found.id}"
                server = Server({}, directory / SOCKET, None)
                plan = plan_for(found, _images(disks, server, directory), directory, choices)
                _print(repository, found, keys, directory, plan, as_json)
                return
            place = os.environ.get("TMPDIR", "/var/tmp")
            with tempfile.TemporaryDirectory(prefix="vadpipe-boot-", dir=place) as own:
                directory = Path(own) if overlay is None else overlay
                await trio.to_thread.run_sync(claim, directory, found)
                async with served_for_boot(reader, found, disks, directory) as running:
                    plan = plan_for(found, _images(disks, running, directory), directory, choices)
                    for note in plan.notes:
                        report(note)
                    await run_plan(plan)

    run_async(work)
    return EXIT_DONE


def _images(disks: Sequence[StoredDisk], server: Server, directory: Path) -> list[BootDisk]:
    return [
        BootDisk(disk.key, server.uri(disk.key), directory / f"{image_name(disk.key)}.qcow2")
        for disk in disks
    ]


def _print(
    repository: str,
    point: RestorePoint,
    keys: tuple[str, ...],
    directory: Path,
    plan: BootPlan,
    as_json: bool,
) -> None:
    """The commands for a shell, in order."""
    chosen = [part for key in keys for part in ("--disk", key)]
    serve = ["vadpipe", "serve", repository, point.id, *chosen, "--socket", str(directory / SOCKET)]
    firmware = plan.firmware
    copied = [] if firmware is None else [["cp", "-n", str(firmware.template), str(firmware.variables)]]
    document = {
        "point": point.id,
        "serve": serve,
        "prepare": [["mkdir", "-p", "-m", "700", str(directory)], *copied],
        "overlays": plan.overlays,
        "qemu": plan.qemu,
        "notes": plan.notes,
    }
    lines = [
        *(f"# {note}" for note in plan.notes),
        shlex.join(["mkdir", "-p", "-m", "700", str(directory)]),
        *map(shlex.join, copied),
        f"{shlex.join(serve)} &  # as long as the machine runs",
        *map(shlex.join, plan.overlays),
        *shell_lines(plan.qemu),
    ]
    show(document, lines, as_json)
