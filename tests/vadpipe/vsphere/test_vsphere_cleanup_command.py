"""`vadpipe cleanup` lists what nothing refers to, beside what it did, and climbs only when told to."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from pyVmomi import vim

from pipeline.errors import EXIT_ATTENTION, EXIT_DONE
from vadpipe.cli.cleanup import cleanup
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.snapshot.remove import ConsolidationNeeded
from vadpipe.vsphere.snapshot.snapshot import open_snapshot

Document = dict[str, list[dict[str, object]]]
RunCleanup = Callable[..., tuple[int, Document]]

CONFIG = """
from pathlib import Path

from pipeline import Job
from pipeline.secrets import Secret
from sinks import Nowhere
from stages import Journal, Vcenter, VcenterVm

vcenter = Vcenter({address!r}, "backup", Secret.from_text("lab"), thumbprint={thumbprint!r}, port={port},
                  patience_s=0.15)
journal = Journal(Path({journal!r}))
jobs = [
    Job(VcenterVm(vcenter, vm, reader=None, journal=journal), print, into=Nowhere(), name=f"{{vm}} {{number}}")
    for number, vm in enumerate({vms!r})
]
"""


@pytest.fixture
def run_cleanup(
    lab: LabVcenter, journal: Journal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> RunCleanup:
    """Runs the command for these VMs; its exit code and document."""

    def run(*vms: str, options: tuple[str, ...] = ()) -> tuple[int, Document]:
        config = tmp_path / "config.py"
        facts = {"address": lab.address, "thumbprint": lab.thumbprint_sha256, "port": lab.port}
        config.write_text(CONFIG.format(**facts, journal=str(journal.directory), vms=list(vms)))
        code = cleanup.main([str(config), "--json", *options], standalone_mode=False)
        return code, json.loads(capsys.readouterr().out)

    return run


def test_orphan_candidates_are_listed_once_and_left(lab, add_vm, run_cleanup):
    add_vm()
    stray = lab.datastore("datastore1") / "web01" / "stray.vmdk"
    stray.write_bytes(b"x" * 10)
    code, document = run_cleanup("web01", "web01")
    assert code == EXIT_DONE
    (orphan,) = document["orphan_candidates"]
    assert (orphan["path"], orphan["size"]) == ("[datastore1] web01/stray.vmdk", 10)
    assert document["orphans_unknown"] == []
    assert stray.exists()


@pytest.mark.parametrize(
    ("vms", "problem"), [(("web01",), "Datastore.Browse"), (("web01", "nowhere"), "no VM 'nowhere'")]
)
def test_cleanup_says_where_it_cannot_look(lab, add_vm, run_cleanup, vms, problem):
    add_vm()
    lab.forbid_datastore("datastore1")
    code, document = run_cleanup(*vms)
    assert (code, document["orphan_candidates"]) == (EXIT_DONE, [])
    (unknown,) = document["orphans_unknown"]
    assert problem in str(unknown)


@pytest.mark.slow
def test_the_option_consolidate_escalate_consolidates_what_asking_did_not(
    lab, vcenter, journal, add_vm, run_cleanup
):
    moref = add_vm()

    async def leave_redo_logs() -> None:
        async with vcenter.connect() as session:
            vm = await find_vm(session, "web01")
            with pytest.raises(ConsolidationNeeded):
                async with open_snapshot(session, vm, Quiesce.none(), journal, run="r", consolidate="never"):
                    pass

    lab.inject("consolidation", lambda: vim.fault.FileFault(file="x"), in_task=True)
    trio.run(leave_redo_logs)
    lab.inject("ConsolidateVMDisks_Task", lambda: vim.fault.FileFault(file="x"), in_task=True, chance=1)
    assert run_cleanup("web01")[0] == EXIT_ATTENTION
    assert lab.needs_consolidation(moref)
    code, document = run_cleanup("web01", options=("--consolidate", "escalate"))
    assert code == EXIT_DONE
    assert "consolidated" in str(document["swept"][0]["outcome"])
    assert not lab.needs_consolidation(moref)
