"""What is special about a directory: durable steps, locks, and what may lie in the place of an object."""

import errno
import os
import re
import resource
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline import MiB, SinkError
from tests.vadpipe.repository.backends.suite import content_of, create, is_clear, race
from vadpipe import files
from vadpipe.files import flush_directory
from vadpipe.repository.backends import local as local_module
from vadpipe.repository.backends.contract import Damage, ObjectExists, ObjectMissing
from vadpipe.repository.backends.local import FOREIGN_AGE_S, LocalBackend, local_locks


@pytest.fixture
def backend(tmp_path):
    return LocalBackend(tmp_path / "repository")


def temporary_files(backend):
    return sorted(os.listdir(backend.root / "tmp"))


def test_files_and_directories_are_for_their_owner_alone(backend):
    before = os.umask(0)
    try:
        backend.put("packs/3f/x.pack", [b"x"])
        backend.replace("newest", [b"x"])
    finally:
        os.umask(before)
    modes = {
        path.relative_to(backend.root).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in [backend.root, *backend.root.rglob("*")]
    }
    assert modes == {
        ".": 0o700,
        "packs": 0o700,
        "packs/3f": 0o700,
        "packs/3f/x.pack": 0o600,
        "newest": 0o600,
        "tmp": 0o700,
    }


def test_constructing_and_reading_make_no_directory(backend):
    assert list(backend.list("")) == []
    assert backend.sweep() == []
    backend.delete(["a"])
    with pytest.raises(ObjectMissing):
        backend.read("a")
    assert not backend.root.exists()


def test_an_object_is_flushed_before_it_has_its_name_and_the_name_before_it_is_told(backend, monkeypatch):
    steps = []

    def watch(name, describe):
        real = getattr(os, name)

        def watched(*arguments, **options):
            steps.append(describe(*arguments))
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, watched)

    watch("fsync", lambda fd: "flush " + os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
    watch("link", lambda source, target: "link")
    watch("mkdir", lambda path, *_: f"make {os.path.basename(path)}")
    backend.put("packs/3f/x.pack", [b"x"])
    steps = [re.sub("[0-9a-f]{32}", "temporary", step) for step in steps]
    root, parent = backend.root.name, backend.root.parent.name
    assert steps == [
        *(f"make {root}", f"flush {parent}", "make tmp", f"flush {root}"),
        "flush temporary",
        *("make packs", f"flush {root}", "make 3f", "flush packs"),
        *("link", "flush 3f"),
    ]
    steps.clear()
    backend.put("packs/3f/y.pack", [b"y"])
    assert [re.sub("[0-9a-f]{32}", "temporary", step) for step in steps] == [
        "flush temporary",
        "link",
        "flush 3f",
    ]


def test_a_directory_that_another_writer_made_is_flushed_too(backend, monkeypatch):
    (backend.root / "packs" / "3f").mkdir(parents=True)
    flushed = []
    monkeypatch.setattr(
        local_module, "flush_directory", lambda path: (flushed.append(path.name), flush_directory(path))
    )
    backend.put("packs/3f/x.pack", [b"x"])
    assert "packs" in flushed
    assert backend.root.name in flushed


def test_deleting_flushes_each_directory_once(backend, monkeypatch):
    names = [f"packs/{n % 3:02x}/{n}.pack" for n in range(12)]
    for name in names:
        backend.put(name, [b"x"])
    flushed = []
    monkeypatch.setattr(local_module, "flush_directory", lambda path: flushed.append(path.name))
    backend.delete(names)
    assert sorted(flushed) == ["00", "01", "02"]


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "directory", "socket"])
def test_what_is_no_file_is_damage_and_is_never_waited_for(backend, kind):
    backend.put("points/m/real.json", [b"secret"])
    path = backend.root / "points/m/x.json"
    if kind == "link":
        path.symlink_to(backend.root / "points/m/real.json")
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        os.mknod(path, stat.S_IFSOCK | 0o600)
    with pytest.raises(Damage):
        backend.read("points/m/x.json")
    with pytest.raises(Damage):
        backend.size("points/m/x.json")
    with pytest.raises(ObjectExists):
        backend.put("points/m/x.json", [b"x"])
    listed = [stored.name for stored in backend.list("points/")]
    assert listed == ["points/m/real.json", *["points/m/x.json"][: kind != "directory"]]
    if kind != "directory":
        backend.replace("points/m/x.json", [b"new"])
        assert backend.read("points/m/x.json") == b"new"
        assert backend.read("points/m/real.json") == b"secret"


