"""What it costs to restore a disk through VDDK, against restoring it to a raw image.

    python bench/restore_cost.py [--mib 1024] [--rounds 5] [--subformat monolithicSparse]

A file system of this machine's own files is backed up once. Then its point is restored in turns: to a sparse raw
image (RawFile), and through the stand-in VDDK over nbdssl into a new disk (IntoVddkDisk). Each turn is a process of
its own. CPU is that of the mover and of its child process, from the open repository to the closed disk; the targets
are on the same file system. The ratios are medians of VDDK divided by raw, round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from pipeline import BufferPool, GiB, Job, MiB, Secret
from sinks import IntoRepository, IntoVddkDisk, RawFile, ReadPoint, Repository, open_repository
from stages import LocalVm, Zstd
from vadpipe.bench import images
from vadpipe.bench.machine import cpu_s, machine_line
from vadpipe.bench.path import stored_path
from vadpipe.cli.main import keep_freed_memory
from vadpipe.lab import vddk_build
from vadpipe.vddk import DiskAccess, Vddk

THUMBPRINT = ":".join(["3F"] * 20)
CASES = ("raw", "vddk")


async def back_up(image: Path, place: Path) -> None:
    repository = Repository(place)
    repository.init()
    await Job(
        LocalVm(image.parent),
        lambda disk, point: stored_path(disk, point, Zstd(1)) | IntoRepository(point, disk),
        into=repository,
    ).run()


async def restore_once(case: str, root: Path, libdir: Path) -> dict[str, float]:
    """CPU-seconds and seconds of one restore."""
    async with open_repository(root / "repository") as reader:
        point = reader.points[-1]
        [disk] = point.disks
        pool = BufferPool()
        source = ReadPoint(reader, point, disk.key, pool=pool)
        spent_s, started = cpu_s(), time.perf_counter()
        if case == "raw":
            written = (await (source | RawFile(root / "disk.raw", disk.capacity, force=True)).run()).written
        else:
            access = DiskAccess(
                path="[ds1] vm/disk.vmdk", server="vc", user="u", password=Secret.from_text("password"),
                thumbprint=THUMBPRINT, vm="vm-1",
            )  # fmt: skip
            settings = Vddk(libdir, transports="nbdssl")
            async with settings.open(access, pool, write=True) as target:
                written = (await (source | IntoVddkDisk(target)).run()).written
        return {"cpu_s": cpu_s() - spent_s, "wall_s": time.perf_counter() - started, "written": written}


def fresh_disk(root: Path, capacity: int, subformat: str) -> Path:
    disk = root / "lab" / "datastores" / "ds1" / "vm" / "disk.vmdk"
    disk.parent.mkdir(parents=True, exist_ok=True)
    for old in disk.parent.iterdir():
        old.unlink()
    (root / "lab" / "vddk.conf").write_text(f"thumbprint={THUMBPRINT}\nuser=u\npassword=password\nvm=vm-1\n")
    form = ["-f", "vmdk", "-o", f"subformat={subformat}"]
    subprocess.run(["qemu-img", "create", "-q", *form, disk, str(capacity)], check=True)
    return disk


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--mib", type=int, default=1024, help="of files in the disk, whose size is twice that"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--subformat", default="monolithicSparse")
    parser.add_argument("--one", nargs=3, metavar=("CASE", "ROOT", "LIBDIR"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        case, root, libdir = options.one
        keep_freed_memory()
        print(json.dumps(trio.run(restore_once, case, Path(root), Path(libdir))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        libdir = vddk_build.build_vddk(root / "vddk")
        capacity = max(1, -(-2 * options.mib * MiB // GiB)) * GiB
        image = images.ext4_image(root / "images", capacity, options.mib * MiB, 1)
        trio.run(back_up, image, root / "repository")
        environment = {
            **os.environ,
            "VADPIPE_LAB_ROOT": str(root / "lab"),
            "XDG_STATE_HOME": str(root / "state"),
        }
        rounds = []
        target = root
        for _ in range(options.rounds):
            each = {}
            for case in CASES:
                target = fresh_disk(root, capacity, options.subformat)
                command = [sys.executable, __file__, "--one", case, root, libdir]
                done = subprocess.check_output([str(word) for word in command], env=environment)
                each[case] = json.loads(done)
            compared = subprocess.run(
                ["qemu-img", "compare", "-q", "-f", "raw", "-F", "vmdk", root / "disk.raw", target],
                check=False,
            )
            assert compared.returncode == 0, "the two targets differ"
            rounds.append(each)
        print(machine_line())
        print(
            f"{options.mib} MiB of files, {options.subformat}, {options.rounds} rounds, load",
            *os.getloadavg(),
        )
        print("case   written MiB   CPU-s   wall s")
        for case in CASES:
            median = {key: statistics.median(each[case][key] for each in rounds) for key in rounds[0][case]}
            print(
                f"{case:5}  {median['written'] / MiB:10.0f}  {median['cpu_s']:6.2f}  {median['wall_s']:7.2f}"
            )
        for key, name in (("cpu_s", "CPU"), ("wall_s", "wall")):
            ratios = sorted(each["vddk"][key] / each["raw"][key] for each in rounds)
            print(f"{name} ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
