"""Restores into new VMs as a user sees them: commands, exit codes, one message for every mistake."""

import json

import pytest

from tests.conftest import EXAMPLES
from vadpipe.lab.witness import chain_digest

pytestmark = pytest.mark.slow

EXAMPLE = EXAMPLES / "restore.py"


@pytest.fixture
def backed_up(small_lab):
    """A VM with a point, and its disks as they were then, by qemu-img."""
    done = small_lab.run("--json")
    assert done.returncode == 0, done.stderr
    return small_lab


def digests_of(lab, name):
    disks = lab.vcenter.disks(lab.vcenter.moref(name))
    return [chain_digest(disk.chain, disk.capacity) for disk in disks]


def test_a_restore_of_a_configuration_runs_like_a_backup(backed_up):
    done = backed_up("run", EXAMPLE, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    [job] = json.loads(done.stdout)["jobs"]
    assert job["exit_code"] == 0
    assert digests_of(backed_up, "web01-restored") == backed_up.digests[-1]


def test_a_point_is_restored_under_another_name(backed_up):
    done = backed_up(
        "restore",
        backed_up.repository,
        "latest",
        f"vsphere:{EXAMPLE}",
        "--name",
        "web01-test",
        "--prove",
        "10%",
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "web01-test: disks restored and proven." in done.stdout
    assert "a sample of" in done.stdout
    assert digests_of(backed_up, "web01-test") == backed_up.digests[-1]


def test_a_plan_says_what_becomes_of_everything_and_makes_nothing(backed_up):
    before = set(backed_up.vcenter.calls)
    shown = backed_up("restore", backed_up.repository, "latest", f"vsphere:{EXAMPLE}", "--plan")
    assert shown.returncode == 0, shown.stderr
    assert "memoryMB" in shown.stdout
    assert "instanceUuid" in shown.stdout
    planned = backed_up("plan", EXAMPLE)
    assert planned.returncode == 0, planned.stderr
    assert "memoryMB" in planned.stdout
    made = set(backed_up.vcenter.calls) - before
    assert not made & {"CreateVM_Task", "ReconfigVM_Task", "Destroy_Task"}


def test_a_name_that_is_taken_is_one_message_before_anything_is_made(backed_up):
    done = backed_up("restore", backed_up.repository, "latest", f"vsphere:{EXAMPLE}", "--name", "web01")
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.strip().splitlines()
    assert "web01" in line
    assert "CreateVM_Task" not in backed_up.vcenter.calls


def test_a_point_is_restored_without_vddk_for_its_disks(backed_up):
    done = backed_up(
        "restore",
        backed_up.repository,
        "latest",
        f"vsphere:{EXAMPLE}",
        "--via",
        "lease",
        "--name",
        "web01-sent",
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "web01-sent: disks restored and proven." in done.stdout
    assert "ImportVApp" in backed_up.vcenter.calls
    assert digests_of(backed_up, "web01-sent") == backed_up.digests[-1]
