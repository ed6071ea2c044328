"""A CD image of small files: what independent readers find on it, and what does not go onto one."""

import shutil
import subprocess
import time
from datetime import UTC, datetime

import pytest

from pipeline.errors import ConfigError
from vadpipe.iso import MAX_SIZE, iso_image

FILES = {
    "README.txt": b"read me\r\n",
    "01-SqlServerWriter.txt": b"x" * 5_000,
    "02-Shadow_Copy_Optimization_Writer_with_a_name_of_60_letter.txt": b"",
    "documents/backup.xml": bytes(range(256)) * 300,
    "documents/Backup-2.xml": b"<a/>",
    "documents/deeper/naïve — name.xml": b"y",
    "same_in_iso9660_when_cut-1.txt": b"1",
    "same_in_iso9660_when_cut-2.txt": b"2",
}
MANY = {f"documents/writer{number:03}.xml": b"%d" % number for number in range(300)}
DATE = datetime(2026, 11, 27, 20, 30, 15, tzinfo=UTC)


def tool(name):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def printed(*command):
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "sheet.iso"
    path.write_bytes(iso_image({**FILES, **MANY}, label="SHEET_1", date=DATE))
    return path


def test_isoinfo_reads_every_file_by_its_joliet_name(image):
    isoinfo = tool("isoinfo")
    listed = printed(isoinfo, "-J", "-f", "-i", image).decode("latin-1").split("\n")
    directories = {"/documents", "/documents/deeper"}
    ascii_names = {f"/{name}" for name in (FILES | MANY) if name.isascii()}  # it prints others in its own way
    assert {name for name in listed if name.isascii() and name} == ascii_names | directories
    assert len(listed) == len(FILES | MANY) + len(directories) + 1
    for name, content in FILES.items():
        if name.isascii():
            assert printed(isoinfo, "-J", "-i", image, "-x", f"/{name}") == content


def test_isoinfo_finds_short_names_too_and_the_label_and_date(image):
    isoinfo = tool("isoinfo")
    described = printed(isoinfo, "-d", "-i", image).decode()
    assert "Volume id: SHEET_1" in described
    assert "Joliet with UCS level 3 found" in described
    short = printed(isoinfo, "-f", "-i", image).decode().split()
    assert {"/README.TXT;1", "/SAME_IN_ISO9660_WHEN.TXT;1", "/SAME_IN_ISO9660_WHEN_2.TXT;1"} <= set(short)
    dates = [
        line for line in printed(isoinfo, "-l", "-i", image).decode().split("\n") if line[:1] in ("d", "-")
    ]
    assert dates
    assert all("Nov 27 2026" in line for line in dates)


def test_seven_zip_extracts_what_went_in(image, tmp_path):
    printed(tool("7z"), "x", f"-o{tmp_path / 'out'}", image)
    out = tmp_path / "out"
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert found == FILES | MANY


def test_xorriso_finds_a_whole_image(image):
    done = subprocess.run(
        [tool("xorriso"), "-indev", image, "-find", "/", "-type", "f"], capture_output=True, timeout=60
    )
    assert done.returncode == 0
    assert len(done.stdout.split(b"\n")) == len(FILES | MANY) + 1
    assert b"SORRY" not in done.stderr
    assert b"FAILURE" not in done.stderr


@pytest.mark.slow
def test_the_same_files_give_the_same_image_at_any_time_of_any_zone(monkeypatch):
    first = iso_image(FILES)
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        later = time.time() + 86_400 * 400
        monkeypatch.setattr(time, "time", lambda: later)
        assert iso_image(dict(reversed(FILES.items()))) == first
    finally:
        monkeypatch.undo()
        time.tzset()
    assert iso_image(FILES, date=DATE) != first


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a:b": b""}, "cannot be the name"),
        ({"../a": b""}, "cannot be the name"),
        ({"/a": b""}, "cannot be the name"),
        ({"a\nb": b""}, "cannot be the name"),
        ({"x" * 65: b""}, "cannot be the name"),
        ({"1/2/3/4/5/6/7/8/9": b""}, "cannot be the name"),
        ({"a": b"", "A": b""}, "the same name"),
        ({"a/b": b"", "A": b""}, "a file and a directory"),
        ({"a": bytes(MAX_SIZE + 1)}, "too many"),
    ],
)
def test_what_does_not_go_onto_a_cd_is_refused(files, said):
    with pytest.raises(ConfigError, match=said):
        iso_image(files)


def test_a_label_of_other_characters_is_refused():
    with pytest.raises(ConfigError, match="no name of a CD volume"):
        iso_image({}, label="web01")
