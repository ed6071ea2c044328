"""Damage: whatever byte of a repository changes, reading it says so and names what is hit."""

import numpy as np
import pytest

from pipeline import CLUSTER, IntegrityError, KiB, MoverError, TransferFailed
from pipeline.errors import leaves
from tests.vadpipe.repository.repository_kit import (
    MemoryDisk,
    backup,
    files_of,
    incremental_path,
    opened,
    random_bytes,
    restore,
)
from vadpipe.repository import verify
from vadpipe.repository.format import frames as frame_format
from vadpipe.repository.format.frames import HEADER_SIZE
from vadpipe.repository.format.packs import addresses, read_table
from vadpipe.repository.reader import RepositoryReader, open_repository
from vadpipe.repository.store import Repository


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return tmp_path_factory.mktemp("pristine") / "repository"


@pytest.fixture
async def damaged(pristine, tmp_path):
    """A function that writes a repository of two points and two disks with some bytes changed."""
    disks = [MemoryDisk(random_bytes(seed, 96 * KiB + 512), key=f"scsi0:{seed}") for seed in range(2)]
    if not pristine.exists():
        repository = Repository(pristine)
        repository.init()
        await backup(repository, disks, incremental_path)
        disks[0].write(8 * CLUSTER, random_bytes(7, 5 * CLUSTER))
        await backup(repository, disks, incremental_path)
    files = files_of(pristine)

    def write(**altered):
        root = tmp_path / "repository"
        for name, content in {**files, **altered}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        return root

    return files, write


async def read_everything(root, whole: dict[tuple[str, str], np.ndarray] | None = None) -> list[MoverError]:
    """The errors of restoring all disks of all points, or of opening. What was restored is added to `whole`."""
    errors: list[MoverError] = []
    whole = {} if whole is None else whole
    try:
        async with open_repository(root) as reader:
            errors += reader.damaged
            for point in reader.points:
                for disk in point.disks:
                    try:
                        whole[point.id, disk.key] = await restore(reader, point, disk.key)
                    except TransferFailed as failed:
                        errors += leaves(failed)  # type: ignore[arg-type]
    except MoverError as error:
        errors.append(error)
    return errors


async def verify_finds(root) -> bool:
    try:
        async with open_repository(root) as reader:
            return bool((await verify(reader)).damages)
    except MoverError:
        return True


@pytest.mark.slow
async def test_every_byte_counts(damaged):
    """Verify finds any altered byte of any file; restoring never gives other bytes than were stored."""
    files, write = damaged
    truth: dict[tuple[str, str], np.ndarray] = {}
    assert await read_everything(write(), truth) == []
    assert len(truth) == 4
    assert not await verify_finds(write())
    random = np.random.default_rng(1)
    for name, content in files.items():
        places = {0, len(content) - 1, *random.integers(0, len(content), 18).tolist()}
        for place in places:
            altered = bytearray(content)
            altered[place] ^= int(random.integers(1, 256))
            root = write(**{name: bytes(altered)})
            assert await verify_finds(root), f"byte {place} of {name}"
            restored: dict[tuple[str, str], np.ndarray] = {}
            errors = await read_everything(root, restored)
            assert all(isinstance(error, MoverError) for error in errors)
            assert all(np.array_equal(content, truth[disk]) for disk, content in restored.items())


async def test_a_damaged_frame_is_named_with_disk_and_offset(damaged):
    files, write = damaged
    name, payload = next(
        (name, address)
        for name in sorted(files)
        if name.endswith(".pack")
        for address in table_of(write(), name)
        if address.length > 64 * KiB
    )
    altered = bytearray(files[name])
    altered[payload.offset + payload.size - 1] ^= 1
    root = write(**{name: bytes(altered)})
    async with open_repository(root) as reader:
        hit: dict[str, list[str]] = {}
        for point in reader.points:
            for disk in point.disks:
                try:
                    await restore(reader, point, disk.key)
                except TransferFailed as failed:
                    (error,) = leaves(failed)
                    assert isinstance(error, IntegrityError)
                    assert error.facts["disk"] == disk.key
                    assert error.facts["offset"] == 0
                    assert int(str(error.facts["length"])) > 0
                    assert (error.facts["pack"], error.facts["position"]) == (
                        str(root / name),
                        payload.offset,
                    )
                    assert "its checksum is wrong" in str(error)
                    assert "vadpipe verify" in error.remedy
                    hit.setdefault(disk.key, []).append(point.id)
        (key,) = hit  # the other disk is not hit
        report = await verify(reader)
        (found,) = report.damages
        assert (found.file, found.position) == (str(root / name), payload.offset)
        assert {(one.what, one.point) for one in found.hits} == {(key, point) for point in hit[key]}
        assert all(one.offset + one.length <= 96 * KiB + 512 for one in found.hits)
        assert any(f"hits {key} of point" in line for line in report.lines())


