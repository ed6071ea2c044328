"""The benchmarks run tiny; no figure of theirs decides anything."""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest

from pipeline import ConfigError, GiB
from tests.conftest import EXAMPLES, vadpipe
from vadpipe.bench import images

MKE2FS = shutil.which("mke2fs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@pytest.mark.slow
@pytest.mark.skipif(MKE2FS is None, reason="mke2fs is missing")
def test_the_path_bench_measures_every_case(tmp_path):
    done = vadpipe("bench", "path", "--size", 1, "--fill", 24, "--directory", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["kind"] == "bench path"
    assert "seed 1" in document["about"]
    assert "cores" in document["about"]
    results = {result["case"]: result for result in document["results"]}
    assert set(results) == {
        "memory-null-stored",
        "memory-null-zstd1",
        "image-null-stored",
        "image-null-zstd1",
        "image-repository-zstd1",
    }
    for result in results.values():
        assert result["read"] > 20 << 20
        assert result["cpu_s"] > 0
        assert result["limited_by"]
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["disk.raw", "disk.vmdk"]


def test_an_image_that_cannot_be_filled_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a file").write_bytes(bytes(1000))
    monkeypatch.setattr(images, "ROOTS", (str(tmp_path),))
    with pytest.raises(ConfigError, match=r"only 1000 B of files.* smaller --fill"):
        images.ext4_image(tmp_path / "images", GiB, GiB, 1)
    assert not (tmp_path / "images").exists()


def program(name, *arguments):
    """What a program of the repository's own bench prints, as lines."""
    place = EXAMPLES.parent / "bench" / f"{name}.py"
    done = subprocess.run([sys.executable, place, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def two_images(tmp_path):
    """Two raw images with the same files, the second with one cluster before them, and holes around."""
    content = random.Random(1).randbytes(2 << 20)
    for name, shift in (("a", 0), ("b", 4096)):
        with (tmp_path / f"{name}.raw").open("wb") as file:
            file.truncate(4 << 20)
            file.seek((512 << 10) + shift)
            file.write(content)
    return tmp_path / "a.raw", tmp_path / "b.raw"


@pytest.mark.slow
def test_the_startup_bench_counts_modules_of_every_row():
    rows = {line[:24].strip(): line.split()[-2:] for line in program("startup", "--repeat", 1)[2:]}
    modules = {name: int(found[0]) for name, found in rows.items()}
    assert modules["python"] < modules["import vadpipe"] < modules["vadpipe --help"]


@pytest.mark.slow
def test_the_cuts_bench_shows_that_chunks_find_shifted_files_again(two_images):
    rows = {line[:28].strip(): line.split() for line in program("cuts", *two_images)[2:]}
    fixed, by_content = rows["fixed 64 KiB"], rows["content 64 KiB (16 to 256)"]
    assert int(fixed[-3]) == 2  # MiB that the second image adds
    assert int(by_content[-3]) < 2


@pytest.mark.slow
def test_the_baseline_stores_what_it_read_once(two_images, tmp_path):
    _, totals, _ = program("baseline", two_images[0], tmp_path / "out", "--no-compression")
    assert totals == "read 2 MiB, zero 0 MiB, known 0 MiB, new 2 MiB, stored 2 MiB"
    assert (tmp_path / "out").stat().st_size == 2 << 20


@pytest.mark.slow
@pytest.mark.skipif(
    MKE2FS is None or shutil.which("qemu-img") is None, reason="mke2fs or qemu-img is missing"
)
def test_the_restore_cost_bench_compares_both_targets():
    lines = program("restore_cost", "--mib", 16, "--rounds", 1)
    rows = {line.split()[0]: line.split() for line in lines[3:]}
    assert rows["raw"][1] == rows["vddk"][1] != "0"
    assert float(rows["CPU"][2]) > 0


@pytest.mark.slow
@pytest.mark.skipif(MKE2FS is None, reason="mke2fs is missing")
def test_the_growth_bench_compares_growth_with_what_changed(tmp_path):
    tools = ["ours", "unrefined", *(["borg-fixed"] if shutil.which("borg") else [])]
    options = "--size", 0.125, "--fill", 24, "--blocks", 8, "--writes", 64, "--directory", tmp_path
    lines = program("growth", *options, "--tools", ",".join(tools))
    assert "cores" in lines[0]
    assert "seed 1; 8 blocks of 64 KiB, 64 writes of 4 KiB" in lines[1]
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in lines[3:]}
    for step in ("full", "blocks", "writes", "sibling"):
        for tool in tools:
            assert float(rows[step, tool][2]) > 0
    for step in ("blocks", "writes"):
        assert 0 < float(rows[step, "floor"][0]) < float(rows[step, "ours"][2])
        assert float(rows[step, "ours"][3]) < float(rows[step, "unrefined"][3])
    assert float(rows["sibling", "ours"][2]) < float(rows["full", "ours"][2])


@pytest.mark.slow
def test_the_points_bench_costs_runs_with_nothing_new(tmp_path):
    lines = program("points", "--points", 12, "--machines", 3, "--directory", tmp_path)
    assert "12 points of the VM,     3 other VMs" in lines[-2]
    assert float(lines[-2].split(": ")[1].split()[0]) > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(MKE2FS is None, reason="mke2fs is missing")
def test_the_verify_bench_compares_with_its_floors(tmp_path):
    options = "--size", 0.03125, "--fill", 4, "--points", 3, "--rounds", 1, "--directory", tmp_path
    lines = program("verify", *options)[1:]
    assert [line.split(":")[0] for line in (lines[0], lines[4])] == ["image", "points"]
    for line in (*lines[1:4], *lines[5:]):
        cost, floor = (float(part.split()[-2]) for part in line.split(":")[0].split(","))
        assert cost > floor * 0.1 > 0


@pytest.mark.slow
def test_the_prune_bench_names_and_deletes_what_one_point_needed(tmp_path):
    lines = program("prune", "--points", 8, "--pages", 2, "--directory", tmp_path)[1:-1]
    found = [(line.split(", ")[1].split()[0], line.split("; ")[1]) for line in lines]
    assert found == 2 * [
        ("name", "1 packs named, 0 deleted"),
        ("delete", "0 packs named, 1 deleted"),
        ("nothing", "0 packs named, 0 deleted"),
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(
    MKE2FS is None or shutil.which("nbdcopy") is None, reason="mke2fs or nbdcopy (libnbd-bin) is missing"
)
def test_the_serve_bench_compares_a_copy_with_a_restore_and_times_single_reads(tmp_path):
    tiny = ("--gib", 1, "--mib", 16, "--points", 2, "--rounds", 1, "--reads", 20)
    lines = program("serve", *tiny, "--directory", tmp_path)
    assert [line.split()[0] for line in lines[1:]] == ["restore", "nbdcopy", "nbdcopy", "first", "4"]
    assert "seed 1" in lines[0]
