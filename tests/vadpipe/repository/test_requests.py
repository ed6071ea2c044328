"""How many requests a store gets, and what they cost: a store that is far away takes 20 ms for each."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline import GiB, MiB, SinkError
from tests.vadpipe.repository import repository_kit as kit
from vadpipe.repository import Repository, verify
from vadpipe.repository.backends.contract import Damage
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.backends.wrappers import Fault, Faulty, Forwarding
from vadpipe.repository.format.objects import Missing, Objects, ReadAhead
from vadpipe.repository.reader import DiskContent

pytestmark = pytest.mark.slow


class Counting(Forwarding):
    """Counts what would be a request to an S3 server, and the bytes that are read."""

    def __init__(self, inner):
        super().__init__(inner)
        self.requests = Counter()
        self.bytes = 0

    def _count(self, what, name):
        self.requests[f"{what} {name.partition('/')[0]}"] += 1

    def put(self, name, parts):
        self._count("put", name)
        self.inner.put(name, parts)

    def begin(self, name):
        self._count("put", name)
        return self.inner.begin(name)

    def replace(self, name, parts):
        self._count("put", name)
        self.inner.replace(name, parts)

    def read(self, name, offset=0, length=None):
        self._count("read", name)
        content = self.inner.read(name, offset, length)
        self.bytes += len(content)
        return content

    def size(self, name):
        self._count("head", name)
        return self.inner.size(name)

    def list(self, prefix):
        self._count("list", prefix)
        return self.inner.list(prefix)

    def delete(self, names):
        kept = tuple(names)
        if kept:
            self._count("delete", kept[0])
        self.inner.delete(kept)

    def reset(self):
        self.requests.clear()
        self.bytes = 0


@pytest.fixture
def store():
    made = Counting(MemoryBackend())
    Repository(made).init()
    made.reset()
    return made


def stored_bytes(store):
    return sum(found.size for found in store.inner.list("packs/"))


async def test_a_restore_reads_what_lies_side_by_side_together(store):
    disk = kit.MemoryDisk(kit.random_bytes(1, 160 * MiB))
    await kit.backup(Repository(store), [disk])
    store.reset()
    async with Repository(store).read() as reader:
        assert np.array_equal(await kit.restore(reader, reader.points[0]), disk.content)
    per_gib = store.requests["read packs"] * GiB / len(disk.content)
    assert per_gib <= 200  # one for every 8 MiB, and the ends of packs and pages; one by one they were 1,288
    assert sum(store.requests.values()) - store.requests["read packs"] <= 8
    assert store.bytes <= 1.01 * stored_bytes(store)


async def test_a_restore_that_jumps_between_packs_reads_little_in_vain(store):
    """Every MiB was stored by another of 12 runs."""
    disk = kit.MemoryDisk(np.zeros(72 * MiB, np.uint8))
    for number in range(12):
        for low in range(number * MiB, len(disk.content), 12 * MiB):
            disk.write(low, kit.random_bytes(low, MiB))
        await kit.backup(Repository(store), [disk], kit.incremental_path)
    store.reset()
    async with Repository(store).read() as reader:
        assert np.array_equal(await kit.restore(reader, reader.points[-1]), disk.content)
    assert store.bytes <= 2.2 * stored_bytes(store)


async def test_a_run_with_nothing_new_needs_few_requests(store):
    disk = kit.MemoryDisk(kit.random_bytes(1, 16 * MiB))
    await kit.backup(Repository(store), [disk])
    await kit.backup(Repository(store), [disk], kit.incremental_path)
    store.reset()
    await kit.backup(Repository(store), [disk], kit.incremental_path)
    assert sum(store.requests.values()) <= 14, store.requests
    assert store.requests["read index"] == 1
    assert store.requests["put packs"] == 0


async def test_a_full_backup_asks_little_beside_its_packs(store):
    disk = kit.MemoryDisk(kit.random_bytes(1, 140 * MiB))
    await kit.backup(Repository(store), [disk])
    assert store.requests["put packs"] == 3
    assert sum(store.requests.values()) - 3 <= 20, store.requests


async def test_a_verification_reads_packs_in_large_pieces(store):
    disk = kit.MemoryDisk(kit.random_bytes(1, 128 * MiB))
    await kit.backup(Repository(store), [disk])
    store.reset()
    async with Repository(store).read() as reader:
        assert not (await verify(reader)).damages
    assert store.requests["read packs"] * GiB / len(disk.content) <= 280, store.requests


def test_the_begin_of_an_object_is_read_once_and_the_rest_where_it_is_wanted(store):
    content = kit.random_bytes(1, 300).tobytes()
    for name, size in (("a", 100), ("b", 300)):
        store.inner.put(name, [content[:size]])
    objects = ReadAhead(Objects(store), 128, most=2)
    assert objects.read("a", 0, 10) == content[:10]
    assert objects.read("a", 10, 90) == content[10:100]
    assert store.requests == {"read a": 1}
    with pytest.raises(Damage, match="cut off"):
        objects.read("a", 50, 51)
    assert objects.read("b", 0, 128) == content[:128]
    assert objects.read("b", 100, 200) == content[100:300]
    assert store.requests == {"read a": 2, "read b": 2}
    store.inner.put("c", [content])
    objects.read("c", 0, 1)  # and the begin that was read first goes
    objects.read("a", 0, 1)
    assert store.requests == {"read a": 3, "read b": 2, "read c": 1}
    with pytest.raises(Missing):
        objects.read("d", 0, 1)


async def test_frames_are_written_while_a_pack_is_sent():
    """Sending a pack ends only when the next one was begun: a backup that waited for it would fail here."""

    class Slow(Forwarding):
        def __init__(self, inner):
            super().__init__(inner)
            self.begun = 0
            self.another = threading.Condition()
            self.waited = []

        def begin(self, name):
            upload = self.inner.begin(name)
            if name.startswith("packs/"):
                with self.another:
                    self.begun += 1
                    self.another.notify_all()
            finish, mine = upload.finish, self.begun

            def slowly():
                with self.another:
                    last = not name.startswith("packs/") or mine == 3
                    self.waited.append(last or self.another.wait_for(lambda: self.begun > mine, 20))
                finish()

            upload.finish = slowly
            return upload

    store = Slow(MemoryBackend())
    Repository(store).init()
    await kit.backup(Repository(store), [kit.MemoryDisk(kit.random_bytes(1, 140 * MiB))])
    assert store.begun == 3
    assert all(store.waited)


# The cache of frames


async def frames_of(repository):
    """A reader, and where the frames of its only disk lie, in the order of the disk."""
    disk = kit.MemoryDisk(kit.random_bytes(1, 12 * MiB))
    await kit.backup(Repository(repository), [disk])
    async with Repository(repository).read() as reader:
        content = DiskContent(reader, reader.points[0], reader.points[0].disks[0])
        ((offset, digest),) = content.pages()
        addresses = content.page(offset, digest).addresses
    assert len(addresses) > 8
    return reader, sorted(addresses, key=lambda address: address.offset)


def sound(reader, addresses):
    """For each frame whether it can be read."""
    reader.frames.expect(addresses)
    found = []
    for address in addresses:
        try:
            found.append(len(reader.frames.read(address)) == address.length)
        except Damage:
            found.append(False)
    return found


async def test_a_damaged_frame_costs_nothing_of_its_neighbours(store):
    reader, addresses = await frames_of(store)
    name = reader.objects.pack(addresses[5].pack)
    content = bytearray(store.read(name))
    content[addresses[5].offset + 200] ^= 1
    store.replace(name, [bytes(content)])
    assert sound(reader, addresses) == [number != 5 for number in range(len(addresses))]


async def test_a_pack_that_is_cut_off_gives_what_it_has(store):
    reader, addresses = await frames_of(store)
    name = reader.objects.pack(addresses[5].pack)
    store.replace(name, [store.read(name)[: addresses[6].offset - 1]])
    assert sound(reader, addresses) == [number < 5 for number in range(len(addresses))]


async def test_a_request_that_failed_is_made_again(store):
    faulty = Faulty(store, [Fault("read", number) for number in (50, 51)])
    reader, addresses = await frames_of(faulty)
    reader.frames.expect(addresses)
    faulty.calls["read"] = 49
    for address in addresses[:2]:
        with pytest.raises(SinkError, match="lost"):
            reader.frames.read(address)
    assert all(sound(reader, addresses))


async def test_threads_share_one_request(store):
    reader, addresses = await frames_of(store)
    reader.frames.expect(addresses)
    store.reset()
    together = threading.Barrier(6)

    def read(address):
        together.wait()
        return len(reader.frames.read(address))

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(read, addresses[:6])) == [address.length for address in addresses[:6]]
    assert store.requests == {"read packs": 1}


async def test_what_is_used_up_is_not_kept(store):
    reader, addresses = await frames_of(store)
    assert all(sound(reader, addresses))
    assert not reader.frames._expected
    assert not reader.frames._fetched
