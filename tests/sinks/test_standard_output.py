"""`raw:-`: the bytes of one disk and nothing else on standard output, of the real command."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import trio

from pipeline import MiB
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, random_bytes

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(repository):
    content = random_bytes(3, 24 * MiB)
    content[MiB : 9 * MiB] = 0
    content[-5 * MiB :] = 0
    disk = MemoryDisk(content)
    trio.run(backup, repository, [disk])
    return disk


def command(repository, *arguments):
    return [sys.executable, "-m", "vadpipe", "restore", repository.path, "latest", "raw:-", *arguments]


def test_the_disk_and_nothing_else_comes_out_of_a_pipe(repository, disk):
    done = subprocess.run(command(repository), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.frombuffer(done.stdout, np.uint8), disk.content)
    assert b"disk scsi0:0: 24.0 MiB to standard output" in done.stderr


def test_a_file_gets_the_disk_behind_what_it_holds(repository, disk, tmp_path):
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.write(b"before")
        file.flush()
        done = subprocess.run(command(repository), stdout=file, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == b"before" + disk.content.tobytes()


def test_a_reader_that_ends_is_one_clear_error(repository, disk):
    with subprocess.Popen(command(repository), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert len(program.stdout.read(100_000)) == 100_000
        program.stdout.close()
        errors = program.stderr.read().decode()
    assert program.returncode == 1
    assert errors.count("closed it before the whole disk was written") == 1
    assert "Traceback" not in errors


def test_a_reader_that_takes_nothing_does_not_keep_the_command_from_ending(repository, disk):
    program = subprocess.Popen(command(repository), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    assert len(os.read(program.stdout.fileno(), 1)) == 1  # it writes, and soon waits for room
    time.sleep(0.5)
    program.send_signal(signal.SIGTERM)
    _, errors = program.communicate(timeout=30)
    assert program.returncode == 130
    assert b"Ended by SIGTERM" in errors


def test_a_full_file_system_is_named(repository, disk):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command(repository), stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 1
    assert b"Standard output cannot be written: No space left on device." in done.stderr


def test_several_disks_and_json_are_refused(repository):
    disks = [MemoryDisk(random_bytes(seed, MiB), key=f"scsi0:{seed}") for seed in (0, 1)]
    trio.run(backup, repository, disks)
    several = subprocess.run(command(repository), capture_output=True, timeout=60)
    assert (several.returncode, several.stdout) == (2, b"")
    assert (
        b"raw:- takes one disk, and 2 are restored: scsi0:0, scsi0:1. Name one with --disk." in several.stderr
    )
    one = subprocess.run(command(repository, "--disk", "scsi0:1"), capture_output=True, timeout=60)
    assert np.array_equal(np.frombuffer(one.stdout, np.uint8), disks[1].content)
    both = subprocess.run(command(repository, "--json"), capture_output=True, timeout=60)
    assert both.returncode == 2
    assert "raw:- and --json both write to standard output." in json.loads(both.stdout)["errors"][0]
