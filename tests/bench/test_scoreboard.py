"""The scoreboard and its floor in C, on tiny images; no figure of theirs decides anything."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trio

from bench import scoreboard_goals as goals
from bench.scoreboard_images import CAPACITY, write_flat
from bench.scoreboard_tools import tools
from pipeline import GiB, KiB, MiB
from pipeline.testing.fakes import MemoryDisk
from sinks import NullSink
from stages import MemoryIndex, Zstd
from vadpipe.bench import images
from vadpipe.bench.documents import read_document
from vadpipe.bench.path import stored_path

ROOT = Path(__file__).parents[2]
MKE2FS = shutil.which("mke2fs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@pytest.fixture(scope="module")
def floor_program():
    program = ROOT / "build" / "floor" / "floor"
    built = subprocess.run([ROOT / "bench" / "build_floor", program], capture_output=True, text=True)
    if built.returncode:
        pytest.skip(built.stderr)
    return program


@pytest.fixture
def floor(floor_program):
    """bench/floor.c as a function of its words, which gives what the program prints."""

    def run(*words):
        done = subprocess.run([floor_program, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def image(tmp_path):
    """Data with runs of zeros of every length, repeated parts, noise and text, and holes; no whole clusters."""
    chance = random.Random(5)
    parts = [chance.randbytes(300 * KiB), b"a line of text that repeats\n" * 40_000]
    for clusters in range(1, 7):
        parts += [bytes(clusters * 4 * KiB), chance.randbytes(20 * KiB)]
    parts += [bytes(3 * MiB), parts[0], chance.randbytes(5 * MiB), parts[1][: 64 * KiB]]
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(b"".join(parts))
        file.seek(24 * MiB)
        file.write(parts[0] + bytes(64 * KiB) + chance.randbytes(1 * MiB + 700))
        file.truncate(32 * MiB + 700)
    return path


def counts_of(data):
    """What the pipeline finds in these bytes, all of them allocated."""
    disk = MemoryDisk(np.frombuffer(data, np.uint8))
    receipt = trio.run((stored_path(disk, MemoryIndex(), Zstd(1)) | NullSink()).run)
    return {"zero": receipt.zero_read, "known": receipt.known, "new": receipt.new}


@pytest.mark.slow
def test_the_floor_finds_the_zeros_and_chunks_that_the_pipeline_finds(floor, image, tmp_path):
    data = image.read_bytes()
    dense = tmp_path / "dense.raw"
    dense.write_bytes(data[: len(data) // (4 * KiB) * 4 * KiB])  # a file without holes, of whole clusters
    found = floor("full", dense, tmp_path / "pack")
    assert {name: found[name] for name in ("zero", "known", "new")} == counts_of(dense.read_bytes())
    assert found["known"] > 0
    assert found["steps"]["read"]["bytes"] == dense.stat().st_size
    assert floor("scan", dense)["chunks"] == found["chunks"]


@pytest.mark.slow
def test_the_floor_restores_what_it_stored(floor, image, tmp_path):
    stored = floor("full", image, tmp_path / "pack", "3")
    assert stored["stored"] == (tmp_path / "pack").stat().st_size
    restored = floor("restore", tmp_path / "pack", tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == image.read_bytes()
    assert floor("decode", tmp_path / "pack")["steps"]["decode"]["bytes"] == stored["new"]
    assert restored["frames"] == stored["frames"] > 1


@pytest.mark.slow
def test_the_floor_stores_only_what_it_does_not_know(floor, image, tmp_path):
    changed = tmp_path / "changed.raw"
    shutil.copy(image, changed)
    with changed.open("r+b") as file:
        file.seek(24 * MiB + 8 * KiB)
        file.write(b"changed")
    assert floor("again", image, image, tmp_path / "same")["new"] == 0
    assert 0 < floor("again", image, changed, tmp_path / "pack")["new"] <= 512 * KiB


@pytest.mark.slow
def test_the_floor_refuses_a_pack_with_another_digest(floor, floor_program, image, tmp_path):
    pack = tmp_path / "pack"
    floor("full", image, pack)
    with pack.open("r+b") as file:
        file.seek(40)  # in the digest of the first chunk
        file.write(b"x")
    done = subprocess.run([floor_program, "decode", pack], capture_output=True, text=True)
    assert done.returncode == 1
    assert "frame 0 has another digest" in done.stderr


def program(*words):
    words = [sys.executable, ROOT / "bench" / "scoreboard.py", *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.skipif(MKE2FS is None, reason="mke2fs is missing")
def test_the_scoreboard_measures_us_the_floor_and_other_tools(floor, tmp_path):
    size = "--size", 0.0625, "--fill", 16, "--rounds", 1, "--only", "full,restore,writes"
    files = (
        "--directory",
        tmp_path / "bench",
        "--json",
        tmp_path / "a.json",
        "--pictures",
        tmp_path / "pictures",
    )
    peers = [name for name in ("restic", "borg", "qemu-img") if shutil.which(name)]
    done = program(*size, *files, "--tools", ",".join(["floor", "vadpipe", *peers]))
    assert done.returncode == 0, done.stderr
    assert "seed 1" in done.stdout
    document = read_document(tmp_path / "a.json")
    assert [row for row in document["results"] if row["cpu_s"] < 0 or row["peak_rss"] <= 0] == []
    rows = {row["case"]: row for row in document["results"]}
    assert {f"full, {name}" for name in ("floor", "vadpipe", *peers)} <= set(rows)
    assert set(rows["full, floor"]["steps"]) >= {"read", "zero_test", "cut", "digest", "compress", "write"}
    assert rows["full, floor"]["of_floor"] == 1
    assert 10 * MiB < rows["restore, floor"]["steps"]["decode"]["bytes"] < 20 * MiB
    assert 0 < rows["writes, vadpipe"]["growth"] < rows["full, vadpipe"]["growth"]
    assert "largest RSS: of 256 MiB" in {goal["goal"] for goal in document["goals"]}
    assert "writes" in (tmp_path / "pictures" / "scoreboard-stored.svg").read_text()
    compared = program("compare", tmp_path / "a.json", tmp_path / "a.json")
    assert "1.000" in compared.stdout
    left = [path.name for path in (tmp_path / "bench").iterdir()]
    assert left == ["ext4-0g-16m-1"]  # the image is kept, the stores are not


def row(step, tool, number=0, **figures):
    figures = {"cpu_s": 1.0, "wall_s": 1.0, "peak_rss": MiB, "growth": None, **figures}
    return {"case": f"{step}, {tool}", "step": step, "tool": tool, "round": number, **figures}


def test_a_goal_is_the_median_of_the_ratios_of_each_round():
    costs = [(2.0, 1.0), (6.0, 2.0), (1.1, 1.0)]
    rows = [row("full", "floor", number, cpu_s=floor) for number, (_, floor) in enumerate(costs)]
    rows += [row("full", "vadpipe-1", number, cpu_s=own) for number, (own, _) in enumerate(costs)]
    [goal] = [one for one in goals.goals_of({"results": rows}) if one["goal"].startswith("full, one core")]
    assert goal["ratios"] == [2.0, 3.0, 1.1]
    assert goal["median"] == 2.0
    assert goal["less_start"] is None
    assert not goal["met"]


def test_a_goal_less_the_start_leaves_out_what_a_tiny_disk_costs():
    rows = [row("tiny", "floor", cpu_s=0.0), row("tiny", "vadpipe-1", cpu_s=0.5)]
    rows += [row("full", "floor", cpu_s=2.0), row("full", "vadpipe-1", cpu_s=2.5)]
    [goal] = [one for one in goals.goals_of({"results": rows}) if one["goal"].startswith("full, one core")]
    assert (goal["median"], goal["less_start"]) == (1.25, 1.0)


def test_goals_whose_parts_were_not_measured_are_left_out():
    assert goals.goals_of({"results": [row("full", "borg", growth=1)]}) == []


def test_a_version_is_kept_once_with_its_ratios(tmp_path, monkeypatch):
    monkeypatch.setattr(goals, "RELEASES", tmp_path / "releases.json")
    rows = [row("full", "floor"), row("full", "vadpipe-1", cpu_s=1.5, of_floor=1.5)]
    for version, factor in (("1.0", 1), ("1.1", 1), ("1.1", 2)):
        found = [{**one, "cpu_s": one["cpu_s"] * (factor if one["tool"] != "floor" else 1)} for one in rows]
        document = {"version": version, "about": "here", "rounds": 1, "results": found}
        goals.keep_release({**document, "goals": goals.goals_of(document)})
    kept = goals.read_releases()
    assert [release["version"] for release in kept] == ["1.0", "1.1"]
    assert kept[0]["of_floor"] == {"full, vadpipe-1": 1.5}
    [line] = [line for line in goals.release_lines() if line.startswith("full, one core")]
    assert line.split()[-3:] == ["1.50", "3.00", "1.15"]


@pytest.mark.slow
def test_unknown_steps_and_tools_are_refused():
    assert "unknown steps: ful; there are tiny" in program("--only", "ful").stderr
    assert "takes two files" in program("compare", "one.json").stderr


def test_every_tool_has_a_colour_in_the_pictures(tmp_path):
    from bench.scoreboard_pictures import COLOURS

    assert set(COLOURS) == set(tools(tmp_path, 1))


def test_a_disk_of_four_tebibytes_holds_the_pieces_apart(tmp_path):
    pieces = [(at * GiB, bytes([at]) * MiB) for at in (1, 3)]
    write_flat(tmp_path / "new" / "disk.raw", CAPACITY, pieces)
    with (tmp_path / "new" / "disk.raw").open("rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 1 * GiB
        assert os.pread(file.fileno(), 1, 3 * GiB) == b"\x03"
    assert "RW 8589934592 FLAT" in (tmp_path / "new" / "disk.vmdk").read_text()


def test_a_directory_that_comes_leaves_the_order_of_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "ROOTS", (str(tmp_path),))

    def add(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(5000))

    for number in range(20):
        add(f"directory {number}")
    before = list(images._chosen(MiB, 1))
    add("another directory")
    after = list(images._chosen(MiB, 1))
    assert [found for found in after if found in before] == before
    assert len(after) == 21
    assert list(images._chosen(MiB, 2)) != after
