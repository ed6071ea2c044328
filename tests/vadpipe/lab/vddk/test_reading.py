"""Reading, synchronously and asynchronously: every chain reads as qemu-img reads it."""

import hashlib
import re
import threading
from pathlib import Path

import pytest

from tests.vadpipe.lab.vddk.conftest import (
    ASYNC,
    MIB,
    READ_ONLY,
    SECTOR,
    SINGLE_LINK,
    THUMBPRINT,
    Run,
    allocated_by_qemu,
    chain,
    child,
    create,
    needs_qemu,
    qemu_io,
    raw_of,
)


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
def test_chain_reads_and_maps_like_qemu(run, tmp_path, base):
    assert_reads_like_qemu(run, chain(tmp_path, base))


@needs_qemu
def test_a_capacity_may_be_no_multiple_of_a_grain(run, tmp_path):
    disk = create(tmp_path / "odd.vmdk", str(5 * MIB + 3 * SECTOR))
    qemu_io(disk, "write -P 1 5M 1536", "write -P 2 100k 1k")
    assert_reads_like_qemu(run, disk)


@pytest.mark.slow
@needs_qemu
def test_a_remote_disk_tells_its_path_and_transport(run, tmp_path):
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
def test_reads_cross_the_border_of_two_extents(run, tmp_path, subformat):
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
def test_zero_grain_hides_the_parent(run, tmp_path):
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


def test_zero_extents_and_extents_with_an_offset_are_read(run, tmp_path):
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
def test_a_thin_disk_of_4_tib_needs_little_memory(run, tmp_path):
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
def test_remote_requests_complete_out_of_order_on_library_threads(run, tmp_path):
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
def test_local_requests_complete_before_the_call_returns(run, tmp_path):
    disk = chain(tmp_path)
    accepted, inside, done, digest = run(read_async, str(disk), None)
    assert_all_accepted_and_right(disk, accepted, digest)
    assert inside == 32
    assert done == [[i, 0, True] for i in range(32)]


@needs_qemu
def test_rejected_requests_have_no_callback(run, tmp_path):
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
