"""A warm migration of the lab's VM by the real command, with qemu-img as the witness; and kills in its phases."""

import json
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from pipeline import ConfigError, IntegrityError, KiB, MiB, SinkError, SourceError
from sinks.migrate import Migrate
from sinks.replica import Replica
from sinks.replica_proof import prove_replica
from stages import Quiesce, VcenterVm
from tests.conftest import EXAMPLES, SmallLab, vadpipe
from tests.sinks.new_vm_kit import Backed
from tests.sinks.replica_kit import path, qemu
from tests.sinks.target_kit import tool
from vadpipe.cli.config import load_jobs
from vadpipe.cli.run import planned_job

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
        return all(
            same(self.lab.guest.image_of(disk), "raw", image)
            for disk, image in zip(self.lab.guest.disks, self.images, strict=True)
        )

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


def same(one, form, image):
    """Whether two images hold the same bytes, as qemu-img finds."""
    command = [tool("qemu-img"), "compare", "-f", form, "-F", "qcow2", one, image]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


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
    for image in migration.images:
        qemu("qemu-img", "check", "-f", "qcow2", image)
    with pytest.raises(SinkError, match="was cut over"):
        migration.increment()


@dataclass
class SmallMigration:
    """A VM of two small disks without a guest."""

    backed: Backed
    root: Path

    def job(self, **settings: Any) -> Migrate[Any]:
        machine = VcenterVm(
            self.backed.vcenter,
            "web01",
            reader=self.backed.writer,
            quiesce=Quiesce.none(),
            preflight=None,
            lock_relocation=False,
            enable_change_tracking=True,
        )
        into = Replica(f"qcow2:{self.root / 'images'}", state=self.root / "migration")
        return Migrate(machine, path, into=into, **{"power_off": True, **settings})

    @property
    def images(self) -> list[Path]:
        return [self.root / "images" / "web01" / f"scsi0-{unit}.qcow2" for unit in range(2)]

    def killed(self, place: str, *options: str) -> None:
        """The real command, which ends in the middle."""
        config = self.root / "migrate.py"
        config.write_text(CONFIG.format(example=str(EXAMPLES / "migrate.py")))
        vcenter = self.backed.vcenter
        environment = {
            "VC_SERVER": vcenter.server,
            "VC_PORT": str(vcenter.port),
            "VC_USER": vcenter.user,
            "VC_PASSWORD": "lab",
            "VC_THUMBPRINT": vcenter.thumbprint,
            "VDDK_LIBDIR": str(self.backed.libdir),
            "REPLICA": f"qcow2:{self.root / 'images'}",
            "STATE": str(self.root / "migration"),
            "KILL": place,
        }
        done = vadpipe("migrate", config, *options, environment=environment)
        assert done.returncode == -signal.SIGKILL, done.stderr

    def matches(self) -> bool:
        disks = self.backed.lab.disks(self.backed.moref)
        return all(same(disk.leaf, "vmdk", image) for disk, image in zip(disks, self.images, strict=True))

    def write(self, *places: int) -> None:
        for disk in self.backed.lab.disks(self.backed.moref):
            for place in places:
                disk.write(place * 64 * KiB, bytes([place % 250 + 1]) * 64 * KiB)

    @property
    def power(self) -> str:
        [vm] = self.backed.lab.vms
        return vm.power


@pytest.fixture
def small(machine, tmp_path):
    tool("qemu-nbd")
    return SmallMigration(machine, tmp_path)


@pytest.mark.parametrize("phase", PHASES)
def test_a_kill_in_an_increment_costs_no_write(small, phase):
    trio.run(small.job().run)
    small.write(3, 70)
    small.killed(phase)
    small.write(4)
    receipt = trio.run(small.job().run)
    assert all(run.mode == "incremental" for run in receipt.disks)
    assert small.matches()
    assert not small.backed.lab.snapshots(small.backed.moref)


def test_a_kill_before_the_end_of_a_cut_over_leaves_a_vm_that_the_next_run_powers_on(small):
    small.killed("vadpipe.vsphere.vm.power:HeldOff:confirm", "--cut-over")
    assert small.power == "poweredOff"
    receipt = trio.run(small.job().run)
    assert any("powered on again" in remark for remark in receipt.remarks)
    assert small.power == "poweredOn"


async def test_a_replica_that_fails_its_proof_powers_the_vm_on_again(small, monkeypatch):
    await small.job().run()
    real = prove_replica

    async def spoilt(replica, watch, *, whole):
        qemu("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 6M 64k", small.images[0])
        assert small.power == "poweredOff"
        return await real(replica, watch, whole=whole)

    with monkeypatch.context() as patched:
        patched.setattr("sinks.migrate.prove_replica", spoilt)
        with pytest.raises(IntegrityError, match="holds other bytes than were written"):
            await small.job().cut_over()
    assert small.power == "poweredOn"
    small.write(3, 70)
    await small.job().cut_over()
    assert small.matches()
    assert small.power == "poweredOff"


async def test_a_vm_that_may_not_be_shut_down_is_left_on(small):
    job = small.job(power_off=False)
    with pytest.raises(ConfigError, match="runs, and the cut-over needs it off"):
        await job.cut_over()
    assert small.power == "poweredOn"
    small.backed.lab.change(small.backed.moref, power="poweredOff")
    receipt = await job.cut_over()
    assert small.matches()
    assert receipt.increments == 1


async def test_a_vm_that_somebody_powers_on_during_the_cut_over_fails_it(small, monkeypatch):
    async def meddled(replica, watch, *, whole):
        small.backed.lab.change(small.backed.moref, power="poweredOn")
        return await prove_replica(replica, watch, whole=whole)

    monkeypatch.setattr("sinks.migrate.prove_replica", meddled)
    with pytest.raises(SourceError, match="somebody else powered it on"):
        await small.job().cut_over()
    assert not await small.job().is_cut_over()


async def test_a_reset_of_change_tracking_becomes_a_comparison(small):
    await small.job().run()
    small.write(5)
    for disk in small.backed.lab.disks(small.backed.moref):
        disk.reset_tracking()
    receipt = await small.job().run()
    assert [run.mode for run in receipt.disks] == ["full", "full"]
    assert [run.receipt.stored for run in receipt.disks] == [64 * KiB] * 2
    assert small.matches()


async def test_a_plan_says_how_long_a_cut_over_takes(small):
    job = small.job(proof="changed")
    assert job.forecast() == ["How long a cut-over takes is known after the first increment."]
    await job.run()
    assert "was not measured yet" in job.forecast()[0]
    await job.prove()
    [effect] = [effect for effect in planned_job(job).effects if "cut-over" in effect]
    assert effect.startswith("A cut-over takes about")
    assert "for reading the replica back" in effect
    assert "at most 900 s" in effect
