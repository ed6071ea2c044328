"""How fast the VDDK reader is with a given latency, against clients that read in one process.

    python bench/vddk_latency.py [--latency-ms 4] [--depths 4 8 16] [--mib 2048] [--rounds 5]

The stand-in completes a request after the latency plus a random share of it, so the mean is 1.5 times the setting,
and `ideal` is depth x request / mean latency. `C` is bench/vddk_client.c and `ctypes` the same loop in Python: one
process that issues the next request at each completion. `reader` is the product: a child process, shared memory, an
event loop. Clients take turns in each round, so that a busy machine slows all of them. Each figure is a median; the
shares are medians of the reader's rate divided by the client's, round by round. CPU includes the start of Python.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from pipeline.buffers import BufferPool
from pipeline.extents import Extents
from pipeline.secrets import Secret
from pipeline.units import SPAN, MiB
from vadpipe.bench.machine import machine_line
from vadpipe.lab import vddk_build
from vadpipe.vddk import abi
from vadpipe.vddk.access import DiskAccess
from vadpipe.vddk.disk import Vddk

THUMBPRINT = ":".join(["3F"] * 20)
DISK = "[ds1] vm/disk.vmdk"
SPANS_AHEAD = 16
CLIENT = Path(__file__).with_name("vddk_client.c")


def make_lab(root: Path, size: int) -> None:
    place = root / "datastores" / "ds1" / "vm"
    place.mkdir(parents=True)
    (root / "vddk.conf").write_text(
        f"thumbprint={THUMBPRINT}\nuser=u\npassword=password\nvm=vm-1\nsnapshot=snapshot-1\n"
    )
    form = ["-f", "vmdk", "-o", "subformat=monolithicFlat"]
    subprocess.run(["qemu-img", "create", "-q", *form, place / "disk.vmdk", str(size)], check=True)


async def reader(libdir: Path, depth: int, size: int) -> float:
    """Seconds to read the disk through the product's reader."""
    access = DiskAccess(
        path=DISK, server="vc", user="u", password=Secret.from_text("password"),
        thumbprint=THUMBPRINT, vm="vm-1", snapshot="snapshot-1",
    )  # fmt: skip
    pool = BufferPool(SPANS_AHEAD * SPAN)
    places = iter(range(0, size, SPAN))
    async with Vddk(libdir, transports="nbdssl", depth=depth).open(access, pool) as disk:

        async def read() -> None:
            for offset in places:
                buffer = await pool.acquire()
                await disk.read(buffer, offset, Extents.whole(SPAN, offset))
                buffer.release()

        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(SPANS_AHEAD):
                nursery.start_soon(read)
        return time.perf_counter() - started


def one_process(libdir: Path, depth: int, size: int) -> float:
    """Seconds to read the disk in this process: one thread issues, threads of the library complete."""
    library = abi.Library(str(libdir / "lib64" / "libvixDiskLib.so.8"))
    quiet = abi.LogFunction(lambda message, arguments: None)
    assert not library.InitEx(6, 7, quiet, quiet, quiet, str(libdir).encode(), None)
    params = library.AllocateConnectParams()
    texts = [b"moref=vm-1", b"vc", THUMBPRINT.encode(), b"u", b"password"]
    params.contents.vmxSpec, params.contents.serverName, params.contents.thumbPrint = texts[:3]
    params.contents.credType = abi.CRED_UID
    params.contents.creds.uid.userName, params.contents.creds.uid.password = texts[3:]
    connection, handle = abi.Handle(), abi.Handle()
    assert not library.ConnectEx(params, 1, b"snapshot-1", b"nbdssl", ctypes.byref(connection))
    assert not library.Open(connection, DISK.encode(), abi.OPEN_READ_ONLY, ctypes.byref(handle))
    memory = mmap.mmap(-1, depth * MiB)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    landed: queue.SimpleQueue[int] = queue.SimpleQueue()
    completed = abi.CompletionFunction(lambda place, error: landed.put(place or 0))
    for place in range(depth):
        landed.put(place)
    started = time.perf_counter()
    for sector in range(0, size // 512, MiB // 512):
        place = landed.get()
        library.ReadAsync(handle, sector, MiB // 512, base + place * MiB, completed, place)
    for _ in range(depth):
        landed.get()
    seconds = time.perf_counter() - started
    library.Wait(handle)
    library.Close(handle)
    library.Disconnect(connection)
    library.FreeConnectParams(params)
    library.Exit()
    return seconds


def cpu_s() -> float:
    """CPU seconds of this process and its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latency-ms", type=float, default=4)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one-process", nargs=2, metavar=("LIBDIR", "DEPTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = options.mib * MiB
    if options.one_process:
        libdir, depth = options.one_process
        print(one_process(Path(libdir), int(depth), size))
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        libdir = vddk_build.build_vddk(root / "vddk")
        make_lab(root / "lab", size)
        client = root / "client"
        compiler = [
            "cc",
            "-O2",
            f"-I{vddk_build.SOURCES}",
            str(CLIENT),
            "-o",
            str(client),
            "-ldl",
            "-lpthread",
        ]
        subprocess.run(compiler, check=True)
        os.environ |= {
            "VADPIPE_LAB_ROOT": str(root / "lab"),
            "VADPIPE_VDDK_LATENCY_MS": str(options.latency_ms),
            "XDG_STATE_HOME": str(root / "state"),
        }
        library = libdir / "lib64" / "libvixDiskLib.so.8"

        def timed(name: str, depth: int) -> tuple[float, float]:
            before = cpu_s()
            if name == "reader":
                seconds = trio.run(reader, libdir, depth, size)
            else:
                command: list[object] = [client, library, depth, size, THUMBPRINT, DISK]
                if name == "ctypes":
                    command = [sys.executable, __file__, f"--mib={options.mib}"]
                    command += ["--one-process", libdir, depth]
                seconds = float(subprocess.check_output([str(word) for word in command]))
            return size / MiB / seconds, (cpu_s() - before) / size * 1024 * MiB

        print(machine_line())
        print(
            f"latency {options.latency_ms:g} ms, {options.mib} MiB, {options.rounds} rounds, load",
            *os.getloadavg(),
        )
        print(
            "depth  ideal MiB/s     C  ctypes  reader   reader/C  reader/ctypes   CPU-s/GiB: C  ctypes  reader"
        )
        for depth in options.depths:
            rounds = [
                {name: timed(name, depth) for name in ("C", "ctypes", "reader")}
                for _ in range(options.rounds)
            ]
            rates = [
                statistics.median(each[name][0] for each in rounds) for name in ("C", "ctypes", "reader")
            ]
            cpu = [statistics.median(each[name][1] for each in rounds) for name in ("C", "ctypes", "reader")]
            shares = [
                statistics.median(each["reader"][0] / each[name][0] for each in rounds)
                for name in ("C", "ctypes")
            ]
            ideal = depth / (1.5 * options.latency_ms / 1000)
            print(
                f"{depth:5}  {ideal:11.0f} {rates[0]:5.0f}  {rates[1]:6.0f}  {rates[2]:6.0f}"
                f"   {shares[0]:8.0%}  {shares[1]:13.0%}   {cpu[0]:12.2f}  {cpu[1]:6.2f}  {cpu[2]:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
