"""The manifest zip is hostile until proven otherwise: every bound, and damage that loses one member only."""

import contextlib
import io
import re
import struct
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SourceError
from vadpipe.vss import archive
from vadpipe.vss.archive import MAX_MEMBER_SIZE, DamagedMember, ManifestUnreadable, Member, read_members


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return buffer.getvalue()


def refusal(data: bytes) -> str:
    with pytest.raises(ManifestUnreadable) as caught:
        read_members(data)
    return caught.value.reason


def patched(data: bytes, local: dict[int, bytes], central: dict[int, bytes]) -> bytes:
    """The zip with bytes of the first local header and the first directory entry replaced."""
    changed = bytearray(data)
    for start, edits in ((0, local), (data.index(b"PK\x01\x02"), central)):
        for offset, value in edits.items():
            changed[start + offset : start + offset + len(value)] = value
    return bytes(changed)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_come_in_order_without_directories(method):
    data = zipped({"backup.xml": b"<a/>", "sub/": b"", "sub/writer1.xml": b"<b/>" * 999}, method)
    assert list(read_members(data)) == [
        Member("backup.xml", b"<a/>"),
        Member("sub/writer1.xml", b"<b/>" * 999),
    ]


def test_an_unreadable_manifest_is_a_source_error_with_a_remedy():
    with pytest.raises(SourceError, match=r"cannot be read: .*zip.*Fetch it again"):
        read_members(b"not a zip")


def test_names_longer_than_a_file_system_allows_are_refused():
    assert "255" in refusal(zipped({"a" * 256: b"<a/>"}))
    assert list(read_members(zipped({"a" * 255: b"<a/>"})))


@pytest.mark.parametrize(
    "name",
    ["../backup.xml", "a/../../b.xml", "..\\b.xml", "/etc/passwd", "\\b.xml", "C:\\b.xml", "c:b.xml"],
)
def test_names_that_point_outside_are_refused(name):
    assert "points outside the archive" in refusal(zipped({"backup.xml": b"<a/>", name: b"x"}))


def test_control_characters_in_names_are_refused():
    assert "control characters" in refusal(zipped({"back\x1b[2Jup.xml": b"<a/>"}))


def test_a_name_of_a_nul_is_refused():
    data = patched(zipped({"b": b"<a/>"}), {30: b"\0"}, {46: b"\0"})
    assert "control characters" in refusal(data)


@pytest.mark.parametrize("second", ["backup.xml", "BACKUP.XML"])
def test_duplicate_names_are_refused(second):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("backup.xml", "<a/>")
        if second == "backup.xml":
            with pytest.warns(UserWarning, match="Duplicate name"):
                opened.writestr(second, "<b/>")
        else:
            opened.writestr(second, "<b/>")
    assert "is there twice" in refusal(buffer.getvalue())


@pytest.mark.parametrize("flags", [b"\x01\x00", b"\x40\x00", b"\x00\x20"])
def test_encrypted_members_are_refused(flags):
    data = patched(zipped({"backup.xml": b"<a/>"}), {6: flags}, {8: flags})
    assert "is encrypted" in refusal(data)


def test_unusual_compression_is_refused():
    assert "compression method 14" in refusal(zipped({"backup.xml": b"<a/>"}, zipfile.ZIP_LZMA))


def test_a_bomb_is_refused_before_it_is_inflated():
    assert "as a zip bomb does" in refusal(zipped({"backup.xml": bytes(4 << 20)}))