def test_a_file_in_the_place_of_a_directory_is_told(backend):
    backend.put("packs", [b"a file"])
    with pytest.raises(ObjectMissing):
        backend.read("packs/3f/x.pack")
    assert list(backend.list("packs/")) == []
    backend.delete(["packs/3f/x.pack"])
    with pytest.raises(SinkError) as caught:
        backend.put("packs/3f/x.pack", [b"x"])
    assert is_clear(caught.value, str(backend.root / "packs/3f/x.pack"))
    assert temporary_files(backend) == []


def test_names_of_others_are_not_listed(backend):
    backend.put("a", [b"x"])
    (backend.root / "lost+found").mkdir()
    (backend.root / "lost+found" / "x").write_bytes(b"x")
    (backend.root / "a b").write_bytes(b"x")
    os.close(os.open(os.fsencode(backend.root) + b"/\xff", os.O_CREAT, 0o600))
    (backend.root / "tmp" / "left").write_bytes(b"x")
    assert [stored.name for stored in backend.list("")] == ["a"]
    for prefix in ("tmp", "tmp/", "tmp/l", "lost"):
        assert list(backend.list(prefix)) == []


def test_a_listing_opens_only_the_directories_that_the_prefix_allows(backend, monkeypatch):
    for name in ("index/1.idx", "packs/3f/1.pack", "packs/3f/2.pack", "packs/40/1.pack", "points/m/p.json"):
        backend.put(name, [b"x"])
    opened = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (opened.append(os.path.basename(path)), real(path))[1])
    assert [stored.name for stored in backend.list("packs/3f/1")] == ["packs/3f/1.pack"]
    assert opened == ["3f"]
    opened.clear()
    assert [stored.name for stored in backend.list("packs/4")] == ["packs/40/1.pack"]
    assert opened == ["packs", "40"]


def test_a_directory_that_vanishes_while_it_is_listed_is_empty(backend):
    for name in ("a/1", "b/1", "c/1"):
        backend.put(name, [b"x"])
    listing = backend.list("")
    assert next(listing).name == "a/1"
    backend.delete(["b/1"])
    (backend.root / "b").rmdir()
    assert [stored.name for stored in listing] == ["c/1"]


def test_a_directory_that_vanished_is_made_again(backend):
    backend.put("packs/3f/x.pack", [b"x"])
    backend.delete(["packs/3f/x.pack"])
    (backend.root / "packs/3f").rmdir()
    (backend.root / "packs").rmdir()
    (backend.root / "tmp").rmdir()
    backend.put("packs/3f/x.pack", [b"y"])
    assert backend.read("packs/3f/x.pack") == b"y"


def test_another_directory_in_the_place_of_the_root_is_not_written_to(backend):
    backend.put("a", [b"x"])
    backend.root.rename(backend.root.parent / "unmounted")
    backend.root.mkdir()
    for write in (backend.put, backend.replace):
        with pytest.raises(SinkError) as caught:
            write("b", [b"x"])
        assert is_clear(caught.value, str(backend.root), "mounted")
    assert os.listdir(backend.root) == []


@pytest.mark.slow
def test_many_makers_of_one_directory_all_succeed(backend):
    for attempt in range(20):
        race(
            [
                lambda n=n, a=attempt: LocalBackend(backend.root).put(f"packs/{a:02x}/{n}.pack", [b"x"])
                for n in range(8)
            ]
        )
    assert len(list(backend.list("packs/"))) == 160


def no_link(*arguments, **options):
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("renames", [True, False])
def test_where_there_are_no_hard_links_a_name_is_still_taken_once(backend, monkeypatch, renames):
    monkeypatch.setattr(os, "link", no_link)
    if not renames:

        def refuse(source, target):
            raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr("vadpipe.repository.backends.local_files._rename_without_replacing", refuse)
    backend.put("a", [b"first"])
    with pytest.raises(ObjectExists):
        backend.put("a", [b"second"])
    assert backend.read("a") == b"first"
    won = race([lambda n=n: create(backend, "b", b"%d" % n) for n in range(8)])
    assert won.count(True) == 1
    assert backend.read("b") == b"%d" % won.index(True)
    assert temporary_files(backend) == []


