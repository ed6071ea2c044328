"""The VDDK stand-in, driven through its C interface, with qemu-img as the witness for every disk.

Each scenario is a function that runs in a process of its own: the library can be initialised once per process,
and ends the process when it is misused. `run` ships the function's source there, with a small client.
"""

import ctypes
import hashlib
import inspect
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from vadpipe.lab import vddk_build
from vadpipe.lab.vddk_build import CompilationFailed, CompilerMissing, build_vddk

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

# ---- the client, shipped as source ----------------------------------------------------------------------------


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


# ---- running scenarios ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def libdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build_vddk(tmp_path_factory.mktemp("vddk"))
    except CompilerMissing as missing:
        pytest.skip(str(missing))


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


# ---- reading --------------------------------------------------------------------------------------------------


def read_whole(client, path, step=2048, flags=4):
    """The digest of the disk, read with requests of changing size, and its allocated runs in chunks of 64 KiB."""
    handle = client.open(path, flags)
    capacity = client.info(handle)[0].capacity
    digest, position, request = hashlib.sha256(), 0, 1
    while position < capacity:
        count = min(request, capacity - position)
        digest.update(client.read(handle, position, count))
        position += count
        request = step if request >= step else request * 3
    whole = capacity // 128 * 128
    runs = client.allocated(handle, 0, whole) if whole else []
    facts = [digest.hexdigest(), capacity, runs, client.c.VixDiskLib_GetTransportMode(handle).decode()]
    client.finish(handle)
    return facts


