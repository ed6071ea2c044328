"""A client of the VDDK stand-in through its C interface, and the processes that it runs in.

Each scenario is a function that runs in a process of its own: the library can be initialised once per process, and
ends the process when it is misused. `Run` ships the function's source there, with the small client below. qemu-img
makes and judges the disks.
"""

import ctypes
import inspect
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

SECTOR = 512
GRAIN = 128
MIB = 1 << 20
ASYNC = 25000
READ_ONLY, SINGLE_LINK, UNBUFFERED = 4, 2, 1
THUMBPRINT = ":".join(["AB"] * 20)

needs_qemu = pytest.mark.skipif(
    not all(map(shutil.which, ("qemu-img", "qemu-io"))),
    reason="qemu-img and qemu-io make and judge the disks",
)


class Params(ctypes.Structure):
    """VixDiskLibConnectParams with the user/password member of the union."""

    _fields_ = [
        *((name, ctypes.c_char_p) for name in ("vmxSpec", "serverName", "thumbPrint")),
        ("privateUse", ctypes.c_long),
        ("credType", ctypes.c_int),
        *((name, ctypes.c_char_p) for name in ("userName", "password", "key")),
        ("port", ctypes.c_uint32),
        ("nfcHostPort", ctypes.c_uint32),
        ("vimApiVer", ctypes.c_char_p),
        ("reserved", ctypes.c_char * 8),
        ("state", ctypes.c_void_p),
        ("spec", ctypes.c_void_p * 3),
        ("specType", ctypes.c_int),
    ]


class Info(ctypes.Structure):
    """VixDiskLibInfo as of 7.0."""

    _fields_ = [
        ("bios", ctypes.c_uint32 * 3),
        ("phys", ctypes.c_uint32 * 3),
        ("capacity", ctypes.c_uint64),
        ("adapter", ctypes.c_int),
        ("links", ctypes.c_int),
        ("parent", ctypes.c_char_p),
        ("uuid", ctypes.c_char_p),
        ("logical", ctypes.c_uint32),
        ("physical", ctypes.c_uint32),
    ]


