"""Files and trees into a directory: nothing outside of it, nothing replaced, nothing by halves."""

import os

import pytest

from pipeline import IntegrityError, KiB, MiB, SinkError
from tests.vadpipe.filesystems.filesystems_kit import DiskFile, ext_image, golden
from vadpipe.filesystems.contract import Entry, Kind, Stream
from vadpipe.filesystems.copying import copy
from vadpipe.filesystems.target import Directory
from vadpipe.filesystems.volumes import find_place, volumes_of


class Content:
    def __init__(self, pieces, size=None):
        self._pieces = pieces
        self.size = sum(map(len, pieces)) if size is None else size

    def extents(self):
        return [(0, self.size)]

    def read(self, offset, length):
        whole = b"".join(self._pieces).ljust(self.size, b"\0")
        return whole[offset : offset + length]


class Tree:
    """A file system in memory: names to bytes, to a link's target in a tuple, to an Entry, or to directories."""

    reader, label, notes = "memory", "memory", ()

    def __init__(self, tree):
        self._tree = tree

    def root(self):
        return self._entry("/", self._tree)

    def entries(self, directory):
        pairs = directory.node.items() if isinstance(directory.node, dict) else directory.node
        return [self._entry(*pair) for pair in pairs]

    def open(self, entry, stream=""):
        if isinstance(entry.node, Exception):
            raise entry.node
        return Content([dict(entry.node)[stream] if isinstance(entry.node, list) else entry.node])

    def link(self, entry):
        return entry.node[0]

    def _entry(self, name, node):
        if isinstance(node, Entry):
            return node
        kind = (
            Kind.DIRECTORY if isinstance(node, dict) else Kind.LINK if isinstance(node, tuple) else Kind.FILE
        )
        size = len(node) if isinstance(node, bytes) else 0
        return Entry(name, kind, size, 10**18, 0o4755, (name, id(node)), node=node)


def copied(tree, target, **options):
    files = Tree(tree)
    return copy(files, files.root(), "/", target, **options)


def written(top):
    """All below a directory: relative path to bytes, to a link's target in a tuple, or to None for a directory."""
    found = {}
    for place, directories, names in os.walk(top):
        for name in [*directories, *names]:
            path = os.path.join(place, name)
            if os.path.islink(path):
                found[os.path.relpath(path, top)] = (os.readlink(path),)
            elif os.path.isdir(path):
                found[os.path.relpath(path, top)] = None
            else:
                with open(path, "rb") as file:
                    found[os.path.relpath(path, top)] = file.read()
    return found


def test_a_tree_is_written_with_its_times_links_and_permissions(tmp_path):
    done = copied({"d": {"f": b"text", "l": ("f",)}, "g": b""}, tmp_path / "new")
    assert written(tmp_path) == {
        "new": None,
        "new/d": None,
        "new/d/f": b"text",
        "new/d/l": ("f",),
        "new/g": b"",
    }
    assert (done.files, done.directories, done.links, done.size) == (2, 2, 1, 4)
    found = (tmp_path / "new/d/f").lstat()
    assert found.st_mtime_ns == 10**18
    assert found.st_mode & 0o7777 == 0o755  # no set-user-id
    assert (tmp_path / "new/d").stat().st_mtime_ns == 10**18
    assert (tmp_path / "new/d/l").lstat().st_mtime_ns == 10**18


def test_a_tree_goes_into_a_directory_under_its_own_name(tmp_path):
    files = Tree({"f": b"1"})
    done = copy(files, files.root(), "/projects", tmp_path)
    assert done.target == tmp_path / "projects"
    assert written(tmp_path) == {"projects": None, "projects/f": b"1"}


HOSTILE = [
    ("..", b"a"),
    ("../../escape", b"b"),
    ("/absolute", b"c"),
    ("nul\0name", b"d"),
    ("", b"e"),
    ("out", ("/",)),
    ("out", {"passwd": b"f"}),
    ("up", ("../../..",)),
    ("up", b"g"),
    ("n" * 300, b"h"),
    ("CON", b"i"),
    ("twice", b"j"),
    ("twice", b"k"),
]


