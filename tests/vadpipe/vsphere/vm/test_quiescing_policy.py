"""The policy on quiescing against a vCenter: another snapshot, no point, and what was really sent."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import Job, QuiescingShort
from pipeline.errors import leaves
from stages import Journal, Quiesce, VcenterVm, VssManifest
from vadpipe.lab.campaigns.points import DirectoryTarget, path
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.quiescing import QuiesceRequest
from vadpipe.lab.vss.recipe import ManifestRecipe, manifest_zip
from vadpipe.vss.requested import RequestedQuiescing

pytestmark = pytest.mark.slow
PARTIAL = ManifestRecipe(drop_writers=frozenset({"Registry Writer"}))


@dataclass
class Guest:
    """A guest whose first `bad` snapshots lack a writer."""

    bad: int = 0
    snapshots: int = 0

    def __call__(self, request: QuiesceRequest) -> bytes:
        self.snapshots += 1
        return manifest_zip(request, PARTIAL if self.snapshots <= self.bad else ManifestRecipe())


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
def lab(tmp_path: Path, guest: Guest) -> Iterator[LabVcenter]:
    with LabVcenter(tmp_path / "lab", task_s=0.02, manifest=guest) as running:
        yield running


@pytest.fixture
def job(vcenter, reader, journal: Journal, add_vm: Callable[..., str], tmp_path: Path):
    add_vm()

    def make(quiesce: Quiesce | None = None, **policy: object):
        machine = VcenterVm(
            vcenter, "web01", reader=reader, journal=journal, quiesce=quiesce or Quiesce.application()
        )
        return Job(machine, path, into=DirectoryTarget(tmp_path / "points"), finish=[VssManifest(**policy)])

    return make


async def test_a_second_snapshot_is_taken_when_the_first_is_short(lab, guest, job):
    guest.bad = 1
    receipt = await job(retries=1, retry_after_s=0.0).run()
    assert (guest.snapshots, receipt.attention, receipt.snapshots_left) == (2, [], 0)
    assert receipt.evidence.reached == "application"
    assert any("given up for another one" in remark for remark in receipt.remarks)
    assert lab.calls["RemoveSnapshot_Task"] == 2


async def test_a_point_that_falls_short_is_marked_or_not_published(lab, guest, job, tmp_path):
    guest.bad = 9
    receipt = await job(retries=1, retry_after_s=0.0).run()
    assert guest.snapshots == 2
    assert receipt.attention == ["Quiescing reached application-partial, but application was requested."]
    published = len(list((tmp_path / "points").iterdir()))
    with pytest.raises((QuiescingShort, ExceptionGroup)) as failed:
        await job(on_shortfall="discard").run()
    [short] = leaves(failed.value)
    assert isinstance(short, QuiescingShort)
    assert "Registry Writer" in str(short)
    assert len(list((tmp_path / "points").iterdir())) == published
    assert lab.calls["RemoveSnapshot_Task"] == 3


async def test_what_was_sent_is_known_and_agrees_with_the_documents(job):
    quiesce = Quiesce.application(backup_type="full", bootable_system_state=False, partial_files=True)
    wanted = job(quiesce)
    async with wanted.machine.capture() as capture:
        assert capture.quiescing_sent == RequestedQuiescing("application", "full", False, True)
        evidence = await wanted.finish[0].finish(capture)
    assert not [reason for reason in evidence.reasons if reason.startswith("options-differ")]
    assert [reason for reason in evidence.reasons if reason.startswith("logs-changed: SqlServerWriter")]


async def test_the_weaker_kind_that_was_tried_in_the_end_is_what_was_sent(lab, job):
    (vm,) = lab._inventory.vms.values()
    vm.quiescing = "file-system"
    async with job(Quiesce.application(policy="try", retries=0)).machine.capture() as capture:
        assert (capture.quiescing_asked, capture.quiescing_sent.kind) == ("application", "file-system")
