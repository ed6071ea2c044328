"""Small inputs that once gave a wrong answer, each through the real command: `make cases` runs them.

Inputs that are files lie beside this module, in a directory named like the case.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, Running, command, vadpipe

CASES = Path(__file__).parent
LOCAL = EXAMPLES / "local.py"
A, B, ZERO = b"A" * 4096, b"B" * 4096, bytes(4096)

pytestmark = pytest.mark.slow

DESCRIPTOR = """\
# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="monolithicFlat"
encoding="UTF-8"
RW {sectors} FLAT "{name}-flat.vmdk" 0

# The Disk Data Base
#DDB

ddb.adapterType = "ide"
"""

TWO_JOBS = """\
from dataclasses import replace
import runpy
from stages import LocalVm

job = runpy.run_path({local!r})["job"]
jobs = [replace(job, machine=LocalVm(directory)) for directory in {directories!r}]
"""


class Place:
    """A repository, and the commands that fill and read it."""

    def __init__(self, path):
        self.path = path
        self.repository = path / "repository"
        assert vadpipe("init", self.repository).returncode == 0

    def run(self, directory, *arguments, config=LOCAL, **environment):
        return vadpipe(
            "run",
            config,
            *arguments,
            environment={
                "VM_DIRECTORY": str(directory),
                "REPOSITORY": str(self.repository),
                **environment,
            },
        )

    def points(self):
        return json.loads(vadpipe("points", self.repository, "--json").stdout)["points"]

    def restored(self, *arguments):
        """Restore the newest point: its images by name."""
        target = self.path / "restored"
        done = vadpipe("restore", self.repository, "latest", f"raw:{target}", *arguments)
        assert done.returncode == 0, done.stderr
        return {image.name: image.read_bytes() for image in target.rglob("*.raw")}


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def make_vm(directory, content, name="vm"):
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.vmdk").write_text(DESCRIPTOR.format(sectors=len(content) // 512, name=name))
    (directory / f"{name}-flat.vmdk").write_bytes(content)
    return directory


@pytest.mark.parametrize(
    ("case", "content"),
    [
        ("descriptor-encoding-949", A),  # VMware's name of the Korean Windows code page
        ("descriptor-signature-space", A),  # "# Disk Descriptor File", as makers of OVA files write it
        ("descriptor-zero-with-name", A + ZERO),  # a ZERO extent that names a file, which need not exist
    ],
)
def test_a_descriptor_in_an_unusual_spelling_is_read(place, case, content):
    done = place.run(CASES / case)
    assert done.returncode == 0, done.stderr
    assert place.restored() == {"vm.raw": content}


@pytest.mark.parametrize("names", [("web 1", "web-1"), ("数据", "系统")])
def test_restore_names_collide_two_disks_never_share_an_image(place, tmp_path, names):
    directory = tmp_path / "vm"
    shutil.copytree(CASES / "restore-names-collide", directory)
    if "web 1" not in names:
        shutil.rmtree(directory)
        make_vm(directory, A, names[0])
        make_vm(directory, B, names[1])
    done = place.run(directory)
    assert done.returncode == 0, done.stderr
    images = place.restored()
    assert sorted(images.values()) == [A, B]


def test_clock_back_the_newest_point_is_the_last_of_the_chain(place, tmp_path):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for a clock that is slow")
    slow = tmp_path / "clock_back.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", slow, CASES / "clock_back.c", "-ldl"], check=True)
    directory = make_vm(tmp_path / "vm", A)
    assert place.run(directory).returncode == 0
    make_vm(directory, B)
    done = place.run(directory, LD_PRELOAD=str(slow))
    assert done.returncode == 0, done.stderr
    assert "clock" in done.stdout
    first, second = place.points()
    assert first["created"] < second["created"]
    assert place.restored() == {"vm.raw": B}


def test_home_missing_is_one_message_that_names_the_variable():
    """As in a container: a user id that has no entry in the passwd database, and no HOME."""
    program = (
        "import os, sys; os.getuid = lambda: 54321; "
        "from vadpipe.cli.main import main; main(['plan', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, EXAMPLES / "nightly.py"],
        env={"VC_SERVER": "vc01", "VC_PASSWORD": "secret"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "XDG_STATE_HOME" in line


def test_init_after_full_makes_the_repository(tmp_path):
    """A directory that a broken-off `init` left is taken over."""
    repository = tmp_path / "repository"
    failures = 0
    for size in (0, 100, 300):  # each file may be this large: the disk is full sooner and later
        done = subprocess.run(
            [
                "bash",
                "-c",
                'trap "" XFSZ; exec prlimit --fsize="$0" "$@"',
                str(size),
                *command("init", repository),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            break
        failures += 1
        assert "Traceback" not in done.stderr
    assert failures
    if done.returncode:
        done = vadpipe("init", repository)
    assert done.returncode == 0, done.stderr
    assert vadpipe("points", repository).returncode == 0


UNDERSTOOD = {"[::1]": "::1", "[2001:db8::1]:443": "2001:db8::1", "vc01:8443": "vc01"}


@pytest.mark.parametrize("name", (CASES / "server-names" / "names.txt").read_text().splitlines())
def test_server_names_are_understood_or_refused_at_once(tmp_path, name):
    done = vadpipe(
        "plan",
        EXAMPLES / "nightly.py",
        environment={"VC_SERVER": name, "VC_PASSWORD": "secret", "XDG_STATE_HOME": str(tmp_path)},
    )
    if name in UNDERSTOOD:
        assert f"Takes a snapshot of web01 on {UNDERSTOOD[name]} with" in done.stdout
    else:
        assert done.returncode == 2
        [line] = done.stderr.splitlines()
        assert f"{name!r} is not the name of a server" in line


def test_sighup_vcenter_a_closed_terminal_leaves_nothing_behind(small_lab, tmp_path):
    with Running(small_lab, tmp_path) as running:
        running.wait_for("disk started")
        running.process.send_signal(signal.SIGHUP)
        _, errors = running.end()
    assert running.process.returncode == 130, errors
    assert small_lab.snapshots == 0
    assert list(small_lab.repository.rglob("*.pack")) == []
    assert list((small_lab.root / "state").rglob("*.json")) == []


@pytest.mark.parametrize(("closed", "code"), [(False, 3), (True, 0)], ids=["full", "closed"])
def test_stdout_broken_stops_no_job(place, tmp_path, closed, code):
    directories = [str(make_vm(tmp_path / name, A)) for name in ("one", "two")]
    config = tmp_path / "two.py"
    config.write_text(TWO_JOBS.format(local=str(LOCAL), directories=directories))
    shell = 'exec "$@" | true; exit "${PIPESTATUS[0]}"' if closed else 'exec "$@" >/dev/full'
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *command("run", config)],
        env={**os.environ, "REPOSITORY": str(place.repository)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(place.points()) == 2


def test_two_restores_into_one_directory_never_mix_their_images(place, tmp_path):
    contents = {name: letter * (40 << 20) for name, letter in (("one", b"1"), ("two", b"2"))}
    for name, content in contents.items():
        assert place.run(make_vm(tmp_path / name, content)).returncode == 0
    target = tmp_path / "restored"
    restores = {
        name: subprocess.Popen(
            command("restore", place.repository, "latest", "--vm", name, f"raw:{target}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in contents
    }
    ended = {
        name: (*process.communicate(timeout=60), process.returncode) for name, process in restores.items()
    }
    assert {name: code for name, (_, _, code) in ended.items()} == {"one": 0, "two": 0}, ended
    images = {image.parent.parent.name: image.read_bytes() for image in target.rglob("vm.raw")}
    assert images == contents


def test_vddk_unreachable_leaves_no_snapshot_and_names_the_cause(small_lab, tmp_path):
    for _ in range(2):
        done = small_lab.run(VADPIPE_LAB_ROOT=str(tmp_path / "unreachable"))
        assert done.returncode == 1
        assert "ConnectEx" in done.stderr
        assert "Traceback" not in done.stderr
        assert small_lab.snapshots == 0