def assert_reads_like_qemu(run: Run, disk: Path, path: str | None = None, transport: str = "file") -> None:
    digest, capacity, runs, mode = run(read_whole, path or str(disk))
    raw = raw_of(disk)
    assert (capacity * SECTOR, digest) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert runs == allocated_by_qemu(disk, 128, capacity // 128 * 128)
    assert mode == transport


@pytest.mark.slow
@needs_qemu
@pytest.mark.parametrize(
    "base", ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"]
)
def test_chain_reads_and_maps_like_qemu(run: Run, tmp_path: Path, base: str) -> None:
    assert_reads_like_qemu(run, chain(tmp_path, base))


@needs_qemu
def test_capacity_that_is_no_multiple_of_a_grain(run: Run, tmp_path: Path) -> None:
    disk = create(tmp_path / "odd.vmdk", str(5 * MIB + 3 * SECTOR))
    qemu_io(disk, "write -P 1 5M 1536", "write -P 2 100k 1k")
    assert_reads_like_qemu(run, disk)


@pytest.mark.slow
@needs_qemu
def test_remote_path_and_transport(run: Run, tmp_path: Path) -> None:
    run.remote()
    disk = chain(tmp_path / "datastores" / "ds1" / "vm")

    def facts(client, path, thumbprint, modes):
        handle = client.open(path, thumbprint=thumbprint, readonly=1, snapshot=b"snapshot-7", modes=modes)
        data = client.read(handle, 0, 8192)
        mode = client.c.VixDiskLib_GetTransportMode(handle).decode()
        client.finish(handle)
        return [hashlib.sha256(data).hexdigest(), mode]

    start = hashlib.sha256(raw_of(disk)[: 8192 * SECTOR]).hexdigest()
    for modes, mode in ((None, "nbdssl"), (b"nbd:nbdssl", "nbd"), (b"file:san:hotadd:nbdssl:nbd", "nbdssl")):
        assert run(facts, "[ds1] vm/redo2.vmdk", THUMBPRINT.lower().encode(), modes) == [start, mode]


def around(client, path, places):
    handle = client.open(path)
    capacity = client.info(handle)[0].capacity
    read = [client.read(handle, start, count).hex() for start, count in places]
    runs = client.allocated(handle, 0, capacity, 131072)
    fine = client.allocated(handle, 4194304 - 1280, 2560)
    client.finish(handle)
    return [read, runs, fine]


@needs_qemu
@pytest.mark.slow
@pytest.mark.parametrize("subformat", ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
def test_reads_cross_the_border_of_two_extents(run: Run, tmp_path: Path, subformat: str) -> None:
    disk = create(tmp_path / "split.vmdk", "3G", subformat)
    assert len(list(tmp_path.glob("split-?00?.vmdk"))) == 2
    qemu_io(disk, "write -P 1 2047M 2M", "write -P 2 3000M 64k")
    border = 2048 * MIB // SECTOR
    places = [(border - 4096, 8192), (border - 1, 2), (3000 * 2048 - 1, 130)]
    read, runs, fine = run(around, str(disk), places)
    assert bytes.fromhex(read[0]) == bytes(MIB) + b"\1" * 2 * MIB + bytes(MIB)
    assert bytes.fromhex(read[1]) == b"\1" * 1024
    assert bytes.fromhex(read[2]) == bytes(512) + b"\2" * 65536 + bytes(512)
    assert runs == allocated_by_qemu(disk, 131072, 3 << 21)
    assert fine == [[border - 1280, 2560]]


@pytest.mark.slow
@needs_qemu
def test_zero_grain_hides_the_parent(run: Run, tmp_path: Path) -> None:
    base = create(tmp_path / "base.vmdk", "4M")
    qemu_io(base, "write -P 1 0 1M")
    leaf = child(tmp_path / "leaf.vmdk", base, zeroed_grain="on")
    qemu_io(leaf, "write -z 128k 128k")
    digest, _, runs, _ = run(read_whole, str(leaf))
    assert runs == [[0, 256], [512, 1536]] == allocated_by_qemu(leaf, 128, 8192)
    assert_reads_like_qemu(run, leaf)
    # Alone, the leaf says only this: these two grains are zero, whatever the parent holds.
    assert run(read_whole, str(leaf), 2048, READ_ONLY | SINGLE_LINK)[2] == [[256, 256]]
    assert digest != run(read_whole, str(leaf), 2048, READ_ONLY | SINGLE_LINK)[0]


def test_zero_and_offset_extents(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(bytes(SECTOR) + b"\7" * (256 * SECTOR))
    disk = tmp_path / "mixed.vmdk"
    disk.write_text(
        '# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\ncreateType="vmfs"\n'
        'RW 128 VMFS "data.bin" 1\nRW 256 ZERO\nRDONLY 128 FLAT "data.bin" 129\n'
    )

    def whole(client, path):
        handle = client.open(path)
        return [client.read(handle, 0, 512).hex(), client.allocated(handle, 0, 512)]

    data, runs = run(whole, str(disk))
    assert bytes.fromhex(data) == b"\7" * 65536 + bytes(131072) + b"\7" * 65536
    assert runs == [[0, 128], [384, 128]]


@needs_qemu
@pytest.mark.slow
def test_a_thin_disk_of_4_tib_needs_little_memory(run: Run, tmp_path: Path) -> None:
    disk = create(tmp_path / "huge.vmdk", "4T")
    qemu_io(disk, "write -P 1 3T 1M", "write -P 2 1500G 64k")

    def survey(client, path):
        with open("/proc/self/status") as status:
            before = status.read()
        handle = client.open(path)
        runs = []
        for start in range(0, 1 << 33, 1 << 26):
            runs += client.allocated(handle, start, 1 << 26)
        with open("/proc/self/status") as status:
            after = status.read()
        client.finish(handle)
        return [runs, before, after]

    runs, before, after = run(survey, str(disk))
    assert runs == [[1500 << 21, 128], [3 << 31, 2048]]
    grown_kib = [int(re.search(r"VmHWM:\s+(\d+)", text)[1]) for text in (before, after)]
    assert grown_kib[1] - grown_kib[0] < 16 * 1024


# ---- asynchronous requests --------------------------------------------------------------------------------------


def read_async(client, path, thumbprint):
    """Submit 32 reads: the calls' codes, how many were done by then, all callbacks, the digest of the data."""
    handle = client.open(path, thumbprint=thumbprint)
    main, done = threading.get_native_id(), []

    def callback(data, result):
        done.append((data or 0, result, threading.get_native_id() == main))

    keep = client.Done(callback)
    accepted = [client.submit(handle, i * 100, 100, keep, data=i) for i in range(32)]
    inside = len(done)
    assert client.call("Wait", handle) == 0
    data = b"".join(bytes(buffer)[:51200] for buffer in client.buffers)
    client.finish(handle)
    return [accepted, inside, done, hashlib.sha256(data).hexdigest()]


def assert_all_accepted_and_right(disk: Path, accepted: list[int], digest: str) -> None:
    assert accepted == [ASYNC] * 32
    assert digest == hashlib.sha256(raw_of(disk)[: 32 * 100 * SECTOR]).hexdigest()


@pytest.mark.slow
@needs_qemu
def test_remote_requests_complete_out_of_order_on_library_threads(run: Run, tmp_path: Path) -> None:
    run.remote()
    disk = chain(tmp_path / "datastores" / "ds1" / "vm")
    accepted, _, done, digest = run(
        read_async, "[ds1] vm/redo2.vmdk", THUMBPRINT.encode(), VADPIPE_VDDK_LATENCY_MS="20"
    )
    assert_all_accepted_and_right(disk, accepted, digest)
    order = [index for index, _, _ in done]
    assert sorted(order) == list(range(32))
    assert order != sorted(order)
    assert {(result, main) for _, result, main in done} == {(0, False)}


@needs_qemu
def test_local_requests_complete_before_the_call_returns(run: Run, tmp_path: Path) -> None:
    disk = chain(tmp_path)
    accepted, inside, done, digest = run(read_async, str(disk), None)
    assert_all_accepted_and_right(disk, accepted, digest)
    assert inside == 32
    assert done == [[i, 0, True] for i in range(32)]


@needs_qemu
def test_rejected_requests_have_no_callback(run: Run, tmp_path: Path) -> None:
    run.remote()
    create(tmp_path / "datastores" / "ds1" / "vm" / "a.vmdk", "1M")

    def reject(client, thumbprint):
        handle = client.open("[ds1] vm/a.vmdk", thumbprint=thumbprint)
        done = []
        keep = client.Done(lambda *result: done.append(result))
        codes = [client.submit(handle, start, 1, keep) for start in (2048, 1 << 60)]
        client.finish(handle)
        return [codes, done]

    assert run(reject, THUMBPRINT.encode()) == [[16007, 16007], []]


# ---- writing ----------------------------------------------------------------------------------------------------


def write_patches(client, path, seed, count, asynchronous=False):
    """Random writes; the same generator gives the test what to expect."""
    handle = client.open(path, 0)
    generator, kept = random.Random(seed), []
    keep = client.Done(lambda data, result: kept.append(result))
    capacity = client.info(handle)[0].capacity
    for number in range(count):
        length = generator.choice([1, 7, 128, 130, 700])
        start = generator.randrange(capacity - length)
        data = bytes([number + 1]) * (length * 512)
        if asynchronous:
            numbers = (ctypes.c_uint64(start), ctypes.c_uint64(length))
            assert client.call("WriteAsync", handle, *numbers, data, keep, None) == 25000
        else:
            client.write(handle, start, data)
        # What was written is seen at once through the same handle, with its surroundings.
        assert client.read(handle, start, length) == data
    assert client.call("Flush", handle) == 0
    client.finish(handle)
    return kept


@pytest.mark.slow
@needs_qemu
@pytest.mark.parametrize("base", ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse"])
@pytest.mark.parametrize("leaf", ["base", "redo2"])
def test_writes_are_what_qemu_reads_back(run: Run, tmp_path: Path, base: str, leaf: str) -> None:
    chain(tmp_path, base)
    disk = tmp_path / f"{leaf}.vmdk"
    expected = bytearray(raw_of(disk))
    parent = raw_of(tmp_path / "redo1.vmdk")
    written = run(write_patches, str(disk), 5, 40, base == "monolithicFlat")
    generator = random.Random(5)
    for number in range(40):
        length = generator.choice([1, 7, 128, 130, 700])
        start = generator.randrange(len(expected) // SECTOR - length)
        expected[start * SECTOR : (start + length) * SECTOR] = bytes([number + 1]) * (length * SECTOR)
    assert raw_of(disk) == expected
    assert set(written) <= {0}
    if (leaf, base) != ("base", "monolithicFlat"):
        assert "No errors were found" in qemu_img("check", "-f", "vmdk", disk)
    if leaf == "redo2":
        assert raw_of(tmp_path / "redo1.vmdk") == parent


@needs_qemu
def test_redundant_grain_tables_are_kept_equal(run: Run, tmp_path: Path) -> None:
    disk = create(tmp_path / "a.vmdk", "64M")
    run(write_patches, str(disk), 1, 20)
    content = disk.read_bytes()

    def tables(directory: int) -> list[bytes]:
        first = int.from_bytes(content[directory * SECTOR :][:4], "little")
        second = int.from_bytes(content[directory * SECTOR + 4 :][:4], "little")
        return [content[table * SECTOR :][:2048] for table in (first, second)]

    redundant, primary = (int.from_bytes(content[at : at + 8], "little") for at in (48, 56))
    assert any(tables(primary)[0])
    assert tables(redundant) == tables(primary)


def rename_tables_away(disk: Path) -> None:
    """Make the disk one whose grain directories are empty, as writers that allocate tables late leave it."""
    content = bytearray(disk.read_bytes())
    for at in (48, 56):
        directory = int.from_bytes(content[at : at + 8], "little") * SECTOR
        content[directory : directory + 8] = bytes(8)
    disk.write_bytes(content)


@needs_qemu
def test_missing_grain_tables_are_added(run: Run, tmp_path: Path) -> None:
    disk = create(tmp_path / "a.vmdk", "64M")
    rename_tables_away(disk)

    def fill(client, path):
        handle = client.open(path, 0)
        assert client.read(handle, 0, 128) == bytes(65536)
        client.write(handle, 65500, b"\5" * 512 * 100)
        holes = client.allocated(handle, 0, 131072)
        client.finish(handle)
        return holes

    assert run(fill, str(disk)) == [[65408, 256]]
    assert raw_of(disk) == bytes(65500 * SECTOR) + b"\5" * SECTOR * 100 + bytes((131072 - 65600) * SECTOR)


@needs_qemu
def test_a_write_invalidates_the_children(run: Run, tmp_path: Path) -> None:
    leaf = chain(tmp_path)
    run(write_patches, str(tmp_path / "redo1.vmdk"), 1, 1)

    def refused(client, path):
        client.open(path, expect=16008)
        return client.log  # a thread that starts may write its own line last

    log = run(refused, str(leaf))
    assert any("content id" in line and "redo1.vmdk" in line for line in log), log


# ---- what is refused --------------------------------------------------------------------------------------------


@needs_qemu
def test_limits_of_requests(run: Run, tmp_path: Path) -> None:
    disk = create(tmp_path / "a.vmdk", "1M")

    def limits(client, path):
        handle = client.open(path)
        client.read(handle, 2047, 2, expect=16007)
        client.read(handle, 1 << 63, 2, expect=16007)
        client.read(handle, 0, 0, expect=3)
        client.write(handle, 0, bytes(512), expect=11)
        for start, count, chunk, code in (
            (0, 128, 64, 3),
            (0, 262144, 262144, 3),
            (64, 128, 128, 3),
            (0, 130, 128, 3),
            (0, 0, 128, 3),
            (0, 128 * 524289, 128, 3),
            (0, 2176, 128, 16007),
            (1 << 62, 128, 128, 16007),
        ):
            client.allocated(handle, start, count, chunk, expect=code)
        assert client.allocated(handle, 0, 2048) == []
        unbuffered = client.open(path, 4 | 1, connection=client.connection)
        aligned = (ctypes.addressof(buffer := ctypes.create_string_buffer(8192)) + 511) // 512 * 512
        numbers = (ctypes.c_uint64(0), ctypes.c_uint64(1))
        codes = [client.call("Read", unbuffered, *numbers, ctypes.c_void_p(aligned + i)) for i in (0, 1, 256)]
        del buffer
        client.finish(handle, unbuffered)
        return codes

    assert run(limits, str(disk)) == [0, 3, 3]


@needs_qemu
def test_unbuffered_over_nbd_needs_4_kib(run: Run, tmp_path: Path) -> None:
    run.remote()
    create(tmp_path / "datastores" / "ds1" / "vm" / "a.vmdk", str(MIB + SECTOR))

    def ranges(client, thumbprint):
        handle = client.open("[ds1] vm/a.vmdk", 4 | 1, thumbprint=thumbprint)
        aligned = (ctypes.addressof(buffer := ctypes.create_string_buffer(65536)) + 4095) // 4096 * 4096
        codes = []
        for start, count in ((0, 8), (8, 16), (1, 8), (0, 7), (2048, 1), (2040, 9)):
            numbers = (ctypes.c_uint64(start), ctypes.c_uint64(count))
            codes.append(client.call("Read", handle, *numbers, ctypes.c_void_p(aligned)))
        del buffer
        client.finish(handle)
        return codes

    assert run(ranges, THUMBPRINT.encode()) == [0, 0, 3, 3, 0, 0]


def attempt(client, path, flags, login):
    return client.attempt(path, flags, **login)


@needs_qemu
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ("open", 0, "nbdssl")),
        ({"password": b"wrong"}, ("connect", 3014, "login")),
        ({"user": b"nobody"}, ("connect", 3014, "login")),
        ({"vm": b"moref=vm-43"}, ("connect", 4000, "vm-43")),
        ({"thumbprint": b"00:11"}, ("open", 1, f"expected thumbprint 00:11, actual thumbprint {THUMBPRINT}")),
        ({"thumbprint": None}, ("open", 1, f"expected thumbprint (none), actual thumbprint {THUMBPRINT}")),
        ({"snapshot": b"snapshot-8"}, ("open", 13003, "snapshot-8")),
        ({"snapshot": b""}, ("open", 0, "nbdssl")),
        ({"modes": b"san:hotadd"}, ("open", 6, "none of the transport modes")),
        ({"path": "[ds1] vm/none.vmdk"}, ("open", 4, "none.vmdk")),
        ({"path": "[ds1] ../ds1/vm/a.vmdk"}, ("open", 22, "form")),
        ({"path": "/vm/a.vmdk"}, ("open", 22, "form")),
        ({"flags": 0, "readonly": 1}, ("open", 11, "read-only connection")),
        ({"flags": 0x34}, ("open", 3, "compression")),
        ({"flags": READ_ONLY | SINGLE_LINK}, ("open", 6, "local")),
        ({"flags": READ_ONLY | 0x20}, ("open", 0, "nbdssl")),
    ],
)
def test_who_may_open_what(run: Run, tmp_path: Path, changed: dict, expected: tuple[str, int, str]) -> None:
    run.remote()
    create(tmp_path / "datastores" / "ds1" / "vm" / "a.vmdk", "1M")
    login = {"thumbprint": THUMBPRINT.encode(), "snapshot": b"snapshot-7"} | changed
    path = login.pop("path", "[ds1] vm/a.vmdk")
    flags = login.pop("flags", READ_ONLY)
    *outcome, log = run(attempt, path, flags, login)
    assert (*outcome, expected[2] in log) == (*expected[:2], True), log


def test_session_cookie_and_reread_conf(run: Run, tmp_path: Path) -> None:
    run.remote()

    def log_in(client, root):
        params = client.c.VixDiskLib_AllocateConnectParams()
        params[0].serverName, params[0].vmxSpec, params[0].credType = b"vc01", b"moref=vm-42", 2
        codes = []
        for cookie in (b"0123", b"012"):
            params[0].userName, params[0].password, params[0].key = cookie, b"backup", b"any"
            connection = ctypes.c_void_p()
            arguments = (params, ctypes.c_char(1), None, None, ctypes.byref(connection))
            codes.append(client.call("ConnectEx", *arguments))
        with open(root + "/vddk.conf", "a") as conf:
            conf.write("cookie=012\n")
        codes.append(client.call("ConnectEx", *arguments))
        copy = ctypes.POINTER(Params)()
        codes.append(client.call("GetConnectParams", connection, ctypes.byref(copy)))
        client.c.VixDiskLib_FreeConnectParams(params)
        texts = [copy[0].serverName.decode(), copy[0].userName.decode(), copy[0].key.decode()]
        for call in ("PrepareForAccess", "EndAccess"):
            codes += [client.call(call, copy, b"mover"), client.call(call, copy, b"x" * 51)]
        codes.append(client.call("Cleanup", copy, None, None))
        client.c.VixDiskLib_FreeConnectParams(copy)
        return codes, texts

    codes, texts = run(log_in, str(tmp_path))
    assert codes == [0, 3014, 0, 0, 0, 3, 0, 3, 0]
    assert texts == ["vc01", "012", "any"]


def lock(client, call, identity, vm=b"moref=vm-42"):
    """The code of one of the two calls about a lock."""
    params = client.c.VixDiskLib_AllocateConnectParams()
    params[0].serverName, params[0].vmxSpec, params[0].credType = b"vc01", vm, 1
    params[0].userName, params[0].password = b"backup", b"secret"
    code = client.call(call, params, identity)
    client.c.VixDiskLib_FreeConnectParams(params)
    return code


def test_a_lock_has_one_holder_who_alone_can_end_it(run: Run, tmp_path: Path) -> None:
    run.remote()
    assert run(lock, "PrepareForAccess", b"mover") == 0
    assert (tmp_path / "locks" / "vm-42").read_text() == "mover"
    assert run(lock, "PrepareForAccess", b"other") == 5
    assert run(lock, "PrepareForAccess", b"mover") == 5
    assert run(lock, "EndAccess", b"other") == 1
    assert run(lock, "EndAccess", b"mover") == 0
    assert run(lock, "EndAccess", b"mover") == 0  # alone it does no harm
    noted = [line.split()[0] for line in (tmp_path / "calls.log").read_text().splitlines()]
    assert noted == ["PrepareForAccess", "EndAccess", "EndAccess"]


def test_a_late_crash_loses_the_answer_of_a_call_that_had_its_effect(run: Run, tmp_path: Path) -> None:
    run.remote()
    where = tmp_path / "locks" / "vm-42"
    crash = {"VADPIPE_VDDK_CRASH": "prepare:1+,end:1+", "VADPIPE_VDDK_ONCE": str(tmp_path)}
    assert run.start(lock, "PrepareForAccess", b"mover", **crash).returncode == -signal.SIGABRT
    assert where.read_text() == "mover"
    assert run.start(lock, "EndAccess", b"mover", **crash).returncode == -signal.SIGABRT
    assert not where.exists()
    assert run(lock, "PrepareForAccess", b"mover", VADPIPE_VDDK_FAULT="prepare:1+:3014") == 3014
    assert where.read_text() == "mover"
    assert run(lock, "EndAccess", b"mover", **crash) == 0
    assert {path.name for path in tmp_path.glob("crash-*")} == {"crash-prepare-1+", "crash-end-1+"}


def test_an_esxi_host_locks_nothing(run: Run, tmp_path: Path) -> None:
    run.remote()
    with (tmp_path / "vddk.conf").open("a") as conf:
        conf.write("api=HostAgent\n")
    assert run(lock, "PrepareForAccess", b"mover") == 6
    assert not (tmp_path / "locks").exists()


@needs_qemu
def test_a_hot_added_disk_stays_until_it_is_closed_and_cleaned_up(run: Run, tmp_path: Path) -> None:
    run.remote()
    run.env["VADPIPE_VDDK_HOTADD"] = "1"
    create(tmp_path / "datastores" / "ds1" / "vm" / "a.vmdk", "1M")
    state = tmp_path / "hotadd" / "vm-42" / "a.vmdk"

    def use(client, thumbprint):
        login = {"thumbprint": thumbprint.encode(), "snapshot": b"snapshot-7", "readonly": 1}
        handle = client.open("[ds1] vm/a.vmdk", modes=b"hotadd:nbdssl", **login)
        mode = client.c.VixDiskLib_GetTransportMode(handle).decode()
        counts = []
        for close in (False, True):
            if close:
                client.call("Close", handle)
                client.call("Disconnect", client.connection)
            params = client.c.VixDiskLib_AllocateConnectParams()
            params[0].serverName, params[0].credType = b"vc01", 1
            params[0].userName, params[0].password = b"backup", b"secret"
            cleaned, remaining = ctypes.c_uint32(), ctypes.c_uint32()
            assert client.call("Cleanup", params, ctypes.byref(cleaned), ctypes.byref(remaining)) == 0
            client.c.VixDiskLib_FreeConnectParams(params)
            counts.append([cleaned.value, remaining.value])
        return [mode, counts]

    assert run(use, THUMBPRINT) == ["hotadd", [[0, 1], [1, 0]]]
    assert not state.exists()


def test_the_lab_without_a_conf_cannot_be_reached(run: Run, tmp_path: Path) -> None:
    run.env["VADPIPE_LAB_ROOT"] = str(tmp_path)
    stage, code, log = run(attempt, "[ds1] a.vmdk", READ_ONLY, {})
    assert (stage, code) == ("connect", 18000)
    assert "vddk.conf" in log


@needs_qemu
def test_large_session_buffers_are_refused(run: Run, tmp_path: Path) -> None:
    run.remote()
    create(tmp_path / "datastores" / "ds1" / "vm" / "a.vmdk", "1M")
    config = tmp_path / "vddk.ini"

    def with_config(library, config, thumbprint):
        return Client(library, config).attempt("[ds1] vm/a.vmdk", thumbprint=thumbprint)

    for count, code in ((16, 0), (17, 2)):
        config.write_text(
            f'# NFC\nvixDiskLib.nfcAio.Session.BufSizeIn64KB = "16"\nvixDiskLib.nfcAio.Session.BufCount={count}\n'
        )
        outcome = run(with_config, os.fsencode(config), THUMBPRINT.encode(), client=False)
        assert outcome[1] == code


@needs_qemu
@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (lambda d: os.truncate(d / "base.vmdk", 100), 7, "truncated"),
        (lambda d: os.truncate(d / "base.vmdk", 0), 7, "truncated"),
        (lambda d: os.truncate(d / "base.vmdk", 11000), 7, "grain directory"),
        (lambda d: (d / "base.vmdk").unlink(), 16003, "base.vmdk"),
        (lambda d: (d / "redo1.vmdk").write_bytes(b"x" * 5000), 9, "not a virtual disk descriptor"),
        (lambda d: shutil.copy(d / "redo2.vmdk", d / "redo1.vmdk"), 16008, "content id"),
    ],
    ids=["header", "empty", "directory", "parent gone", "garbage", "wrong parent"],
)
def test_damaged_chains_do_not_open(
    run: Run, tmp_path: Path, damage: Callable[[Path], object], code: int, says: str
) -> None:
    disk = chain(tmp_path)
    damage(tmp_path)
    stage, got, log = run(attempt, str(disk), READ_ONLY, {})
    assert (stage, got) == ("open", code), log
    assert says in log


