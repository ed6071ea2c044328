"""What points take: counted again here, frame by frame, with sets."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import CLUSTER, DIGEST_SIZE, MiB
from tests.vadpipe.repository.repository_kit import (
    MemoryDisk,
    backup,
    digests,
    files_of,
    fixed_origin,
    full_path,
    incremental_path,
    mixed_content,
    random_bytes,
)
from vadpipe.repository.format.disk_map import PAGE
from vadpipe.repository.maintenance.frame_use import FrameUse, Use
from vadpipe.repository.maintenance.statistics import statistics
from vadpipe.repository.reader import open_repository
from vadpipe.repository.store import Repository

# --- the kernel ---

page_sets = st.lists(  # VMs of points of pages; a page is a number
    st.lists(st.sets(st.integers(0, 7), max_size=5), min_size=1, max_size=6), min_size=1, max_size=3
)


@pytest.mark.slow
@given(page_sets, st.lists(st.sets(st.integers(0, 11), max_size=4), min_size=8, max_size=8))
def test_the_frames_of_points_are_counted_as_sets_would(vms, frames_of_page):
    use, names = FrameUse(capacity=1), digests(range(12))
    length, size = 1000 * (1 + np.arange(12)), 100 + np.arange(12)
    uses = [Use(number % 3) for number in range(12)]
    for number, purpose in enumerate(uses):
        one = slice(number, number + 1)
        use.add(names[one], purpose, length[one], size[one])

    def rows(page):
        return use.find(names[sorted(frames_of_page[page])])

    def stored(frames):
        return sum(int(size[frame]) for frame in frames)

    points = [[{f for page in point for f in frames_of_page[page]} for point in vm] for vm in vms]
    of_vms = [set().union(*vm) for vm in points]
    for vm, sets, together in zip(vms, points, of_vms, strict=True):
        before = set()
        for pages, frames in zip(vm, sets, strict=True):
            for page in pages - before:
                use.begin(rows(page))
            for page in before - pages:
                use.cease(rows(page))
            before = pages
            total = use.end_point()
            assert total.stored == stored(frames)
            assert total.maps == stored(frame for frame in frames if uses[frame] is Use.MAP)
            assert total.unique == sum(1000 * (frame + 1) for frame in frames if uses[frame] is Use.DATA)
        assert use.end_vm().stored == stored(together)
    every = [frames for vm in points for frames in vm]
    others = [set().union(*(every[:place] + every[place + 1 :])) for place in range(len(every))]
    assert use.only_of_points() == [stored(mine - rest) for mine, rest in zip(every, others, strict=True)]
    rest_of = [set().union(*(of_vms[:place] + of_vms[place + 1 :])) for place in range(len(of_vms))]
    assert use.only_of_vms() == [stored(mine - rest) for mine, rest in zip(of_vms, rest_of, strict=True)]


# --- a repository ---


@dataclass
class Counted:
    """What a point uses, found without statistics: stored bytes by frame id."""

    data: dict[bytes, tuple[int, int]]
    objects: dict[bytes, int]
    allocated: int

    @property
    def stored(self):
        return {**{name: size for name, (_, size) in self.data.items()}, **self.objects}


def counted(reader, point):
    found = Counted({}, {}, 0)
    wanted = [bytes.fromhex(part) for document in point.documents.values() for part in document.parts]
    for disk in point.disks:
        wanted.append(bytes.fromhex(disk.pages))
        for number, digest in enumerate(reader.page_digests(point, disk)):
            if digest.any():
                wanted.append(digest.tobytes())
                page = reader.page(point, disk, number, digest.tobytes())
                found.allocated += int(page.count.sum()) * CLUSTER
                for address in reader.addresses(page):
                    found.data[address.id] = address.length, address.size
    for digest in wanted:
        number, _ = reader.index.lookup(np.frombuffer(digest, np.uint8).reshape(1, DIGEST_SIZE))
        (address,) = reader.index.addresses(number)
        found.objects[address.id] = address.size
    return found


async def make(path):
    """Three points of one VM and two of another one that begins as a copy of it."""
    repository = Repository(path, origin=fixed_origin())
    repository.init()
    disks = [
        MemoryDisk(mixed_content(6 * MiB)),
        MemoryDisk(random_bytes(5, 2 * MiB), "scsi0:1", "Hard disk 2"),
    ]
    twin = [MemoryDisk(disk.content.copy(), disk.key, disk.label) for disk in disks]
    await backup(repository, disks)
    disks[0].write(3 * MiB, random_bytes(2, MiB // 2))
    await backup(repository, disks, incremental_path)
    await backup(repository, twin, name="a twin", uuid="00000000-0000-0000-0000-000000000002")
    disks[0].write(3 * MiB, random_bytes(3, MiB // 4))
    await backup(repository, disks, incremental_path)
    twin[1].write(0, random_bytes(4, MiB))
    await backup(
        repository, twin, incremental_path, name="a twin", uuid="00000000-0000-0000-0000-000000000002"
    )
    return repository


async def test_statistics_are_what_counting_each_frame_gives(tmp_path):
    await make(tmp_path)
    async with open_repository(tmp_path) as reader:
        found = statistics(reader)
        by_id = {point.id: counted(reader, point) for point in reader.points}
        assert [vm.vm for vm in found.vms] == ["a twin", "fake"]
        assert [vm.points for vm in found.vms] == [2, 3]
        for row in found.points:
            mine = by_id[row.point]
            others = {name for other, each in by_id.items() if other != row.point for name in each.stored}
            assert row.allocated == mine.allocated
            assert row.unique == sum(length for length, _ in mine.data.values())
            assert row.stored == sum(mine.stored.values())
            assert row.only == sum(size for name, size in mine.stored.items() if name not in others)
            assert row.maps + row.documents == sum(mine.objects.values())
            assert row.logical == 8 * MiB
        together = {name: size for each in by_id.values() for name, size in each.stored.items()}
        assert found.stored == sum(together.values())
        assert found.missing == 0


async def test_sizes_of_files_are_those_of_the_files(tmp_path):
    await make(tmp_path)
    async with open_repository(tmp_path) as reader:
        found = statistics(reader)
    files = files_of(tmp_path)
    assert found.packs == sum(len(content) for name, content in files.items() if name.endswith(".pack"))
    assert found.index == sum(len(content) for name, content in files.items() if name.endswith(".idx"))
    # What no point uses are headers, tables and ends of packs alone.
    assert 0 < found.unneeded < 200 * CLUSTER


async def test_ratios_say_what_deduplication_and_compression_gave(tmp_path):
    repository = Repository(tmp_path)
    repository.init()
    content = np.tile(random_bytes(1, CLUSTER // 2), 2 * MiB // (CLUSTER // 2))
    content[:8] = 1
    await backup(repository, [MemoryDisk(content)])
    await backup(repository, [MemoryDisk(content)])
    async with open_repository(tmp_path) as reader:
        found = statistics(reader)
    assert found.deduplication == found.allocated / found.unique >= 2
    assert found.compression > 10
    assert found.as_dict()["deduplication"] == found.deduplication


async def test_a_page_that_is_there_twice_counts_twice_as_allocated(tmp_path):
    content = np.zeros(2 * PAGE, np.uint8)
    content[: 64 * CLUSTER] = content[PAGE : PAGE + 64 * CLUSTER] = random_bytes(1, 64 * CLUSTER)
    repository = Repository(tmp_path)
    repository.init()
    disk = MemoryDisk(content)
    await backup(repository, [disk])
    disk.write(0, np.zeros(64 * CLUSTER, np.uint8))
    await backup(repository, [disk], incremental_path)
    async with open_repository(tmp_path) as reader:
        both, one = statistics(reader).points
    assert (both.allocated, one.allocated) == (128 * CLUSTER, 64 * CLUSTER)
    assert one.unique == both.unique


async def test_an_empty_repository_has_statistics(tmp_path):
    Repository(tmp_path).init()
    async with open_repository(tmp_path) as reader:
        found = statistics(reader)
    assert (found.points, found.stored, found.deduplication, found.compression) == ((), 0, None, None)


async def test_a_disk_of_zeros_takes_a_page_list_only(tmp_path):
    repository = Repository(tmp_path)
    repository.init()
    await backup(repository, [MemoryDisk(np.zeros(MiB, np.uint8))], full_path)
    async with open_repository(tmp_path) as reader:
        (row,) = statistics(reader).points
    assert (row.allocated, row.unique) == (0, 0)
    assert row.stored == row.maps > 0


@pytest.mark.slow
async def test_pages_are_read_again_when_they_do_not_fit_in_memory(tmp_path, monkeypatch):
    await make(tmp_path)
    async with open_repository(tmp_path) as reader:
        expected = statistics(reader)
        monkeypatch.setattr("vadpipe.repository.maintenance.statistics._KEPT_PAGES", 1)
        assert statistics(reader) == expected
