"""The record of a restore over a VM: what it says survives, and what is no record is named."""

import pytest

from pipeline.errors import SourceError
from vadpipe.vsphere.journal.intents import Intent, IntentKind, Journal
from vadpipe.vsphere.journal.rollback import (
    DiskProgress,
    Phase,
    Rollback,
    mixed,
    read_rollback,
    remove_rollback,
    rollbacks_of,
    write_rollback,
)

DISKS = {
    "scsi0:0": DiskProgress(path="[ds] web/web.vmdk", capacity=1 << 30),
    "scsi0:1": DiskProgress(path="[ds] web/web_1.vmdk", capacity=2 << 30),
}


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal")


def intent_of(**changes):
    fields = {
        "server": "vc",
        "server_id": "1",
        "vm_moref": "vm-1",
        "vm_uuid": "u",
        "vm_name": "web",
        "run": "r",
    }
    return Intent(**{**fields, "kind": IntentKind.ROLLBACK, **changes})


def record(token="t", **changes):
    return Rollback(token=token, repository="ab", point="p", tracking=True, disks={**DISKS, **changes})


def test_a_record_is_read_as_it_was_written(journal):
    written = record().with_disk("scsi0:1", phase=Phase.BEGUN, position=1 << 20)
    write_rollback(journal, written)
    assert read_rollback(journal, "t") == written
    assert read_rollback(journal, "other") is None
    remove_rollback(journal, "t")
    assert read_rollback(journal, "t") is None


def test_a_vm_is_mixed_from_the_first_write_of_one_disk_on(journal):
    intent = intent_of()
    untouched = record(intent.token)
    write_rollback(journal, untouched)
    assert not untouched.is_mixed
    assert mixed(journal, intent) == ""
    begun = untouched.with_disk("scsi0:1", phase=Phase.BEGUN, position=512 << 20)
    write_rollback(journal, begun)
    told = mixed(journal, intent)
    assert "scsi0:0 (untouched), scsi0:1 (512.0 MiB of 2.0 GiB done)" in told
    assert "Do not power it on" in told
    assert begun.with_disk("scsi0:1", phase=Phase.PROVEN).is_mixed  # the other disk is not the point's


def test_a_record_that_cannot_be_read_is_named(journal):
    write_rollback(journal, record())
    path = journal.directory / "t.rollback.json"
    for content in ("", "{}", '{"disks": 3}', path.read_text().replace("untouched", "unknown")):
        path.write_text(content)
        with pytest.raises(SourceError, match=r"t\.rollback\.json cannot be read: .*restore that VM again"):
            read_rollback(journal, "t")


def test_the_restores_of_one_vm_are_found(journal):
    mine, other = intent_of(), intent_of(vm_uuid="another")
    for intent in (mine, other, intent_of(kind=IntentKind.SNAPSHOT)):
        journal.write(intent)
    assert [one.token for one in rollbacks_of(journal, "1", "u")] == [mine.token]


def test_a_journal_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="cannot be written"):
        write_rollback(Journal(tmp_path / "file"), record())
