"""Readers of file systems against images that the usual tools made."""

import struct

import pytest

from pipeline import IntegrityError, KiB, MiB
from tests.vadpipe.filesystems.filesystems_kit import DiskFile, debugfs, ext_image, golden, lvm_disks, tool
from vadpipe.filesystems.contract import Kind, NotThere, Unreadable, resolve
from vadpipe.filesystems.volumes import find_place, open_volume, volumes_of

pytest.importorskip("dissect.extfs", reason="the extra `files` is not installed")


def opened(path):
    (volume,) = volumes_of({"scsi0:0": DiskFile(path)})
    return open_volume(volume)


def content(files, path, stream=""):
    """A file by its extents, with zeros between."""
    found = files.open(resolve(files, path), stream)
    whole = bytearray(found.size)
    for start, length in found.extents():
        end = min(start + length, found.size)
        whole[start:end] = found.read(start, end - start)
    assert found.read(0, found.size) == whole
    return bytes(whole)


def names(files, path="/"):
    return sorted(each.name for each in files.entries(resolve(files, path)))


def entry(files, path):
    """What a path of the root names, without following it."""
    return files.find(files.root(), path.strip("/"))


def pattern(size, seed=1):
    return bytes((at * seed + at // 251) & 0xFF for at in range(size))


EXT = {
    "ext2": ["-t", "ext2", "-b", "1024"],
    "ext3": ["-t", "ext3", "-b", "1024"],
    "ext4": ["-t", "ext4", "-b", "4096"],
    "inline": ["-t", "ext4", "-O", "inline_data", "-I", "256"],
    "plain": ["-t", "ext4", "-O", "^metadata_csum,^64bit,^dir_index"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXT)
def test_an_ext_file_system_reads_as_debugfs_wrote_it(tmp_path, kind):
    big, small, middle = tmp_path / "big", tmp_path / "small", tmp_path / "middle"
    big.write_bytes(pattern(700_001, 3))  # 1 KiB blocks: direct, indirect and doubly indirect
    small.write_bytes(b"hello")
    middle.write_bytes(pattern(120, 5))  # longer than an inode's block map
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(600 * KiB)
        for at in (0, 100 * KiB, 599 * KiB):
            file.seek(at)
            file.write(b"x" * 1024)
    image = ext_image(
        tmp_path / "image",
        [
            "mkdir d",
            f"write {small} d/small",
            f"write {middle} d/middle",
            f"write {big} big",
            f"write {tmp_path / 'holes'} holes",
            "symlink short d/small",
            f"symlink long {'d/' + '/' * 80}small",
            "mknod pipe p",
            *(f"write {small} d/{number:03}" for number in range(120)),
            "set_inode_field big mtime 20200913122640",
        ],
        options=(*EXT[kind], "-L", "root"),
    )
    files = opened(image)
    assert files.label == "root"
    assert names(files) == ["big", "d", "holes", "long", "lost+found", "pipe", "short"]
    assert names(files, "/d") == sorted(["small", "middle", *(f"{number:03}" for number in range(120))])
    assert content(files, "/big") == big.read_bytes()
    assert content(files, "/short") == b"hello"
    assert content(files, "/d/middle") == middle.read_bytes()
    assert content(files, "/holes") == (tmp_path / "holes").read_bytes()
    assert sum(length for _, length in files.open(resolve(files, "/holes")).extents()) <= 12 * KiB
    assert files.link(entry(files, "/short")) == "d/small"
    assert files.link(entry(files, "/long")).startswith("d////")
    assert resolve(files, "/pipe").kind is Kind.SPECIAL
    assert resolve(files, "/big").modified_ns // 10**9 == 1_600_000_000
    with pytest.raises(NotThere, match="/d/none"):
        resolve(files, "/d/none")


@pytest.mark.slow
def test_ext_blocks_that_are_not_side_by_side_are_not_merged(tmp_path):
    (tmp_path / "file").write_bytes(pattern(300_000, 7))
    filler = tmp_path / "filler"
    filler.write_bytes(b"f" * 3000)
    image = tmp_path / "image"
    commands = [f"write {filler} f{number:03}" for number in range(200)]
    commands += [f"rm f{number:03}" for number in range(0, 200, 2)]
    ext_image(image, [*commands, f"write {tmp_path / 'file'} file"], "2M", EXT["ext2"])
    assert content(opened(image), "/file") == (tmp_path / "file").read_bytes()


@pytest.mark.slow
def test_the_last_entry_of_a_full_directory_of_ext_is_listed(tmp_path):
    """One of 12 bytes at the very end; dissect.extfs 3.15 alone leaves it out."""
    (tmp_path / "file").write_bytes(b"x")
    wanted = ["abcde", *(f"{number:03}" for number in range(82))]
    commands = ["mkdir d", *(f"write {tmp_path / 'file'} d/{name}" for name in wanted)]
    files = opened(ext_image(tmp_path / "image", commands, options=EXT["ext2"]))
    assert resolve(files, "/d").size == 1024
    assert names(files, "/d") == sorted(wanted)


@pytest.mark.slow
def test_what_was_only_allocated_reads_as_zeros(tmp_path):
    junk = tmp_path / "junk"
    junk.write_bytes(b"STALE" * 200_000)
    image = ext_image(tmp_path / "image", [f"write {junk} junk", "rm junk", "write /dev/null f"])
    debugfs(image, ["fallocate f 0 99", "set_inode_field f size 409600"])
    assert content(opened(image), "/f") == bytes(409_600)


@pytest.mark.slow
def test_links_of_a_guest_lead_inside_its_volume_and_circles_end(tmp_path):
    (tmp_path / "file").write_bytes(b"inside")
    image = ext_image(
        tmp_path / "image",
        [
            "mkdir etc",
            f"write {tmp_path / 'file'} etc/passwd",
            "symlink out /etc",
            "symlink up ../../../../etc",
            "symlink circle circle/x",
        ],
    )
    files = opened(image)
    assert content(files, "/out/passwd") == b"inside"
    assert content(files, "/up/passwd") == b"inside"
    assert content(files, "/../etc/./passwd") == b"inside"
    with pytest.raises(Unreadable, match="more than 40"):
        resolve(files, "/circle/y")
    with pytest.raises(NotThere, match="no directory"):
        resolve(files, "/etc/passwd/x")


@pytest.mark.slow
def test_a_journal_that_was_not_replayed_is_told(tmp_path):
    image = ext_image(tmp_path / "image", [], options=EXT["ext4"])
    assert opened(image).notes == []
    debugfs(image, ["feature needs_recovery"])
    assert "journal was not replayed" in opened(image).notes[0]


@pytest.fixture(scope="module")
def ntfs(tmp_path_factory):
    """16 MiB, written by ntfs-3g: directories, streams, links, what is compressed, sparse or only allocated."""
    return golden("ntfs", tmp_path_factory.mktemp("ntfs") / "image")


@pytest.mark.slow
def test_ntfs_reads_as_ntfs_3g_wrote_it(ntfs):
    files = opened(ntfs)
    assert files.label == "DATA"
    assert names(files) == sorted(
        [
            "compressed", "dedup.bin", "Documents and Settings", "few", "link.txt", "many", "preallocated.bin",
            "sparse.bin", "Users",
        ]
    )  # fmt: skip
    documents = "/users/ALICE/documents"  # NTFS does not tell small letters from capitals
    assert names(files, documents) == ["big.bin", "gr\u00fc\u00dfe \u4f60\u597d.txt", "letter.txt"]
    assert content(files, f"{documents}/letter.txt") == b"Dear Bob\r\n" * 3
    assert content(files, f"{documents}/big.bin") == bytes((i * 7 + i // 251) & 255 for i in range(300_000))
    assert content(files, "/sparse.bin") == bytes(3 * MiB) + b"end"
    assert content(files, "/compressed/text.txt") == b"the quick brown fox jumps over the lazy dog. " * 5000
    letter = resolve(files, f"{documents}/letter.txt")
    assert letter.modified_ns == 1_600_000_000_123_456_700
    assert [(each.name, each.size) for each in letter.streams] == [("Zone.Identifier", 26)]
    assert content(files, f"{documents}/letter.txt", "Zone.Identifier") == b"[ZoneTransfer]\r\nZoneId=3\r\n"


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [512, 65536])
def test_ntfs_has_clusters_of_any_size(tmp_path, cluster):
    image, file = tmp_path / "image", tmp_path / "file"
    file.write_bytes(pattern(200_000, 13))
    with image.open("wb") as disk:
        disk.truncate(24 * MiB)
    tool("mkntfs", "-F", "-Q", "-q", "-c", cluster, image)
    tool("ntfscp", "-f", image, file, "file")
    tool("ntfscp", "-f", "-N", "second", image, file, "file")
    files = opened(image)
    assert content(files, "/file") == content(files, "/file", "second") == file.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("at", [11, 13, 64, 68])
def test_a_forged_size_of_ntfs_is_refused_before_anything_is_read_by_it(ntfs, tmp_path, at):
    raw = bytearray(ntfs.read_bytes())
    raw[at] = 0x85
    image = tmp_path / "image"
    image.write_bytes(raw)
    with pytest.raises(Unreadable, match="The NTFS of scsi0:0 cannot be read: its "):
        opened(image)


def test_a_directory_of_ntfs_has_what_is_in_its_tree_and_nothing_that_was_removed(ntfs):
    files = opened(ntfs)
    kept = [number for number in range(400) if number % 3]
    assert names(files, "/many") == [
        f"a rather long name of a file number {number:04}.txt" for number in kept
    ]


def test_names_that_an_index_of_ntfs_only_still_holds_are_not_listed(ntfs):
    """Of 400 files 5 were kept; dissect.ntfs 3.16 alone lists 37."""
    assert names(opened(ntfs), "/few") == [
        f"a rather long name of a file number {n:04}.txt" for n in range(5)
    ]


def test_what_lies_behind_the_valid_length_of_ntfs_reads_as_zero(ntfs, tmp_path):
    raw = bytearray(ntfs.read_bytes())
    lengths = struct.pack("<QQ", 200_000, 200_000)
    assert raw.count(lengths) == 1
    at = raw.index(lengths)
    raw[at + 8 : at + 16] = struct.pack("<Q", 700)
    start = raw.index(b"written" * 100)
    raw[start + 700 : start + 200_000] = b"stale" * 39_860
    image = tmp_path / "image"
    image.write_bytes(raw)
    assert content(opened(image), "/preallocated.bin") == (b"written" * 100).ljust(200_000, b"\0")


def test_links_of_ntfs_lead_where_windows_shows_it(ntfs):
    files = opened(ntfs)
    assert files.link(entry(files, "/link.txt")) == "Users/alice/Documents/letter.txt"
    assert files.link(entry(files, "/Documents and Settings")) == "C:/Users"
    assert content(files, "/link.txt") == b"Dear Bob\r\n" * 3


def test_a_file_whose_data_is_deduplicated_says_so(ntfs):
    assert "deduplicated" in resolve(opened(ntfs), "/dedup.bin").unreadable


@pytest.mark.slow
def test_fat_reads_as_mtools_wrote_it(tmp_path):
    image, file = tmp_path / "image", tmp_path / "A long name.bin"
    file.write_bytes(pattern(100_000, 9))
    with image.open("wb") as disk:
        disk.truncate(40 * MiB)
    tool("mkfs.fat", "-F", "32", "-n", "STICK", image)
    tool("mmd", "-i", image, "::/dir")
    tool("mcopy", "-m", "-i", image, file, "::/dir/A long name.bin")
    tool("mcopy", "-i", image, file, "::/SHORT.BIN")
    files = opened(image)
    assert files.label == "STICK"
    assert names(files) == ["DIR", "SHORT.BIN"]
    assert content(files, "/DIR/a LONG name.bin") == file.read_bytes()


@pytest.mark.slow
def test_clusters_of_fat_that_lie_backwards_are_not_merged_and_circles_end(tmp_path):
    """dissect.fat 3.13 takes a cluster before another one for the one behind it."""
    image, file = tmp_path / "image", tmp_path / "file"
    file.write_bytes(b"1" * 2048 + b"2" * 2048 + b"3" * 2048)
    with image.open("wb") as disk:
        disk.truncate(16 * MiB)
    tool("mkfs.fat", "-F", "16", "-s", "4", "-R", "1", image)
    tool("mcopy", "-i", image, file, "::/FILE")
    raw = bytearray(image.read_bytes())
    at = raw.index(b"FILE       ")
    first = struct.unpack_from("<H", raw, at + 26)[0]
    table = 512 * struct.unpack_from("<H", raw, 14)[0]
    data = raw.index(b"1" * 2048)
    raw[data : data + 6144] = b"2" * 2048 + b"1" * 2048 + b"3" * 2048
    struct.pack_into("<H", raw, at + 26, first + 1)
    for cluster, following in ((first + 1, first), (first, first + 2)):
        struct.pack_into("<H", raw, table + 2 * cluster, following)
    image.write_bytes(raw)
    assert content(opened(image), "/FILE") == file.read_bytes()
    struct.pack_into("<H", raw, table + 2 * (first + 2), first)
    image.write_bytes(raw)
    with pytest.raises(Unreadable, match="circle"):
        content(opened(image), "/FILE")


XFS_FILES = """\
/dev/null
0 0
d--755 0 0
small ---644 0 0 {small}
big ---644 0 0 {big}
link l--777 0 0 small
many d--755 0 0
{many}
$
$
"""


@pytest.mark.slow
@pytest.mark.parametrize("directory_block", [4096, 8192])
def test_xfs_reads_as_mkfs_wrote_it(tmp_path, directory_block):
    image, small, big = tmp_path / "image", tmp_path / "small", tmp_path / "big"
    small.write_bytes(b"hello")
    big.write_bytes(pattern(1_000_000, 11))
    many = [f"a_rather_long_name_of_a_file_{number:04}" for number in range(400)]
    (tmp_path / "proto").write_text(
        XFS_FILES.format(
            small=small, big=big, many="\n".join(f"{each} ---644 0 0 /dev/null" for each in many)
        )
    )
    with image.open("wb") as disk:
        disk.truncate(300 * MiB)
    naming = ["-n", f"size={directory_block}"]
    tool("mkfs.xfs", "-q", "-L", "data", *naming, "-p", tmp_path / "proto", image)
    files = opened(image)
    assert files.label == "data"
    assert names(files) == ["big", "link", "many", "small"]
    assert names(files, "/many") == many
    assert content(files, "/link") == b"hello"
    assert content(files, "/big") == big.read_bytes()
    assert files.link(entry(files, "/link")) == "small"
    inode = resolve(files, "/big").identity
    tool("xfs_db", "-x", "-c", f"inode {inode}", "-c", "write u3.bmx[0].extentflag 1", image)
    assert content(opened(image), "/big") == bytes(1_000_000)


@pytest.mark.slow
def test_a_path_is_looked_for_on_every_volume(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    commands = [f"write {tmp_path / 'file'} both"]
    one = ext_image(tmp_path / "one", [*commands, "mkdir only"], options=("-L", "first"))
    two = ext_image(tmp_path / "two", commands, options=("-L", "second"))
    empty = tmp_path / "empty"
    with empty.open("wb") as disk:
        disk.truncate(MiB)
    disks = {"scsi0:0": DiskFile(one), "scsi0:1": DiskFile(two), "scsi0:2": DiskFile(empty)}
    volumes = volumes_of(disks)
    assert [(each.name, each.type) for each in volumes] == [
        ("scsi0:0", "ext4"),
        ("scsi0:1", "ext4"),
        ("scsi0:2", "empty"),
    ]
    assert find_place(volumes, "/only").volume.name == "scsi0:0"
    assert find_place(volumes, "second:/both").volume.name == "scsi0:1"
    with pytest.raises(NotThere, match="2 volumes have /both: scsi0:0:/both, scsi0:1:/both"):
        find_place(volumes, "/both")
    with pytest.raises(NotThere, match="No volume has /none"):
        find_place(volumes, "/none")
    with pytest.raises(NotThere, match="Drive letters of Windows"):
        find_place(volumes, "C:/both")
    with pytest.raises(Unreadable, match="scsi0:2 is empty"):
        find_place(volumes, "scsi0:2:/x")


@pytest.mark.slow
def test_logical_volumes_over_two_disks_are_read(tmp_path):
    (tmp_path / "big").write_bytes(pattern(MiB, 17) * 45)
    one, two = lvm_disks(tmp_path, [f"write {tmp_path / 'big'} big"])
    volumes = volumes_of({"scsi0:0": DiskFile(one), "scsi0:1": DiskFile(two)})
    assert [(each.name, each.disk, each.type) for each in volumes] == [
        ("scsi0:0", "scsi0:0", "LVM2"),
        ("scsi0:1", "scsi0:1", "LVM2"),
        ("vgtest/root", "LVM", "ext4"),
        ("vgtest/data", "LVM", "ext4"),
    ]
    for volume in ("root", "vgtest/data"):
        place = find_place(volumes, f"{volume}:/big")
        assert content(place.files, "/big") == (tmp_path / "big").read_bytes()
    with pytest.raises(Unreadable, match="its physical volume pv1 is on no disk of the point"):
        find_place(volumes_of({"scsi0:0": DiskFile(one)}), "vgtest/root:/big")


def test_a_point_that_holds_only_what_is_encrypted_says_so(tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(b"LUKS\xba\xbe\0\x02".ljust(MiB, b"\0"))
    with pytest.raises(Unreadable, match="scsi0:0 is LUKS, and its files cannot be read: it is encrypted"):
        find_place(volumes_of({"scsi0:0": DiskFile(disk)}), "/etc/hosts")


@pytest.mark.slow
def test_a_volume_of_a_kind_that_no_library_reads_names_libguestfs(tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes((bytes(0x10040) + b"_BHRfS_M").ljust(MiB, b"\0"))
    with pytest.raises(Unreadable, match=r"btrfs.*install guestfish"):
        find_place(volumes_of({"scsi0:0": DiskFile(disk)}), "/x")


@pytest.mark.slow
def test_a_name_whose_inode_is_forged_does_not_cost_its_directory(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    commands = [f"write {tmp_path / 'file'} {name}" for name in ("good", "forged")]
    image = ext_image(tmp_path / "image", commands, options=EXT["plain"])
    raw = image.read_bytes()
    at = raw.index(b"\x06\x01forged") - 6
    image.write_bytes(raw[:at] + b"\xff\xff\xff\xff" + raw[at + 4 :])
    files = opened(image)
    assert names(files) == ["forged", "good", "lost+found"]
    assert "inum out of range" in entry(files, "forged").unreadable
    assert content(files, "/good") == b"x"


class Damaged(DiskFile):
    """A disk whose repository is damaged from an offset on."""

    def __init__(self, path, begin):
        super().__init__(path)
        self._begin = begin

    def read_at(self, offset, length):
        if offset + length > self._begin:
            self.failure = self.failure or IntegrityError("a pack is damaged.")
            raise self.failure
        return super().read_at(offset, length)


@pytest.mark.slow
def test_damage_of_the_repository_is_told_as_such_though_a_library_swallows_it(ntfs):
    (volume,) = volumes_of({"scsi0:0": Damaged(ntfs, 256 * KiB)})
    with pytest.raises(IntegrityError, match="a pack is damaged"):
        files = open_volume(volume)
        files.entries(files.root())


@pytest.mark.slow
def test_a_forged_or_damaged_file_system_ends_in_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_bytes(pattern(50_000))
    image = ext_image(tmp_path / "image", ["mkdir d", f"write {tmp_path / 'file'} d/file"], "4M")
    raw = image.read_bytes()
    wrong = 0
    for place in [*range(1024, 1400, 24), *range(2048, 160 * KiB, 4093)]:
        broken = bytearray(raw)
        broken[place : place + 16] = b"\xff" * 16
        image.write_bytes(broken)
        try:
            files = opened(image)
            found = files.open(resolve(files, "/d/file"))
            for start, length in found.extents():
                found.read(start, length)
        except (Unreadable, NotThere):
            wrong += 1
    assert wrong
