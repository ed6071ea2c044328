"""Histories of a repository in a bucket, with storms, lost answers and kills in the middle of uploads."""

import re
import shutil
import subprocess
import sys

import pytest

from vadpipe.lab.object_stores import CEPH_COMMANDS


def played(server, count, seed):
    """In a process of its own: its children are forked, and obstore has threads."""
    command = [sys.executable, "-m", "vadpipe.lab.faults.s3_history", "--server", server]
    done = subprocess.run(
        [*command, "--count", str(count), "--seed", str(seed), "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 wrong" in done.stdout
    return {
        name: int(number) for number, name in re.findall(r"(\d+) ([a-z, ]+?)(?:, (?=\d)|\n)", done.stdout)
    }


@pytest.mark.slow
def test_no_point_is_lost_in_a_bucket():
    pytest.importorskip("moto.server", reason="moto is not installed")
    counts = played("moto", 2, 3)
    assert counts["histories"] == 2
    assert counts["backed up"] >= 4
    assert any("killed" in name for name in counts)


@pytest.mark.slow
def test_no_point_is_lost_in_a_bucket_of_ceph():
    if missing := [name for name in CEPH_COMMANDS if shutil.which(name) is None]:
        pytest.skip(f"Ceph is not installed ({', '.join(missing)} missing)")
    counts = played("ceph", 1, 4)
    assert counts["checked"] == 1


@pytest.mark.campaign
def test_no_point_is_lost_in_many_histories():
    pytest.importorskip("moto.server", reason="moto is not installed")
    assert played("moto", 100, 11)["histories"] == 100