@needs_qemu
@pytest.mark.parametrize(
    ("subformat", "code", "says"),
    [
        ("streamOptimized", 16013, "stream-optimized"),
        ("truncated flat", 7, "truncated"),
        ("extent", 9, "descriptor"),
    ],
)
def test_files_that_cannot_be_opened(run: Run, tmp_path: Path, subformat: str, code: int, says: str) -> None:
    if subformat == "streamOptimized":
        disk = create(tmp_path / "a.vmdk", "1M", subformat)
    elif subformat == "truncated flat":
        disk = create(tmp_path / "a.vmdk", "1M", "monolithicFlat")
        os.truncate(tmp_path / "a-flat.vmdk", MIB - 1)
    else:
        create(tmp_path / "a.vmdk", "1M", "twoGbMaxExtentSparse")
        disk = tmp_path / "a-s001.vmdk"
    stage, got, log = run(attempt, str(disk), READ_ONLY, {})
    assert (stage, got, says in log) == ("open", code, True), log


@needs_qemu
@pytest.mark.parametrize(("loss", "code"), [("truncate", 16002), ("unlink", 4)])
@pytest.mark.parametrize("subformat", ["monolithicSparse", "monolithicFlat"])
def test_a_file_lost_while_open_fails_the_read(
    run: Run, tmp_path: Path, subformat: str, loss: str, code: int
) -> None:
    disk = create(tmp_path / "a.vmdk", "2M", subformat)
    qemu_io(disk, "write -P 1 0 2M")
    extent = tmp_path / ("a-flat.vmdk" if subformat == "monolithicFlat" else "a.vmdk")

    def lose(client, path, extent, loss):
        handle = client.open(path)
        assert client.read(handle, 0, 4096) == bytes([1]) * 2097152
        os.truncate(extent, 1000000) if loss == "truncate" else os.unlink(extent)
        code = client.call("Read", handle, ctypes.c_uint64(2048), ctypes.c_uint64(2048), bytes(1 << 20))
        high = client.raw >> 16
        client.finish(handle)
        return [code, high > 0, client.log[-2]]

    got, detail, _ = outcome = run(lose, str(disk), str(extent), loss)
    assert (got, detail) == (code, True), outcome


