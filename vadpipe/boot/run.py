"""Running a point: it is served on a private socket, QEMU writes into overlays, and the point stays as it is."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from pipeline.errors import ConfigError, SinkError
from vadpipe.files import write_durably
from vadpipe.nbd.server import Server
from vadpipe.repository.format.restore_point import RestorePoint, StoredDisk
from vadpipe.repository.reader import RepositoryReader
from vadpipe.serve.point import serve_point

from .machine import QEMU, BootDisk, BootPlan, Choices, boot_plan, find_firmware, needs_firmware

log = logging.getLogger(__name__)

SOCKET: Final = "nbd.sock"
_POINT: Final = "point"
_ENDS_S: Final = 20.0  # QEMU flushes its overlays when it is told to end


def plan_for(point: RestorePoint, disks: Sequence[BootDisk], directory: Path, choices: Choices) -> BootPlan:
    """The commands that boot a point.

    Args:
        point: The point.
        disks: Disks of it, where each is served, and its overlay.
        directory: Where the firmware's variables are.
        choices: What differs from the VM.

    Raises:
        ConfigError: It has EFI, and this machine has no UEFI for QEMU.
    """
    firmware = None
    if needs_firmware(point.configuration):
        firmware = find_firmware(directory / "efi-variables.fd")
        if firmware is None:
            raise ConfigError(
                f"{point.machine.name} boots by EFI, and there is no UEFI for QEMU here.",
                remedy="Install OVMF (Debian: ovmf; Fedora: edk2-ovmf).",
            )
    return boot_plan(point.machine.name, point.configuration, disks, choices, firmware)


def claim(directory: Path, point: RestorePoint) -> None:
    """Note in a directory for overlays which point they belong to. Blocks.

    Raises:
        ConfigError: They belong to another point, or the directory cannot be used.
    """
    note = directory / _POINT
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not note.exists():
            write_durably(note, f"{point.id}\n".encode())
        owner = note.read_text().strip()
    except OSError as exc:
        raise ConfigError(
            f"{directory} cannot be used for overlays: {exc.strerror}.", remedy="Name another directory."
        ) from exc
    if owner != point.id:
        raise ConfigError(
            f"{directory} has what a guest wrote over point {owner}, not over {point.id}.",
            remedy="Name another directory, or empty this one.",
        )


@asynccontextmanager
async def served_for_boot(
    reader: RepositoryReader, point: RestorePoint, disks: Sequence[StoredDisk], directory: Path
) -> AsyncIterator[Server]:
    """The disks on a Unix socket in the directory of the overlays, which name it; only this user may use it."""
    keys = [disk.key for disk in disks]
    async with serve_point(reader, point, keys=keys, listen=directory / SOCKET) as server:
        yield server


async def run_plan(plan: BootPlan) -> None:
    """Make the overlays, and run QEMU until it ends. It is ended when this is cancelled.

    An overlay that is there already is used as it is: the guest goes on where it was.

    Raises:
        ConfigError: QEMU is not installed.
        SinkError: An overlay cannot be made, or QEMU failed.
    """
    for program in {command[0] for command in (*plan.overlays, plan.qemu)}:
        if shutil.which(program) is None:
            raise ConfigError(
                f"{program} is not installed.",
                remedy="Install QEMU (Debian: qemu-system-x86 and qemu-utils; Fedora: qemu-kvm and qemu-img).",
            )
    for command in plan.overlays:
        if await trio.Path(command[-1]).exists():
            continue
        made = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
        if made.returncode:
            said = made.stdout.decode("utf-8", "replace").strip()
            raise SinkError(f"The overlay {command[-1]} cannot be made: {said}.")
    if plan.firmware is not None and not plan.firmware.variables.exists():
        await trio.to_thread.run_sync(shutil.copyfile, plan.firmware.template, plan.firmware.variables)
    begun = time.monotonic()
    ended = await trio.run_process(
        list(plan.qemu), stdin=None, check=False, deliver_cancel=_end, start_new_session=False
    )
    log.debug("%s ran for %.1f s", QEMU, time.monotonic() - begun)
    if ended.returncode:
        raise SinkError(
            f"{QEMU} ended with exit status {ended.returncode}; what it said is above.",
            remedy="Where it is about KVM, try --emulate.",
        )


async def _end(process: trio.Process) -> None:
    process.send_signal(signal.SIGTERM)
    await trio.sleep(_ENDS_S)
    log.warning("%s did not end within %.0f s, and is killed.", QEMU, _ENDS_S)
    process.kill()
