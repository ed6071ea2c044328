"""Signatures, partition tables, LVM's metadata, names: kernels over bytes that anybody may have written."""

import gzip
import struct
import uuid
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.units import KiB, MiB
from tests.vadpipe.filesystems.filesystems_kit import GOLDEN, tool
from vadpipe.filesystems import lvm
from vadpipe.filesystems.contract import Kind
from vadpipe.filesystems.partitions import Partition, partitions
from vadpipe.filesystems.signatures import LOOKED_AT, identify
from vadpipe.filesystems.sources import Joined, Part, Runs
from vadpipe.filesystems.target import safe_name
from vadpipe.filesystems.volumes import split_path

LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")


class Held:
    failure = None

    def __init__(self, content):
        self.content, self.size = content, len(content)

    def read_at(self, offset, length):
        return self.content[offset : offset + length]


def beginning(offset, magic):
    return (bytes(offset) + magic).ljust(LOOKED_AT, b"\0")


@pytest.mark.parametrize(
    ("offset", "magic", "name", "why"),
    [
        (3, b"-FVE-FS-", "BitLocker", "encrypted"),
        (0, b"LUKS\xba\xbe\0\x02", "LUKS", "encrypted"),
        (3, b"ReFS\0\0\0\0", "ReFS", "no reader"),
        (0x1000, b"SPACEDB ", "Storage Spaces", "spans disks"),
        (3, b"NTFS    ", "NTFS", ""),
        (0, b"XFSB", "XFS", ""),
        (0x10040, b"_BHRfS_M", "btrfs", ""),
        (4086, b"SWAPSPACE2", "swap", "swap"),
        (100, b"something", "unknown", "no signature"),
        (0, b"", "empty", "zeros"),
    ],
)
def test_a_volume_is_named_by_what_it_begins_with(offset, magic, name, why):
    found = identify(beginning(offset, magic))
    assert found.name == name
    assert why in found.why_not
    assert bool(found.why_not) == bool(why)


def test_the_type_of_a_partition_names_what_has_no_signature():
    storage_spaces = "e75caf8f-f680-4cee-afa3-b001e56efc2d"
    assert identify(bytes(LOOKED_AT), storage_spaces).name == "Storage Spaces"
    assert "LDM" in identify(bytes(LOOKED_AT), "0x42").name


@given(st.binary(max_size=700))
def test_no_beginning_is_an_error(content):
    identify(content)
    partitions(Held(content).read_at, len(content))


def mbr(*rows):
    sector = bytearray(512)
    for number, row in enumerate(rows):
        struct.pack_into("<B3xB3xII", sector, 446 + 16 * number, *row)
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def test_logical_partitions_are_numbered_from_five_and_their_chain_is_followed():
    disk = bytearray(4 * MiB)
    disk[:512] = mbr((0x80, 0x83, 64, 100), (0, 0x05, 1000, 5000))
    disk[1000 * 512 : 1001 * 512] = mbr((0, 0x07, 10, 90), (0, 0x05, 500, 600))
    disk[1500 * 512 : 1501 * 512] = mbr((0, 0x83, 20, 80))
    assert partitions(Held(bytes(disk)).read_at, len(disk)) == [
        Partition(1, 64 * 512, 100 * 512, "0x83"),
        Partition(5, 1010 * 512, 90 * 512, "0x07"),
        Partition(6, 1520 * 512, 80 * 512, "0x83"),
    ]


def test_a_chain_of_extended_partitions_in_a_circle_ends():
    disk = bytearray(MiB)
    disk[:512] = mbr((0, 0x05, 10, 1000))
    disk[10 * 512 : 11 * 512] = mbr((0, 0x83, 1, 1), (0, 0x05, 2, 10))
    disk[12 * 512 : 13 * 512] = mbr((0, 0x83, 1, 1), (0, 0x05, 2, 10))
    assert len(partitions(Held(bytes(disk)).read_at, len(disk))) == 128


