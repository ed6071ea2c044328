"""Bytes to values: every way in which requesters save these documents, and everything that is refused."""

import codecs
import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadpipe.lab.vss.recipe import ManifestRecipe, manifest_zip
from vadpipe.vss.archive import Member, read_members
from vadpipe.vss.documents import (
    BackupComponent,
    BackupComponents,
    BackupWriter,
    Dependency,
    QuiesceManifest,
    Unreadable,
    Unrecognised,
    WriterComponent,
    WriterMetadata,
)
from vadpipe.vss.parse import MAX_COMPONENTS, MAX_PATH, parse_document
from vadpipe.vss.xml import MAX_DEPTH, MAX_ELEMENTS

BACKUP = """<BACKUP_COMPONENTS xmlns="x-schema:#VssComponentMetadata" version="1.2" selectComponents="yes"
 bootableSystemStateBackup="no" backupType="COPY" futureAttribute="?"
 snapshotSetId="{0F0E0D0C-0000-4000-8000-00000000ABCD}">
 <SNAPSHOT_SET_DESCRIPTION><SNAPSHOT_DESCRIPTION/></SNAPSHOT_SET_DESCRIPTION>
 <WRITER_COMPONENTS instanceId="AAAAAAAA-0000-4000-8000-000000000001"
  writerId="{A65FAA63-5EA8-4EBC-9DBD-A0C4DB26912A}" backupSchema="881" instanceName="Grüße:SQLWriter">
  <COMPONENT componentName="sales" logicalPath="SERVER" componentType="filegroup" backupStamp="CAAAAA=="
   backupSucceeded="yes"><BACKUP_METADATA xmlns="" metadata="VEFQRQ=="/><UNKNOWN><COMPONENT/></UNKNOWN></COMPONENT>
  <COMPONENT componentName="hr" logicalPath="SERVER" componentType="filegroup" backupSucceeded="no"
   anyFailureMsg=" out of space " otherFailureMsg=""><DEEPER><DEEPEST deepFailureMsg="late"/></DEEPER></COMPONENT>
 </WRITER_COMPONENTS>
</BACKUP_COMPONENTS>"""
BACKUP_VALUE = BackupComponents(
    document="any.name",
    select_components=True,
    bootable_system_state=False,
    partial_file_support=None,
    backup_type="copy",
    writers=(
        BackupWriter(
            writer_id="a65faa63-5ea8-4ebc-9dbd-a0c4db26912a",
            instance_id="aaaaaaaa-0000-4000-8000-000000000001",
            instance_name="Grüße:SQLWriter",
            backup_schema=881,
            components=(
                BackupComponent("SERVER", "sales", "filegroup", True, True, True, ()),
                BackupComponent(
                    "SERVER",
                    "hr",
                    "filegroup",
                    False,
                    False,
                    False,
                    (("anyFailureMsg", "out of space"), ("deepFailureMsg", "late")),
                ),
            ),
            failures=(),
        ),
    ),
)
METADATA = """<v:WRITER_METADATA xmlns:v="x-schema:#VssWriterMetadataInfo" version="1.2">
 <v:IDENTIFICATION writerId="B2014C9E-8711-4C5C-A5A9-3CF384484757" instanceId="aaaaaaaa-0000-4000-8000-000000000002"
  friendlyName="NTDS" usage="SYSTEM_SERVICE" dataSource="TRANSACTION_DB"/>
 <v:BACKUP_LOCATIONS>
  <v:EXCLUDE_FILES path="C:\\Windows\\NTDS" filespec="temp.edb" recursive="no"/>
  <v:DATABASE logicalPath="C:_Windows" componentName="ntds" caption="two
lines" selectable="no"><v:DATABASE_FILES path="a" filespec="b"/>
   <v:DATABASE_LOGFILES path="c" filespec="d"/></v:DATABASE>
  <v:FILE_GROUP componentName="files" selectable="yes" componentFlags="4"><v:FILE_LIST path="e" filespec="f"/>
   <v:FILE_LIST path="E:\\" filespec="A.MDF"/><v:FILE_LIST path="E:" filespec="*.mdf"/>
   <v:ANYTHING><v:NEEDED logicalPath="\\\\srv\\app" componentName="base"
    writerId="{A65FAA63-5EA8-4EBC-9DBD-A0C4DB26912A}"/></v:ANYTHING><v:OTHER componentName="no id"/></v:FILE_GROUP>
 </v:BACKUP_LOCATIONS>
</v:WRITER_METADATA>"""
METADATA_VALUE = WriterMetadata(
    document="any.name",
    writer_id="b2014c9e-8711-4c5c-a5a9-3cf384484757",
    instance_id="aaaaaaaa-0000-4000-8000-000000000002",
    instance_name="",
    friendly_name="NTDS",
    usage="SYSTEM_SERVICE",
    data_source="TRANSACTION_DB",
    backup_schema=0,
    components=(
        WriterComponent("database", "C:_Windows", "ntds", False, 2, caption="two lines"),
        WriterComponent(
            "filegroup",
            "",
            "files",
            True,
            3,
            system_state=False,
            dependencies=(Dependency("a65faa63-5ea8-4ebc-9dbd-a0c4db26912a", "\\\\srv\\app", "base"),),
            database_files=("e:\\a.mdf",),
        ),
    ),
    excluded_databases=("c:\\windows\\ntds\\temp.edb",),
)
MARKS = {"utf-8": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
VARIANTS = list(
    itertools.product(
        MARKS,
        (False, True),
        ("", "UTF-8", "UTF-16", "windows-1252", "no-such-encoding"),
        ("", "\0", "\0\0\r\n\0", "\r\n"),
        ("", "\r\n "),
    )
)


@pytest.mark.parametrize(("text", "value"), [(BACKUP, BACKUP_VALUE), (METADATA, METADATA_VALUE)])
def test_every_encoding_variant_gives_the_same_value(text, value):
    for encoding, mark, declared, tail, lead in VARIANTS:
        declaration = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
        data = (MARKS[encoding] if mark else b"") + (lead + declaration + text + tail).encode(encoding)
        assert parse_document("any.name", data) == value, (encoding, mark, declared, tail, lead)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_single_nul_behind_two_byte_text_is_padding(encoding):
    assert parse_document("any.name", BACKUP.encode(encoding) + b"\0") == BACKUP_VALUE


def test_a_code_page_counts_when_it_is_declared():
    text = f'<?xml version="1.0" encoding="windows-1252"?>{BACKUP}'
    assert parse_document("any.name", text.encode("cp1252")) == BACKUP_VALUE
    undeclared = parse_document("any.name", BACKUP.encode("cp1252"))
    assert isinstance(undeclared, Unreadable)
    assert "not text in utf-8" in undeclared.why
    assert undeclared.where == f"byte {BACKUP.index('ü')}"


@pytest.mark.parametrize("declared", ["zip", "idna", "utf-7", "windows-1299", "iso-8859-99"])
def test_no_other_codec_is_ever_asked(declared):
    data = f'<?xml version="1.0" encoding="{declared}"?><a b="'.encode() + b'\xe4"/>'
    assert isinstance(parse_document("a.xml", data), Unreadable)


@pytest.mark.parametrize(
    ("text", "why", "where"),
    [
        ("", "empty document", "byte 0"),
        ("\0\0 ", "empty document", "byte 0"),
        ("plain", "syntax error", "line 1, column 0"),
        ("<a>\n<b></a>", "mismatched tag", "line 2, column 5"),
        (BACKUP[: BACKUP.index("<UNKNOWN>")], "no element found", "line 8"),
        ('<a b="1" b="2"/>', "duplicate attribute", "line 1"),
        ("<!DOCTYPE a><a/>", "and entities are refused", "prolog"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "and entities are refused", "prolog"),
        ('<!DOCTYPE a SYSTEM "http://localhost/a.dtd"><a/>', "and entities are refused", "prolog"),
        ("<a>&b;</a>", "undefined entity", "line 1"),
        ("<WRITER_METADATA/>", "does not identify itself", "element 1"),
        ('<WRITER_METADATA><IDENTIFICATION writerId="1"/></WRITER_METADATA>', "instanceId", "element 2"),
        ("<a>" * (MAX_DEPTH + 2), f"deeper than {MAX_DEPTH}", f"element {MAX_DEPTH + 1}"),
        (
            BACKUP.replace("sales", "s" * MAX_PATH),
            "path longer than 1,024",
            "element 5",
        ),
    ],
)
def test_a_refused_document_names_the_cause_and_the_place(text, why, where):
    refused = parse_document("bad.xml", text.encode())
    assert isinstance(refused, Unreadable)
    assert refused.document == "bad.xml"
    assert why in refused.why
    assert where in refused.where


def test_too_many_components_are_refused():
    listed = b"<WRITER_COMPONENTS/>" * (MAX_COMPONENTS + 1)
    refused = parse_document("bad.xml", b"<BACKUP_COMPONENTS>" + listed + b"</BACKUP_COMPONENTS>")
    assert isinstance(refused, Unreadable)
    assert refused.why == f"more than {MAX_COMPONENTS:,} writers and components"


@pytest.mark.slow
def test_too_many_elements_are_refused():
    refused = parse_document("bad.xml", b"<a>" + b"<b/>" * MAX_ELEMENTS + b"</a>")
    assert refused == Unreadable("bad.xml", "more than 200,000 elements", "element 200,001")


def test_an_expanding_document_is_refused_at_its_document_type():
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<!DOCTYPE b [<!ENTITY l0 "ha">{levels}]><b>&l9;</b>'
    assert isinstance(parse_document("bomb.xml", bomb.encode("utf-16")), Unreadable)


@pytest.mark.parametrize(
    "text",
    [
        "<quiesceManifest><productVersion>12.4</productVersion>"
        "<providerName> sync </providerName></quiesceManifest>",
        '<quiesceManifest productVersion="12.4" providerName="sync"/>',
    ],
)
def test_the_manifest_of_a_linux_guest_is_recognised(text):
    assert parse_document("q.xml", text.encode()) == QuiesceManifest("q.xml", "sync")


def test_other_xml_is_named_by_its_root():
    assert parse_document("Manifest.xml", "<p:Set xmlns:p='u'/>".encode("utf-16")) == Unrecognised(
        "Manifest.xml", "Set"
    )


def test_a_backup_document_may_have_no_writers():
    assert parse_document("b", b"<BACKUP_COMPONENTS selectComponents='maybe'/>") == BackupComponents(
        "b", None, None, None, "", ()
    )


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value(data):
    assert parse_document("any", data).document == "any"


@given(st.integers(0, len(BACKUP.encode()) - 1), st.binary(min_size=1, max_size=3))
def test_changed_bytes_give_a_value(position, change):
    data = bytearray(BACKUP.encode())
    data[position : position + len(change)] = change
    assert parse_document("any", bytes(data)).document == "any"


class Request:
    context = "application"
    backup_type = 5
    bootable_system_state = True
    partial_file_support = False
    timeout_min = 15
    vm_name = "web01"


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_system_writer_with_20000_file_entries_is_read(encoding, record_property):
    recipe = ManifestRecipe(huge=20_000, encoding=encoding)
    members = [one for one in read_members(manifest_zip(Request(), recipe)) if isinstance(one, Member)]
    largest = max(members, key=lambda member: len(member.data))
    started_s = time.process_time()
    document = parse_document(largest.name, largest.data)
    cpu_s = time.process_time() - started_s
    record_property("cpu_s", cpu_s)
    print(f"{encoding}: {len(largest.data):,} bytes parsed in {cpu_s:.3f} CPU-s")
    assert len(largest.data) > 2_900_000
    assert isinstance(document, WriterMetadata)
    assert sum(component.files for component in document.components) == 20_000
