"""The command under limits of the system: one message that names the limit, no traceback, no hang."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.units import MiB
from tests.conftest import EXAMPLES, vadpipe

FILES, SIZES, MEMORY = resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_AS


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VM with one disk of 24 MiB, all of it random."""
    directory = tmp_path_factory.mktemp("vm")
    np.random.default_rng(1).integers(0, 256, 24 * MiB, np.uint8).tofile(directory / "disk-flat.vmdk")
    (directory / "disk.vmdk").write_text(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW {24 * MiB // 512} FLAT "disk-flat.vmdk" 0\n'
        '# The Disk Data Base\n#DDB\nddb.adapterType = "lsilogic"\n'
    )
    return directory


@pytest.fixture
def start(vm: Path, tmp_path: Path):
    """Starts `vadpipe run examples/local.py` under one limit."""
    repository = tmp_path / "repository"
    assert vadpipe("init", repository).returncode == 0
    running = []

    def begin(kind: int, value: int) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "vadpipe", "run", str(EXAMPLES / "local.py")]
        process = subprocess.Popen(
            words,
            env={**os.environ, "VM_DIRECTORY": str(vm), "REPOSITORY": str(repository)},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: resource.setrlimit(kind, (value, value)),
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "value", "named"),
    [
        (FILES, 5, "ulimit -n"),
        (FILES, 8, "ulimit -n"),
        (FILES, 11, "ulimit -n"),
        (FILES, 12, "ulimit -n"),
        (FILES, 13, "ulimit -n"),
        (SIZES, 0, "ulimit -f"),
        (SIZES, 4096, "ulimit -f"),
        (SIZES, 10 * MiB, "ulimit -f"),
        (MEMORY, 150 * MiB, "ulimit -v"),
        (MEMORY, 256 * MiB, "ulimit -v"),
        (MEMORY, 272 * MiB, "ulimit -v"),
    ],
)
def test_a_run_under_a_limit_ends_with_a_message_that_names_it(start, kind, value, named):
    process = start(kind, value)
    try:
        _, told = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        pytest.fail(f"it hangs; after SIGTERM: {process.communicate(timeout=30)}")
    if kind == MEMORY and process.returncode == 0:
        pytest.skip("this much memory is enough on this machine")
    assert process.returncode in (1, 2), told
    assert named in told
    assert "Traceback" not in told
    assert all(named in line for line in told.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "value"), [(FILES, 16), (SIZES, 64 * MiB), (MEMORY, 512 * MiB)])
def test_a_run_under_a_limit_still_ends_on_sigterm(start, kind, value):
    process = start(kind, value)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.4)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=30)
    # The last: the signal came before the command had begun.
    assert process.returncode in (0, 1, 128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGTERM), told
    assert "Traceback" not in told
