"""What each wrapper adds: repetitions, a limit of bytes, planned faults, copies on a local disk."""

import os
import stat
import threading
from itertools import pairwise

import pytest

from pipeline import MiB, SinkError
from tests.vadpipe.repository.backends.suite import race
from vadpipe.repository.backends.cached import Cached, drop_copies
from vadpipe.repository.backends.contract import ObjectExists, ObjectMissing
from vadpipe.repository.backends.local import LocalBackend
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.backends.wrappers import (
    Delayed,
    Fault,
    Faulty,
    Forwarding,
    Retrying,
    Throttled,
    lost_connection,
)


def final():
    return SinkError("It is forbidden.", remedy="Ask somebody.")


def retrying(*plan, attempts=4, inner=None):
    """The wrapper around faults, and the list of its waits."""
    waits = []
    faulty = Faulty(inner or MemoryBackend(), plan)
    return Retrying(faulty, attempts, sleep=waits.append), faulty, waits


CALLS = {
    "put": lambda backend: backend.put("new", [b"x"]),
    "begin": lambda backend: finished(backend.begin("new")),
    "finish": lambda backend: finished(backend.begin("new")),
    "replace": lambda backend: backend.replace("old", [b"x"]),
    "read": lambda backend: backend.read("old"),
    "size": lambda backend: backend.size("old"),
    "list": lambda backend: list(backend.list("")),
    "delete": lambda backend: backend.delete(iter(["old"])),
}


def finished(upload):
    upload.write([b"x"])
    upload.finish()


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("failures", [1, 3])
def test_a_transient_failure_is_repeated(method, after, failures, caplog):
    plan = [Fault(method, call, after) for call in range(1, failures + 1)]
    backend, faulty, waits = retrying(*plan)
    faulty.inner.put("old", [b"old"])
    expected = Forwarding(MemoryBackend())
    expected.inner.put("old", [b"old"])
    with caplog.at_level("INFO"):
        result = CALLS[method](backend)
    if after and method in ("put", "finish"):
        failures = 1  # the second attempt finds the name taken, by the first one
    assert faulty.calls[method] == failures + 1
    assert waits == [0.5, 1.0, 2.0][:failures]
    assert caplog.text.count("failed, another one in") == failures
    wanted = CALLS[method](expected)
    if method == "list":
        result, wanted = ([(stored.name, stored.size) for stored in found] for found in (result, wanted))
    assert result == wanted
    assert {s.name: faulty.inner.read(s.name) for s in faulty.inner.list("")} == {
        s.name: expected.read(s.name) for s in expected.list("")
    }


@pytest.mark.parametrize("method", CALLS)
def test_a_failure_that_stays_is_told_after_the_last_attempt(method):
    backend, faulty, waits = retrying(*(Fault(method, call) for call in range(1, 100)))
    faulty.inner.put("old", [b"old"])
    with pytest.raises(SinkError, match="connection"):
        CALLS[method](backend)
    assert (faulty.calls[method], len(waits)) == (4, 3)


@pytest.mark.parametrize("method", CALLS)
def test_a_failure_for_good_is_told_at_once(method):
    backend, faulty, waits = retrying(Fault(method, 1, error=final))
    faulty.inner.put("old", [b"old"])
    with pytest.raises(SinkError, match="forbidden"):
        CALLS[method](backend)
    assert (faulty.calls[method], waits) == (1, [])


def test_the_waits_grow_to_half_a_minute():
    backend, _, waits = retrying(*(Fault("read", call) for call in range(1, 100)), attempts=12)
    with pytest.raises(SinkError):
        backend.read("a")
    assert waits[:7] == [0.5, 1, 2, 4, 8, 16, 30]
    assert set(waits[7:]) == {30}
    assert all(first <= second for first, second in pairwise(waits))


@pytest.mark.parametrize("method", ["put", "finish"])
@pytest.mark.parametrize("taken", [b"y", b"longer", b""])
def test_a_repeated_create_is_no_success_when_somebody_else_took_the_name(method, taken):
    class Taken(MemoryBackend):
        """Another writer is faster, between the first attempt and the second."""

        attempts = 0

        def put(self, name, parts):
            self.attempts += 1
            if self.attempts == 1:
                super().put(name, [taken])
                raise lost_connection()
            super().put(name, parts)

    backend, faulty, _ = retrying(inner=Taken())
    with pytest.raises(ObjectExists):
        CALLS[method](backend)
    assert faulty.inner.read("new") == taken