def gpt(sector, size, first=2):
    """A disk with one partition of its last sectors, and both headers."""
    entries = bytearray(128 * 128)
    last = size // sector - 40
    entries[:128] = struct.pack(
        "<16s16sQQQ72s", LINUX.bytes_le, uuid.UUID(int=1).bytes_le, 100, last, 0, "home".encode("utf-16-le")
    )
    disk = bytearray(size)
    disk[:512] = mbr((0, 0xEE, 1, 0xFFFFFFFF))

    def header(place, table):
        fields = [b"EFI PART", 0x10000, 92, 0, 0, place, 0, 0, 0, bytes(16), table, 128, 128]
        packed = struct.pack("<8sIIIIQQQQ16sQIII", *fields, zlib.crc32(entries))
        return packed[:16] + struct.pack("<I", zlib.crc32(packed)) + packed[20:]

    end = size // sector
    disk[sector : sector + 92] = header(1, first)
    disk[first * sector : first * sector + len(entries)] = entries
    disk[(end - 1) * sector : (end - 1) * sector + 92] = header(end - 1, end - 34)
    disk[(end - 34) * sector : (end - 34) * sector + len(entries)] = entries
    return disk, Partition(1, 100 * sector, (last - 99) * sector, str(LINUX), "home")


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_gpt_partition_has_its_last_sector(sector):
    disk, expected = gpt(sector, 4 * MiB)
    assert partitions(Held(bytes(disk)).read_at, len(disk)) == [expected]


@pytest.mark.parametrize("where", [512 + 30, 1024 + 5])
def test_a_damaged_gpt_is_read_from_its_copy_at_the_end(where):
    disk, expected = gpt(512, 4 * MiB)
    disk[where] ^= 1
    assert partitions(Held(bytes(disk)).read_at, len(disk)) == [expected]


@pytest.mark.slow
def test_partitions_are_those_that_sfdisk_makes(tmp_path):
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 * MiB)
    tool("sfdisk", "-q", image, input="label: gpt\nsize=10MiB,name=one\nsize=20MiB,type=swap\n")
    content = image.read_bytes()
    found = partitions(Held(content).read_at, len(content))
    assert [(each.number, each.offset, each.size, each.name) for each in found] == [
        (1, MiB, 10 * MiB, "one"),
        (2, 11 * MiB, 20 * MiB, ""),
    ]