@needs_qemu
def test_a_lost_tail_is_no_hole(run: Run, tmp_path: Path) -> None:
    disk = create(tmp_path / "a.vmdk", "2M", "monolithicFlat")
    qemu_io(disk, "write -P 1 0 2M")

    def lose(client, path, extent):
        handle = client.open(path)
        os.truncate(extent, 1 << 20)
        runs = client.allocated(handle, 0, 4096)
        client.finish(handle)
        return runs

    runs = run(lose, str(disk), str(tmp_path / "a-flat.vmdk"))
    assert [list(run) for run in runs] == [[0, 4096]]


# ---- facts about disks ------------------------------------------------------------------------------------------


@needs_qemu
@pytest.mark.parametrize("generation", [6, 7, 8, 9])
def test_info_by_generation(run: Run, libdir: Path, tmp_path: Path, generation: int) -> None:
    leaf = child(tmp_path / "leaf.vmdk", create(tmp_path / "base.vmdk", "1G", adapter_type="lsilogic"))
    run.library = str(libdir / "lib64" / f"libvixDiskLib.so.{generation}")

    def facts(client, path):
        handle = client.open(path)
        info = client.info(handle)[0]
        single = client.info(client.open(path, 4 | 2, connection=client.connection))[0]
        geometry = list(info.bios)
        return [info.capacity, geometry, info.links, single.links, info.parent.decode(), info.logical]

    capacity, geometry, links, single, parent, sector = run(facts, str(leaf))
    assert (capacity, links, single, parent) == (2 << 20, 2, 1, "base.vmdk")
    assert geometry[1:] == [16, 63]
    # Before 7.0 the struct ends earlier: what lies there is not a sector size.
    assert (sector == 512) == (generation >= 7)
    assert sector != 0


