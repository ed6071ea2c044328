"""`vadpipe bench source`."""

import json
import random
import shutil

import pytest

from pipeline import MiB
from tests.conftest import NIGHTLY
from tests.vadpipe.bench.bench_kit import bench, config_in, document

LOCAL = """\
from pathlib import Path
from pipeline import Job
from sinks import Nowhere, NullSink
from stages import *

job = Job(
    LocalVm(Path(__file__).parent / "vm"),
    lambda disk, point: AllocatedExtents(disk) | ReadSpans(disk) | NullSink(),
    into=Nowhere(),
)
"""


@pytest.fixture
def config(tmp_path):
    """A VM with a flat disk of 4 MiB."""
    vm = tmp_path / "vm"
    vm.mkdir()
    (vm / "disk-flat.vmdk").write_bytes(random.Random(1).randbytes(4 * MiB))
    (vm / "disk.vmdk").write_text(
        '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
        f'RW {4 * MiB // 512} FLAT "disk-flat.vmdk" 0\nddb.adapterType = "lsilogic"\n'
    )
    return config_in(tmp_path, LOCAL)


@pytest.mark.slow
def test_each_size_is_measured_with_each_depth_in_turns(config, capsys):
    words = ["--sizes", "4KiB,1MiB", "--depths", "8,1", "--amount", 1, "--repeat", 2]
    found = document(capsys, "source", config, *words)
    assert found["kind"] == "bench source"
    cases = [(row["size"], row["depth"]) for row in found["results"]]
    assert cases == [(4096, 1), (4096, 8), (MiB, 1), (MiB, 8)] * 2
    for row in found["results"]:
        assert 0 < row["latency_ms"] <= row["latency_99_ms"]
        assert row["mib_per_s"] > 0
    for alone, deep in zip(found["results"][::2], found["results"][1::2], strict=True):
        assert deep["ideal_mib_per_s"] == pytest.approx(8 * alone["ideal_mib_per_s"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sizes", "1000"], "Requests of 1000 bytes are impossible"),
        (["--sizes", "8MiB"], "Requests of 8388608 bytes are impossible"),
        (["--sizes", "big"], "--sizes big is no list of sizes"),
        (["--depths", "0"], "--depths 0 is no list of sizes"),
        (["--disk", "scsi9:9"], "has no disk scsi9:9. It has: "),
    ],
)
def test_a_wrong_option_is_refused_with_the_remedy(config, capsys, words, told):
    code, out, err = bench(capsys, "source", config, *words)
    assert (code, out) == (2, "")
    assert told in err


def test_a_disk_with_too_few_buffers_is_refused(tmp_path, capsys):
    disk = "FakeMachine([PatternDisk(8 << 20)])"
    config = config_in(
        tmp_path,
        "from pipeline.testing import FakeMachine, PatternDisk\n"
        + LOCAL.replace('LocalVm(Path(__file__).parent / "vm")', disk),
    )
    code, _, err = bench(capsys, "source", config, "--depths", "8")
    assert code == 2
    assert "has buffers for 6 reads in flight" in err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for the stand-in VDDK")
def test_the_transport_of_a_vm_is_read_through_vddk_and_its_snapshot_removed(small_lab):
    done = small_lab(
        "bench", "source", NIGHTLY, "--depths", "1,4", "--sizes", "64KiB", "--amount", "1", "--repeat", 1, "--json",
        VADPIPE_VDDK_LATENCY_MS="5",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Takes a snapshot of web01 on 127.0.0.1 without quiescing" in done.stderr
    assert "Enables change tracking" not in done.stderr
    rows = json.loads(done.stdout)["results"]
    assert [row["depth"] for row in rows] == [1, 4]
    assert all(row["latency_ms"] >= 5 for row in rows)  # what the stand-in waits at least
    assert small_lab.snapshots == 0


@pytest.mark.slow
def test_settings_of_the_transport_of_a_vm_can_be_varied_in_a_run(small_lab):
    done = small_lab("bench", "run", NIGHTLY, "--vary", "depth=1,4", "--vary", "compression=none", "--json")
    assert done.returncode == 0, done.stderr
    cases = [run["case"] for run in json.loads(done.stdout)["results"]]
    assert cases == ["depth=1 compression=none", "depth=4 compression=none"]
    assert small_lab.snapshots == 0
    listed = small_lab("points", small_lab.repository, "--json")
    assert json.loads(listed.stdout)["points"] == []