def test_hostile_names_and_links_stay_inside_the_target(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "x" / "target"
    target.parent.mkdir()
    before = written(outside)
    entry = Entry("/", Kind.DIRECTORY, 0, None, None, 0, node=HOSTILE)
    done = copy(Tree({}), entry, "/", target)
    assert written(outside) == before
    assert sorted(os.listdir(tmp_path)) == ["outside", "x"]
    assert os.listdir(tmp_path / "x") == ["target"]
    found = written(target)
    assert found["%2E%2E"] == b"a"
    assert found["..%2F..%2Fescape"] == b"b"
    assert found["%2Fabsolute"] == b"c"
    assert found["nul%00name"] == b"d"
    assert found["%"] == b"e"
    assert found["out"] == ("/",)
    assert found["out~1/passwd"] == b"f"
    assert found["up~1"] == b"g"
    assert found["CON"] == b"i"
    assert (found["twice"], found["twice~1"]) == (b"j", b"k")
    assert done.leading_out == 2
    assert len(done.renamed) == 9
    assert done.failed == []


def test_a_link_in_the_target_is_not_followed_when_files_are_replaced(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    target = tmp_path / "volume"
    target.mkdir()
    (target / "d").symlink_to(outside)
    (target / "f").symlink_to(outside / "file")
    tree = Tree({"f": b"new", "d": {"file": b"bad"}})
    with pytest.raises(SinkError, match="volume/d cannot be written: Not a directory"):
        copy(tree, tree.root(), "/volume", tmp_path, force=True)
    assert (outside / "file").read_bytes() == b"precious"
    assert (target / "f").read_bytes() == b"new"
    assert not (target / "f").is_symlink()


def test_what_is_there_stays_without_force_and_the_rest_stays_with_it(tmp_path):
    tree = Tree({"f": b"new"})
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "f").write_bytes(b"old")
    (tmp_path / "volume" / "other").write_bytes(b"mine")
    with pytest.raises(SinkError, match=r"volume exists already.*--force"):
        copy(tree, tree.root(), "/volume", tmp_path)
    file = Entry("f", Kind.FILE, 3, None, None, 1, node=b"new")
    with pytest.raises(SinkError, match="f exists already"):
        copy(tree, file, "/f", tmp_path / "volume")
    assert written(tmp_path / "volume") == {"f": b"old", "other": b"mine"}
    copy(tree, tree.root(), "/volume", tmp_path, force=True)
    assert written(tmp_path / "volume") == {"f": b"new", "other": b"mine"}


def test_names_that_the_target_does_not_tell_apart_get_another_one(tmp_path, monkeypatch):
    """As on a target that ignores the case of letters: the second name finds the first file."""
    real = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, **options: real(path.lower() if isinstance(path, bytes) else path, **options)
    )
    real_rename = os.rename
    monkeypatch.setattr(os, "rename", lambda old, new, **options: real_rename(old, new.lower(), **options))
    done = copied({"read.me": b"1", "README": b"2", "Read.Me": b"3"}, tmp_path / "new", force=True)
    assert written(tmp_path / "new") == {"read.me": b"1", "readme": b"2", "read.me~1": b"3"}
    assert ("/Read.Me", "Read.Me~1") in done.renamed


def test_holes_and_zeros_take_no_space(tmp_path):
    whole = bytes(MiB) + b"x" * 100 + bytes(3 * MiB) + b"end"
    file = Entry("f", Kind.FILE, len(whole), None, None, 1, node=whole)
    copy(Tree({}), file, "/f", tmp_path)
    assert (tmp_path / "f").read_bytes() == whole
    assert (tmp_path / "f").stat().st_blocks * 512 <= 64 * KiB
    os.truncate(tmp_path / "f", 0)
    file = Entry("f", Kind.FILE, 5 * MiB, None, None, 1, node=bytes(5 * MiB))
    copy(Tree({}), file, "/f", tmp_path, force=True)
    assert (tmp_path / "f").stat().st_size == 5 * MiB
    assert (tmp_path / "f").stat().st_blocks == 0


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_written(tmp_path):
    bad = Entry("bad", Kind.FILE, 5, None, None, 1, node=IntegrityError("a pack is damaged."))
    sealed = Entry("sealed", Kind.FILE, 5, None, None, 2, unreadable="it is encrypted")
    pipe = Entry("pipe", Kind.SPECIAL, 0, None, None, 3)
    done = copied({"a": b"1", "bad": bad, "sealed": sealed, "pipe": pipe, "z": b"2"}, tmp_path / "new")
    assert written(tmp_path / "new") == {"a": b"1", "z": b"2"}
    assert done.failed == [("/bad", "a pack is damaged."), ("/sealed", "it is encrypted.")]
    assert done.skipped == [("/pipe", "a device, a pipe or a socket")]


def test_streams_become_files_beside_the_file_or_are_left_out(tmp_path):
    node = [("", b"text"), ("Zone.Identifier", b"3")]
    file = Entry("f.txt", Kind.FILE, 4, None, None, 1, (Stream("Zone.Identifier", 1),), node=node)
    done = copied({"f.txt": file}, tmp_path / "with")
    assert written(tmp_path / "with") == {"f.txt": b"text", "f.txt:Zone.Identifier": b"3"}
    assert (done.streams, done.size) == (1, 5)
    copied({"f.txt": file}, tmp_path / "without", streams=False)
    assert written(tmp_path / "without") == {"f.txt": b"text"}


class Ended(BaseException):
    """As trio.Cancelled ends a thread's work."""


@pytest.mark.parametrize("after", range(1, 9))
def test_nothing_is_left_by_halves_when_it_is_ended(tmp_path, after):
    left = [after]

    def check():
        left[0] -= 1
        if not left[0]:
            raise Ended

    tree = {"a": b"1" * 10, "b": b"2" * 3 * MiB, "c": b"3"}
    with pytest.raises(Ended):
        copied(tree, tmp_path / "new", check=check)
    for path, content in written(tmp_path).items():
        assert content is None or content == tree[os.path.basename(path)]