@needs_qemu
def test_metadata_protocol(run: Run, tmp_path: Path) -> None:
    disk = create(tmp_path / "a.vmdk", "1M")

    def metadata(client, path):
        handle = client.open(path, 0)
        size = ctypes.c_size_t()
        codes = [
            client.call("WriteMetadata", handle, b"uuid", b"60 00 C2 9a"),
            client.call("WriteMetadata", handle, b"a", b'"'),
        ]
        codes.append(client.call("GetMetadataKeys", handle, None, ctypes.c_size_t(0), ctypes.byref(size)))
        keys = ctypes.create_string_buffer(size.value)
        codes.append(client.call("GetMetadataKeys", handle, keys, ctypes.c_size_t(size.value), None))
        codes.append(
            client.call("ReadMetadata", handle, b"uuid", None, ctypes.c_size_t(0), ctypes.byref(size))
        )
        value = ctypes.create_string_buffer(size.value)
        codes.append(client.call("ReadMetadata", handle, b"uuid", value, ctypes.c_size_t(size.value), None))
        codes.append(client.call("ReadMetadata", handle, b"none", value, ctypes.c_size_t(size.value), None))
        client.finish(handle)
        return [codes, keys.raw.decode(), value.raw.decode(), client.log]

    codes, keys, value, _ = run(metadata, str(disk))
    assert codes == [0, 3, 24, 0, 24, 0, 16052]
    assert value == "60 00 C2 9a\0"
    assert keys.endswith("\0\0")
    assert {"adapterType", "geometry.cylinders", "uuid"} <= set(keys.split("\0"))
    assert b'ddb.uuid = "60 00 C2 9a"' in disk.read_bytes()
    assert "No errors were found" in qemu_img("check", "-f", "vmdk", disk)


