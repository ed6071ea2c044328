"""A warm migration of the lab's VM by the real command, with qemu-img as the witness; and kills in its phases."""

import json
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from pipeline import ConfigError, IntegrityError, KiB, MiB, SinkError
from sinks.migrate import Migrate
from sinks.replica_proof import prove_replica
from tests.conftest import EXAMPLES, SmallLab
from tests.sinks.replica_kit import image_content, qemu
from tests.sinks.target_kit import tool
from vadpipe.cli.config import load_jobs

pytestmark = pytest.mark.slow

# The example on the lab, whose hosts have no ports. KILL=MODULE:CLASS:METHOD kills the process before that method
# runs, and with a + behind it when it has run.
CONFIG = """
import importlib, os, runpy, signal
from dataclasses import replace
from stages import Preflight

job = runpy.run_path({example!r})["job"]
job = replace(job, machine=replace(job.machine, preflight=Preflight(probe_hosts=False)))

def deadly(place, after):
    module, owner, method = place.split(":")
    owner = getattr(importlib.import_module(module), owner)
    real = getattr(owner, method)

    async def call(*arguments, **named):
        if after:
            await real(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, method, call)

if kill := os.environ.get("KILL"):
    deadly(kill.removesuffix("+"), kill.endswith("+"))
"""

PHASES = (
    "vadpipe.nbd.writer:NbdWriter:write+",
    "sinks.replica:ReplicaWriter:settle",
    "sinks.replica:ReplicaWriter:publish",
    "sinks.replica:ReplicaWriter:publish+",
)


@dataclass
class Migration:
    lab: SmallLab
    config: Path

    @property
    def images(self) -> list[Path]:
        return [self.lab.root / "images" / "web01" / f"scsi0-{unit}.qcow2" for unit in range(2)]

    def __call__(self, command, *arguments, **environment):
        """The real command in a process of its own."""
        return self.lab(command, self.config, *arguments, **environment)

    def job(self) -> Migrate[Any]:
        [job] = load_jobs(self.config)
        assert isinstance(job, Migrate)
        return job

    def increment(self):
        """An increment in this process."""
        return trio.run(self.job().increment)

    def matches(self) -> bool:
        """Whether each image holds what the guest sees."""
        for disk, image in zip(self.lab.guest.disks, self.images, strict=True):
            wanted = np.fromfile(self.lab.guest.image_of(disk), np.uint8)
            if not np.array_equal(image_content(image, "qcow2", self.lab.root / "witness.raw"), wanted):
                return False
        return True

    @property
    def power(self) -> str:
        [vm] = self.lab.vcenter.vms
        return vm.power


@pytest.fixture
def migration(small_lab, monkeypatch):
    tool("qemu-nbd")
    config = small_lab.root / "migrate.py"
    config.write_text(CONFIG.format(example=str(EXAMPLES / "migrate.py")))
    monkeypatch.delenv("KILL", raising=False)
    environment = {
        "REPLICA": f"qcow2:{small_lab.root / 'images'}",
        "STATE": str(small_lab.root / "migration"),
    }
    small_lab.environment |= environment
    for name, value in small_lab.environment.items():
        monkeypatch.setenv(name, value)
    return Migration(small_lab, config)


def sums(disks):
    """Bytes that went to the replica as data, and that had changed."""
    return np.array([sum(disk["stored"] for disk in disks), sum(disk["changed"] for disk in disks)])


def test_five_increments_and_a_cut_over_leave_what_the_vm_held(migration):
    bytes_of = np.zeros(2, np.int64)
    for number in range(4):
        receipt = migration.increment().as_dict()
        assert receipt["point"] == f"increment-{number + 1}"
        bytes_of += sums(receipt["disks"]) if number else 0
        migration.lab.guest.work(number, 3 * MiB)
    done = migration("migrate", "--cut-over", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for increment in (*found["increments"], found["cut_over"]["last_increment"]):
        bytes_of += sums(increment["disks"])
    assert found["cut_over"]["increments"] == 6
    assert found["cut_over"]["down_s"] > 0
    written, changed = bytes_of.tolist()
    assert 0 < written <= 1.1 * changed
    assert migration.matches()
    assert migration.power == "poweredOff"
    assert migration.lab.snapshots == 0
    for disk, image in zip(migration.lab.guest.disks, migration.images, strict=True):
        qemu("qemu-img", "check", "-f", "qcow2", image)
        qemu("qemu-img", "compare", "-f", "raw", "-F", "qcow2", migration.lab.guest.image_of(disk), image)
    with pytest.raises(SinkError, match="was cut over"):
        migration.increment()


def test_a_kill_in_any_phase_costs_no_write(migration):
    migration.increment()
    for seed, phase in enumerate(PHASES):
        migration.lab.guest.work(seed, MiB)
        assert migration("migrate", KILL=phase).returncode == -signal.SIGKILL
        migration.lab.guest.work(100 + seed, 256 * KiB)
        receipt = migration.increment()
        assert all(run.mode == "incremental" for run in receipt.disks), phase
        assert migration.matches(), phase
    assert migration.lab.snapshots == 0


def test_a_kill_before_the_end_of_a_cut_over_leaves_a_vm_that_the_next_run_powers_on(migration):
    killed = migration("migrate", "--cut-over", KILL="vadpipe.vsphere.vm.power:HeldOff:confirm")
    assert killed.returncode == -signal.SIGKILL
    assert migration.power == "poweredOff"
    receipt = migration.increment()
    assert any("powered on again" in remark for remark in receipt.remarks)
    assert migration.power == "poweredOn"


def test_a_replica_that_fails_its_proof_powers_the_vm_on_again(migration):
    migration.increment()
    job = migration.job()
    real = prove_replica

    async def spoilt(replica, watch, *, whole):
        qemu("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 6M 64k", migration.images[0])
        assert migration.power == "poweredOff"
        return await real(replica, watch, whole=whole)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sinks.migrate.prove_replica", spoilt)
        with pytest.raises(IntegrityError, match="holds other bytes than were written"):
            trio.run(job.cut_over)
    assert migration.power == "poweredOn"
    trio.run(job.cut_over)
    assert migration.matches()
    assert migration.power == "poweredOff"


def test_a_vm_that_may_not_be_shut_down_is_left_on(migration):
    job = migration.job()
    job = replace(job, power_off=False)
    with pytest.raises(ConfigError, match="runs, and the cut-over needs it off"):
        trio.run(job.cut_over)
    assert migration.power == "poweredOn"
    migration.lab.vcenter.change(migration.lab.moref, power="poweredOff")
    trio.run(job.cut_over)
    assert migration.matches()


def test_a_plan_says_how_long_a_cut_over_takes(migration):
    job = migration.job()
    assert job.forecast() == ["How long a cut-over takes is known after the first increment."]
    migration.increment()
    trio.run(job.prove)
    done = migration("plan")
    assert done.returncode == 0, done.stderr
    assert "effect: A cut-over takes about" in done.stdout
    assert "for reading the replica back" in done.stdout
