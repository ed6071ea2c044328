"""`make demo`: the main job, from a quiesced snapshot to a restored VM, on the lab.

The lab lives in this process: a vCenter over SOAP and TLS, and a Windows-like VM on real VMDK files. The product
runs as its users run it, as the command `vadpipe` in processes of its own, with `examples/nightly.py` as its
configuration (by way of `nightly.py` beside this file), through the stand-in VDDK library. Digests of the disks are
taken from each quiesced snapshot by an independent reader, and compared with what was restored in the end: images
of both points, and the second one as a new VM.

Where the stand-in VDDK cannot be built, the VM's files are backed up without a vCenter (`examples/local.py`).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline.errors import ConfigError
from pipeline.units import MiB, format_size

from . import EXAMPLES
from .compared_vms import compared, configurations, table
from .guest import VSS_FILE, Guest, build_windows_guest
from .guest_volumes import names_in
from .process_tree import run_measured
from .vcenter.server import LabVcenter
from .vddk_build import CompilationFailed, CompilerMissing, build_vddk
from .witness import WITNESS, chain_digest, image_digest, raw_copy

VM = "web01"
DATASTORE = "datastore1"
MARKER = ".vadpipe-lab"
NIGHTLY = Path(__file__).resolve().with_name("nightly.py")

# What one incremental run may read beyond what change tracking reports: spans are cut at clusters.
READ_RATIO, READ_SLACK = 1.05, 1 * MiB


@dataclass(frozen=True)
class Lab:
    """A prepared directory: the VM, the configuration to run, and the environment it needs."""

    directory: Path
    guest: Guest
    config: Path
    environment: dict[str, str]
    witnessed: list[list[str]]  # digests of the disks, one list per snapshot

    @property
    def repository(self) -> Path:
        return self.directory / "repository"

    def vadpipe(self, *arguments: str | Path) -> str:
        """Run the command, show what it says unless that is JSON, and return it. Raises DemoFailed."""
        line = " ".join(str(argument) for argument in arguments)
        click.secho(f"$ vadpipe {line}", bold=True)
        command = [sys.executable, "-m", "vadpipe", *map(str, arguments)]
        done = run_measured(command, {**os.environ, **self.environment})
        click.echo(done.stderr, nl=False, err=True)
        if "--json" not in arguments:
            click.echo(done.stdout, nl=False)
            click.echo(f"peak memory {format_size(done.peak_rss)}, child processes included")
        if done.returncode != 0:
            raise DemoFailed(f"vadpipe {line} ended with exit code {done.returncode}")
        return done.stdout


class DemoFailed(RuntimeError):
    """A step of the demo did not do what it has to."""


def run_demo(directory: Path, fill: int) -> None:
    """Build the lab in `directory`, with `fill` bytes of files, and run the main job on it. Raises DemoFailed."""
    begun = time.monotonic()
    with ExitStack() as stack:
        lab = _prepare(directory, fill, stack)
        lab.vadpipe("init", lab.repository)
        _say("First run: everything that is allocated")
        _back_up(lab)
        _say("The guest works")
        done = lab.guest.work(seed=2)
        click.echo(f"{done[0]}, ... and {len(done) - 1} more")
        _say("Second run: what changed")
        _check_amount_read(_back_up(lab))
        _say("Restore both points and compare")
        lab.vadpipe("verify", lab.repository)
        points = _points(lab)
        for point, digests in zip(points, lab.witnessed, strict=True):
            _restore_and_compare(lab, point, digests)
        if lab.config is NIGHTLY:
            _say("The second point becomes a new VM")
            _restore_into_vm(lab, points[-1], lab.witnessed[-1])
    click.echo(f"Done in {time.monotonic() - begun:.0f} s. Try: vadpipe show {lab.repository} latest")


def _prepare(directory: Path, fill: int, stack: ExitStack) -> Lab:
    _clear(directory)
    vm_directory = directory / "datastores" / DATASTORE / VM
    _say("The lab: a vCenter and a Windows VM")
    guest = build_windows_guest(vm_directory, VM, fill=fill)
    click.echo(
        f"VM {VM}: {', '.join(f'{disk.name} {format_size(disk.capacity)}' for disk in guest.disks)}; "
        f"file system {guest.filesystem}, {len(guest.files)} files; digests by {WITNESS}"
    )
    try:
        libdir = build_vddk(directory / "vddk")
    except (CompilerMissing, CompilationFailed) as exc:
        click.secho(f"Left out: vCenter, quiescing, VDDK and change tracking, because {exc}.", fg="yellow")
        return _local(directory, guest)
    return _vcenter(directory, guest, libdir, stack)


def _vcenter(directory: Path, guest: Guest, libdir: Path, stack: ExitStack) -> Lab:
    password = secrets.token_urlsafe(12)
    vcenter = stack.enter_context(LabVcenter(directory, password=password))
    vcenter.register_vm(guest.directory, VM, guest.disks, datastore=DATASTORE)
    witnessed: list[list[str]] = []

    def witness(_moref: str, frozen: list[Path]) -> None:
        forks = [disk.fork_of(path) for disk, path in zip(guest.disks, frozen, strict=True)]
        guest.vss_writers(forks)
        witnessed.append(
            [
                chain_digest(disk.frozen_chain(path), disk.capacity)
                for disk, path in zip(guest.disks, frozen, strict=True)
            ]
        )

    vcenter.on_snapshot.append(witness)
    click.echo(f"vCenter at {vcenter.address}:{vcenter.port}, stand-in VDDK in {libdir}")
    environment = {
        "VC_SERVER": vcenter.address,
        "VC_PORT": str(vcenter.port),
        "VC_USER": "backup",
        "VC_PASSWORD": password,
        "VC_THUMBPRINT": vcenter.thumbprint,
        "VDDK_LIBDIR": str(libdir),
        "VADPIPE_LAB_ROOT": str(directory),
        "VM": VM,
    }
    return _lab(directory, guest, NIGHTLY, environment, witnessed)


def _local(directory: Path, guest: Guest) -> Lab:
    """Without VDDK: the VM's own files, one digest per run taken just before it."""
    return _lab(directory, guest, EXAMPLES / "local.py", {"VM_DIRECTORY": str(guest.directory)}, [])