@pytest.mark.parametrize(
    ("number", "word", "transient"),
    [
        (errno.ENOSPC, "Free space", False),
        (errno.EDQUOT, "quota", False),
        (errno.EROFS, "right", False),
        (errno.EACCES, "right", False),
        (errno.EFBIG, "ulimit -f", False),
        (errno.EMFILE, "ulimit -n", False),
        (errno.EXDEV, "one file system", False),
        (errno.ETIMEDOUT, "kernel's log", True),
        (errno.ESTALE, "mounted", True),
        (errno.EIO, "kernel's log", False),
    ],
)
@pytest.mark.parametrize("call", ["link", "mkdir", "fsync", "writev", "open"])
def test_an_error_of_the_system_names_the_object_and_the_remedy(
    backend, monkeypatch, number, word, transient, call
):
    backend.put("first", [b"x"])

    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(SinkError) as caught:
            backend.put("packs/x.pack", [b"x"])
    assert is_clear(caught.value, str(backend.root / "packs/x.pack"), word)
    assert caught.value.facts["errno"] == number
    # What the kernel could not flush is not flushed by asking again.
    assert caught.value.transient == (transient and call != "fsync")
    assert [stored.name for stored in backend.list("")] == ["first"]
    assert temporary_files(backend) == []


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, Damage),
        (errno.EIO, Damage),
        (errno.EMFILE, SinkError),
        (errno.ESTALE, SinkError),
        (errno.ENOENT, ObjectMissing),
    ],
)
def test_an_error_of_reading_is_damage_or_trouble_of_the_process(backend, monkeypatch, number, expected):
    backend.put("a", [b"x"])

    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(expected) as caught:
        backend.read("a")
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.slow
def test_reading_needs_no_right_to_write(backend):
    backend.put("packs/x.pack", [b"content"])
    script = """
import os, sys
if os.getuid() == 0:
    os.chown(sys.argv[1] + "/packs/x.pack", 65534, 65534)
from vadpipe.repository.backends.local import LocalBackend
backend = LocalBackend(sys.argv[1])
for directory in (sys.argv[1], sys.argv[1] + "/packs"):
    os.chmod(directory, 0o555)
if os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
assert backend.read("packs/x.pack") == b"content"
assert [stored.size for stored in backend.list("packs/")] == [7]
for call in (lambda: backend.put("a", [b"x"]), backend.check_writable, lambda: backend.delete(["packs/x.pack"])):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
"""
    for parent in [backend.root, *backend.root.parents][:5]:  # pytest's directories are for their owner alone
        if parent.stat().st_uid == os.getuid() and parent.name.startswith(
            ("pytest", "popen", "test_", "repository")
        ):
            parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", script, backend.root], capture_output=True, text=True, check=False, timeout=60
    )
    for directory in (backend.root, backend.root / "packs"):
        directory.chmod(0o700)
    lines = done.stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["SinkError"] * 3, done.stderr
    assert all("Permission denied" in line and "right" in line for line in lines), lines


