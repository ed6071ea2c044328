"""A job for each VM of a selection, through the commands as a user sees them.

They run trio themselves, so these tests are not asynchronous.
"""

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from pipeline.errors import ConfigError, SourceError
from pipeline.job import Job, JobSource
from vadpipe.cli.cleanup import cleanup
from vadpipe.cli.config import load_jobs, read_config
from vadpipe.cli.preflight import preflight, prepare
from vadpipe.cli.run import plan, run
from vadpipe.lab.vcenter.faults.injection import Event
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.journal.intents import Journal

Write = Callable[[str], Path]

CONFIG = """
from pathlib import Path

from vadpipe.lab.campaigns.disks import LabReader
from pipeline import Job, Secret
from pipeline.testing import FakeTarget
from sinks import NullSink
from stages import (
    AllocatedExtents, EachVm, Journal, MarkZeros, Quiesce, ReadSpans, SelectVms, Vcenter, VcenterVm,
)

vcenter = Vcenter(
    {address!r}, "backup", Secret.from_text("lab"), thumbprint={thumbprint!r}, port={port}, patience_s=1
)
store = FakeTarget()


def path(disk, point):
    return AllocatedExtents(disk) | ReadSpans(disk) | MarkZeros() | NullSink()


def job_of(vm, **settings):
    reader, journal = LabReader(Path({root!r})), Journal(Path({journal!r}))
    machine = VcenterVm(vcenter, vm, reader=reader, quiesce=Quiesce.none(), journal=journal)
    return Job(machine, path, into=store, **settings)


"""


@pytest.fixture
def write(lab: LabVcenter, journal: Journal, tmp_path: Path) -> Write:
    """A configuration whose last lines are given; its path."""

    def write(lines: str) -> Path:
        head = CONFIG.format(
            address=lab.address,
            thumbprint=lab.thumbprint,
            port=lab.port,
            root=str(lab.root),
            journal=str(journal.directory),
        )
        path = tmp_path / "jobs.py"
        path.write_text(head + lines + "\n")
        return path

    return write


