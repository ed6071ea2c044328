"""Restores into new VMs as a user sees them: commands, exit codes, one message for every mistake."""

import json
import signal
import time

import pytest

from tests.conftest import EXAMPLES, NIGHTLY, Running
from vadpipe.lab.vcenter import Delay
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
    assert "web01-test: disks restored; a sample of each was proven." in done.stdout
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


def test_a_signal_takes_the_new_vm_away(backed_up, tmp_path):
    backed_up.vcenter.inject("ReconfigVM_Task", Delay(), 2, in_task=True)
    with Running(backed_up, tmp_path, config=EXAMPLE) as running:
        running.wait_for("restoring")
        while backed_up.vcenter.calls.get("ReconfigVM_Task", 0) < 2:
            time.sleep(0.01)
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        backed_up.vcenter.calm()
        _output, errors = running.end()
        assert running.process.returncode == 130, errors
    assert "web01-restored" not in [vm.name for vm in backed_up.vcenter._inventory.vms.values()]
    assert "is destroyed" in errors


def test_cleanup_shows_and_takes_away_what_a_killed_restore_left(backed_up, tmp_path):
    backed_up.vcenter.inject("ReconfigVM_Task", Delay(), 2, in_task=True)
    with Running(backed_up, tmp_path, config=EXAMPLE) as running:
        running.wait_for("restoring")
        while backed_up.vcenter.calls.get("ReconfigVM_Task", 0) < 2:
            time.sleep(0.01)
        running.process.kill()
        running.process.wait()
    backed_up.vcenter.calm()
    target = tmp_path / "target.py"  # a configuration that only has a target
    target.write_text(EXAMPLE.read_text().partition("job = ")[0])
    shown = backed_up("cleanup", target, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "new VM web01-restored" in shown.stdout
    assert "would be removed" in shown.stdout
    done = backed_up("cleanup", target)
    assert done.returncode == 0, done.stderr
    assert "removed" in done.stdout
    assert [vm.name for vm in backed_up.vcenter._inventory.vms.values()] == ["web01"]
    assert "Nothing was left behind." in backed_up("cleanup", target).stdout


def test_a_new_vm_that_somebody_uses_is_named_by_cleanup_with_exit_code_3(backed_up, tmp_path):
    backed_up.vcenter.inject("ReconfigVM_Task", Delay(), 2, in_task=True)
    with Running(backed_up, tmp_path, config=EXAMPLE) as running:
        running.wait_for("restoring")
        while backed_up.vcenter.calls.get("ReconfigVM_Task", 0) < 2:
            time.sleep(0.01)
        running.process.kill()
        running.process.wait()
    backed_up.vcenter.calm()
    backed_up.vcenter.change(backed_up.vcenter.moref("web01-restored"), power="poweredOn")
    done = backed_up("cleanup", EXAMPLE)
    assert done.returncode == 3, done.stderr
    assert "somebody switched it on" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["raw:somewhere", "--name", "x"], "no setting name"),
        (["vsphere:nowhere.py"], "nowhere.py"),
        ([f"vsphere:{NIGHTLY}"], "no `target`"),
        ([f"vsphere:{EXAMPLE}", "--map", "x"], "no mapping"),
        ([f"vsphere:{EXAMPLE}", "--prove", "often"], "no budget"),
        (["null:", "--plan"], "--plan"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message(small_lab, arguments, told):
    done = small_lab("restore", small_lab.repository, "latest", *arguments)
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.strip().splitlines()
    assert told in line