def test_too_large_a_file_leaves_nothing(backend):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    backend.put("first", [b"x"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 * MiB, hard))
    try:
        with pytest.raises(SinkError) as caught:
            backend.put("packs/x.pack", [bytes(2 * MiB)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert is_clear(caught.value, "packs/x.pack", "ulimit -f")
    assert (content_of(backend), temporary_files(backend)) == ({"first": b"x"}, [])


@pytest.mark.slow
def test_a_full_file_system_is_told_and_what_was_there_stays(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        backend = LocalBackend(place)
        backend.put("first", [b"x" * 1000])
        upload = backend.begin("packs/00/1.pack")
        with pytest.raises(SinkError) as caught:
            for _ in range(5):
                upload.write([bytes(MiB)])
        upload.abort()
        assert is_clear(caught.value, str(place / "packs/00/1.pack"), "Free space")
        assert caught.value.facts["errno"] == errno.ENOSPC
        assert temporary_files(backend) == []
        backend.put("second", [bytes(2 * MiB)])  # the space is free again
        assert [stored.name for stored in backend.list("")] == ["first", "second"]
    finally:
        subprocess.run(["umount", place], check=True)


# Writers that die at their first, second, ... call that changes files, before it or after it, each in a directory
# of its own, until one comes to its end.
DYING = """
import errno, fcntl, os, signal, sys
from vadpipe.repository.backends import local_files
from vadpipe.repository.backends.local import LocalBackend
place, moment, kind = sys.argv[1:]
calls = at = 0

def watch(module, name):
    real = getattr(module, name)
    def watched(*arguments, **options):
        global calls
        calls += 1
        number = calls
        if number == at and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return real(*arguments, **options)
        finally:
            if number == at:
                os.kill(os.getpid(), signal.SIGKILL)
    setattr(module, name, watched)

def write(root):
    backend = LocalBackend(root)
    if kind.startswith("put"):
        backend.put("packs/3f/x.pack", [b"whole ", b"content"])
    elif kind == "replace":
        backend.replace("packs/3f/x.pack", [b"whole content"])
    else:
        upload = backend.begin("packs/3f/x.pack")
        upload.write([b"whole "])
        upload.write([b"content"])
        upload.finish()

def no_link(*arguments, **options):
    raise OSError(errno.EPERM, "Operation not permitted")

if kind == "put without links":
    os.link = no_link

ended = False
while not ended:
    at += 1
    root = f"{place}/{at}"
    if kind == "replace":
        LocalBackend(root).put("packs/3f/x.pack", [b"old"])
    child = os.fork()
    if child == 0:
        for name in ("open", "mkdir", "writev", "fsync", "link", "unlink", "replace", "rename", "close"):
            watch(os, name)
        watch(fcntl, "flock")
        watch(local_files, "_rename_without_replacing")
        write(root)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(at)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["put", "put without links", "replace", "upload"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_killed_writer_leaves_nothing_but_what_sweep_removes(tmp_path, kind, moment):
    name = "packs/3f/x.pack"
    command = [sys.executable, "-c", DYING, tmp_path, moment, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    last = int(done.stdout)
    assert last > 12
    before = {name: b"old"} if kind == "replace" else {}
    seen = set()
    for at in range(1, last + 1):
        backend = LocalBackend(tmp_path / str(at))
        found = content_of(backend)
        assert found in (before, {name: b"whole content"})
        left = temporary_files(backend) if (backend.root / "tmp").exists() else []
        assert len(left) <= 1
        seen.add((found == before, bool(left)))
        assert backend.sweep() == left
        assert content_of(backend) == found
        if not found:
            backend.put(name, [b"again"])
            assert backend.read(name) == b"again"
            assert temporary_files(backend) == []
    assert found == {name: b"whole content"}
    # Without its name, with both names (a replacement has one after the other), with its name alone.
    assert seen >= {(True, True), (False, False)}


def test_a_sweep_leaves_the_files_of_living_writers(backend):
    upload = backend.begin("packs/3f/x.pack")
    upload.write([b"x"])
    (living,) = temporary_files(backend)
    (backend.root / "tmp" / "dddddddddddddddddddddddddddddddd").write_bytes(
        b"cccccccccccccccccccccccccccccccc"
    )
    assert LocalBackend(backend.root).sweep() == ["dddddddddddddddddddddddddddddddd"]
    assert temporary_files(backend) == [living]
    upload.finish()
    assert backend.read("packs/3f/x.pack") == b"x"


@pytest.mark.slow
def test_a_sweep_leaves_the_files_of_writers_in_other_processes(backend):
    script = """
import sys
from vadpipe.repository.backends.local import LocalBackend
upload = LocalBackend(sys.argv[1]).begin("a")
print("begun", flush=True)
sys.stdin.read()
upload.finish()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, backend.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        assert backend.sweep() == []
        process.stdin.close()
        assert process.wait(60) == 0
    assert backend.read("a") == b""


def test_a_writer_whose_file_was_swept_before_it_was_locked_makes_another(backend, monkeypatch):
    backend.put("first", [b"x"])
    swept = []

    def create(path):
        descriptor = files.create(path)
        if len(swept) < 3:
            swept.extend(LocalBackend(backend.root).sweep())
        return descriptor

    monkeypatch.setattr(local_module, "create", create)
    backend.put("a", [b"content"])
    assert len(swept) == 3
    assert backend.read("a") == b"content"
    assert temporary_files(backend) == []


@pytest.mark.slow
def test_writers_and_sweeps_at_the_same_time_lose_nothing(backend):
    ended = threading.Event()

    def sweep():
        while not ended.is_set():
            LocalBackend(backend.root).sweep()

    def write(number):
        own = LocalBackend(backend.root)
        for serial in range(15):
            own.put(f"index/{number}-{serial}", [b"content"])

    sweepers = [threading.Thread(target=sweep) for _ in range(2)]
    for sweeper in sweepers:
        sweeper.start()
    race([lambda n=n: write(n) for n in range(4)])
    ended.set()
    for sweeper in sweepers:
        sweeper.join()
    assert content_of(backend) == {
        f"index/{n}-{serial}": b"content" for n in range(4) for serial in range(15)
    }
    assert temporary_files(backend) == []


def test_where_locks_are_private_only_old_files_are_swept(backend, monkeypatch):
    backend.put("first", [b"x"])
    monkeypatch.setattr(local_module, "local_locks", lambda root: "nolock")
    now = time.time()
    ages = {
        "new": 0,
        "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb": FOREIGN_AGE_S - 3600,
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa": FOREIGN_AGE_S + 3600,
    }
    for name, age in ages.items():
        (backend.root / "tmp" / name).write_bytes(b"cccccccccccccccccccccccccccccccc")
        os.utime(backend.root / "tmp" / name, (now - age, now - age))
    assert backend.sweep() == ["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]
    assert temporary_files(backend) == ["bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "new"]
    assert backend.sweep(3600) == ["bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]
    assert temporary_files(backend) == ["new"]


def test_where_there_are_no_locks_objects_are_written_and_nothing_is_swept(backend, monkeypatch, caplog):
    def flock(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    backend.put("a", [b"x"])
    (backend.root / "tmp" / "cccccccccccccccccccccccccccccccc").write_bytes(
        b"cccccccccccccccccccccccccccccccc"
    )
    with caplog.at_level("WARNING"):
        assert backend.sweep() == []
    assert "no locks" in caplog.text
    assert content_of(backend) == {"a": b"x"}


def test_a_sweep_leaves_what_is_no_file(backend, caplog):
    backend.put("a", [b"x"])
    (backend.root / "tmp" / "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee").mkdir()
    (backend.root / "tmp" / "ffffffffffffffffffffffffffffffff").symlink_to(backend.root / "a")
    with caplog.at_level("WARNING"):
        assert backend.sweep() == []
    assert "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee" in caplog.text
    assert "ffffffffffffffffffffffffffffffff" in caplog.text
    assert backend.read("a") == b"x"


@pytest.mark.parametrize(
    ("mount", "option"),
    [
        ("srv:/x /srv nfs4 rw,vers=4.2,local_lock=none 0 0", None),
        ("srv:/x /srv nfs rw,vers=3,nolock,local_lock=all 0 0", "local_lock=all"),
        ("srv:/x /srv nfs rw,nolock 0 0", "nolock"),
        ("srv:/x /srv nfs rw,local_lock=flock 0 0", "local_lock=flock"),
        ("//srv/x /srv cifs rw,nobrl 0 0", "nobrl"),
        ("/dev/sdb1 /srv ext4 rw,nolock 0 0", None),
        ("srv:/x /other nfs rw,nolock 0 0", None),
    ],
)
def test_mounts_whose_locks_are_private_are_known(tmp_path, mount, option):
    (tmp_path / "mounts").write_text(f"none / ext4 rw 0 0\n{mount}\n")
    assert local_locks(Path("/srv/r"), tmp_path / "mounts") == option


def test_check_writable_leaves_nothing(backend):
    backend.check_writable()
    assert temporary_files(backend) == []


@pytest.mark.slow
def test_a_large_upload_is_not_joined_in_memory(backend):
    piece = bytes(MiB)
    upload = backend.begin("packs/00/1.pack")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(64):
        upload.write([piece])
    upload.finish()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024  # KiB
    assert backend.size("packs/00/1.pack") == 64 * MiB
