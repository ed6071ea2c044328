"""A restore over the VM itself as a user sees it: the permission, the flag, the report, and what cleanup says."""

import pytest

from pipeline import KiB
from tests.conftest import EXAMPLES
from vadpipe.lab.witness import chain_digest

pytestmark = pytest.mark.slow

CONFIG = f"""
import runpy
from sinks import OverVm
made = runpy.run_path({str(EXAMPLES / "restore.py")!r})
target = made["target"]
in_place = OverVm(made["vcenter"], writer=target.writer, allow=True)
"""


@pytest.fixture
def backed_up(small_lab):
    """A VM with a point, changed since then and off."""
    done = small_lab.run("--json")
    assert done.returncode == 0, done.stderr
    for disk in small_lab.guest.disks:
        disk.write(1024 * KiB, b"since then" * 1000)
    small_lab.vcenter.guests.service.inventory.vms[small_lab.moref].power = "poweredOff"
    return small_lab


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "in_place.py"
    path.write_text(CONFIG)
    return path


def digests_of(lab):
    return [chain_digest(disk.chain, disk.capacity) for disk in lab.guest.disks]


def restore(lab, config, *options):
    return lab("restore", lab.repository, "latest", f"vsphere:{config}", *options)


def test_the_vm_itself_is_restored_with_the_flag(backed_up, config):
    assert digests_of(backed_up) != backed_up.digests[-1]
    done = restore(backed_up, config, "--in-place")
    assert done.returncode == 0, done.stderr + done.stdout
    assert digests_of(backed_up) == backed_up.digests[-1]
    assert "web01: disks restored and proven." in done.stdout
    assert "--restore-sheet DIR`" in done.stdout
    assert "application restored" not in done.stdout


def test_a_target_that_writes_over_vms_needs_the_flag(backed_up, config):
    config.write_text(config.read_text() + "target = in_place\n")
    before = digests_of(backed_up)
    done = restore(backed_up, config)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("writes over the VM itself. Add --in-place if that is meant.")
    assert digests_of(backed_up) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("del in_place", "does not permit to write over a VM: it has no OverVm."),
        (
            "in_place = OverVm(in_place.vcenter, writer=in_place.writer)",
            "Write allow=True in its OverVm(...)",
        ),
    ],
)
def test_a_configuration_without_permission_is_one_message(backed_up, config, change, message):
    config.write_text(config.read_text() + change + "\n")
    before = digests_of(backed_up)
    done = restore(backed_up, config, "--in-place")
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert message in line
    assert digests_of(backed_up) == before


def test_a_vm_that_is_on_is_one_message(backed_up, config):
    backed_up.vcenter.guests.service.inventory.vms[backed_up.moref].power = "poweredOn"
    done = restore(backed_up, config, "--in-place")
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    assert "It is powered on: shut it down first." in line
    assert "Nothing was touched." in line


@pytest.mark.parametrize("target", ["raw:out", "null:"])
def test_the_flag_is_for_configurations_alone(backed_up, target):
    done = backed_up("restore", backed_up.repository, "latest", target, "--in-place")
    assert done.returncode == 2
    assert "--in-place is for vsphere:CONFIG.py alone." in done.stderr