def _lab(
    directory: Path, guest: Guest, config: Path, environment: dict[str, str], witnessed: list[list[str]]
) -> Lab:
    common = {
        "REPOSITORY": str(directory / "repository"),
        "XDG_STATE_HOME": str(directory / "state"),  # the intent journal of this lab only
    }
    return Lab(directory, guest, config, {**environment, **common}, witnessed)


def _clear(directory: Path) -> None:
    """An empty directory for the lab; only what an earlier demo made is removed."""
    if directory.exists() and any(directory.iterdir()):
        if not (directory / MARKER).exists():
            raise ConfigError(
                f"{directory} is not empty and no directory of the lab.", remedy="Name another one."
            )
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MARKER).touch()


def _back_up(lab: Lab) -> dict[str, dict[str, Any]]:
    """One run; returns the last event `disk finished` of each disk."""
    if lab.config.name == "local.py":
        lab.witnessed.append([chain_digest(disk.chain, disk.capacity) for disk in lab.guest.disks])
    events = lab.directory / "events.jsonl"
    lab.vadpipe("run", lab.config, "--events", events)
    told = [json.loads(line) for line in events.read_text().splitlines()]
    return {event["disk"]: event for event in told if event["event"] == "disk finished"}


def _check_amount_read(disks: dict[str, dict[str, Any]]) -> None:
    for key, disk in disks.items():
        if disk["changed"] is None:
            continue
        most = READ_RATIO * disk["changed"] + READ_SLACK
        verdict = f"{key}: read {format_size(disk['read'])} of {format_size(disk['changed'])} changed"
        if disk["read"] > most:
            raise DemoFailed(f"{verdict}, more than {format_size(most)}")
        click.echo(f"{verdict}: at most {READ_RATIO} times and {format_size(READ_SLACK)} more allowed")


