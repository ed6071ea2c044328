import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import ConfigError
from vadpipe.cli.config import load_jobs

GOOD = """
from pipeline import Job
from pipeline.testing import FakeMachine, FakeTarget
from stages import AllocatedExtents
from sinks import NullSink

def path(disk, point):
    return AllocatedExtents(disk) | NullSink()

job = Job(FakeMachine([]), path, into=FakeTarget(), name="nightly")
"""


def write(tmp_path, text):
    path = tmp_path / "config.py"
    path.write_text(text)
    return path


def test_a_single_job_is_loaded(tmp_path):
    [job] = load_jobs(write(tmp_path, GOOD))
    assert job.title == "nightly"


def test_several_jobs_are_loaded_and_one_may_be_picked(tmp_path):
    path = write(
        tmp_path, GOOD + "from dataclasses import replace\njobs = [job, replace(job, name='weekly')]"
    )
    assert [job.title for job in load_jobs(path)] == ["nightly", "weekly"]
    assert [job.title for job in load_jobs(path, "weekly")] == ["weekly"]
    with pytest.raises(ConfigError, match="has no job monthly; it has nightly, weekly"):
        load_jobs(path, "monthly")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("job = Job(", r"config\.py, line 1: '\(' was never closed\. The line is: job = Job\("),
        (
            "\n\njob = undefined",
            r"line 3: NameError: name 'undefined' is not defined\. The line is: job = un",
        ),
        ("x = 1", "defines neither `job` nor `jobs`"),
        ("jobs = [3]", r"config\.py has 3 where a pipeline.Job, JobSource or sinks.Restore is expected\."),
        (GOOD + "jobs = [job, job]", "two jobs are called nightly"),
        ("import no_such_module", "line 1: ModuleNotFoundError"),
        ("from stages import Zstd\nZstd(99)", r"line 2: Zstd has no level 99\. Choose one"),
    ],
)
def test_a_mistake_is_one_message_with_file_and_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as failed:
        load_jobs(write(tmp_path, text))
    assert failed.value.exit_code == 2


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no configuration file .*nowhere\.py"):
        load_jobs(tmp_path / "nowhere.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\njob = undefined", r"^config\.py, line 2: NameError"),
        ("\njob = (", r"^config\.py, line 2: '\(' was never closed"),
        ("jobs = (job for job in ())", r"`jobs` is a generator, .* Make it a list"),
        ("jobs = []", r"`jobs` is empty"),
    ],
)
def test_a_relative_path_keeps_the_line_in_its_message(tmp_path, monkeypatch, text, message):
    write(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_jobs(Path("config.py"))


def test_a_missing_file_is_named_by_a_relative_path_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"There is no configuration file nowhere\.py\. "):
        load_jobs(Path("nowhere.py"))


def test_a_stage_of_a_configuration_may_be_a_dataclass_with_postponed_annotations(tmp_path):
    stage = (
        "from __future__ import annotations\nfrom dataclasses import dataclass, KW_ONLY\n"
        "@dataclass(frozen=True)\nclass Mine:\n    _: KW_ONLY\n    level: int = 1\n"
    )
    [job] = load_jobs(write(tmp_path, stage + GOOD))
    assert job.title == "nightly"


def test_a_module_beside_the_configuration_can_be_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "shared_by_configurations.py").write_text(GOOD)
    [job] = load_jobs(write(tmp_path, "from shared_by_configurations import job"))
    assert job.title == "nightly"


@pytest.mark.slow
def test_without_home_the_message_names_xdg_state_home(tmp_path):
    """A container's user without a passwd entry."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    environment = {"PATH": os.environ["PATH"], "VC_SERVER": "x", "VC_PASSWORD": "x"}
    program = (
        "import os, sys; sys.path[:] = sys.argv[2].split(':'); os.setgroups([]); "
        "import vadpipe.files; os.setuid(54321); vadpipe.files.state_directory()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "x", ":".join(sys.path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ConfigError: There is no place for the state of vadpipe" in done.stderr
    assert "Set XDG_STATE_HOME" in done.stderr
