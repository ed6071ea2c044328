"""Crash states: the model of operations, and a short version of the campaign."""

import random
import subprocess
import sys

import pytest

from vadpipe.lab.faults.crash_states import build_recorder, campaign, recorded, states
from vadpipe.lab.faults.history import HISTORIES
from vadpipe.lab.faults.operations import Operation, Record, SharedFiles, State, read_log
from vadpipe.lab.vddk_build import CompilerMissing


def operation(kind, file=0, offset=0, path="", second="", data=b""):
    return Operation(kind, file, offset, path, second, data)


PUBLISH = [
    operation("m", path="tmp"),
    operation("m", path="points"),
    operation("f", file=90, path=""),
    operation("c", file=1, path="tmp/p"),
    operation("w", file=1, data=b"whole"),
    operation("f", file=1, path="tmp/p"),
    operation("r", path="tmp/p", second="points/p"),
    operation("f", file=91, path="points"),
]


def test_what_was_flushed_survives_every_crash():
    record = Record(PUBLISH)
    for turn in range(100):
        state = record.drawn(len(PUBLISH), random.Random(turn))
        assert state.files["points/p"] == b"whole"


def test_a_name_that_was_not_flushed_may_be_lost():
    record = Record(PUBLISH)
    found = {tuple(sorted(record.drawn(7, random.Random(turn)).files)) for turn in range(200)}
    assert found == {(), ("points/p",), ("tmp/p",)}


def test_a_write_that_was_not_flushed_may_be_torn():
    record = Record(PUBLISH)
    found = {record.drawn(5, random.Random(turn)).files.get("tmp/p") for turn in range(300)}
    assert found == {None, b"", b"w", b"wh", b"who", b"whol", b"whole"}


def test_files_below_a_lost_directory_are_lost():
    record = Record(PUBLISH)
    assert record.certain(2).directories == ()
    assert record.certain(4).files == {}


RECORDED = """
import os, sys
root = sys.argv[1]
os.mkdir(root + "/tmp")
file = os.open(root + "/tmp/x", os.O_CREAT | os.O_RDWR)
os.write(os.open(root + "/tmp", os.O_TMPFILE | os.O_RDWR), b"without a name")
os.write(file, b"one")
os.writev(file, [b"two", b"three"])
os.pwrite(file, b"X", 0)
os.fdatasync(file)
os.ftruncate(file, 4)
os.link(root + "/tmp/x", root + "/tmp/z", follow_symlinks=False)
os.unlink(root + "/tmp/z")
os.rename(root + "/tmp/x", root + "/y")
directory = os.open(root, os.O_RDONLY)
os.fsync(directory)
os.unlink(root + "/y")
try:
    open(root + "/.mark/said so")
except FileNotFoundError:
    pass
open("/dev/null", "w").write("elsewhere")
"""


def test_the_recorder_sees_what_a_process_does_below_its_directory(tmp_path):
    try:
        recorder = build_recorder(tmp_path)
    except CompilerMissing as exc:
        pytest.skip(str(exc))
    root = tmp_path / "root"
    root.mkdir()
    environment = {"LD_PRELOAD": recorder, "CRASH_ROOT": root, "CRASH_LOG": tmp_path / "log"}
    subprocess.run([sys.executable, "-c", RECORDED, root], env=environment, check=True)
    found = [
        (each.kind, each.offset, each.path, each.second, each.data) for each in read_log(tmp_path / "log")
    ]
    assert found == [
        ("m", 0, "tmp", "", b""),
        ("c", 0, "tmp/x", "", b""),
        ("w", 0, "", "", b"one"),
        ("w", 3, "", "", b"twothree"),
        ("w", 0, "", "", b"X"),
        ("f", 0, "tmp/x", "", b""),
        ("t", 4, "", "", b""),
        ("l", 0, "tmp/x", "tmp/z", b""),
        ("u", 0, "tmp/z", "", b""),
        ("r", 0, "tmp/x", "y", b""),
        ("f", 0, "", "", b""),
        ("u", 0, "y", "", b""),
        ("!", 0, "said so", "", b""),
    ]


def test_a_file_that_settled_is_linked_to_one_copy(tmp_path):
    record = Record(PUBLISH)
    (tmp_path / "copies").mkdir()
    shared = SharedFiles(record, tmp_path / "copies")
    for name in ("one", "two"):
        root = tmp_path / name
        root.mkdir()
        record.certain(len(PUBLISH)).write(root, shared)
        assert State.of(root) == record.certain(len(PUBLISH))
    assert (tmp_path / "one/points/p").samefile(tmp_path / "two/points/p")


def test_a_file_that_did_not_settle_is_written_for_its_state_alone(tmp_path):
    record = Record(PUBLISH)
    (tmp_path / "copies").mkdir()
    (tmp_path / "one").mkdir()
    torn = next(
        state
        for turn in range(300)
        if (state := record.drawn(5, random.Random(turn))).files.get("tmp/p") == b"who"
    )
    torn.write(tmp_path / "one", SharedFiles(record, tmp_path / "copies"))
    assert (tmp_path / "one/tmp/p").read_bytes() == b"who"
    assert list((tmp_path / "copies").iterdir()) == []


def test_states_of_one_moment_are_different():
    found = [state.key() for _, _, state in states(Record(PUBLISH), range(5, 6), seed=1)]
    assert len(found) == len(set(found))
    assert len(found) > 5


@pytest.mark.slow
@pytest.mark.parametrize("history", HISTORIES)
def test_a_recorded_history_merges_prunes_copies_and_leaves_dead_runs(tmp_path, history):
    try:
        record = recorded(tmp_path, history, seed=1)
    except CompilerMissing as exc:
        pytest.skip(str(exc))
    made = {each.second for each in record.operations if each.kind == "l"}
    gone = {each.path for each in record.operations if each.kind == "u"}

    def objects(names, place):
        return [name for name in names if name.startswith(place)]

    assert len(objects(made, "main/removals/")) >= 4  # with their waiting lists
    assert len(set(objects(made, "main/removals/")) & gone) >= 2
    assert objects(gone, "main/index/"), "segments were merged"
    assert objects(set(objects(gone, "main/packs/")) & made, "main/packs/"), "packs were pruned"
    assert objects(made, "main/forgotten/")
    assert objects(made, "copy/points/")
    assert bool(objects(made, "main/keys/epochs/")) == (history == "sealed")
    assert bool(objects(gone, "main/keys/")) == (history == "sealed")


@pytest.mark.slow
def test_2000_crash_states_lose_nothing_and_leave_nothing():
    try:
        counts, wrong = campaign(2000, seed=1, workers=2)
    except CompilerMissing as exc:
        pytest.skip(str(exc))
    assert wrong == []
    assert counts.total() - counts["operations"] == 2000


@pytest.mark.campaign
def test_100000_crash_states_lose_nothing_and_leave_nothing():
    counts, wrong = campaign(100_000, seed=2, workers=2)
    assert wrong == []
    assert counts.total() - counts["operations"] == 100_000
