"""`vadpipe cleanup`: every kind by its name, a dry run that touches nothing, and consolidation as configured."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from pipeline.units import MiB
from vadpipe.cli.cleanup import cleanup
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.inventory import VmTraits
from vadpipe.vsphere.journal.intents import Intent, IntentKind, Journal
from vadpipe.vsphere.snapshot.tree import description_with

pytestmark = pytest.mark.slow

CONFIG = """
from pathlib import Path
from pipeline import Job, Secret
from sinks import Nowhere
from stages import Journal, Quiesce, Vcenter, VcenterVm, Vddk

vcenter = Vcenter({host!r}, "backup", Secret.from_text("lab"), thumbprint={thumbprint_sha1!r}, port={port},
                  patience_s=0.2)

def job(vm, consolidate):
    machine = VcenterVm(vcenter, vm, reader=Vddk("/nowhere"), quiesce=Quiesce.none(),
                        journal=Journal(Path({journal!r})), consolidate=consolidate)
    return Job(machine, print, Nowhere(), name=vm)

jobs = [job("web01", "never"), job("db01", {consolidate!r})]
"""


@pytest.fixture
def lab(tmp_path):
    with LabVcenter(tmp_path / "lab", task_s=0.02) as running:
        directory = running.datastore("datastore1") / "web01"
        running.register_vm(directory, "web01", [LabDisk.create(directory, "disk0", 4 * MiB)])
        yield running


@pytest.fixture
def run(lab, tmp_path):
    def run(*options, consolidate="ask"):
        config = tmp_path / "config.py"
        settings = {**lab.description(), "journal": str(tmp_path / "journal"), "consolidate": consolidate}
        config.write_text(CONFIG.format(**settings))
        done = CliRunner().invoke(cleanup, [str(config), "--json", *options], standalone_mode=False)
        assert done.exception is None, done.exception
        return done.return_value, json.loads(done.output)["swept"]

    return run


@pytest.fixture
def dead(lab, tmp_path):
    """Writes intents of a run that is no more."""

    def write(kind):
        state = lab._inventory.vms[lab.moref("web01")]
        intent = Intent(
            server=lab.address,
            server_id=lab._inventory.instance_uuid,
            vm_moref=state.moref,
            vm_uuid=state.instance_uuid,
            vm_name="web01",
            run="dead",
            kind=kind,
            libdir="/nowhere",
        )
        intent = replace(intent, process_start="an earlier boot/1")
        Journal(tmp_path / "journal").write(intent)
        return intent

    return write


def test_kinds_are_named_and_a_dry_run_touches_nothing(lab, run, dead):
    moref = lab.moref("web01")
    lab._inventory.vms[moref].power = "poweredOff"
    lab.take_snapshot(moref, "ours", description_with(dead(IntentKind.SNAPSHOT).token))
    dead(IntentKind.POWER)
    dead(IntentKind.RELOCATION_LOCK)
    code, swept = run("--dry-run")
    assert code == 0
    assert {one["kind"]: one["outcome"] for one in swept} == {
        "snapshot": "would be removed",
        "relocation lock": "nothing to undo",
        "power": "would be powered on again",
    }
    assert lab._inventory.vms[moref].power == "poweredOff"
    assert len(lab.snapshots(moref)) == 1

    code, swept = run()
    assert [one["kind"] for one in swept] == ["snapshot", "relocation lock", "power"]  # in this order
    assert [one["outcome"] for one in swept] == ["removed", "nothing to undo", "powered on again"]
    assert lab._inventory.vms[moref].power == "poweredOn"
    assert lab.snapshots(moref) == {}


def test_hot_added_disks_whose_library_is_gone_are_kept_while_a_vm_has_them(lab, run, dead):
    dead(IntentKind.HOT_ADD)
    _, [nowhere] = run()
    assert nowhere["outcome"] == "nothing to undo"
    lab.register_vm(lab.datastore("datastore1") / "proxy", "proxy", [], traits=VmTraits(proxy=True))
    attached = lab.root / "hotadd" / lab.moref("web01") / "disk0.vmdk"
    attached.parent.mkdir(parents=True)
    attached.touch()
    code, [kept] = run()
    assert (code, kept["outcome"]) == (3, "kept")
    assert "/nowhere" in kept["reason"]
    assert "hot-added to proxy" in kept["reason"]


@pytest.mark.parametrize("consolidate", ["ask", "never"])
def test_disks_are_consolidated_unless_no_job_wants_it(lab, run, dead, consolidate):
    moref = lab.moref("web01")
    dead(IntentKind.SNAPSHOT)
    lab.take_snapshot(moref, "x")
    lab._inventory.vms[moref].snapshots.clear()  # gone from the tree, its redo log is not
    assert lab.needs_consolidation(moref)
    code, [swept] = run(consolidate=consolidate)
    asked = consolidate == "ask"
    assert lab.needs_consolidation(moref) == (not asked)
    assert code == (0 if asked else 3)
    assert asked or "consolidate='never'" in swept["reason"]