class Labelled:
    """A physical volume of 300 MiB by lvm 2.03.16; behind its metadata each block of 4 KiB says its number."""

    failure = None
    size = 300 * MiB

    def __init__(self, number):
        self._number = number
        self._start = gzip.decompress((GOLDEN / f"lvm-pv{number}.gz").read_bytes())

    def read_at(self, offset, length):
        if offset + length <= len(self._start):
            return self._start[offset : offset + length]
        first = offset // 4096
        blocks = range(first, -(-(offset + length) // 4096))
        content = b"".join((b"%d:%06d;" % (self._number, at)).ljust(4096, b"\0") for at in blocks)
        return content[offset - first * 4096 :][:length]


def physical_volumes():
    return [Labelled(0), Labelled(1)]


def test_logical_volumes_are_linear_over_segments_or_striped():
    pv0, pv1 = physical_volumes()
    root, data = lvm.logical_volumes([lvm.physical_volume(pv1), lvm.physical_volume(pv0)])
    assert (root.group, root.name, root.size) == ("vgtest", "root", 60 * MiB)
    assert root.source.read_at(0, 9) == b"0:%06d;" % (MiB // 4096)
    # Its second segment: 5 extents of 4 MiB on the other physical volume, from the eleventh on.
    assert root.source.read_at(40 * MiB - 4096, 4105)[:9] == b"0:%06d;" % ((41 * MiB - 4096) // 4096)
    assert root.source.read_at(40 * MiB - 4096, 4105)[-9:] == b"1:%06d;" % (41 * MiB // 4096)
    assert (data.name, data.size) == ("data", 80 * MiB)
    # Stripes of 64 KiB, in turns: extent 10 of the first and extent 0 of the second.
    assert data.source.read_at(0, 9) == b"0:%06d;" % (41 * MiB // 4096)
    assert data.source.read_at(64 * KiB, 9) == b"1:%06d;" % (MiB // 4096)
    assert data.source.read_at(128 * KiB, 9) == b"0:%06d;" % ((41 * MiB + 64 * KiB) // 4096)


def test_a_logical_volume_whose_physical_volume_is_missing_says_so():
    pv0, _ = physical_volumes()
    root, data = lvm.logical_volumes([lvm.physical_volume(pv0)])
    assert root.source is data.source is None
    assert "pv1 is on no disk of the point" in root.why_not


def test_damaged_metadata_of_lvm_is_not_used():
    start = bytearray(gzip.decompress((GOLDEN / "lvm-pv0.gz").read_bytes()))
    at = start.rindex(b"extent_count = 20")
    start[at + 15] = ord("9")
    assert lvm.physical_volume(Held(bytes(start))).text == ""
    start[0x200:0x208] = bytes(8)
    with pytest.raises(lvm.Damaged, match="no label"):
        lvm.physical_volume(Held(bytes(start)))


@given(st.text(alphabet='ab={}[]",0 \n#', max_size=60))
@example('a = ["x", 1,\n]\nb {\nc = -1 # no\n}')
def test_a_text_of_lvm_is_parsed_or_called_damaged(text):
    try:
        found = lvm.parse(text)
    except lvm.Damaged:
        return
    assert isinstance(found, dict)


def test_a_text_of_lvm_is_parsed():
    text = 'vg { # a "comment"\n id = "a-b"\n pv { list = ["x", 1,\n "y\\"z"] n = 5 } }'
    assert lvm.parse(text) == {"vg": {"id": "a-b", "pv": {"list": ["x", 1, 'y"z'], "n": 5}}}


@given(
    st.lists(st.tuples(st.none() | st.integers(0, 900), st.integers(0, 60)), max_size=8),
    st.integers(0, 400),
    st.integers(0, 400),
    st.integers(0, 420),
    st.integers(0, 100),
)
def test_a_file_of_runs_reads_as_its_runs_say(runs, size, valid, offset, length):
    disk = bytes((at * 7 + at // 256 + 1) % 255 + 1 for at in range(1024))
    whole = b"".join(bytes(count) if place is None else disk[place : place + count] for place, count in runs)
    whole = whole[:valid].ljust(size, b"\0")[:size]
    content = Runs(Held(disk), runs, size, valid)
    assert content.read(offset, length) == whole[offset : offset + length]
    data = b"".join(content.read(start, count) for start, count in content.extents())
    assert data == whole.replace(b"\0", b"")


def test_a_run_outside_the_volume_is_refused():
    with pytest.raises(ValueError, match="does not lie on the volume"):
        Runs(Held(bytes(100)), [(2 * MiB, 10)], 10)
    with pytest.raises(EOFError):
        Runs(Held(bytes(100)), [(95, 10)], 10).read(0, 10)


def test_parts_put_together_read_over_their_borders():
    content = Held(bytes(range(200)))
    joined = Joined([(Part(content, 100, 50), 10, 20), (content, 0, 5)])
    assert joined.size == 25
    assert joined.read_at(18, 10) == bytes([128, 129, 0, 1, 2, 3, 4])


@pytest.mark.slow
@given(st.text(max_size=300) | st.sampled_from(["..", ".", "", "/etc/passwd", "a/../../b", "x\0y", "\ud800"]))
def test_a_name_of_a_guest_is_never_a_path(name):
    raw = safe_name(name)
    assert raw not in (b"", b".", b"..")
    assert b"/" not in raw
    assert b"\0" not in raw
    assert len(raw) <= 255


def test_an_ordinary_name_stays_as_it_is():
    assert safe_name("CON") == b"CON"
    assert safe_name("gr\u00fc\u00dfe.txt") == "gr\u00fc\u00dfe.txt".encode()
    assert safe_name(b"caf\xe9".decode("utf-8", "surrogateescape")) == b"caf\xe9"
    assert safe_name("..") == b"%2E%2E"
    assert safe_name("n" * 300) != safe_name("n" * 301)


@pytest.mark.parametrize(
    ("text", "volume", "path"),
    [
        ("/etc/hosts", "", "/etc/hosts"),
        ("scsi0:0/2:/etc/hosts", "scsi0:0/2", "/etc/hosts"),
        ("vg/root:", "vg/root", "/"),
        ("2:/a:/b", "2", "/a:/b"),
        ("/a:/b", "", "/a:/b"),
        ("etc/hosts", "", "/etc/hosts"),
        ("C:/Users", "C", "/Users"),
    ],
)
def test_a_path_may_name_its_volume(text, volume, path):
    assert split_path(text) == (volume, path)


def test_kinds_are_words_of_the_json_document():
    assert [kind.value for kind in Kind] == ["file", "directory", "link", "special"]