def test_a_full_target_is_told_and_leaves_no_half_file(tmp_path):
    def write(*_):
        raise OSError(28, "No space left on device")

    with Directory.open(tmp_path, force=False) as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr("vadpipe.filesystems.target.write_at", write)
        with pytest.raises(SinkError, match="No space left on device"):
            place.file(b"f", Content([b"x"]), Entry("f", Kind.FILE, 1, None, None, 1), lambda _: None)
    assert written(tmp_path) == {}


def test_a_directory_that_contains_itself_ends(tmp_path):
    loop = Entry("loop", Kind.DIRECTORY, 0, None, None, "loop", node={})
    loop.node["again"] = loop
    done = copied({"loop": loop, "f": b"1"}, tmp_path / "new")
    assert written(tmp_path / "new") == {"loop": None, "f": b"1"}
    assert done.failed == [("/loop/loop", "Directory /loop/loop contains itself.")]


def test_a_tree_that_is_too_deep_ends_there(tmp_path):
    tree: dict = {"f": b"1"}
    for _ in range(300):
        tree = {"d": tree}
    done = copied(tree, tmp_path / "new")
    assert done.directories == 200
    assert "more than 200 levels deep" in done.failed[0][1]


def rename_on_disk(image, old, new):
    """Change names inside an image; they have the same length."""
    raw = image.read_bytes()
    assert raw.count(old) == 1
    image.write_bytes(raw.replace(old, new))


@pytest.mark.slow
def test_a_hostile_ext4_image_writes_nothing_outside_the_target(tmp_path):
    pytest.importorskip("dissect.extfs", reason="the extra `files` is not installed")
    (tmp_path / "evil").write_bytes(b"evil")
    image = ext_image(
        tmp_path / "image",
        [
            *(
                f"write {tmp_path / 'evil'} {name}"
                for name in ("AAAAAAAAAAAA", "BBBBBBBBBBB", "CCCC", "DDDDDD")
            ),
            *(f"write {tmp_path / 'evil'} {name}" for name in ("Case", "case", "COM1", "EEEEEEE")),
            "mkdir FF",
            f"write {tmp_path / 'evil'} FF/inner",
            "symlink escape ../../..",
            "symlink absolute /etc",
            "mknod device b 8 0",
            "mkdir loop",
            "ln loop loop/GGGG",
        ],
        options=("-t", "ext4", "-O", "^metadata_csum"),
    )
    for old, new in (
        (b"AAAAAAAAAAAA", b"../../escape"),
        (b"BBBBBBBBBBB", b"/etc/passwd"),
        (b"CCCC", b"x/\0y"),
        (b"DDDDDD", b"escape"),  # the name of a link
        (b"EEEEEEE", b"\xff\x1b[2Jyz"),
        (b"\x02\x02FF", b"\x02\x02.."),
    ):
        rename_on_disk(image, old, new)
    target = tmp_path / "a" / "b" / "c" / "target"
    target.parent.mkdir(parents=True)
    place = find_place(volumes_of({"scsi0:0": DiskFile(image)}), "/")
    before = {path for path in written(tmp_path) if not path.startswith("a/")}
    done = copy(place.files, place.entry, place.path, target)
    assert {path for path in written(tmp_path) if not path.startswith("a/")} == before
    found = written(target)
    assert os.listdir(target.parent) == ["target"], done.failed
    assert found["..%2F..%2Fescape"] == b"evil"
    assert found["%2Fetc%2Fpasswd"] == b"evil"
    assert found["x%2F%00y"] == b"evil"
    assert sorted((found["escape"], found["escape~1"]), key=str) == [("../../..",), b"evil"]
    assert found["absolute"] == ("/etc",)
    assert (found["Case"], found["case"], found["COM1"]) == (b"evil",) * 3
    assert "device" not in found
    assert done.leading_out == 2
    assert [path for path, _ in done.skipped] == ["/device"]
    assert any("contains itself" in why for _, why in done.failed)


@pytest.mark.slow
def test_a_volume_of_windows_is_copied_whole(tmp_path):
    pytest.importorskip("dissect.ntfs", reason="the extra `files` is not installed")
    place = find_place(volumes_of({"scsi0:0": DiskFile(golden("ntfs", tmp_path / "image"))}), "/")
    (tmp_path / "target").mkdir()
    done = copy(place.files, place.entry, place.path, tmp_path / "target")
    assert done.target == tmp_path / "target" / "DATA"
    assert (done.files, done.directories, done.links, done.streams) == (277, 7, 2, 1)
    assert [path for path, _ in done.failed] == ["/dedup.bin"]
    found = written(done.target)
    assert found["Users/alice/Documents/letter.txt:Zone.Identifier"] == b"[ZoneTransfer]\r\nZoneId=3\r\n"
    assert (done.target / "sparse.bin").stat().st_blocks * 512 < 64 * KiB
