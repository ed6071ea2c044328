"""`run --per-host` and `--per-datastore`: not too many backups at one place, wherever the VMs are."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from pipeline import Job
from pipeline.testing import FakeMachine, FakeTarget
from sinks import NullSink
from stages import AllocatedExtents, ReadSpans
from vadpipe.cli.run import run
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.inventory import HostTraits
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.vm.vm import VsphereVm, placements_of_machines

AddVm = Callable[..., str]

at_work: Counter[str] = Counter()
most: Counter[str] = Counter()


class Counted(VsphereVm):
    """A VM whose capture only counts how many captures are open: of all, and by the letter of its name."""

    @asynccontextmanager
    async def capture(self) -> AsyncIterator[Any]:
        keys = ("all", self.name[0])
        at_work.update(keys)
        for key in keys:
            most[key] = max(most[key], at_work[key])
        await trio.sleep(0.05)
        at_work.subtract(keys)
        async with FakeMachine([], name=self.name).capture() as capture:
            yield capture


@pytest.fixture
def vms(lab: LabVcenter, add_vm: AddVm) -> list[str]:
    """Three VMs a on one host and one datastore, three VMs b on another host and two datastores."""
    host = lab.add_host(HostTraits("esxi02.lab.local"))
    for number in range(3):
        add_vm(f"a{number}")
        home = lab.datastore("datastore2") / f"b{number}"
        places = (home, lab.datastore("datastore3") / f"b{number}")
        disks = [LabDisk.create(place, f"b{number}", 1 << 20) for place in places]
        lab.move(lab.register_vm(home, f"b{number}", disks, datastore="datastore2"), host=host)
    return ["a0", "a1", "a2", "b0", "b1", "b2"]


@pytest.fixture
def run_all(vcenter: Vcenter, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a job for each of these VMs, all at once if no option forbids it."""

    def run_all(names: list[str], *options: str, server: Vcenter = vcenter) -> None:
        at_work.clear()
        most.clear()
        jobs = [
            Job(
                Counted(server, name, reader=None),
                lambda disk, point: AllocatedExtents(disk) | ReadSpans(disk) | NullSink(),
                into=FakeTarget(),
            )
            for name in names
        ]
        monkeypatch.setattr("vadpipe.cli.run.read_config", lambda path: jobs)
        arguments = ["x.py", "--json", "--jobs", "6", *options]
        done = CliRunner().invoke(run, arguments, standalone_mode=False)
        assert done.exception is None, done.exception
        assert len(json.loads(done.stdout)["jobs"]) == len(names)

    return run_all


@pytest.mark.parametrize("option", ["--per-host", "--per-datastore"])
def test_a_place_has_no_more_jobs_than_its_limit(vms, run_all, option):
    run_all(vms, option, "2")
    assert (most["all"], most["a"], most["b"]) == (4, 2, 2)


def test_a_vm_that_is_not_found_is_held_up_by_no_limit_but_fails_by_itself(vms, run_all):
    run_all([*vms, "nowhere"], "--per-host", "1")
    assert (most["a"], most["b"], most["n"]) == (1, 1, 1)


def test_jobs_of_a_server_that_cannot_be_asked_start_all_the_same(vcenter, run_all, tmp_path):
    run_all(["a0", "a1"], "--per-host", "1", server=replace(vcenter, thumbprint="00" * 32))
    assert most["a"] == 2


@pytest.mark.usefixtures("vms")
async def test_places_are_read_in_one_pass_per_server(lab, vcenter):
    machines = [VsphereVm(vcenter, name, reader=None) for name in ("a0", "b0", "b1")]
    a0, b0, b1 = await placements_of_machines(machines)
    assert a0 is not None
    assert (a0.host, a0.version) == ("esxi01.lab.local", "8.0.3")
    assert [disk.datastore for disk in a0.disks] == ["datastore1"]
    assert b0 is not None
    assert b1 is not None
    assert b0.host == b1.host == "esxi02.lab.local"
    assert [disk.datastore for disk in b0.disks] == ["datastore2", "datastore3"]
    assert lab.calls["RetrievePropertiesEx"] == 2  # the inventory, and the devices of these VMs