def test_too_large_a_member_is_refused(monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBER_SIZE", 1000)
    assert list(read_members(zipped({"backup.xml": bytes(1000)})))
    assert "1,001 bytes, more than 1,000" in refusal(zipped({"backup.xml": bytes(1001)}))


def test_too_large_a_total_is_refused(monkeypatch):
    monkeypatch.setattr(archive, "MAX_TOTAL_SIZE", 1000)
    assert "1,001 bytes, more than 1,000" in refusal(zipped({"a.xml": bytes(500), "b.xml": bytes(501)}))


def test_too_many_members_are_refused():
    names = {f"writer{number}.xml": b"" for number in range(archive.MAX_MEMBERS + 1)}
    assert f"more than {archive.MAX_MEMBERS} members" in refusal(zipped(names))


def test_too_large_an_archive_is_refused():
    assert "bytes, more than" in refusal(bytes(archive.MAX_ARCHIVE_SIZE + 1))


def test_a_zip_cut_anywhere_is_refused():
    data = zipped({"backup.xml": b"<a/>", "writer1.xml": b"<b/>"})
    for length in range(len(data)):
        assert "not a whole zip file" in refusal(data[:length])


def test_a_damaged_member_does_not_lose_the_others():
    data = bytearray(zipped({"a.xml": b"abcdefgh" * 9, "b.xml": b"<b/>"}, zipfile.ZIP_STORED))
    data[data.index(b"abcdefgh")] ^= 1
    damaged, whole = read_members(bytes(data))
    assert isinstance(damaged, DamagedMember)
    assert damaged.name == "a.xml"
    assert "CRC" in damaged.reason
    assert whole == Member("b.xml", b"<b/>")


def test_a_member_shorter_than_the_directory_says_is_damaged():
    data = patched(zipped({"a.xml": b"abc" * 9}), {}, {24: (1000).to_bytes(4, "little")})
    (damaged,) = read_members(data)
    assert isinstance(damaged, DamagedMember)


def central(data: bytes, number: int) -> int:
    """Where the directory entry of the n-th member begins."""
    place = -1
    for _ in range(number + 1):
        place = data.index(b"PK\x01\x02", place + 1)
    return place


def with_bytes(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


TWO = zipped({"a.xml": b"<a/>" * 50, "b.xml": b"<b/>" * 50}, zipfile.ZIP_STORED)


def test_members_that_share_bytes_are_refused():
    same = with_bytes(TWO, central(TWO, 1) + 42, TWO[central(TWO, 0) + 42 :][:4])
    assert re.search("overlaps member '[ab].xml'", refusal(same))
    longer = with_bytes(TWO, central(TWO, 0) + 20, (201).to_bytes(4, "little") * 2)
    assert "member 'a.xml' overlaps member 'b.xml'" in refusal(longer)
    last = with_bytes(TWO, central(TWO, 1) + 20, (201).to_bytes(4, "little") * 2)
    assert "member 'b.xml' overlaps the directory" in refusal(last)


def test_a_member_that_is_not_where_the_directory_says_is_refused():
    assert "not where" in refusal(with_bytes(TWO, central(TWO, 0) + 42, (7).to_bytes(4, "little")))
    far = with_bytes(TWO, central(TWO, 1) + 42, (1 << 30).to_bytes(4, "little"))
    assert "outside the file" in refusal(far)


@pytest.mark.parametrize("claimed", [0, 1, 49])
def test_a_member_that_inflates_beyond_its_size_is_cut_there_and_damaged(claimed):
    data = patched(zipped({"a.xml": b"<a/>" * 50}), {}, {24: claimed.to_bytes(4, "little")})
    (member,) = read_members(data)
    assert isinstance(member, DamagedMember)


@pytest.mark.parametrize("size", [MAX_MEMBER_SIZE + 1, (1 << 63) + 1, (1 << 64) - 1])
def test_sizes_in_a_zip64_field_are_believed_no_more_than_others(size):
    data = zipped({"a.xml": b"<a/>"}, zipfile.ZIP_STORED)
    entry = central(data, 0)
    extra = struct.pack("<HHQ", 1, 8, size)
    header = with_bytes(data, entry + 24, b"\xff" * 4)  # the size is in the extra field
    header = with_bytes(header, entry + 30, len(extra).to_bytes(2, "little"))
    name_end = entry + 46 + len("a.xml")
    lying = header[:name_end] + extra + header[name_end:]
    end = lying.index(b"PK\x05\x06")
    lying = with_bytes(lying, end + 12, (end - entry).to_bytes(4, "little"))
    assert f"inflates to {size:,} bytes" in refusal(lying)


class Pipe(io.RawIOBase):
    """Takes bytes and cannot seek, so that zipfile writes data descriptors behind the members."""

    def __init__(self) -> None:
        self.written = b""

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.written += bytes(data)
        return len(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_data_descriptors_are_fine(method):
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", method) as opened:
        opened.writestr("a.xml", b"<a/>" * 50)
        opened.writestr("b.xml", b"<b/>")
    assert pipe.written.count(b"PK\x07\x08") == 2
    assert list(read_members(pipe.written)) == [Member("a.xml", b"<a/>" * 50), Member("b.xml", b"<b/>")]


def test_bytes_before_a_zip_do_not_matter():
    assert [member.name for member in read_members(b"a stub" * 9 + TWO)] == ["a.xml", "b.xml"]


WHOLE = zipped({"backup.xml": b"<a/>" * 20, "writer1.xml": b"<b/>" * 20})


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6))
def test_changed_bytes_give_members_or_our_error(changes):
    data = bytearray(WHOLE)
    for position, value in changes:
        data[position] = value
    with contextlib.suppress(ManifestUnreadable):
        assert all(isinstance(member, Member | DamagedMember) for member in read_members(bytes(data)))
