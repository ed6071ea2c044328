"""`vadpipe preflight` and `vadpipe prepare` as a user sees them."""

import json

import pytest
from click import UsageError
from click.testing import CliRunner

from pipeline.errors import ConfigError
from vadpipe.cli.preflight import preflight, prepare
from vadpipe.lab.vcenter.state.inventory import GuestVolume, VmTraits
from vadpipe.preflight.privileges import PURPOSES
from vadpipe.preflight.rules import RULES

CONFIG = """
from pipeline import Job, Secret
from sinks import Nowhere
from stages import Quiesce, Vcenter, VcenterVm

vcenter = Vcenter({address!r}, "backup", Secret.from_text("lab"), thumbprint={thumbprint!r}, port={port})

def job_of(name, **settings):
    return Job(VcenterVm(vcenter, name, reader=None, **settings), path=print, into=Nowhere(), name=name)

jobs = [job_of(name, enable_change_tracking=True{quiesce}) for name in {names!r}]
"""
VOLUMES = [GuestVolume("C:\\", 90 << 30, 40 << 30, [2000])]


@pytest.fixture
def config(lab, tmp_path):
    def write(*names, quiesce=""):
        path = tmp_path / "jobs.py"
        path.write_text(
            CONFIG.format(
                address=lab.address, thumbprint=lab.thumbprint, port=lab.port, names=names, quiesce=quiesce
            )
        )
        return str(path)

    return write


# The commands run trio themselves, so these tests are not asynchronous.