def test_a_first_create_of_a_taken_name_is_not_compared():
    backend, faulty, _ = retrying()
    backend.put("a", [b"x"])
    with pytest.raises(ObjectExists):
        backend.put("a", [b"x"])
    assert faulty.calls["read"] == 0


def test_reading_back_is_repeated_too():
    backend, faulty, _ = retrying(Fault("put", 1, after=True), Fault("read", 1))
    backend.put("a", [b"x"])
    assert faulty.calls["read"] == 2


@pytest.mark.parametrize("at", range(1, 5))
def test_a_listing_that_breaks_goes_on_where_it_broke(at):
    class Breaking(MemoryBackend):
        lists = 0

        def list(self, prefix):
            self.lists += 1
            for number, found in enumerate(super().list(prefix), 1):
                if self.lists == 1 and number == at:
                    raise lost_connection()
                yield found

    inner = Breaking()
    for name in "dbca":
        inner.put(name, [b"x"])
    assert [found.name for found in Retrying(inner, sleep=lambda seconds: None).list("")] == list("abcd")
    assert inner.lists == 2


class FakeClock:
    def __init__(self):
        self.now = 100.0
        self.slept = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept += seconds
        self.now += seconds


def test_bytes_in_both_directions_are_throttled():
    clock = FakeClock()
    backend = Throttled(MemoryBackend(), 1000, clock)
    backend.put("a", [bytes(300), bytes(200)])
    assert clock.slept == pytest.approx(0.5)
    upload = backend.begin("b")
    upload.write([bytes(1000)])
    upload.write([memoryview(bytes(1000)).cast("I")])
    upload.finish()
    assert clock.slept == pytest.approx(2.5)
    backend.read("b")
    assert clock.slept == pytest.approx(4.5)
    backend.read("b", 0, 100)
    backend.replace("c", [bytes(400)])
    assert clock.slept == pytest.approx(5.0)
    clock.now += 100  # what was not used is not saved up
    backend.put("d", [bytes(1000)])
    assert clock.slept == pytest.approx(6.0)


def test_all_threads_together_are_throttled():
    clock = FakeClock()
    waits = []
    clock.sleep = waits.append
    backend = Throttled(MemoryBackend(), 1000, clock)
    race([lambda n=n: backend.put(str(n), [bytes(1000)]) for n in range(8)])
    assert sorted(waits) == pytest.approx([1, 2, 3, 4, 5, 6, 7, 8])


def test_each_call_is_delayed_once():
    waits = []
    backend = Delayed(MemoryBackend(), 0.02, sleep=waits.append)
    backend.put("a", [b"x"])
    upload = backend.begin("b")
    upload.write([b"x"])
    upload.write([b"x"])
    upload.finish()
    backend.read("a")
    backend.size("a")
    list(backend.list(""))
    backend.replace("a", [b"x"])
    backend.delete(["a", "b"])
    assert waits == [0.02] * 7


@pytest.mark.parametrize("after", [False, True])
def test_a_planned_fault_comes_before_or_after_the_effect(after):
    backend = Faulty(MemoryBackend(), [Fault("put", 2, after), Fault("write", 2, error=final)])
    backend.put("a", [b"x"])
    with pytest.raises(SinkError) as caught:
        backend.put("b", [b"x"])
    assert caught.value.transient
    assert [stored.name for stored in backend.list("")] == ["a", *["b"][: int(after)]]
    upload = backend.begin("c")
    upload.write([b"x"])
    with pytest.raises(SinkError, match="forbidden"):
        upload.write([b"x"])
    assert backend.calls == {"put": 2, "list": 1, "begin": 1, "write": 2}