def invoke(command: click.Command, *arguments: str | Path) -> Result:
    """The result of a command; it returns its exit code, as `vadpipe` expects."""
    result = CliRunner().invoke(command, [*map(str, arguments)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


def points(result: Result) -> list[tuple[str, int]]:
    """(job, exit code) of each job that a run tells of."""
    return [(job["job"], job["exit_code"]) for job in json.loads(result.stdout)["jobs"]]


def titles(path: Path) -> list[str]:
    return [job.title for job in load_jobs(path)]


ALL = 'jobs = EachVm(vcenter, SelectVms("*"), job_of)'


@pytest.mark.slow
def test_every_selected_vm_is_backed_up(lab, add_vm, write):
    daily = lab.tags.create("backup", "daily")
    for name, folder in (("web02", "Web"), ("web01", "Web/Test"), ("db01", "")):
        lab.tags.attach(daily, add_vm(name, folder=folder))
    add_vm("web03", folder="Web")
    path = write(
        'jobs = EachVm(vcenter, SelectVms("*", inside="/Datacenter/vm/Web", tag="backup/daily"), job=job_of)'
    )
    result = invoke(run, path)
    assert result.return_value == 0
    assert [line.split(":")[0] for line in result.stdout.splitlines() if "point" in line] == [
        "web01",
        "web02",
    ]
    assert result.stdout.splitlines()[-1] == "2 jobs: 2 done"
    told = json.loads(invoke(run, path, "--json").stdout)
    assert [(job["job"], job["machine"], job["exit_code"]) for job in told["jobs"]] == [
        ("web01", "web01", 0),
        ("web02", "web02", 0),
    ]
    assert told["ok"] is True


def test_vms_of_one_name_have_their_paths_as_titles(add_vm, lab, write):
    for folder in ("A", "B"):
        lab.register_vm(lab.datastore("datastore1") / folder, "web01", [], folder=folder)
    add_vm("db01")
    path = write(ALL)
    assert titles(path) == ["/Datacenter/vm/A/web01", "/Datacenter/vm/B/web01", "db01"]
    [job] = load_jobs(path, "/Datacenter/vm/B/web01")
    assert job.machine.vm.moref == lab._service._vm_folders.at("B").children[0].moref  # type: ignore[attr-defined]
    assert titles(write('jobs = [EachVm(vcenter, SelectVms(inside="/Datacenter/vm/A"), job_of)]')) == [
        "/Datacenter/vm/A/web01"
    ]


def test_jobs_and_selections_may_be_mixed(add_vm, write):
    add_vm("web01")
    add_vm("db01")
    several = 'EachVm(vcenter, [SelectVms("web*"), SelectVms("web01")], job_of)'
    assert titles(write(f'jobs = [job_of("db01"), {several}]')) == ["db01", "web01"]
    with pytest.raises(ConfigError, match=r"two jobs are called web01\. Give them a name="):
        titles(write(f'jobs = [job_of("web01"), {several}]'))
    named = 'EachVm(vcenter, SelectVms("web*"), lambda vm: job_of(vm, name=f"again {vm.name}"))'
    assert titles(write(f"jobs = [{several}, {named}]")) == ["web01", "again web01"]


@pytest.mark.slow
def test_one_of_the_jobs_may_be_picked(add_vm, write):
    for number in range(12):
        add_vm(f"web{number:02}")
    path = write(ALL)
    result = invoke(run, path, "--job", "web07", "--json")
    assert points(result) == [("web07", 0)]
    with pytest.raises(ConfigError, match=r"has no job web7; it has web07, .*, \.\.\.\.$"):
        invoke(run, path, "--job", "web7")


@pytest.mark.slow
def test_a_vm_that_vanishes_fails_its_own_job_only(lab, add_vm, write):
    morefs = {name: add_vm(name) for name in ("web01", "web02", "web03")}
    lab.inject(
        "RemoveSnapshot_Task", Event(lambda: lab.unregister_vm(morefs["web02"]))
    )  # while web01 is at work
    result = invoke(run, write(ALL), "--json")
    assert result.return_value == 1
    assert points(result) == [("web01", 0), ("web02", 1), ("web03", 0)]
    assert f"/Datacenter/vm/web02 ({morefs['web02']}) is no longer on" in result.stderr


@pytest.mark.slow
def test_a_renamed_vm_is_found_again(lab, add_vm, write):
    add_vm("web01")
    second, third = add_vm("web02"), add_vm("web03")
    held: list[list[str]] = []

    def swap_names() -> None:
        vms = lab._inventory.vms
        vms[second].name, vms[third].name = "web03", "web02"

    lab.inject("RemoveSnapshot_Task", Event(swap_names))  # while web01 is at work
    for nth in (2, 3):
        lab.inject(
            "RemoveSnapshot_Task",
            Event(lambda: held.append([moref for moref in (second, third) if lab.snapshots(moref)])),
            nth,
        )
    result = invoke(run, write(ALL), "--json")
    assert points(result) == [("web01", 0), ("web02", 0), ("web03", 0)]
    assert held == [[second], [third]]


@pytest.mark.slow
def test_a_failed_selection_does_not_stop_other_jobs(add_vm, write):
    add_vm("web01")
    path = write(
        'jobs = [EachVm(vcenter, SelectVms("db*"), job_of), EachVm(vcenter, SelectVms("*"), job_of)]'
    )
    result = invoke(run, path)
    assert result.return_value == 1
    title = "each VM on 127.0.0.1 named db*"
    assert f"vadpipe: {title}: No VM on 127.0.0.1 is named db*; the account sees 1 VM." in result.stderr
    assert result.stdout.splitlines()[-1] == "2 jobs: 1 done, 1 failed"
    assert points(invoke(run, path, "--json")) == [(title, 1), ("web01", 0)]
    assert points(invoke(run, path, "--json", "--job", "web01")) == [("web01", 0)]
    with pytest.raises(SourceError, match=r"is named db\*"):
        invoke(run, path, "--job", "db01")
    with pytest.raises(SourceError, match=r"is named db\*"):
        load_jobs(path)


def test_plan_does_not_connect(lab, write):
    path = write('jobs = EachVm(vcenter, SelectVms("web*", tag="backup/daily", exclude=["*-test"]), job_of)')
    lab.stop()
    lines = invoke(plan, path).stdout.splitlines()
    lab.start()
    assert lines[0] == "job each VM on 127.0.0.1 named web*, tagged backup/daily, not *-test"
    assert lines[1:4] == [
        "    AllocatedExtents(disk=disk)",
        "  | ReadSpans(disk=disk, ahead=2)",
        "  | MarkZeros()",
    ]
    touched = [line for line in lines if line.startswith("  effect: ")]
    assert touched[0] == (
        "  effect: Selects on 127.0.0.1, when the command runs, "
        "every VM named web*, tagged backup/daily, not *-test."
    )
    assert touched[1].startswith("  effect: Takes a snapshot of each VM on 127.0.0.1 without quiescing")
    assert invoke(plan, path, "--job", "web01").stdout.splitlines() == lines
    assert lab.calls == {}


def test_preflight_and_prepare_select_too(lab, add_vm, write):
    add_vm("web01", enable_uuid=False)
    add_vm("web02")
    path = write('jobs = EachVm(vcenter, SelectVms("web*"), job_of)')
    told = json.loads(invoke(preflight, path, "--no-network", "--json").stdout)
    assert [job["vm"] for job in told["jobs"]] == ["web01", "web02"]
    told = json.loads(invoke(prepare, path, "--enable-change-tracking", "--json").stdout)
    assert [vm["vm"] for vm in told["vms"]] == ["web01", "web02"]
    assert all(vm.change_tracking for vm in lab._inventory.vms.values())


def test_cleanup_needs_no_vm_to_be_selected_any_more(lab, add_vm, write):
    add_vm("web01")
    before = dict(lab.calls)
    result = invoke(cleanup, write('jobs = EachVm(vcenter, SelectVms("none-is-called-so"), job_of)'))
    swept, unknown = result.stdout.splitlines()
    assert swept == "Nothing was left behind."
    assert unknown.startswith("Orphan candidates of each VM")
    assert lab.calls.get("Login", 0) > before.get("Login", 0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            'jobs = EachVm(vcenter, SelectVms("*"), lambda vm: TABLE[vm.name])\nTABLE = {}',
            r"cannot be made for /Datacenter/vm/web01: KeyError: 'web01'\. Correct the function job=",
        ),
        (
            'jobs = EachVm(vcenter, SelectVms("*"), lambda vm: vm)',
            r"gave Vm\(.*Let it return a pipeline\.Job",
        ),
        ("jobs = EachVm(vcenter, [], job_of)", "has no selection"),
        (
            "from dataclasses import replace\n"
            'vcenter = Vcenter(vcenter.server, cookie=Secret.from_text("x"), thumbprint=vcenter.thumbprint)\n'
            'jobs = EachVm(vcenter, SelectVms("*", exclude=[SelectVms(tag="backup/no")]), job_of)',
            r"line \d+: Tags of 127\.0\.0\.1 cannot be read with the cookie",
        ),
        (
            "jobs = [SelectVms('*')]",
            r"has SelectVms.*where a pipeline\.Job, JobSource or sinks\.Restore is expected",
        ),
    ],
)
def test_a_wrong_job_function_is_a_config_error(add_vm, write, lines, message):
    add_vm("web01")
    with pytest.raises(ConfigError, match=message):
        load_jobs(write(lines))


def test_each_vm_is_a_source_of_jobs(write):
    [entry] = read_config(write(ALL))
    assert isinstance(entry, JobSource)
    assert not isinstance(entry, Job)