def run(command, *arguments):
    """The command's exit code and output; it returns its code, as `vadpipe` expects."""
    result = CliRunner().invoke(command, [*arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value, result.output


@pytest.mark.parametrize(
    ("settings", "quiesce", "code"),
    [
        ({}, "", 0),
        ({"guest_id": "ubuntu64Guest"}, "", 3),
        ({"enable_uuid": False}, "", 1),
        ({"enable_uuid": False}, ", quiesce=Quiesce.application(policy='try')", 3),
        ({"enable_uuid": False}, ", quiesce=Quiesce.auto()", 3),
    ],
)
def test_the_exit_code_says_the_worst(add_vm, config, settings, quiesce, code):
    add_vm(traits=VmTraits(volumes=VOLUMES), **settings)
    path = config("web01", quiesce=quiesce)
    returned, output = run(preflight, path, "--no-network", "--json")
    document = json.loads(output)
    assert returned == document["exit_code"] == code
    assert [job["vm"] for job in document["jobs"]] == ["web01"]


def test_people_get_findings_with_their_remedies(add_vm, config):
    add_vm("good", traits=VmTraits(volumes=VOLUMES))
    add_vm("bad", enable_uuid=False, traits=VmTraits(volumes=VOLUMES))
    code, output = run(preflight, config("good", "bad"), "--no-network")
    assert code == 1
    assert "good: nothing found" in output
    assert "bad: 1 error" in output
    assert "disk.EnableUUID is not TRUE" in output
    assert "vadpipe prepare CONFIG.py --enable-uuid --allow-power-off" in output
    assert max(map(len, output.splitlines())) <= 140


def test_one_job_may_be_picked(add_vm, config):
    add_vm("good", traits=VmTraits(volumes=VOLUMES))
    add_vm("bad", enable_uuid=False)
    assert run(preflight, config("good", "bad"), "--job", "good", "--no-network")[0] == 0


def test_two_jobs_of_one_vm_are_judged_apart(add_vm, config, tmp_path):
    add_vm(power="poweredOff")
    path = config("web01")
    with open(path, "a") as file:
        file.write(
            "jobs.append(Job(VcenterVm(vcenter, 'web01', reader=None, quiesce=Quiesce.none(), "
            "enable_change_tracking=True), path=print, into=Nowhere(), name='at rest'))\n"
        )
    code, output = run(preflight, path, "--no-network", "--json")
    assert code == 3
    assert [job["exit_code"] for job in json.loads(output)["jobs"]] == [3, 0]


def test_without_a_choice_the_hosts_are_tried(add_vm, config, lab):
    lab._inventory.hosts["host-8"].name = "no-such-host.invalid"
    add_vm(traits=VmTraits(volumes=VOLUMES))
    _, output = run(preflight, config("web01"), "--json")  # no VDDK, so nothing is found wanting
    assert json.loads(output)["jobs"][0]["findings"] == []


def test_the_rules_are_listed_without_a_configuration():
    code, output = run(preflight, "--rules")
    assert code == 0
    assert [line.split()[1] for line in output.splitlines()] == [rule.id for rule in RULES]
    listed = json.loads(run(preflight, "--rules", "--json")[1])["rules"]
    assert [rule["id"] for rule in listed] == [rule.id for rule in RULES]
    assert all(rule["remedy"] and rule["source"] and rule["severity"] for rule in listed)


def test_prepare_does_the_procedure(add_vm, config, lab):
    moref = add_vm(enable_uuid=False)
    path = config("web01")
    with pytest.raises(ConfigError, match="--allow-power-off"):
        run(prepare, path, "--enable-uuid")
    code, output = run(prepare, path, "--enable-uuid", "--allow-power-off", "--enable-change-tracking")
    assert code == 0
    assert "disk.EnableUUID is TRUE now" in output
    vm = lab._inventory.vms[moref]
    assert (vm.power, vm.change_tracking, vm.extra_config["disk.EnableUUID"]) == ("poweredOn", True, "TRUE")
    assert lab.disks(moref)[0].change_id, "the restart made change tracking take effect"
    assert run(preflight, path, "--no-network")[0] == 0


def test_a_configuration_without_vsphere_vms_is_an_error(tmp_path):
    path = tmp_path / "jobs.py"
    path.write_text(
        "from pipeline import Job\nfrom sinks import Nowhere\nfrom stages import LocalVm\n"
        "jobs = [Job(LocalVm('web01'), path=print, into=Nowhere(), name='local')]\n"
    )
    with pytest.raises(ConfigError, match="no job for a VM"):
        run(preflight, str(path))


def test_the_privileges_are_listed_with_the_place_and_the_reason():
    code, output = run(preflight, "--privileges")
    assert code == 0
    line = next(line for line in output.splitlines() if line.startswith("Global.DisableMethods "))
    assert "on the root" in line
    assert any("AddExistingDisk" in line and "on the proxy VM" in line for line in output.splitlines())
    document = json.loads(run(preflight, "--privileges", "--json")[1])
    assert {name for one in document["privileges"] for name in one["names"]} == {
        line.split()[0] for line in output.splitlines()
    }


@pytest.mark.parametrize(
    ("script", "begin"), [("govc", "govc role.create vadpipe-backup "), ("powercli", "New-VIRole -Name ")]
)
def test_the_role_has_every_privilege_that_the_rules_check(script, begin):
    _, output = run(preflight, "--privileges", "--role-script", script)
    role, permission = output.splitlines()
    assert role.startswith(begin)
    for purpose in PURPOSES:
        assert all(name in role for name in purpose.names)
    assert "vadpipe-backup" in permission


def test_a_role_script_without_the_table_is_a_usage_error():
    with pytest.raises(UsageError, match="--role-script needs --privileges"):
        run(preflight, "--role-script", "govc")


def test_two_vms_of_one_name_are_told_apart(lab, add_vm, config):
    morefs = [add_vm("one", folder="Web"), add_vm("two", folder="Test")]
    for moref in morefs:
        lab._inventory.vms[moref].name = "web01"
    _, output = run(preflight, config(*morefs), "--no-network")
    titles = [line.partition(":")[0] for line in output.splitlines() if not line.startswith(" ")]
    assert [title.rpartition("/vm/")[2] for title in titles] == ["Web/web01", "Test/web01"]
    jobs = json.loads(run(preflight, config(*morefs), "--no-network", "--json")[1])["jobs"]
    assert [job["vm"] for job in jobs] == ["web01", "web01"]
    assert [job["moref"] for job in jobs] == morefs
    assert [job["path"] for job in jobs] == titles