NAMES = """
InitEx Init Exit GetErrorText FreeErrorText ListTransportModes Cleanup SetInjectedFault
AllocateConnectParams FreeConnectParams GetConnectParams Connect ConnectEx Disconnect PrepareForAccess
EndAccess Open Close GetInfo FreeInfo GetTransportMode Read Write ReadAsync WriteAsync Flush Wait
QueryAllocatedBlocks FreeBlockList ReadMetadata WriteMetadata GetMetadataKeys Create CreateChild
IsAttachPossible Attach Clone SpaceNeededForClone Grow Shrink Defragment Rename Unlink CheckRepair
"""


@pytest.mark.parametrize("suffix", [".6", ".7", ".8", ".9", ""])
def test_every_name_is_exported(run: Run, libdir: Path, suffix: str) -> None:
    library = libdir / "lib64" / f"libvixDiskLib.so{suffix}"
    run.library = str(library)

    def missing(library, names):
        loaded = ctypes.CDLL(library)
        internal = [name for name in ("chain_open", "misuse", "vix_error") if hasattr(loaded, name)]
        return [name for name in names if not hasattr(loaded, "VixDiskLib_" + name)] + internal

    assert run(missing, NAMES.split(), client=False) == []
    assert f"libvixDiskLib.so{suffix or '.9'}".encode() + b"\0" in library.read_bytes()  # the soname


def test_library_calls(run: Run) -> None:
    def life(library):
        client = Client(library, init=False)
        client.c.VixDiskLib_GetErrorText.restype = ctypes.c_void_p
        client.c.VixDiskLib_ListTransportModes.restype = ctypes.c_char_p
        client.c.VixDiskLib_FreeConnectParams(client.c.VixDiskLib_AllocateConnectParams())
        codes = [client.init(6, 5), client.init()]
        pointer = ctypes.c_void_p(client.c.VixDiskLib_GetErrorText(ctypes.c_uint64(0xABCD_0000_3E87), None))
        text = ctypes.string_at(pointer.value).decode()
        client.c.VixDiskLib_FreeErrorText(pointer)
        poisoned = ctypes.string_at(pointer.value, 8).hex()
        codes.append(client.call("Unlink", None, b"/tmp/none"))
        modes = client.c.VixDiskLib_ListTransportModes().decode()
        client.c.VixDiskLib_Exit()
        return [codes, text, poisoned, modes, client.log]

    codes, text, poisoned, modes, log = run(life, client=False)
    assert codes == [0, 16053, 6]
    assert text == "The request lies outside the virtual disk"
    assert poisoned == "db" * 8
    assert modes == "file:san:hotadd:nbdssl:nbd"
    assert sum("thread" in line for line in log) == 4
    assert any("VDDK_PhoneHome" in line for line in log)


