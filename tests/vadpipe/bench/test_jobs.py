"""`vadpipe bench run`: the user's own pipeline, to nowhere, into memory, into its store."""

import json
import os
import signal
import subprocess
import time

import pytest

from tests.conftest import command, vadpipe
from tests.vadpipe.bench.bench_kit import CONFIG, bench, config_in, document
from vadpipe.bench.jobs import report_of
from vadpipe.cli.run import stage_lines
from vadpipe.repository.backends.location import backend_at
from vadpipe.repository.reader import RepositoryReader
from vadpipe.repository.store import Repository

pytestmark = pytest.mark.slow

ENDED = """
        import contextlib

        @contextlib.asynccontextmanager
        async def captured():
            (HERE / "pid").touch()
            try:
                async with super(Machine, self).capture() as capture:
                    yield capture
            finally:
                (HERE / "released").touch()

        return captured()
"""


@pytest.fixture
def config(tmp_path):
    Repository(tmp_path / "repository").init()
    return config_in(tmp_path)


def points_of(tmp_path):
    return RepositoryReader.of(backend_at(str(tmp_path / "repository"))).points


def test_each_combination_is_measured_in_turn_and_nothing_is_published(config, tmp_path, capsys):
    found = document(capsys, "run", config, "--vary", "level=1,3", "--vary", "workers=1", "--repeat", 2)
    turn = ["level=1 workers=1", "level=3 workers=1"]
    assert [run["case"] for run in found["results"]] == turn * 2
    assert (found["kind"], found["job"], found["to"]) == ("bench run", "web01", "null")
    for run in found["results"]:
        assert run["read"] == found["results"][0]["read"] > 4 << 20
        assert run["wall_s"] > 0
        assert run["cpu_s"] > 0
        assert 16 << 20 < run["peak_rss"] < 1 << 30
        assert [stage["name"] for stage in run["stages"]][::3] == ["AllocatedExtents", "NullSink"]
        assert run["limited_by"]
        assert run["samples"][-1][0] == round(run["wall_s"], 4)
        assert run["samples"][-1][1:] == [stage["bytes"] for stage in run["stages"]]
    stored = [run["stored"] for run in found["results"]]
    assert stored[0] == stored[2] != stored[1] == stored[3]
    assert list(points_of(tmp_path)) == []
    assert not (tmp_path / "hooks").exists()


def test_into_memory_nothing_is_published_and_nothing_was_known(config, tmp_path, capsys):
    found = document(capsys, "run", config, "--to", "memory", "--repeat", 2)
    first, second = found["results"]
    assert first["stored"] == second["stored"] > 0
    assert first["stages"][-1]["name"] == "IntoRepository"
    assert list(points_of(tmp_path)) == []


def test_into_its_own_store_each_run_publishes_a_point_without_the_hooks(config, tmp_path, capsys):
    code, out, err = bench(capsys, "run", config, "--to", "store", "--repeat", 2)
    assert code == 0, err
    assert "note: the runs stored" in out
    assert "each of 2 runs: " in err
    assert len(points_of(tmp_path)) == 2
    assert not (tmp_path / "hooks").exists()


def test_the_first_part_of_each_disk_can_be_measured_alone(config, capsys):
    whole, part = (
        document(capsys, "run", config, *words)["results"][0]["read"] for words in ([], ["--first", 4])
    )
    assert 0 < part <= 4 << 20 < whole


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--vary", "levle=1"], "has no setting levle"),
        (["--vary", "level=1,99"], "--vary level=99: Zstd has no level 99"),
        (["--to", "store", "--first", "4"], "A part of a disk cannot be stored"),
        (["--job", "web02"], "has no job web02"),
        (["--html", "/nonexistent/page.html"], "cannot be written"),
    ],
)
def test_a_mistake_is_found_before_anything_is_captured(config, tmp_path, capsys, words, told):
    code, out, err = bench(capsys, "run", config, *words)
    assert (code, out) == (2, "")
    assert told in err
    assert not (tmp_path / "captures").exists()


def test_one_of_several_jobs_has_to_be_named(tmp_path, capsys):
    config = config_in(
        tmp_path, CONFIG + "\njobs = [job, Job(Machine([]), path, into=Nowhere(), name='web02')]\n"
    )
    code, _, err = bench(capsys, "run", config)
    assert code == 2
    assert "has 2 backups" in err
    assert "--job: web01, web02" in err


def test_a_run_that_fails_ends_the_benchmark_with_its_message_and_code(tmp_path):
    config = config_in(
        tmp_path, CONFIG.replace("PatternDisk(9 << 20)", 'FaultyDisk(PatternDisk(9 << 20), "read", 1)')
    )
    done = vadpipe("bench", "run", config, "--repeat", 3, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["exit_code"] == 1
    assert done.stderr.count("Injected: call 1 of read failed.") == 1
    assert "Traceback" not in done.stderr
    assert len((tmp_path / "captures").read_text().splitlines()) == 1


def test_a_signal_releases_the_capture_of_the_run_at_work(tmp_path):
    slow = CONFIG.replace("        return super().capture()\n", ENDED).replace(
        "PatternDisk(9 << 20)", "Slow(9 << 20)"
    )
    slow = slow.replace(
        "class Machine",
        "class Slow(PatternDisk):\n    async def read(self, *_):\n        await trio.sleep(60)\n\nclass Machine",
    )
    with subprocess.Popen(
        command("bench", "run", config_in(tmp_path, slow)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 30
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (tmp_path / "released").exists()
    assert b"Traceback" not in err


def test_a_configuration_may_print(tmp_path):
    done = vadpipe("bench", "run", config_in(tmp_path, CONFIG + "\nprint('{ hello')\n"))
    assert done.returncode == 0, done.stderr
    assert "as configured" in done.stdout


def test_verbose_shows_the_stages_of_each_case(config, capsys):
    code, out, _ = bench(capsys, "run", config, "-v", "-q", "--vary", "level=1,3")
    assert code == 0
    assert out.count("the last round:") == out.count("STARVED") == 2
    assert "\n  Compress " in out


def test_stages_of_a_document_make_the_same_report(config, capsys):
    [run] = document(capsys, "run", config)["results"]
    report = report_of(run["stages"])
    assert report.limited_by == run["limited_by"]
    assert [meter.busy_s for meter in report.stages] == pytest.approx([s["busy_s"] for s in run["stages"]])
    assert len(stage_lines(report)) == 1 + len(run["stages"]) + 6
