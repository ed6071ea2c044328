"""What reading over NBD costs: CPU-seconds and seconds of `vadpipe.nbd` and of qemu-img, both from qemu-nbd.

    python bench/nbd.py [--size GIB] [--rounds N]

An image of random bytes is read once from end to end through a Unix socket, through TCP, and through TCP with TLS.
Both clients throw the bytes away: ours releases its buffers, qemu-img writes to null-co. The CPU time is the client
process alone, with its start, whose cost the first row shows; the server works beside it. The cheapest of N rounds
is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import trio

from pipeline.buffers import BufferPool
from pipeline.extents import Extents
from pipeline.units import SPAN, MiB
from vadpipe.bench.machine import machine_line
from vadpipe.lab.certificate import create_credentials
from vadpipe.nbd import Nbd, NbdDisk

WAYS = ("unix", "tcp", "tls")


async def read_all(settings: Nbd) -> None:
    """Read the whole export, four spans at a time as `ReadSpans` does."""
    pool = BufferPool(6 * SPAN)
    async with settings.open(pool=pool) as disk:
        starts = iter(range(0, disk.capacity, SPAN))
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(_read_some, disk, pool, starts)


async def _read_some(disk: NbdDisk, pool: BufferPool, starts: Iterator[int]) -> None:
    for start in starts:
        buffer = await pool.acquire()
        await disk.read(buffer, start, Extents.whole(min(SPAN, disk.capacity - start), start))
        buffer.release()


def measure(command: list[str]) -> tuple[float, float]:
    """CPU-seconds and seconds of a client."""
    begun = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} failed")
    return used.ru_utime + used.ru_stime, time.monotonic() - begun


@contextlib.contextmanager
def served(way: str, image: Path, port: int) -> Iterator[None]:
    place, tls = image.parent, []
    if way == "tls":
        tls = [
            "--object",
            f"tls-creds-x509,id=tls,endpoint=server,verify-peer=no,dir={place}",
            "--tls-creds",
            "tls",
        ]
    where = ["-k", f"{place}/unix"] if way == "unix" else ["-b", "127.0.0.1", "-p", str(port)]
    words = ["qemu-nbd", "--persistent", "--shared=8", "--read-only", "-f", "raw", *tls, *where, str(image)]
    server = subprocess.Popen(words)
    time.sleep(0.5)
    try:
        yield
    finally:
        server.kill()
        server.wait()


def qemu_img(way: str, place: Path, port: int, size: int) -> list[str]:
    where = f"driver=nbd,path={place}/unix" if way == "unix" else f"driver=nbd,host=127.0.0.1,port={port}"
    tls = []
    if way == "tls":
        where += ",tls-creds=tls"
        tls = ["--object", f"tls-creds-x509,id=tls,endpoint=client,dir={place}"]
    target = ["--target-image-opts", f"driver=null-co,size={size}"]
    return ["qemu-img", "convert", *tls, "-n", "-S", "0", "--image-opts", *target[:1], where, *target[1:]]


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--size", type=float, default=1.0, help="GiB of the image (1)")
    arguments.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    arguments.add_argument("--read", nargs=3, metavar=("WAY", "PLACE", "PORT"), help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.read:
        way, place, port = chosen.read
        if way == "start":
            return
        tls = ssl.create_default_context(cafile=f"{place}/ca-cert.pem") if way == "tls" else None
        trio.run(read_all, Nbd(f"{place}/unix" if way == "unix" else "127.0.0.1", int(port), tls=tls))
        return
    print(machine_line())
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        create_credentials(place, "127.0.0.1")
        size = int(chosen.size * 1024) * MiB
        with (place / "image").open("wb") as file:
            for _ in range(size // MiB):
                file.write(os.urandom(MiB))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        start = [sys.executable, __file__, "--read", "start", directory, "0"]
        print(f"start vadpipe   {min(measure(start) for _ in range(chosen.rounds))[0]:6.2f} CPU-s")
        for way in WAYS:
            with served(way, place / "image", port):
                ours = [sys.executable, __file__, "--read", way, directory, str(port)]
                runs = [
                    (measure(ours), measure(qemu_img(way, place, port, size))) for _ in range(chosen.rounds)
                ]
            for name, figures in zip(("vadpipe", "qemu-img"), zip(*runs, strict=True), strict=True):
                cpu, wall = min(figures), min(one[1] for one in figures)
                print(f"{way:5} {name:9} {cpu[0]:6.2f} CPU-s {wall:6.2f} s {size / MiB / wall:6.0f} MiB/s")


if __name__ == "__main__":
    main()
