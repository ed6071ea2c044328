"""A small lab for the tests of the whole: a vCenter with a Windows-like VM, and the command run against it."""

import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from pipeline import MiB, secrets
from vadpipe.lab.guest import Guest, build_windows_guest
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vddk_build import CompilerMissing, build_vddk
from vadpipe.lab.witness import chain_digest
from vadpipe.repository.store import Repository

EXAMPLES = Path(__file__).parent.parent / "examples"
NIGHTLY = Path(__file__).parent.parent / "vadpipe" / "lab" / "nightly.py"  # the example, on the lab

# A timing never decides a test.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _fresh_process():
    """Logging and known secrets are settings of the process: no test sees those of another."""
    yield
    log = logging.getLogger("vadpipe")
    for handler in list(log.handlers):
        log.removeHandler(handler)
    log.propagate = True
    log.setLevel(logging.NOTSET)
    secrets._known.clear()


@pytest.fixture(autouse=True)
def _state_of_its_own(tmp_path, monkeypatch):
    """The journal, VDDK's working directories and copies of indexes are below the test's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def repository(tmp_path):
    """An empty repository."""
    made = Repository(tmp_path / "repository")
    made.init()
    return made


@pytest.fixture(scope="session")
def libdir(tmp_path_factory):
    """The stand-in VDDK's libDir."""
    try:
        return build_vddk(tmp_path_factory.mktemp("vddk"))
    except CompilerMissing as exc:
        pytest.skip(f"no stand-in VDDK: {exc}")


def vadpipe(*arguments, environment=None, **options):
    """Run the command to its end."""
    return subprocess.run(
        command(*arguments),
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def command(*arguments):
    return [sys.executable, "-m", "vadpipe", *map(str, arguments)]


@dataclass
class SmallLab:
    root: Path
    vcenter: LabVcenter
    guest: Guest
    moref: str
    environment: dict[str, str]
    digests: list[list[str]] = field(default_factory=list)  # of the disks, per quiesced snapshot

    @property
    def repository(self):
        return self.root / "repository"

    @property
    def snapshots(self):
        """How many snapshots the VM has."""
        return len(self.guest.disks[0].forks)

    def run(self, *arguments, **changes):
        """`vadpipe run` of examples/nightly.py, with changes to its environment."""
        return self("run", NIGHTLY, *arguments, **changes)

    def __call__(self, *arguments, **changes):
        return vadpipe(*arguments, environment={**self.environment, **changes})

    def witness(self, _moref, frozen):
        disks = list(zip(self.guest.disks, frozen, strict=True))
        self.guest.vss_writers([disk.fork_of(path) for disk, path in disks])
        self.digests.append([chain_digest(disk.frozen_chain(path), disk.capacity) for disk, path in disks])


class Running:
    """A run on a small lab in a process of its own, with its events."""

    def __init__(self, lab, tmp_path, *arguments, config=NIGHTLY):
        self.events = tmp_path / "events.jsonl"
        self.process = subprocess.Popen(
            command("run", config, "--events", self.events, *arguments),
            env={**os.environ, **lab.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, kind, within_s=30):
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if self.events.exists() and f'"event": "{kind}"' in self.events.read_text():
                return
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)
        pytest.fail(f"no event {kind!r} within {within_s} s")

    def told(self):
        return [json.loads(line) for line in self.events.read_text().splitlines()]

    def end(self):
        output, errors = self.process.communicate(timeout=60)
        assert "Traceback" not in errors, errors
        return output, errors

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self.process as process:
            process.kill()


@pytest.fixture
def small_lab(tmp_path, libdir):
    """A vCenter in this process, with a VM `web01` of two small disks, and an empty repository."""
    guest = build_windows_guest(
        tmp_path / "datastores" / "datastore1" / "web01",
        "web01",
        system_capacity=96 * MiB,
        data_capacity=40 * MiB,
        fill=16 * MiB,
    )
    with LabVcenter(tmp_path, password="a secret of the lab", task_s=0.02) as vcenter:
        moref = vcenter.register_vm(guest.directory, "web01", guest.disks)
        environment = {
            "VC_SERVER": vcenter.address,
            "VC_PORT": str(vcenter.port),
            "VC_USER": "backup",
            "VC_PASSWORD": "a secret of the lab",
            "VC_THUMBPRINT": vcenter.thumbprint,
            "VDDK_LIBDIR": str(libdir),
            "VADPIPE_LAB_ROOT": str(tmp_path),
            "REPOSITORY": str(tmp_path / "repository"),
            "XDG_STATE_HOME": str(tmp_path / "state"),
        }
        lab = SmallLab(tmp_path, vcenter, guest, moref, environment)
        vcenter.on_snapshot.append(lab.witness)
        assert vadpipe("init", lab.repository).returncode == 0
        yield lab
