"""What every backend does. A test module derives its classes from these and gives them the fixture `backend`."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline import KiB, MiB, SinkError
from tests.vadpipe.repository.backends.s3_kit import SECRET
from vadpipe.lab.object_stores import SECRET_KEY
from vadpipe.repository.backends.contract import NAME_LIMIT, ObjectExists, ObjectMissing

REFUSED = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/..",
    "../a",
    "a/../b",
    "a/./b",
    "a b",
    "a\\b",
    "a:b",
    "a\n",
    "a\0",
    "ä",
    "a/b?c",
    "a+b",
    "tmp",
    "tmp/a",
    "a" * (NAME_LIMIT + 1),
]

RANGES = [
    (0, 0, b""),
    (0, 1, b"0"),
    (3, 4, b"3456"),
    (3, None, b"3456789"),
    (0, 10, b"0123456789"),
    (0, 11, b"0123456789"),
    (9, 100, b"9"),
    (10, 1, b""),
    (10, None, b""),
    (11, 1, b""),
    (500, None, b""),
    (5, 0, b""),
]

# Each is a border: `-` and `.` sort before the slash, digits and `~` after it.
BORDERS = ["a-/x", "a-b", "a.json", "a/0", "a/b-c", "a/b/c", "a/b/d", "a/b0", "a0", "a~", "ab", "b"]


class BackendSuite:
    """Tests that need the fixture `backend`, an empty one."""

    large = 64 * MiB
    many = 2500

    def test_what_was_put_is_read_back(self, backend):
        backend.put("packs/3f/x.pack", [b"one", memoryview(b" two"), b"", b" three"])
        assert backend.read("packs/3f/x.pack") == b"one two three"
        assert backend.size("packs/3f/x.pack") == 13

    def test_an_empty_object_is_an_object(self, backend):
        backend.put("empty", [])
        assert (backend.read("empty"), backend.size("empty")) == (b"", 0)
        assert [stored.size for stored in backend.list("empty")] == [0]
        with pytest.raises(ObjectExists):
            backend.put("empty", [b"more"])

    def test_a_range_is_cut_at_the_end_of_the_object(self, backend):
        backend.put("index/digits", [b"0123456789"])
        for offset, length, expected in RANGES:
            assert backend.read("index/digits", offset, length) == expected, (offset, length)

    def test_every_allowed_character_is_part_of_the_name(self, backend):
        names = ["a.b_c-d~e%2Ff/%2E%2E", "%", "~", "...", "-/_", "a%25b", ".hidden/.x"]
        for name in names:
            backend.put(name, [name.encode()])
        assert [stored.name for stored in backend.list("")] == sorted(names)
        assert list(backend.names("")) == sorted(names)
        for name in names:
            assert backend.read(name) == name.encode()
            assert backend.size(name) == len(name)
        backend.delete(names)
        assert list(backend.list("")) == []

    @pytest.mark.parametrize(
        "call",
        [
            lambda backend, name: backend.put(name, [b"x"]),
            lambda backend, name: backend.begin(name),
            lambda backend, name: backend.replace(name, [b"x"]),
            lambda backend, name: backend.read(name),
            lambda backend, name: backend.size(name),
            lambda backend, name: backend.delete([name]),
        ],
        ids=["put", "begin", "replace", "read", "size", "delete"],
    )
    def test_a_name_that_is_none_is_refused(self, backend, call):
        for name in REFUSED:
            with pytest.raises(ValueError, match=re.escape(repr(name))):
                call(backend, name)
        assert list(backend.list("")) == []

    def test_a_prefix_that_is_none_is_refused(self, backend):
        for prefix in ("/", "/a", "../", "a/../", "a//", "a b", "*"):
            with pytest.raises(ValueError, match="prefix"):
                list(backend.list(prefix))
            with pytest.raises(ValueError, match="prefix"):
                backend.names(prefix)

    def test_a_missing_object_is_missing(self, backend):
        backend.put("there/a", [b"x"])
        for name in ("a", "there/b", "there/a0", "elsewhere/b"):
            with pytest.raises(ObjectMissing):
                backend.read(name)
            with pytest.raises(ObjectMissing):
                backend.read(name, 5, 10)
            with pytest.raises(ObjectMissing):
                backend.read(name, 0, 0)
            with pytest.raises(ObjectMissing):
                backend.size(name)

    @pytest.mark.parametrize("content", [b"first", b"other", b"", b"longer than the first"])
    def test_a_taken_name_is_refused(self, backend, content):
        backend.put("points/m/p.json", [b"first"])
        with pytest.raises(ObjectExists):
            backend.put("points/m/p.json", [content])
        upload = backend.begin("points/m/p.json")
        upload.write([content])
        with pytest.raises(ObjectExists):
            upload.finish()
        upload.abort()
        assert backend.read("points/m/p.json") == b"first"

    def test_a_deleted_name_can_be_written_again(self, backend):
        backend.put("again", [b"1"])
        backend.delete(["again"])
        backend.put("again", [b"2"])
        assert backend.read("again") == b"2"

    def test_an_upload_is_seen_when_it_is_finished(self, backend):
        upload = backend.begin("packs/aa/1.pack")
        upload.write([b"one", b"two"])
        upload.write([])
        upload.write([memoryview(b"three")])
        assert list(backend.list("")) == []
        with pytest.raises(ObjectMissing):
            backend.read("packs/aa/1.pack")
        upload.finish()
        upload.abort()
        assert backend.read("packs/aa/1.pack") == b"onetwothree"
        assert [stored.name for stored in backend.list("")] == ["packs/aa/1.pack"]

    def test_an_upload_that_was_left_leaves_nothing(self, backend):
        upload = backend.begin("packs/aa/1.pack")
        upload.write([b"one"])
        upload.abort()
        upload.abort()
        assert list(backend.list("")) == []
        backend.put("packs/aa/1.pack", [b"x"])
        assert backend.read("packs/aa/1.pack") == b"x"

    def test_parts_may_change_after_a_write(self, backend):
        part = bytearray(b"a" * 1000)
        upload = backend.begin("reused")
        for letter in b"abc":
            part[:] = bytes([letter]) * 1000
            upload.write([memoryview(part)])
        upload.finish()
        assert backend.read("reused") == b"a" * 1000 + b"b" * 1000 + b"c" * 1000

    def test_parts_of_any_item_size_are_bytes(self, backend):
        backend.put("cast", [memoryview(b"12345678").cast("I"), b"9"])
        assert backend.read("cast") == b"123456789"

    def test_a_replaced_object_has_the_last_content(self, backend):
        for content in (b"one", b"a longer one", b"", b"two"):
            backend.replace("runs/r.json", [content])
            assert backend.read("runs/r.json") == content
            assert [(stored.name, stored.size) for stored in backend.list("runs/")] == [
                ("runs/r.json", len(content))
            ]
        with pytest.raises(ObjectExists):
            backend.put("runs/r.json", [b"x"])

    def test_a_listing_has_every_name_with_the_prefix_ascending(self, backend):
        for name in reversed(BORDERS):
            backend.put(name, [name.encode()])
        prefixes = ["", *BORDERS, "a", "a/", "a/b", "a/b/", "a/b/c/", "a.", "c", "b/", "a/c", "a-/", "a-/x/y"]
        for prefix in prefixes:
            expected = [name for name in sorted(BORDERS) if name.startswith(prefix)]
            assert [stored.name for stored in backend.list(prefix)] == expected, prefix
            assert list(backend.names(prefix)) == expected, prefix
        assert {stored.name: stored.size for stored in backend.list("")} == {n: len(n) for n in BORDERS}

    def test_a_listing_tells_when_an_object_was_written(self, backend):
        backend.put("a", [b"x"])
        (stored,) = backend.list("a")
        assert abs(stored.modified - time.time()) < 3600  # the clock of the store; S3 tells whole seconds

    def test_deleting_removes_what_is_there(self, backend):
        for name in ("a/1", "a/2", "b/1"):
            backend.put(name, [b"x"])
        backend.delete(["a/1", "a/missing", "missing/1", "b/1"])
        backend.delete(iter([]))
        assert [stored.name for stored in backend.list("")] == ["a/2"]

    def test_it_works_after_close(self, backend):
        backend.put("a", [b"x"])
        backend.close()
        assert backend.read("a") == b"x"
        backend.put("b", [b"y"])
        backend.close()
        assert [stored.name for stored in backend.list("")] == ["a", "b"]

    def test_its_places_are_texts_that_name_the_object(self, backend):
        assert backend.place("packs/3f/x.pack").endswith("packs/3f/x.pack")
        assert backend.place()

    @pytest.mark.slow
    def test_a_large_object_is_stored_whole(self, backend):
        piece = bytes(range(256)) * (16 * KiB // 256)
        upload = backend.begin("packs/00/large.pack")
        for _ in range(self.large // MiB):
            upload.write([piece] * 64)
        upload.finish()
        assert backend.size("packs/00/large.pack") == self.large
        assert backend.read("packs/00/large.pack") == piece * (self.large // len(piece))
        assert backend.read("packs/00/large.pack", self.large - 300, 1000) == (piece * 2)[-300:]

    @pytest.mark.slow
    def test_thousands_of_objects_are_listed_and_deleted(self, backend):
        names = sorted(f"index/{number * 7919 % 100003:08x}.idx" for number in range(self.many))
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda name: backend.put(name, [name.encode()]), names))
        assert [stored.name for stored in backend.list("index/")] == names
        assert list(backend.names("index/")) == names
        assert [stored.name for stored in backend.list("index/000001")] == [
            name for name in names if name.startswith("index/000001")
        ]
        backend.delete(iter(names))
        assert list(backend.list("")) == []

    @pytest.mark.parametrize("writers", [8, 16])
    @pytest.mark.parametrize("content", ["same", "own"])
    def test_one_of_many_writers_gets_the_name(self, backend, writers, content):
        contents = [b"same" if content == "same" else f"writer {n}".encode() for n in range(writers)]
        for attempt in range(3):
            won = race(
                [lambda c=c, a=attempt: create(backend, f"index/{a}.idx", c, whole=a != 1) for c in contents]
            )
            assert won.count(True) == 1
            assert backend.read(f"index/{attempt}.idx") == contents[won.index(True)]

    @pytest.mark.parametrize("writers", [8])
    def test_the_last_of_many_replacements_wins(self, backend, writers):
        contents = [f"writer {n}".encode() * (n + 1) for n in range(writers)]
        race([lambda c=c: backend.replace("newest", [c]) for c in contents])
        assert backend.read("newest") in contents


def create(backend, name, content, whole=True):
    """Whether this writer got the name."""
    try:
        if whole:
            backend.put(name, [content])
        else:
            upload = backend.begin(name)
            upload.write([content])
            try:
                upload.finish()
            finally:
                upload.abort()
    except ObjectExists:
        return False
    return True


def race(calls):
    """Call all at the same moment. Returns their results in order."""
    ready = threading.Barrier(len(calls))

    def run(call):
        ready.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


def content_of(backend):
    """Every object and its content."""
    return {stored.name: backend.read(stored.name) for stored in backend.list("")}


def is_clear(error, *words):
    """A SinkError that names the thing and a remedy, and no secret."""
    text = str(error)
    assert isinstance(error, SinkError)
    assert error.remedy
    for word in words:
        assert word in text, text
    assert SECRET not in text
    assert SECRET_KEY not in text
    return True
