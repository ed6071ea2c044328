"""What changed between two points, against the bytes of the disks."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from pipeline import CLUSTER, Extents, KiB, MiB
from tests.vadpipe.repository.repository_kit import (
    MemoryDisk,
    backup,
    digests,
    incremental_path,
    mixed_content,
    random_bytes,
)
from vadpipe.kernels.differences import ChunkTable
from vadpipe.repository.format.disk_map import PAGE, PageMap
from vadpipe.repository.maintenance.changes import diff, differing_clusters
from vadpipe.repository.reader import DiskContent, open_repository
from vadpipe.repository.store import Repository

# --- the kernel ---

# A frame is a list of chunks; a chunk is a name of its content and a length in clusters.
chunks = st.tuples(st.integers(0, 3), st.integers(1, 3))
frames = st.lists(chunks, min_size=1, max_size=3)
pages = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 8), st.integers(1, 4)), max_size=6
)


def table_of(frame):
    return ChunkTable.of(
        np.array([n * CLUSTER for _, n in frame]), digests([10 * name + n for name, n in frame])
    )


def map_of(rows, all_frames):
    """A page from rows of (gap before it, frame, place, clusters), cut to what its frame has."""
    columns, reached = [], 0
    for gap, frame, place, count in rows:
        size = sum(n for _, n in all_frames[frame % len(all_frames)])
        place %= size
        count = min(count, size - place)
        columns.append((reached + gap, count, frame % len(all_frames), place))
        reached += gap + count
    offset, count, frame, place = np.array(columns, dtype=np.int64).reshape(-1, 4).T
    ids = digests(
        [1000 + sum(100**at * (10 * name + n) for at, (name, n) in enumerate(each)) for each in all_frames]
    )
    return PageMap(offset, count, frame, place, ids)


def content(page, all_frames):
    """What stands in each cluster: None, or the chunk and the place in it."""
    held = [None] * 64
    for offset, count, frame, place in zip(page.offset, page.count, page.frame, page.place, strict=True):
        clusters = [(name, n, at) for name, n in all_frames[frame] for at in range(n)]
        held[offset : offset + count] = clusters[place : place + count]
    return held


@given(st.lists(frames, min_size=1, max_size=4), st.lists(frames, min_size=1, max_size=4), pages, pages)
def test_clusters_are_equal_where_frames_or_chunks_say_so(one_frames, other_frames, one_rows, other_rows):
    one, other = map_of(one_rows, one_frames), map_of(other_rows, other_frames)
    differs, doubtful = differing_clusters(
        one, other, lambda frame: table_of(one_frames[frame]), lambda frame: table_of(other_frames[frame])
    )
    for at, (mine, theirs) in enumerate(
        zip(content(one, one_frames), content(other, other_frames), strict=True)
    ):
        assert differs[at] == (mine != theirs)
        both = mine is not None and theirs is not None
        assert doubtful[at] == (differs[at] and both and max(mine[1], theirs[1]) > 1)
    assert not differs[64:].any()


def test_no_chunk_table_is_read_where_the_maps_agree():
    page = map_of([(0, 0, 0, 2)], [[(1, 2)]])

    def unwanted(frame):
        raise AssertionError(frame)

    differs, _ = differing_clusters(page, page, unwanted, unwanted)
    assert not differs.any()


# --- a repository ---


def clusters_that_differ(before, after):
    size = max(len(before), len(after))
    one, other = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    one[: len(before)], other[: len(after)] = before, after
    changed = [
        low
        for low in range(0, size, CLUSTER)
        if (one[low : low + CLUSTER] != other[low : low + CLUSTER]).any()
    ]
    return Extents.of([(low, min(CLUSTER, size - low)) for low in changed])


@pytest.fixture
async def repository(tmp_path):
    made = Repository(tmp_path)
    made.init()
    return made


async def changes(repository, first=0, last=-1):
    async with open_repository(repository.path) as reader:
        return diff(reader, reader.points[first], reader.points[last])


async def test_what_was_written_is_what_changed(repository):
    disk = MemoryDisk(mixed_content(8 * MiB + 512))
    before = disk.content.copy()
    await backup(repository, [disk])
    disk.write(3 * MiB, random_bytes(2, 2 * CLUSTER))
    disk.write(5 * MiB, np.zeros(64 * KiB, np.uint8))
    disk.write(8 * MiB, random_bytes(3, 512))
    await backup(repository, [disk], incremental_path)
    (found,) = (await changes(repository)).disks
    truth = clusters_that_differ(before, disk.content)
    assert (truth - found.changed).total == 0
    assert (found.changed - truth).total <= found.unknown
    assert int(found.changed.end[-1]) == 8 * MiB + 512
    assert (found.before, found.after) == (8 * MiB + 512, 8 * MiB + 512)


async def test_the_direction_does_not_matter(repository):
    disk = MemoryDisk(mixed_content(4 * MiB))
    await backup(repository, [disk])
    disk.write(MiB, random_bytes(2, MiB))
    await backup(repository, [disk], incremental_path)
    there, back = await changes(repository), await changes(repository, -1, 0)
    assert there.disks[0].changed == back.disks[0].changed
    assert (there.before, there.after) == (back.after, back.before)


async def test_a_point_and_itself_are_equal(repository):
    await backup(repository, [MemoryDisk(mixed_content(4 * MiB))])
    found = await changes(repository)
    assert (found.total, found.disks[0].changed) == (0, Extents.empty())


@dataclass
class MeetingDisk(MemoryDisk):
    """A disk that is read when all runs have begun."""

    everybody: trio.Event = field(default_factory=trio.Event)

    async def read(self, buffer, offset, wanted):
        await self.everybody.wait()
        await super().read(buffer, offset, wanted)


async def test_the_same_bytes_in_other_frames_are_equal(repository):
    """Two runs at the same time store the same chunks, each in frames of its own that begin elsewhere."""
    content = random_bytes(1, 4 * MiB)
    moved = np.concatenate((random_bytes(2, MiB), content[MiB:]))
    everybody = trio.Event()
    async with trio.open_nursery() as nursery:
        for each in (content, moved):
            nursery.start_soon(backup, repository, [MeetingDisk(each, everybody=everybody)])
        await trio.testing.wait_all_tasks_blocked(0.2)
        everybody.set()
    async with open_repository(repository.path) as reader:
        pages = [
            reader.page(point, disk, 0, reader.page_digests(point, disk)[0].tobytes())
            for point in reader.points
            for disk in point.disks
        ]
        (found,) = diff(reader, *reader.points).disks
    ours, theirs = ({bytes(name) for name in page.frame_ids} for page in pages)
    elsewhere = [number for number, name in enumerate(pages[1].frame_ids) if bytes(name) not in ours]
    assert theirs - ours
    in_other_frames = int(pages[1].count[np.isin(pages[1].frame, elsewhere)].sum()) * CLUSTER
    assert in_other_frames > found.changed.total + 256 * KiB
    truth = clusters_that_differ(content, moved)
    assert (truth - found.changed).total == 0
    assert (found.changed - truth).total < 256 * KiB


@pytest.mark.slow
async def test_a_grown_disk_counts_as_zeros_behind_its_old_end(repository):
    small = random_bytes(1, PAGE - 2 * MiB)
    large = np.concatenate((small, np.zeros(4 * MiB, np.uint8)))
    large[PAGE : PAGE + CLUSTER] = 7
    await backup(repository, [MemoryDisk(small)])
    await backup(repository, [MemoryDisk(large)])
    (found,) = (await changes(repository)).disks
    assert (found.before, found.after) == (PAGE - 2 * MiB, PAGE + 2 * MiB)
    assert found.changed == Extents.of([(PAGE, CLUSTER)])


async def test_a_disk_that_one_point_lacks_counts_as_zeros_there(repository):
    one, two = (
        MemoryDisk(random_bytes(1, MiB)),
        MemoryDisk(random_bytes(2, 64 * KiB), "scsi0:1", "Hard disk 2"),
    )
    await backup(repository, [one])
    await backup(repository, [one, two])
    found = await changes(repository)
    assert [(disk.key, disk.before, disk.after, disk.changed.total) for disk in found.disks] == [
        ("scsi0:0", MiB, MiB, 0),
        ("scsi0:1", None, 64 * KiB, 64 * KiB),
    ]
    back = await changes(repository, -1, 0)
    assert [(disk.key, disk.before, disk.after) for disk in back.disks][1] == ("scsi0:1", 64 * KiB, None)
    assert back.total == 64 * KiB


async def test_equal_pages_are_not_read(repository, monkeypatch):
    content = np.zeros(2 * PAGE, np.uint8)
    content[: 64 * KiB] = content[PAGE : PAGE + 64 * KiB] = random_bytes(1, 64 * KiB)
    disk = MemoryDisk(content)
    await backup(repository, [disk])
    disk.write(PAGE, random_bytes(2, CLUSTER))
    await backup(repository, [disk], incremental_path)
    read, page = [], DiskContent.page

    def noted(self, offset, digest):
        read.append(offset)
        return page(self, offset, digest)

    monkeypatch.setattr(DiskContent, "page", noted)
    assert (await changes(repository)).total >= CLUSTER
    assert read == [PAGE, PAGE]


async def test_json_has_every_range(repository):
    disk = MemoryDisk(random_bytes(1, MiB))
    await backup(repository, [disk])
    disk.write(0, random_bytes(2, 64 * KiB))
    await backup(repository, [disk], incremental_path)
    (found,) = (await changes(repository)).disks
    assert found.as_dict()["ranges"] == [[offset, length] for offset, length in found.changed]
    assert found.as_dict()["changed"] == found.changed.total
