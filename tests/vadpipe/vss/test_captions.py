"""Databases by the names that people know: captions of components, and databases that a writer excludes."""

import json

import pytest

from tests.vadpipe.vss.documents_kit import EXCHANGE, SQL, backup, metadata, offered, part
from vadpipe.cli.findings import verdict_lines
from vadpipe.vss.classify import classify_documents
from vadpipe.vss.documents import WriterMetadata
from vadpipe.vss.parse import MAX_NAME, parse_document
from vadpipe.vss.require import Require, RequireApplication
from vadpipe.vss.verdict import read_verdict

HYPER_V = "66841cd4-6ded-4f4b-8f17-fd23f8ddc3de"
STORE = "Microsoft Exchange Server\\Microsoft Information Store\\MAIL01"
MAILBOXES = "\\".join((STORE, "0f3c2f5e-77c4-4d41-b9a5-4e0a2f3b1c9d"))
GUEST = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"


def short(verdict, application, *databases):
    return Require(applications=(RequireApplication(application, databases),)).shortfalls(
        verdict, "none", "fail"
    )


def exchange(*included):
    writer = metadata(EXCHANGE, offered(MAILBOXES, caption="Sales Mailboxes"), offered(f"{STORE}\\Other"))
    return classify_documents([backup(part(writer, *included)), writer])


@pytest.mark.parametrize("name", ["Sales Mailboxes", "sales mailboxes", MAILBOXES.rpartition("\\")[2]])
def test_an_exchange_database_is_required_by_its_caption_or_by_its_guid(name):
    assert short(exchange(MAILBOXES), "Exchange", name) == ()
    (sentence,) = short(exchange(f"{STORE}\\Other"), "Exchange", name)
    assert f"required database {name} is not proven ({MAILBOXES})" in sentence


@pytest.mark.parametrize("caption", ["dc01", "Online\\dc01"])
def test_a_machine_of_hyper_v_is_required_by_its_name(caption):
    writer = metadata(HYPER_V, offered(GUEST, caption=caption))
    verdict = classify_documents([backup(part(writer, GUEST)), writer])
    assert short(verdict, "Hyper-V", "dc01") == ()
    assert "is not in the manifest" in short(verdict, "Hyper-V", "c01")[0]


def test_what_comes_along_with_a_captioned_component_is_short_with_it():
    writer = metadata(EXCHANGE, offered(MAILBOXES, caption="Sales"), offered(f"{MAILBOXES}\\Logs"))
    documents = [backup(), writer]
    (sentence,) = short(classify_documents(documents), "Exchange", "Sales")
    assert "is not proven" in sentence


def test_captions_are_shown_beside_guids_and_stored_with_the_verdict():
    verdict = exchange(MAILBOXES)
    assert any(f"{MAILBOXES} (Sales Mailboxes)" in line for line in verdict_lines("m.zip", verdict))
    document = json.loads(json.dumps(verdict.as_dict()))
    (application,) = document["applications"]
    assert application["captions"] == {MAILBOXES: "Sales Mailboxes"}
    assert read_verdict(document).as_dict() == document


def test_a_caption_is_one_line_and_cut():
    component = f'<FILE_GROUP componentName="a" caption="two&#10;lines {"x" * 1000}"/>'
    identity = '<IDENTIFICATION writerId="1" instanceId="2"/>'
    text = f"<WRITER_METADATA>{identity}<BACKUP_LOCATIONS>{component}</BACKUP_LOCATIONS></WRITER_METADATA>"
    document = parse_document("w.xml", text.encode())
    assert isinstance(document, WriterMetadata)
    assert document.components[0].caption.startswith("two lines xxx")
    assert len(document.components[0].caption) == MAX_NAME


def test_a_database_that_its_writer_excludes_is_called_excluded():
    writer = metadata(SQL, offered("SRV\\master"), excluded=("d:\\data\\sales.mdf",))
    verdict = classify_documents([backup(part(writer, "SRV\\master")), writer])
    (sentence,) = short(verdict, "SQL Server", "SRV\\Sales")
    assert sentence == (
        "SQL Server: required database SRV\\Sales is excluded by its own writer: the snapshot leaves out "
        "d:\\data\\sales.mdf."
    )
    assert "is not in the manifest" in short(verdict, "SQL Server", "hr")[0]


def test_an_application_whose_writer_the_job_excludes_is_called_excluded():
    writer = metadata(SQL, offered("SRV\\master"), name="SqlServerWriter")
    verdict = classify_documents([backup(part(writer, "SRV\\master")), writer], excluded=["SQL Server"])
    assert short(verdict, "SQL Server") == (
        "SQL Server is required, but the job excludes its writer SqlServerWriter.",
    )
