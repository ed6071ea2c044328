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


def test_one_job(tmp_path):
    [job] = load_jobs(write(tmp_path, GOOD))
    assert job.title == "nightly"


def test_several_jobs_and_one_of_them(tmp_path):
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
        ("jobs = [3]", "`jobs` holds 3, which is not a pipeline.Job"),
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