@pytest.mark.parametrize(("version", "code"), [((6, 4), 3), ((8, 0), 0), ((9, 0), 3)])
def test_versions_asked_for(run: Run, version: tuple[int, int], code: int) -> None:
    def ask(library, version):
        return Client(library, init=False).init(*version)

    assert run(ask, version, client=False) == code


# ---- misuse -----------------------------------------------------------------------------------------------------


def misuse_two_threads(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    thread = threading.Thread(target=client.read, args=(handle, 0, 1))
    thread.start()
    client.read(handle, 0, 1)


def misuse_close_outstanding(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    client.submit(handle, 0, 1, client.Done(lambda *result: None))
    client.call("Close", handle)


def misuse_disconnect_outstanding(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    client.submit(handle, 0, 1, client.Done(lambda *result: None))
    client.call("Disconnect", client.connection)


def misuse_exit_outstanding(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    client.submit(handle, 0, 1, client.Done(lambda *result: None))
    client.c.VixDiskLib_Exit()


def misuse_after_close(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    client.call("Close", handle)
    client.read(handle, 0, 1)


def misuse_after_disconnect(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    client.call("Disconnect", client.connection)
    client.read(handle, 0, 1)


def misuse_after_exit(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    client.c.VixDiskLib_Exit()
    client.read(handle, 0, 1)


def misuse_after_fork(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    if (pid := os.fork()) == 0:
        client.read(handle, 0, 1)
    os.kill(os.getpid(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) * -1)


def misuse_open_overlaps_close(client, path, thumbprint):
    other, handle = client.connect(thumbprint=thumbprint)[1], client.open(path, thumbprint=thumbprint)
    # The environment makes the second Open hang; once the log says so, it is inside.
    threading.Thread(target=client.open, args=(path, 4, other), daemon=True).start()
    while not any("open call 2 hangs" in line for line in client.log):
        time.sleep(0.01)
    client.call("Close", handle)


def misuse_null_buffer(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    client.call("Read", handle, ctypes.c_uint64(0), ctypes.c_uint64(1), None)


def misuse_null_handle(client, path, thumbprint):
    client.read(None, 0, 1)


def misuse_unknown_handle(client, path, thumbprint):
    client.read(ctypes.c_void_p(4096), 0, 1)


def misuse_null_user(client, path, thumbprint):
    client.connect(user=None)


def misuse_null_vm(client, path, thumbprint):
    client.connect(vm=None)


def misuse_double_free(client, path, thumbprint):
    params = client.c.VixDiskLib_AllocateConnectParams()
    client.c.VixDiskLib_FreeConnectParams(params)
    client.c.VixDiskLib_FreeConnectParams(params)


def misuse_foreign_free(client, path, thumbprint):
    client.c.VixDiskLib_FreeInfo(client.c.VixDiskLib_AllocateConnectParams())


def misuse_call_in_callback(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    client.submit(handle, 0, 1, client.Done(lambda *result: client.call("Wait", handle)))
    client.call("Wait", handle)


@needs_qemu
@pytest.mark.parametrize(
    ("scenario", "says"),
    [
        (
            misuse_two_threads,
            r"thread \d+ calls while thread \d+ is inside VixDiskLib_Read of the same disk handle",
        ),
        (misuse_close_outstanding, "VixDiskLib_Close: 1 asynchronous requests are outstanding"),
        (misuse_disconnect_outstanding, "VixDiskLib_Disconnect: 1 asynchronous requests are outstanding"),
        (misuse_exit_outstanding, "VixDiskLib_Exit: 1 asynchronous requests are outstanding"),
        (misuse_after_close, "VixDiskLib_Read: the disk handle was used after Close"),
        (misuse_after_disconnect, "VixDiskLib_Read: the disk handle was used after Disconnect"),
        (misuse_after_exit, "VixDiskLib_Read: called after Exit"),
        (misuse_after_fork, "VixDiskLib_Read: called after fork"),
        (misuse_open_overlaps_close, r"VixDiskLib_Close: .* is inside VixDiskLib_Open \(Open and Close"),
        (misuse_null_buffer, "VixDiskLib_Read: required parameter buffer is NULL"),
        (misuse_null_handle, "VixDiskLib_Read: required parameter diskHandle is NULL"),
        (misuse_unknown_handle, "VixDiskLib_Read: 0x1000 is not a disk handle"),
        (misuse_null_user, "VixDiskLib_ConnectEx: required parameter creds.uid.userName is NULL"),
        (misuse_null_vm, "VixDiskLib_ConnectEx: required parameter vmxSpec is NULL"),
        (misuse_double_free, "VixDiskLib_FreeConnectParams: .* was freed before"),
        (misuse_foreign_free, "VixDiskLib_FreeInfo: .* does not come from the matching call"),
        (misuse_call_in_callback, "VixDiskLib_Wait: called from inside a completion callback"),
    ],
)
def test_misuse_aborts_and_names_the_mistake(run: Run, tmp_path: Path, scenario: Callable, says: str) -> None:
    run.remote()
    create(tmp_path / "datastores" / "ds1" / "vm" / "a.vmdk", "1M")
    env = {} if scenario is misuse_call_in_callback else {"VADPIPE_VDDK_LATENCY_MS": "500"}
    if scenario is misuse_open_overlaps_close:
        env = {"VADPIPE_VDDK_HANG": "open:2"}
    ended = run.start(scenario, "[ds1] vm/a.vmdk", THUMBPRINT.encode(), **env)
    assert ended.returncode == -signal.SIGABRT, ended.stderr
    assert re.search(rf"^vixDiskLib stand-in: misuse in .*{says}", ended.stderr, re.MULTILINE), ended.stderr


# ---- knobs ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_qemu
def test_faults_fire_at_their_number_and_once(run: Run, tmp_path: Path) -> None:
    disk = create(tmp_path / "a.vmdk", "1M")
    faults = {
        "VADPIPE_VDDK_FAULT": "read:2:14011,open:2:4,connect:3:14009",
        "VADPIPE_VDDK_ONCE": str(tmp_path),
    }

    def codes(client, path):
        handle = client.open(path)
        seen = [client.call("Open", client.connection, os.fsencode(path), 4, ctypes.byref(ctypes.c_void_p()))]
        seen += [client.connect()[0] for _ in range(2)]
        results = []
        keep = client.Done(lambda data, result: results.append(result & 0xFFFF))
        buffer = ctypes.create_string_buffer(512)
        for call in ("Read", "ReadAsync", "Read"):
            more = (keep, None) if call == "ReadAsync" else ()
            seen.append(client.call(call, handle, ctypes.c_uint64(0), ctypes.c_uint64(1), buffer, *more))
        return seen, results

    assert run(codes, str(disk), **faults) == [[4, 0, 14009, 0, ASYNC, 0], [14011]]
    assert run(codes, str(disk), **faults) == [[0, 0, 0, 0, ASYNC, 0], [0]]
    assert {path.name for path in tmp_path.glob("fault-*")} == {
        "fault-read-2",
        "fault-open-2",
        "fault-connect-3",
    }


@needs_qemu
def test_hang_and_crash(run: Run, tmp_path: Path) -> None:
    run.remote()
    create(tmp_path / "datastores" / "ds1" / "vm" / "a.vmdk", "1M")

    def three(client, thumbprint):
        handle = client.open("[ds1] vm/a.vmdk", thumbprint=thumbprint)
        answered, count = [], threading.Semaphore(0)
        keep = client.Done(lambda data, result: (answered.append(data or 0), count.release()))
        for number in range(3):
            client.submit(handle, number, 1, keep, data=number)
        assert count.acquire()
        assert count.acquire()
        return [sorted(answered), client.log]

    answered, log = run(three, THUMBPRINT.encode(), VADPIPE_VDDK_HANG="read:2")
    assert answered == [0, 2]
    assert "read call 2 hangs as asked\n" in log
    ended = run.start(three, THUMBPRINT.encode(), VADPIPE_VDDK_CRASH="read:2")
    assert ended.returncode == -signal.SIGABRT
    assert "crash as asked at read call 2" in ended.stderr


@pytest.mark.parametrize(
    "knob",
    [
        "FAULT=read:1", "FAULT=end:1+", "HANG=reed:1", "CRASH=read:0", "CRASH=read:1+", "CRASH=end:1++",
        "LATENCY_MS=soon", "QAB=maybe", "THREADS=0",
    ],
)  # fmt: skip
def test_knobs_that_cannot_be_parsed(run: Run, knob: str) -> None:
    name, value = knob.split("=")

    def nothing(client):
        return None

    ended = run.start(nothing, **{f"VADPIPE_VDDK_{name}": value})
    assert ended.returncode == -signal.SIGABRT
    assert f"VADPIPE_VDDK_{name}" in ended.stderr


@needs_qemu
def test_allocated_blocks_unsupported_or_useless(run: Run, tmp_path: Path) -> None:
    disk = create(tmp_path / "a.vmdk", "1M")

    def query(client, path, expect):
        return client.allocated(client.open(path), 0, 1024, expect=expect)

    assert run(query, str(disk), 6, VADPIPE_VDDK_QAB="unsupported") is None
    assert run(query, str(disk), 0, VADPIPE_VDDK_QAB="all") == [[0, 1024]]


@needs_qemu
def test_counters_show_calls_bytes_and_leaks(run: Run, tmp_path: Path) -> None:
    disk = create(tmp_path / "a.vmdk", "1M")

    def leak(client, path):
        handle = client.open(path)
        client.read(handle, 0, 100)
        client.submit(handle, 0, 20, client.Done(lambda *result: None))
        client.info(handle)
        client.c.VixDiskLib_Exit()

    counters = tmp_path / "counters"
    for _ in range(2):
        run(leak, str(disk), VADPIPE_VDDK_COUNTERS=str(counters))
    first, second = map(json.loads, counters.read_text().splitlines())
    assert first["pid"] != second["pid"]
    assert first["calls"]["read"] == 2
    assert first["bytes_read"] == 120 * SECTOR
    assert first["live"] == {
        "connections": 1,
        "disks": 1,
        "params": 0,
        "infos": 1,
        "block_lists": 0,
        "texts": 0,
    }


# ---- building ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources that make "builds" at once: the rules of rebuilding are the same."""
    for tool in ("make", "cc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is needed to build")
    sources = tmp_path / "sources"
    sources.mkdir()
    names = " ".join(f"$(OUT)/lib64/libvixDiskLib.so{suffix}" for suffix in (".6", ".7", ".8", ".9", ""))
    (sources / "Makefile").write_text(f"all:\n\tmkdir $(OUT)/lib64\n\ttouch {names}\n")
    monkeypatch.setattr(vddk_build, "SOURCES", sources)
    return sources


def test_built_once_and_again_when_a_source_is_newer(tiny_sources: Path, tmp_path: Path) -> None:
    library = build_vddk(tmp_path / "out") / "lib64" / "libvixDiskLib.so.8"
    os.utime(tiny_sources / "Makefile", (1, 1))
    first = library.stat().st_mtime_ns
    build_vddk(tmp_path / "out")
    assert library.stat().st_mtime_ns == first
    os.utime(library, (0, 0))
    build_vddk(tmp_path / "out")
    assert library.stat().st_mtime_ns >= first
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["lib64"]


def test_builds_at_the_same_time_do_not_meet(tiny_sources: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(build_vddk, [tmp_path / "out"] * 4))
    assert built == [tmp_path / "out"] * 4
    assert len(list((tmp_path / "out" / "lib64").iterdir())) == 5


def test_no_compiler_is_said_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompilerMissing, match="apt install gcc make"):
        build_vddk(tmp_path / "out")


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is needed to run a compiler")
    for name in ("cc", "gcc"):
        (tmp_path / name).write_text("#!/bin/sh\necho broken compiler >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(CompilationFailed, match="broken compiler"):
        build_vddk(tmp_path / "out")
    assert list((tmp_path / "out" / "lib64").iterdir()) == []
