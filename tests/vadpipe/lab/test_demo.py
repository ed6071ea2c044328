"""The demo, with fewer files than `make demo` has."""

import re
import shutil

import pytest

from tests.conftest import vadpipe

pytestmark = pytest.mark.slow

IDENTICAL = r"point [0-9a-f]{16}, disk scsi0:[01]: restored and identical"


@pytest.mark.skipif(not (shutil.which("cc") and shutil.which("make")), reason="no C compiler or no make")
def test_the_main_job_on_the_lab(tmp_path):
    done = vadpipe("lab", "demo", tmp_path / "demo", "--fill", 24)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("quiescing: asked application, reached application") == 2
    assert done.stdout.count("snapshots left: 0") == 2
    assert done.stdout.count("incremental, change tracking covers the disk") == 2
    assert len(re.findall(IDENTICAL, done.stdout)) == 4
    assert "ATTENTION" not in done.stdout


def test_without_any_tool_the_main_job_still_runs(tmp_path):
    """No compiler, no qemu-img, no file system tools: the VM's own files are backed up, and that is said."""
    done = vadpipe("lab", "demo", tmp_path / "demo", "--fill", 24, environment={"PATH": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Left out: vCenter, quiescing, VDDK and change tracking, because" in done.stdout
    assert len(re.findall(IDENTICAL, done.stdout)) == 4


def test_a_directory_that_is_not_the_labs_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("mine")
    done = vadpipe("lab", "demo", tmp_path)
    assert done.returncode == 2
    assert "is not empty and no directory of the lab" in done.stderr
    assert (tmp_path / "precious").read_text() == "mine"