def test_what_only_some_backends_do_reaches_them(tmp_path):
    local = LocalBackend(tmp_path)
    wrapped = Retrying(Delayed(Throttled(Faulty(local), 1 << 30), 0))
    wrapped.check_writable()
    (tmp_path / "tmp" / ("ab" * 16)).write_bytes(b"x")
    assert wrapped.sweep() == ["ab" * 16]
    assert wrapped.probe_conditional() is True
    wrapped.write_unconditionally()
    memory = Retrying(MemoryBackend())
    memory.check_writable()
    assert (memory.sweep(), memory.probe_conditional()) == ((), True)


def test_a_wrapper_shows_what_it_wraps():
    assert repr(Retrying(LocalBackend("/srv/r"))) == "Retrying(LocalBackend('/srv/r'))"


# Copies on a local disk


@pytest.fixture
def store():
    return Faulty(MemoryBackend())


@pytest.fixture
def cached(store, tmp_path):
    return Cached(store, tmp_path / "copies", limit=MiB)


def copies(cached_directory):
    return sorted(os.listdir(cached_directory))


def test_an_object_is_fetched_once_and_read_from_its_copy(cached, store, tmp_path):
    content = bytes(range(256)) * 100
    store.inner.put("index/1.idx", [content])
    for offset in range(0, len(content), 1000):
        assert cached.read("index/1.idx", offset, 1000) == content[offset : offset + 1000]
    assert (store.calls["size"], store.calls["read"]) == (1, 1)
    again = Cached(store, tmp_path / "copies")
    assert again.read("index/1.idx") == content
    assert (store.calls["size"], store.calls["read"]) == (2, 1)
    assert [found.name for found in again.list("index/")] == ["index/1.idx"]
    assert stat.S_IMODE((tmp_path / "copies").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "copies" / "index+1.idx").stat().st_mode) == 0o600


def test_a_listing_tells_the_sizes(cached, store):
    store.inner.put("index/1.idx", [b"x"])
    list(cached.list(""))
    assert cached.read("index/1.idx") == b"x"
    assert store.calls["size"] == 0


def test_other_objects_are_read_from_the_store(cached, store, tmp_path):
    store.inner.put("packs/00/1.pack", [b"x"])
    for _ in range(3):
        assert cached.read("packs/00/1.pack") == b"x"
    assert store.calls["read"] == 3
    assert not (tmp_path / "copies").exists()


@pytest.mark.parametrize("harm", ["deleted", "directory deleted", "cut", "grown", "link", "directory"])
def test_a_copy_that_is_harmed_is_fetched_again(cached, store, tmp_path, harm):
    store.inner.put("index/1.idx", [b"content"])
    assert cached.read("index/1.idx") == b"content"
    copy = tmp_path / "copies" / "index+1.idx"
    if harm in ("cut", "grown"):
        copy.write_bytes(b"con" if harm == "cut" else b"content and more")
    else:
        copy.unlink()
    if harm == "directory deleted":
        copy.parent.rmdir()
    elif harm == "link":
        (tmp_path / "other").write_bytes(b"other!!")
        copy.symlink_to(tmp_path / "other")
    elif harm == "directory":
        copy.mkdir()
    assert cached.read("index/1.idx", 1, 3) == b"ont"
    assert cached.read("index/1.idx") == b"content"


@pytest.mark.parametrize("at", [0, 70_000, 199_999, 200_000, 200_020])
def test_a_copy_that_has_rotted_is_fetched_again(cached, store, tmp_path, at):
    content = os.urandom(200_000)
    store.inner.put("index/1.idx", [content])
    assert cached.read("index/1.idx") == content
    copy = tmp_path / "copies" / "index+1.idx"
    rotted = bytearray(copy.read_bytes())
    rotted[at] ^= 1
    copy.write_bytes(rotted)
    for offset in range(0, len(content), 50_000):
        assert cached.read("index/1.idx", offset, 50_001) == content[offset : offset + 50_001]
    assert store.calls["read"] == 2


def test_a_disk_that_forgets_what_is_written_is_told_and_the_store_is_read(
    cached, store, monkeypatch, caplog
):
    monkeypatch.setattr("vadpipe.repository.backends.cached._check", lambda piece: os.urandom(8))
    store.inner.put("index/1.idx", [b"content"])
    assert cached.read("index/1.idx") == b"content"
    assert "no copy of index/1.idx can be kept" in caplog.text