def table_of(root, name):
    pack = (root / name).stem
    objects, config = opened(Repository(root))
    return addresses(read_table(objects, config.id, pack), pack)


async def test_a_missing_pack_is_named(damaged):
    files, write = damaged
    root = write()
    (name,) = [name for name in sorted(files) if name.endswith(".pack")][:1]
    (root / name).unlink()
    errors = await read_everything(root)
    assert errors
    assert all("is damaged: it is missing" in str(error) for error in errors)
    async with open_repository(root) as reader:
        report = await verify(reader)
    assert {found.file for found in report.damages} == {str(root / name)}


async def test_a_missing_segment_is_found(damaged):
    _, write = damaged
    root = write()
    next(iter(root.glob("index/*"))).unlink()
    assert await verify_finds(root)
    assert all("not in the index" in str(error) for error in await read_everything(root))


async def test_a_damaged_segment_hits_what_it_names_only(damaged):
    """Reading goes on with the others; a writer refuses rather than storing everything again."""
    files, write = damaged
    async with open_repository(write()) as reader:
        newest = reader.points[-1].id
    name = next(name for name in files if name.startswith(f"index/{newest}"))
    root = write(**{name: b"\0" * len(files[name])})
    async with open_repository(root) as reader:
        assert [error.facts["segment"] for error in reader.damaged] == [str(root / name)]
        for disk in reader.points[0].disks:
            await restore(reader, reader.points[0], disk.key)
        assert (await verify(reader)).damages[0].file.startswith(str(root / "index"))
    disk = MemoryDisk(random_bytes(0, CLUSTER))
    with pytest.raises(IntegrityError, match="Index segment"):
        await backup(Repository(root), [disk])


async def test_a_damaged_point_is_not_listed_and_the_others_are(damaged):
    files, write = damaged
    name = next(name for name in files if name.startswith("points/"))
    root = write(**{name: files[name].replace(b'"new": ', b'"new": 1')})
    async with open_repository(root) as reader:
        assert len(reader.points) == 1
        (error,) = reader.damaged
        assert (error.facts["point"], "seal" in str(error)) == (str(root / name), True)


async def test_a_point_under_another_name_is_refused(damaged):
    files, write = damaged
    name = next(name for name in files if name.startswith("points/"))
    moved = name.replace(".json", "0.json")
    async with open_repository(write(**{moved: files[name]})) as reader:
        assert "under another's name" in str(reader.damaged[0])


async def test_the_index_can_be_made_again_from_a_pack_alone(damaged):
    """What `index/` says of a pack's frames and chunks stands in the pack, too."""
    root = damaged[1]()
    objects, config = opened(Repository(root))
    reader = RepositoryReader(objects, config)
    for path in root.glob("packs/*/*.pack"):
        for address in addresses(read_table(objects, config.id, path.stem), path.stem):
            content = path.read_bytes()[address.offset : address.offset + address.size]
            assert frame_format.size_at(content[:HEADER_SIZE]) == address.size
            frame = frame_format.parse(content, config)
            number, place = reader.index.lookup(frame.chunk["digest"])
            assert reader.index.addresses(number[:1]) == [address]
            assert (number == number[0]).all()
            assert place.tolist() == (frame.chunk["length"].cumsum() - frame.chunk["length"]).tolist()


async def test_an_incremental_run_on_a_damaged_parent_fails_and_a_full_one_works(damaged):
    files, write = damaged
    altered = {}
    for name in files:
        if name.endswith(".pack"):
            content = bytearray(files[name])
            for address in table_of(write(), name):
                if content[address.offset + 4] == frame_format.Kind.MAP:
                    content[address.offset + address.size - 1] ^= 1
            altered[name] = bytes(content)
    root = write(**altered)
    disk = MemoryDisk(random_bytes(1, 96 * KiB + 512), key="scsi0:1", written=[(0, CLUSTER)])
    with pytest.raises(TransferFailed) as failed:
        await backup(Repository(root), [disk], incremental_path)
    assert failed.group_contains(
        IntegrityError, match=r"scsi0:1 of the previous point: the frame at .* is damaged"
    )
    await backup(Repository(root), [MemoryDisk(random_bytes(9, 96 * KiB), key="scsi0:1")])
    async with open_repository(root) as reader:
        assert np.array_equal(await restore(reader, reader.points[-1], "scsi0:1"), random_bytes(9, 96 * KiB))
