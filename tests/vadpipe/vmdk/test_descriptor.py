import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SourceError
from vadpipe.vmdk.descriptor import Descriptor, ExtentLine, looks_like_descriptor, parse_descriptor

KINDS = ("FLAT", "SPARSE", "VMFS", "VMFSSPARSE", "SESPARSE", "VMFSRDM")
END = b'\n#DDB\nddb.adapterType = "ide"\n'

names = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1, max_size=30)
extents = st.builds(
    lambda access, kind, size, name, first: (access, size, kind, name, first),
    st.sampled_from(("RW", "RDONLY", "NOACCESS")),
    st.sampled_from((*KINDS, "ZERO")),
    st.integers(0, 1 << 40),
    names,
    st.none() | st.integers(0, 1 << 40),
)


def render(lines: list, content_id: int, parent_id: int, hint: str, ending: str) -> str:
    text = ["# Disk DescriptorFile", "version=1", f"CID={content_id:08x}", f"parentCID = {parent_id:x}"]
    text += ['createType="custom"', f'parentFileNameHint="{hint}"', "", "# Extent description"]
    for access, size, kind, name, first in lines:
        file = "" if kind == "ZERO" else f' "{name}"' + ("" if first is None else f" {first}")
        text.append(f"{access} {size} {kind}{file}")
    return ending.join([*text, "#DDB", 'ddb.geometry.heads = "16"', ""])