def test_a_copy_that_was_dropped_is_fetched_again(cached, store):
    store.inner.put("index/1.idx", [b"content"])
    for number in range(1, 4):
        assert cached.read("index/1.idx") == b"content"
        assert store.calls["read"] == number
        if number == 1:
            cached.drop("index/1.idx")
        else:
            drop_copies(Retrying(cached))


def test_a_deleted_object_is_missing_and_its_copy_goes(cached, store, tmp_path):
    cached.put("index/1.idx", [b"x"])
    cached.read("index/1.idx")
    cached.delete(["index/1.idx"])
    assert copies(tmp_path / "copies") == []
    with pytest.raises(ObjectMissing):
        cached.read("index/1.idx")


def test_the_copies_that_were_not_used_go_first(store, tmp_path):
    directory = tmp_path / "copies"
    for number in range(6):
        store.inner.put(f"index/{number}", [bytes(100)])
    first = Cached(store, directory, limit=330)
    for number in range(3):
        first.read(f"index/{number}")
        os.utime(directory / f"index+{number}", (1000 + number, 1000 + number))
    second = Cached(store, directory, limit=330)
    second.read("index/0")  # used again, so it is the newest now
    second.read("index/3")
    assert copies(directory) == ["index+0", "index+2", "index+3"]
    assert second.read("index/1") == bytes(100)
    assert copies(directory) == ["index+0", "index+1", "index+3"]


def test_an_object_beyond_the_limit_is_read_from_the_store(cached, store, tmp_path):
    store.inner.put("index/large", [bytes(MiB + 1)])
    assert cached.read("index/large", 5, 5) == bytes(5)
    assert not (tmp_path / "copies").exists()


def test_where_no_copy_can_be_kept_the_store_is_read(store, tmp_path, caplog):
    (tmp_path / "copies").write_bytes(b"a file")
    cached = Cached(store, tmp_path / "copies")
    store.inner.put("index/1", [b"content"])
    with caplog.at_level("WARNING"):
        for _ in range(3):
            assert cached.read("index/1", 0, 3) == b"con"
    assert caplog.text.count("no copy of index/1 can be kept") == 1
    assert store.calls["read"] == 3


def test_a_store_that_fails_while_it_is_copied_leaves_no_copy(store, tmp_path):
    store.inner.put("index/1", [bytes(20 * MiB)])
    failing = Faulty(store.inner, [Fault("read", 2)])
    cached = Cached(failing, tmp_path / "copies")
    with pytest.raises(SinkError):
        cached.read("index/1", 0, 1)
    assert copies(tmp_path / "copies") == []
    assert cached.read("index/1", 19 * MiB, 5) == bytes(5)


def test_old_temporary_files_go(cached, store, tmp_path):
    (tmp_path / "copies").mkdir()
    for name, age in (("old", 2 * 86400), ("new", 0)):
        path = tmp_path / "copies" / f".{name.encode().hex():0<16}.partial"
        path.write_bytes(b"x")
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    store.inner.put("index/1", [b"x"])
    cached.read("index/1")
    assert len(copies(tmp_path / "copies")) == 2


def test_many_readers_fetch_an_object_once(store, tmp_path):
    content = os.urandom(3 * MiB)
    store.inner.put("index/1", [content])
    cached = Cached(store, tmp_path / "copies")
    parts = race([lambda n=n: cached.read("index/1", n * 1000, 1000) for n in range(16)])
    assert b"".join(parts) == content[:16000]
    assert store.calls["read"] == 1


def test_readers_survive_that_copies_vanish_all_the_time(store, tmp_path):
    content = os.urandom(100_000)
    store.inner.put("index/1", [content])
    ended = threading.Event()

    def vanish():
        while not ended.is_set():
            (tmp_path / "copies" / "index+1").unlink(missing_ok=True)

    thread = threading.Thread(target=vanish)
    thread.start()
    cached = Cached(store, tmp_path / "copies")
    try:
        race([lambda: [cached.read("index/1") == content or pytest.fail("wrong") for _ in range(20)]] * 4)
    finally:
        ended.set()
        thread.join()
