"""`run --jobs`: many VMs on several hosts and datastores at once, within every limit by the lab's own count."""

import json
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from click.testing import CliRunner

from pipeline import ConfigError, Job
from pipeline.errors import EXIT_FAILED
from pipeline.events import observed
from pipeline.testing import FakeTarget
from sinks import IntoRepository, NullSink, Repository
from stages import AllocatedExtents, Compress, CutChunks, Dedupe, Digest, MarkZeros, ReadSpans, Zstd
from vadpipe.cli.run import Run, run
from vadpipe.fleet.limits import SESSION_BYTES, Limits, needs_of_vm
from vadpipe.fleet.values import connections, nfc_bytes, sessions, snapshots, streams
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter.counting import CountingReader
from vadpipe.lab.vcenter.state.inventory import HostTraits
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.vm.vm import VsphereVm

HOSTS, DATASTORES = 3, 3


class Slow:
    """A reader whose disks take a moment to open, so that those of several VMs are open at the same time."""

    def __init__(self, reader):
        self.reader = reader

    @asynccontextmanager
    async def open(self, access, pool):
        async with self.reader.open(access, pool) as disk:
            yield disk
            await trio.sleep(0.05)


@pytest.fixture
def vms(lab):
    """Nine VMs with one to three disks, on three hosts and three datastores."""
    hosts = [*lab.hosts]
    hosts += [lab.add_host(HostTraits(f"esxi{number:02}.lab.local")) for number in range(2, HOSTS + 1)]
    names = []
    for number in range(9):
        name, datastore = f"vm{number}", f"datastore{number % DATASTORES + 1}"
        home = lab.datastore(datastore) / name
        disks = [LabDisk.create(home, f"{name}_{disk}", 1 << 20) for disk in range(number // 3 + 1)]
        moref = lab.register_vm(home, name, disks, datastore=datastore)
        lab.move(moref, host=hosts[number * 2 % HOSTS])
        names.append(name)
    return names


@pytest.fixture
def counting(lab, reader):
    return CountingReader(Slow(reader), lab)


@pytest.fixture
def job_of(vcenter, counting, journal):
    def job_of(name, target=None, path=None):
        machine = VsphereVm(vcenter, name, reader=counting, journal=journal, quiesce=Quiesce.none())
        return Job(
            machine,
            path or (lambda disk, point: AllocatedExtents(disk) | ReadSpans(disk) | NullSink()),
            into=target or FakeTarget(),
        )

    return job_of


@pytest.fixture
def run_all(monkeypatch):
    def run_all(jobs, *options, limits=None):
        monkeypatch.setattr("vadpipe.cli.run.read_config", lambda path: jobs)
        monkeypatch.setattr("vadpipe.cli.run.limits_of", lambda path: limits or Limits())
        done = CliRunner().invoke(run, ["x.py", "--json", *options], standalone_mode=False)
        assert done.exception is None, done.exception
        return done.return_value, json.loads(done.stdout)

    return run_all


@pytest.mark.slow
@pytest.mark.parametrize(
    "limits",
    [
        Limits(connections=3),
        Limits(connections=None, nfc_bytes=3 * SESSION_BYTES),
        Limits(streams=3),
        Limits(snapshots=1),
    ],
)
def test_no_host_and_no_datastore_bears_more_than_its_limit(lab, vms, job_of, run_all, counting, limits):
    code, document = run_all([job_of(name) for name in vms], "--jobs", "9", limits=limits)
    assert (code, len(document["jobs"])) == (0, 9)
    for name, most in counting.most.items():
        kind = name.rpartition("/")[2].replace("nfc-bytes", "nfc_bytes")
        limit = getattr(limits, kind, None)
        # Of the disks that are open at a datastore a job reads two at a time.
        assert not limit or most <= (limit if kind != "streams" else limit + 1), name
    assert sum(most for name, most in counting.most.items() if name.endswith("/connections")) > 3
    assert all(lab.snapshots(vm.moref) == {} for vm in lab.vms)


@pytest.mark.slow
def test_without_limits_more_would_run_at_once(vms, job_of, run_all, counting):
    """The limits of the test above are those that hold the jobs back, not the lab."""
    none = Limits(connections=None, nfc_bytes=None, streams=None, snapshots=None, sessions=None)
    run_all([job_of(name) for name in vms], "--jobs", "9", limits=none)
    assert max(most for name, most in counting.most.items() if name.endswith("/connections")) > 3
    assert max(most for name, most in counting.most.items() if name.endswith("/snapshots")) > 1


@pytest.mark.slow
def test_a_job_that_fails_stops_no_other_and_gives_its_place_back(vms, job_of, run_all):
    jobs = [job_of(name) for name in [*vms[:3], "nowhere", *vms[3:]]]
    code, document = run_all(jobs, "--jobs", "3", limits=Limits(sessions=1))
    assert code == EXIT_FAILED
    codes = {one["job"]: one["exit_code"] for one in document["jobs"]}
    assert codes == {**dict.fromkeys(vms, 0), "nowhere": EXIT_FAILED}


@pytest.mark.slow
async def test_a_run_that_is_cancelled_leaves_no_snapshot_and_starts_no_further_job(
    lab, vms, job_of, tmp_path
):
    jobs = [job_of(name) for name in vms]
    running = Run(tmp_path / "x.py", 4, {}, as_json=True, limits=Limits(snapshots=2))
    started = []

    def note(event):
        if event.kind == "job started":
            started.append(event.facts["machine"])
        if event.kind == "disk started":
            scope.cancel()

    with trio.CancelScope() as scope, observed(note):
        await running.work(jobs, None)
    assert scope.cancelled_caught
    assert all(lab.snapshots(vm.moref) == {} for vm in lab.vms)
    assert len(started) <= 4
    assert running.not_run == len(vms) - len(started)
    assert [outcome.code for outcome in running.outcomes] == [130] * len(started)


@pytest.mark.slow
def test_events_name_their_job_and_say_what_it_waits_for(vms, job_of, run_all):
    told = []
    with observed(told.append):
        run_all([job_of(name) for name in vms[:4]], "--jobs", "4", limits=Limits(sessions=1))
    waiting = [event.as_dict() for event in told if event.kind == "job waiting"]
    assert {event["job"] for event in waiting} <= set(vms)
    assert any(event["resource"].startswith("vcenter:") for event in waiting)
    assert {event.as_dict().get("job") for event in told if event.kind == "disk started"} == set(vms[:4])


@pytest.mark.slow
def test_the_job_that_read_the_most_the_last_time_starts_first(lab, vcenter, job_of, run_all, tmp_path):
    repository = Repository(tmp_path / "repository")
    repository.init()

    def path(disk, point):
        return (
            AllocatedExtents(disk)
            | ReadSpans(disk)
            | MarkZeros()
            | CutChunks()
            | Digest(point)
            | Dedupe(point)
            | Compress(Zstd(level=1))
            | IntoRepository(point, disk)
        )

    for name, count in (("small", 1), ("large", 3), ("middle", 2)):
        home = lab.datastore("datastore1") / name
        disks = [LabDisk.create(home, f"{name}_{disk}", 1 << 20) for disk in range(count)]
        for disk in disks:
            disk.write(0, bytes(range(256)) * 256)
        lab.register_vm(home, name, disks)
    jobs = [job_of(name, repository, path) for name in ("small", "large", "middle")]
    order = []

    def note(event):
        if event.kind == "job started":
            order.append(event.facts["machine"])

    with observed(note):
        code, document = run_all(jobs, "--jobs", "2", limits=Limits(sessions=1))
        assert code == 0, document
        assert order == ["small", "large", "middle"]
        order.clear()
        run_all(jobs, "--jobs", "2", limits=Limits(sessions=1))
    assert order == ["large", "middle", "small"]


def test_a_vm_holds_what_its_disks_take_where_they_are():
    needs = needs_of_vm("vc", "h", ["d1", "d1", "d1", "d2"], disks_at_once=2, over_network=True)
    assert needs == {
        sessions("vc"): 1,
        connections("vc/h"): 4,
        nfc_bytes("vc/h"): 4 * SESSION_BYTES,
        streams("vc/d1"): 2,
        snapshots("vc/d1"): 1,
        streams("vc/d2"): 1,
        snapshots("vc/d2"): 1,
    }
    local = needs_of_vm("vc", "h", ["d1"], disks_at_once=2, over_network=False)
    assert local == {sessions("vc"): 1, streams("vc/d1"): 1, snapshots("vc/d1"): 1}


@pytest.mark.parametrize(
    ("version", "disks"), [("6.7.0", 9), ("7.0.3", 9), ("8.0.3", 19), ("9.0", 19), ("", 9), ("5.5", 6)]
)
def test_nfc_buffers_are_those_of_the_version_of_the_host(version, disks):
    there = Limits().nfc_bytes_of(version)
    assert there is not None
    assert there // SESSION_BYTES == disks
    assert replace(Limits(), nfc_bytes=1).nfc_bytes_of(version) == 1


@pytest.mark.parametrize("value", [0, -1, "many", 1.5, True])
def test_an_impossible_limit_is_refused(value):
    with pytest.raises(ConfigError, match="streams"):
        Limits(streams=value)