@given(
    st.lists(extents, min_size=1, max_size=5),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFFFFFF),
    names,
    st.sampled_from(("\n", "\r\n")),
    st.binary(max_size=5),
)
def test_a_written_descriptor_is_parsed_as_it_was_written(
    lines, content_id, parent_id, hint, ending, padding
):
    text = render(lines, content_id, parent_id, hint, ending).encode()
    parsed = parse_descriptor(text + b"\0" + padding, "a.vmdk")
    assert looks_like_descriptor(text)
    assert (parsed.content_id, parsed.parent_content_id) == (content_id, parent_id)
    assert parsed.parent_hint == hint
    assert parsed.database == {"ddb.geometry.heads": "16"}
    assert [(e.access, e.length // 512, e.kind) for e in parsed.extents] == [line[:3] for line in lines]
    for extent, (_, _, kind, name, first) in zip(parsed.extents, lines, strict=True):
        expected = (None, 0) if kind == "ZERO" else (name, (first or 0) * 512)
        assert (extent.name, extent.offset) == expected


@given(st.binary(max_size=200), st.sampled_from((b"", b"# Disk DescriptorFile\n", b'encoding="utf-16"\n')))
def test_any_bytes_give_a_descriptor_or_a_source_error(content, start):
    try:
        result = parse_descriptor(start + content + END, "a.vmdk")
    except SourceError as error:
        result = error
    assert isinstance(result, Descriptor) or "a.vmdk" in str(result)


@pytest.mark.parametrize(
    ("encoding", "named"),
    [("utf-8", True), ("utf-8", False), ("windows-1252", True), ("latin-1", False), ("shift_jis", True)],
)
def test_a_descriptor_is_read_in_the_encoding_it_names(encoding, named):
    name = "サーバ.vmdk" if encoding == "shift_jis" else "Büro Köln.vmdk"
    start = f'encoding="{encoding}"\n' if named else ""
    text = f'# Disk DescriptorFile\n{start}CID=1\nRW 8 FLAT "{name}" 2'.encode(encoding) + END
    assert parse_descriptor(text, "a.vmdk").extents == (
        ExtentLine("RW", 4096, "FLAT", name, 1024, 4 if named else 3),
    )


@pytest.mark.parametrize(
    ("named", "codec", "name"),
    [
        ("windows-949-2000", "cp949", "똠방.vmdk"),  # not in the standard EUC-KR
        ("EUC-KR", "cp949", "똠방.vmdk"),
        ("windows-936-2000", "gbk", "镕基.vmdk"),
        ("GB2312", "gbk", "镕基.vmdk"),
        ("Big5", "cp950", "碁.vmdk"),
        ("Shift_JIS", "cp932", "①髙.vmdk"),
        ("ibm-943_P15A-2003", "cp932", "①髙.vmdk"),
        ("windows-1251", "cp1251", "диск.vmdk"),
        ("ibm-5347_P100-1998", "cp1251", "диск.vmdk"),
        ("windows-874-2000", "cp874", "ดิสก์.vmdk"),
        ("GB18030", "gb18030", "盘.vmdk"),
    ],
)
def test_a_name_of_vmware_for_a_character_set_is_understood(named, codec, name):
    text = f'# Disk DescriptorFile\nencoding="{named}"\nRW 8 FLAT "{name}" 0'.encode(codec) + END
    assert parse_descriptor(text, "a.vmdk").extents[0].name == name


def test_plain_ascii_is_read_whatever_encoding_it_names():
    text = b'# Disk DescriptorFile\nencoding="klingon"\nRW 8 FLAT "a-flat.vmdk" 0' + END
    assert parse_descriptor(text, "a.vmdk").extents[0].name == "a-flat.vmdk"


@pytest.mark.parametrize(
    ("head", "is_descriptor"),
    [
        (b"# Disk DescriptorFile\nversion=1\n", True),
        (b"# Disk Descriptor File\nversion = 1\n", True),
        (b"\xef\xbb\xbf#Disk DescriptorFile\r\nversion=1\r\n", True),
        (b"# made by createvmdk.sh\n\n#\nversion=1\n", True),
        (b'# any\nencoding="UTF-8"\nVersion = 1\n', True),
        (b"version=1\n", True),
        (b"#" * 4000, False),
        (b"# notes\nsize=1\n", False),
        (b"\0" * 512, False),
        (b"\xeb\x63\x90 boot sector version=1", False),
    ],
)
def test_a_descriptor_is_known_by_its_version_after_any_comments(head, is_descriptor):
    assert looks_like_descriptor(head) is is_descriptor


@pytest.mark.parametrize(
    ("line", "name"),
    [('RW 8 FLAT "a "b" c.vmdk" 0', 'a "b" c.vmdk'), ('rw 8 flat "0.vmdk"', "0.vmdk"), ("RW 8 ZERO", None)],
)
def test_extent_names_may_hold_quotes_and_may_be_absent(line, name):
    assert parse_descriptor(line.encode() + END, "a.vmdk").extents[0].name == name


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('RW many FLAT "a.vmdk" 0', "Line 2 of a.vmdk cannot be parsed"),
        ("RW 8 FLAT", "Line 2 of a.vmdk.*type FLAT names a file"),
        ('RW 8 FLAT "a.vmd', "Line 2 of a.vmdk"),
        ("\x01\x02 rubbish", "Line 2 of a.vmdk.*neither an extent nor a setting"),
        ("CID=xyz\nRW 8 ZERO", "a.vmdk has cid='xyz'"),
        ('encoding="klingon"\nRW 8 FLAT "ü.vmdk"', "'klingon', which is unknown"),
        ("CID=1", "a.vmdk has no extents"),
        ("RW 999999999999999999 ZERO", "no disk is that large"),
    ],
)
def test_a_damaged_descriptor_is_refused_with_its_line(line, message):
    with pytest.raises(SourceError, match=message) as caught:
        parse_descriptor(b"# Disk DescriptorFile\n" + line.encode() + END, "a.vmdk")
    assert caught.value.remedy.endswith(".")
    assert caught.value.facts["file"] == "a.vmdk"


def test_a_descriptor_that_ends_after_an_extent_is_cut_off():
    text = b'# Disk DescriptorFile\nCID=1\nRW 8 FLAT "a-f001.vmdk" 0\nRW 8 FLAT "a-f002.vmdk" 0\n'
    for end in range(len(text)):
        with pytest.raises(SourceError, match=re.escape("a.vmdk")):
            parse_descriptor(text[:end], "a.vmdk")
