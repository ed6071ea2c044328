"""How much of depth x request / latency the VDDK reader reaches, against the stand-in with a fixed latency.

    python -m tests.vadpipe.vddk.measure_latency [--latency-ms 4] [--mib 512] [--repeat 3]

The stand-in completes a request after the latency plus a random share of it, so the mean is 1.5 times the knob;
the printed share is of depth x request / mean latency. `process` is the same loop in one process, with the library
loaded directly and the next request issued at each completion: what a client without a child process reaches.
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
from vadpipe.lab.vddk_build import build_vddk
from vadpipe.vddk import abi
from vadpipe.vddk.access import DiskAccess
from vadpipe.vddk.disk import Vddk

THUMBPRINT = ":".join(["3F"] * 20)
DISK = "[ds1] vm/disk.vmdk"
SPANS_AHEAD = 16


def make_lab(root: Path, size: int) -> None:
    place = root / "datastores" / "ds1" / "vm"
    place.mkdir(parents=True)
    (root / "vddk.conf").write_text(
        f"thumbprint={THUMBPRINT}\nuser=u\npassword=password\nvm=vm-1\nsnapshot=snapshot-1\n"
    )
    subprocess.run(
        [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "vmdk",
            "-o",
            "subformat=monolithicFlat",
            place / "disk.vmdk",
            str(size),
        ],
        check=True,
    )


async def child(libdir: Path, depth: int, size: int) -> float:
    """Seconds to read the disk through the child process."""
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
    """Seconds to read the disk in this process, one thread that issues and library threads that complete."""
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latency-ms", type=float, default=4)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one-process", nargs=2, metavar=("LIBDIR", "DEPTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = options.mib * MiB
    if options.one_process:
        libdir, depth = options.one_process
        print(one_process(Path(libdir), int(depth), size))
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        libdir = build_vddk(root / "vddk")
        make_lab(root / "lab", size)
        os.environ |= {
            "VADPIPE_LAB_ROOT": str(root / "lab"),
            "VADPIPE_VDDK_LATENCY_MS": str(options.latency_ms),
            "XDG_STATE_HOME": str(root / "state"),
        }
        for depth in (1, 4, 16):
            ceiling = depth * MiB / (1.5 * options.latency_ms / 1000)
            command = [sys.executable, "-m", "tests.vadpipe.vddk.measure_latency", f"--mib={options.mib}"]
            command += ["--one-process", str(libdir), str(depth)]
            alone = [float(subprocess.check_output(command)) for _ in range(options.repeat)]
            apart = [trio.run(child, libdir, depth, size) for _ in range(options.repeat)]
            shares = [f"{size / statistics.median(times) / ceiling:.0%}" for times in (alone, apart)]
            print(
                f"depth {depth:2}: process {shares[0]}, child {shares[1]} of {ceiling / MiB:.0f} MiB/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