def _points(lab: Lab) -> list[str]:
    """Ids of the points, oldest first."""
    return [point["id"] for point in json.loads(lab.vadpipe("points", lab.repository, "--json"))["points"]]


def _restore_and_compare(lab: Lab, point: str, digests: Sequence[str]) -> None:
    target = lab.directory / "restored" / point
    receipt = json.loads(lab.vadpipe("restore", lab.repository, point, f"raw:{target}", "--json"))
    for disk, digest in zip(receipt["disks"], digests, strict=True):
        if image_digest(Path(disk["path"])) != digest:
            raise DemoFailed(f"point {point}, disk {disk['key']}: restored, but not what was quiesced")
        click.echo(f"point {point}, disk {disk['key']}: restored and identical (BLAKE3 {digest[:16]}...)")
    shutil.rmtree(target)


def _restore_into_vm(lab: Lab, point: str, digests: Sequence[str]) -> None:
    """Restore into a new VM through VDDK; others then read its disks, files and configuration, and compare."""
    name = f"{VM}-restored"
    target = f"vsphere:{EXAMPLES / 'restore.py'}"
    said = lab.vadpipe("restore", lab.repository, point, target, "--name", name, "--json")
    places = [str(disk["path"]) for disk in json.loads(said)["disks"]]
    for number, (place, disk, digest) in enumerate(zip(places, lab.guest.disks, digests, strict=True)):
        image = _datastore_file(lab, place)
        if chain_digest([image], disk.capacity) != digest:
            raise DemoFailed(f"{place}: restored, but not what was quiesced")
        click.echo(f"{place}: restored and identical (BLAKE3 {digest[:16]}..., read by {WITNESS})")
        if number == 0:
            _compare_files(lab, image)
    _compare_configurations(lab, name)


def _datastore_file(lab: Lab, place: str) -> Path:
    """The file of `[datastore] directory/name.vmdk`, which may follow the VM's name."""
    datastore, _, path = place[place.index("[") + 1 :].partition("] ")
    return lab.directory / "datastores" / datastore / path


def _compare_files(lab: Lab, image: Path) -> None:
    """The names of the files on the restored system disk and on the guest's own: VSS writers added one."""
    guest = lab.guest
    with tempfile.TemporaryDirectory(dir=lab.directory) as scratch:
        raw = Path(scratch, "system.raw")
        raw_copy([image], guest.disks[0].capacity, raw)
        restored = names_in(raw, guest.filesystem)
    if restored is None:
        click.secho(f"Left out: the files of {image.name}, for want of tools to list them.", fg="yellow")
        return
    expected = {*(names_in(guest.image_of(guest.disks[0]), guest.filesystem) or ()), VSS_FILE}
    if restored != expected:
        raise DemoFailed(f"{image.name} has other files: {', '.join(sorted(restored ^ expected)[:5])}")
    click.echo(f"{image.name}: {guest.filesystem} with the same {len(restored)} files")


def _compare_configurations(lab: Lab, name: str) -> None:
    """The table of both VMs' configurations, as an independent client reads them."""
    at = lab.environment
    original, restored = configurations(
        at["VC_SERVER"], int(at["VC_PORT"]), at["VC_USER"], at["VC_PASSWORD"], VM, name
    )
    rows = compared(original, restored)
    for line in table(rows):
        click.echo(line)
    if wrong := [row.field for row in rows if row.wrong]:
        raise DemoFailed(f"VM {name} is not as it has to be: {', '.join(wrong)}")


def _say(title: str) -> None:
    click.secho(f"\n== {title} ==", bold=True)