class Client:
    """The interface in a few lines: codes are masked, library calls go through `call`."""

    Log = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p)
    Done = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64)

    def __init__(self, library, config=None, init=True):
        self.c = ctypes.CDLL(library)
        self.log, self.buffers, self.callbacks = [], [], []
        libc = ctypes.CDLL(None)

        def keep(format, arguments):
            text = ctypes.create_string_buffer(1000)
            libc.vsnprintf(text, ctypes.c_size_t(1000), format, ctypes.c_void_p(arguments))
            self.log.append(text.value.decode())

        self.keep = self.Log(keep)
        self.c.VixDiskLib_AllocateConnectParams.restype = ctypes.POINTER(Params)
        self.c.VixDiskLib_GetTransportMode.restype = ctypes.c_char_p
        if init:
            assert self.init(config=config) == 0, self.log

    def call(self, name, *arguments):
        function = getattr(self.c, "VixDiskLib_" + name)
        function.restype = ctypes.c_uint64
        self.raw = function(*arguments)
        return self.raw & 0xFFFF

    def init(self, major=6, minor=7, config=None):
        return self.call("InitEx", major, minor, self.keep, self.keep, self.keep, None, config)

    def connect(
        self,
        readonly=0,
        snapshot=None,
        modes=None,
        thumbprint=None,
        vm=b"moref=vm-42",
        user=b"backup",
        password=b"secret",
    ):
        params = self.c.VixDiskLib_AllocateConnectParams()
        if "VADPIPE_LAB_ROOT" in os.environ:
            params[0].serverName, params[0].vmxSpec, params[0].credType = b"vc01", vm, 1
            params[0].userName, params[0].password = user, password
            params[0].thumbPrint = thumbprint
        connection = ctypes.c_void_p()
        code = self.call(
            "ConnectEx", params, ctypes.c_char(readonly), snapshot, modes, ctypes.byref(connection)
        )
        self.c.VixDiskLib_FreeConnectParams(params)
        return code, connection

    def open(self, path, flags=4, connection=None, expect=0, **login):
        if connection is None:
            code, connection = self.connect(**login)
            assert code == 0, self.log
        self.connection = connection
        handle = ctypes.c_void_p()
        code = self.call("Open", connection, os.fsencode(path), flags, ctypes.byref(handle))
        assert code == expect, (code, self.log)
        return handle

    def attempt(self, path, flags=4, **login):
        """How far one gets: the last call, its code, the log."""
        stage = "connect"
        code, connection = self.connect(**login)
        if code == 0:
            stage, handle = "open", ctypes.c_void_p()
            code = self.call("Open", connection, os.fsencode(path), flags, ctypes.byref(handle))
            assert (code == 0) == bool(handle)
        return [stage, code, "".join(self.log)]

    def read(self, handle, start, count, expect=0):
        data = ctypes.create_string_buffer(count * 512)
        code = self.call("Read", handle, ctypes.c_uint64(start), ctypes.c_uint64(count), data)
        assert code == expect, (code, self.log)
        return data.raw

    def write(self, handle, start, data, expect=0):
        code = self.call("Write", handle, ctypes.c_uint64(start), ctypes.c_uint64(len(data) // 512), data)
        assert code == expect, (code, self.log)

    def submit(self, handle, start, count, done, buffer=None, data=None):
        buffer = buffer or ctypes.create_string_buffer(count * 512)
        self.buffers.append(buffer)
        self.callbacks.append(done)
        return self.call(
            "ReadAsync",
            handle,
            ctypes.c_uint64(start),
            ctypes.c_uint64(count),
            buffer,
            done,
            ctypes.c_void_p(data),
        )

    def info(self, handle):
        info = ctypes.POINTER(Info)()
        assert self.call("GetInfo", handle, ctypes.byref(info)) == 0
        return info

    def allocated(self, handle, start, count, chunk=128, expect=0):
        blocks = ctypes.c_void_p()
        numbers = map(ctypes.c_uint64, (start, count, chunk))
        code = self.call("QueryAllocatedBlocks", handle, *numbers, ctypes.byref(blocks))
        assert code == expect, (code, self.log)
        if code != 0:
            return None
        length = ctypes.c_uint32.from_address(blocks.value).value
        flat = (ctypes.c_uint64 * (2 * length)).from_address(blocks.value + 8)
        runs = [list(flat[i : i + 2]) for i in range(0, 2 * length, 2)]
        assert self.call("FreeBlockList", blocks) == 0
        return runs

    def finish(self, *handles):
        for handle in handles:
            self.call("Close", handle)
        self.call("Disconnect", self.connection)
        self.c.VixDiskLib_Exit()


@cache
def source_of(part: Callable) -> str:
    return textwrap.dedent(inspect.getsource(part))


class Run:
    """Runs scenario functions in fresh processes; a scenario's return value comes back through JSON."""

    def __init__(self, libdir: Path, directory: Path) -> None:
        self.library = str(libdir / "lib64" / "libvixDiskLib.so.8")
        self.root = directory
        self.env: dict[str, str] = {}

    def start(self, scenario: Callable, *arguments: object, client: bool = True, **env: str):
        parts = (Params, Info, Client, scenario)
        shipped = "\n".join(map(source_of, parts))
        modules = ("ctypes", "hashlib", "json", "os", "random", "threading", "time")
        used = [name for name in modules if name + "." in shipped or name in ("json", "os")]
        made = f"Client({self.library!r})" if client else repr(self.library)
        call = f"{scenario.__name__}({', '.join([made, *map(repr, arguments)])})"
        # Scenarios may leave without Exit: the library's threads must not meet a Python that is torn down.
        script = f"import {', '.join(used)}\n{shipped}\nprint(json.dumps({call}), flush=True)\nos._exit(0)"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("VADPIPE_")}
        return subprocess.run(
            [sys.executable, "-S", "-E", "-c", script],
            env=clean | self.env | env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def __call__(self, scenario: Callable, *arguments: object, client: bool = True, **env: str):
        ended = self.start(scenario, *arguments, client=client, **env)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    def remote(self, **lines: str) -> None:
        """Make the runs that follow see a lab, with the datastore ds1."""
        (self.root / "datastores" / "ds1" / "vm").mkdir(parents=True, exist_ok=True)
        conf = {"thumbprint": THUMBPRINT, "user": "backup", "password": "secret", "vm": "vm-42"} | lines
        text = "# the lab\nsnapshot=snapshot-6\nsnapshot = snapshot-7\ncookie=0123\n"
        (self.root / "vddk.conf").write_text(
            text + "".join(f"{key}={value}\n" for key, value in conf.items())
        )
        self.env["VADPIPE_LAB_ROOT"] = str(self.root)


@pytest.fixture
def run(libdir: Path, tmp_path: Path) -> Run:
    return Run(libdir, tmp_path)


def qemu_img(*arguments: object) -> str:
    return subprocess.run(
        ["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout


def qemu_io(disk: Path, *commands: str) -> None:
    options = [option for command in commands for option in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "vmdk", *options, disk], check=True, capture_output=True)


def create(disk: Path, size: str, subformat: str = "monolithicSparse", **options: str) -> Path:
    chosen = ",".join(f"{key}={value}" for key, value in {"subformat": subformat, **options}.items())
    qemu_img("create", "-q", "-f", "vmdk", "-o", chosen, disk, size)
    return disk


def child(disk: Path, parent: Path, **options: str) -> Path:
    chosen = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    qemu_img("create", "-q", "-f", "vmdk", *chosen, "-b", parent.name, "-F", "vmdk", disk)
    return disk


def chain(directory: Path, base: str = "monolithicSparse", size_mib: int = 16) -> Path:
    """A base and two redo logs of that size (at least 8 MiB) with overlapping writes at odd places."""
    top = size_mib - 8
    first = create(directory / "base.vmdk", f"{size_mib}M", base)
    qemu_io(first, "write -P 1 0 3M", f"write -P 2 {top}M 1M", "write -P 3 5000k 4k")
    second = child(directory / "redo1.vmdk", first)
    qemu_io(second, "write -P 4 1M 100k", f"write -P 5 {top + 1}M 64k", "write -P 6 65024 1024")
    third = child(directory / "redo2.vmdk", second)
    qemu_io(third, "write -P 7 1050k 3k", f"write -P 8 {size_mib * 1024 - 1}k 1k", "write -P 9 4608 512")
    return third


def raw_of(disk: Path) -> bytes:
    raw = disk.with_suffix(".raw")
    qemu_img("convert", "-f", "vmdk", "-O", "raw", disk, raw)
    return raw.read_bytes()


def allocated_by_qemu(disk: Path, chunk: int, end: int) -> list[list[int]]:
    """Runs of chunks (in sectors) that qemu-img map takes for data, up to end."""
    runs: list[list[int]] = []
    for extent in json.loads(qemu_img("map", "--output=json", "-f", "vmdk", disk)):
        if extent["data"] and not extent["zero"]:
            start = extent["start"] // SECTOR // chunk * chunk
            stop = min(-(-(extent["start"] + extent["length"]) // (SECTOR * chunk)) * chunk, end)
            if runs and sum(runs[-1]) >= start:
                runs[-1][1] = max(sum(runs[-1]), stop) - runs[-1][0]
            elif start < stop:
                runs.append([start, stop - start])
    return runs
