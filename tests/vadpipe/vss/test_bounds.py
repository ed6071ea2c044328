"""What hostile documents may cost: every bound holds, and holds before the cost is there."""

import json
import subprocess
import sys
import time
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings

from vadpipe.lab.vss.draft import Request
from vadpipe.lab.vss.recipe import ManifestRecipe, manifest_zip, zipped
from vadpipe.lab.vss.strategies import manifests
from vadpipe.lab.vss_fuzz import MOST_MEMORY, drawn, judge, measure
from vadpipe.vss.archive import ManifestUnreadable
from vadpipe.vss.classify import classify_manifest
from vadpipe.vss.documents import BackupComponents, QuiesceManifest, Unreadable, Unrecognised, WriterMetadata
from vadpipe.vss.parse import MAX_COMPONENTS, MAX_FAILURES, MAX_PATH, MAX_PATHS, parse_document, read_manifest
from vadpipe.vss.verdict import Level
from vadpipe.vss.xml import MAX_ATTRIBUTES, MAX_NAMES, MAX_TOKEN, PIECE, Malformed, feed_elements

IDS = 'writerId="1" instanceId="2"'


class Counter:
    """A target that counts."""

    def __init__(self):
        self.elements = 0

    def start(self, name, attributes):
        self.elements += 1

    def text(self, text):
        pass

    def end(self, name):
        pass

    def close(self):
        return self.elements


def pieces(text, size=PIECE):
    return (text[start : start + size] for start in range(0, len(text), size))


def backup(inside):
    return f"<BACKUP_COMPONENTS><WRITER_COMPONENTS {IDS}>{inside}</WRITER_COMPONENTS></BACKUP_COMPONENTS>".encode()


def offer(inside):
    return (
        f"<WRITER_METADATA><IDENTIFICATION {IDS}/>"
        f"<BACKUP_LOCATIONS>{inside}</BACKUP_LOCATIONS></WRITER_METADATA>"
    ).encode()


@pytest.mark.parametrize(("start", "end"), [('<b x="', '"/>'), ("<!--", "-->"), ("<?x ", "?>")])
def test_no_token_is_waited_for_longer_than_its_bound(start, end):
    """Also when its end would have come, and none of the rest is asked for."""
    asked = []

    def text():
        yield "<a>" + start
        for number in range(1000):
            asked.append(number)
            yield " x" * (PIECE // 2)
        yield end + "</a>"

    with pytest.raises(Malformed, match="longer than 262,144 bytes"):
        feed_elements(text(), Counter())
    assert len(asked) == MAX_TOKEN // PIECE


def test_a_million_attributes_are_never_in_memory():
    document = b"<a " + b" ".join(b'b%d=""' % number for number in range(1_000_000)) + b"/>"
    tracemalloc.start()
    refused = parse_document("bad.xml", document)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(refused, Unreadable)
    assert peak < 2 << 20


def test_the_longest_tag_seen_passes_with_room_to_spare():
    value = "x" * 11_000 * 10
    assert feed_elements(pieces(f'<a b="{value}"/>'), Counter()) == 1


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_the_size_of_pieces_does_not_matter(size):
    text = '<v:a xmlns:v="u"><b c="d\ne"/><!-- <x> --><![CDATA[<y>]]>&lt;<b/></v:a>'
    assert feed_elements(pieces(text, size), Counter()) == 3
    with pytest.raises(Malformed, match="junk after document element"):
        feed_elements(pieces(text + "<again/>", size), Counter())


@pytest.mark.parametrize(
    ("document", "why", "where"),
    [
        ("<a " + " ".join(f"b{n}=''" for n in range(MAX_NAMES)) + "/>", "different names", "element 1"),
        (
            "<a>" + "".join(f"<b{n}/>" for n in range(MAX_NAMES)) + "</a>",
            "different names",
            f"element {MAX_NAMES + 1:,}",
        ),
        (f"<a xmlns:b='{'n' * MAX_TOKEN * 2}'/>", "a tag or comment longer", "element 0"),
    ],
)
def test_a_bound_says_why_and_where(document, why, where):
    refused = parse_document("bad.xml", document.encode())
    assert isinstance(refused, Unreadable)
    assert why in refused.why
    assert refused.where == where


@pytest.mark.slow
def test_attributes_are_counted_over_all_elements():
    row = "<b " + " ".join(f"c{number}=''" for number in range(900)) + "/>"
    refused = parse_document("bad.xml", f"<a>{row * (MAX_ATTRIBUTES // 900 + 1)}</a>".encode())
    assert isinstance(refused, Unreadable)
    assert refused.why == "more than 1,000,000 attributes"


def test_the_values_kept_of_a_document_are_bounded():
    long = f'<COMPONENT componentName="{"p" * MAX_PATH}"/>'
    refused = parse_document("bad.xml", backup(long * (MAX_PATHS // MAX_PATH + 1)))
    assert isinstance(refused, Unreadable)
    assert "paths heavier than 1,048,576" in refused.why
    refused = parse_document("bad.xml", backup('<COMPONENT xFailureMsg="y"/>' * (MAX_FAILURES + 1)))
    assert isinstance(refused, Unreadable)
    assert "more than 1,000 failure messages" in refused.why


def test_ids_and_types_are_cut_because_findings_repeat_them():
    document = parse_document(
        "b.xml",
        backup(f'<COMPONENT componentType="{"t" * 9999}"/>').replace(b'"1"', b'"' + b"i" * 9999 + b'"'),
    )
    assert isinstance(document, BackupComponents)
    assert len(document.writers[0].writer_id) == 80
    assert len(document.writers[0].components[0].component_type) == 256


@pytest.mark.parametrize(
    "document",
    [
        backup(f'<COMPONENT componentName="{"p" * 90}"/>' * (MAX_COMPONENTS - 10)),
        offer(f'<FILE_GROUP componentName="{"p" * 90}"/>' * (MAX_COMPONENTS - 10)),
        backup(f'<COMPONENT componentName="{"p" * 1000}"/>' * 900),
        offer(f'<FILE_GROUP componentName="{"p" * 1000}"/>' * 900),
        backup('<COMPONENT xFailureMsg="y"/>' * (MAX_FAILURES - 10)),
    ],
)
def test_documents_that_are_fine_each_may_be_too_much_together(document):
    one = read_manifest(zipped({"a.xml": document, "b.xml": b"<other/>"}))
    assert not isinstance(one[0], Unreadable)
    assert one[1] == Unrecognised("b.xml", "other")
    with pytest.raises(ManifestUnreadable, match="hold too much"):
        read_manifest(zipped({"a.xml": document, "b.xml": document}))


def test_a_manifest_is_a_zip_or_one_linux_document():
    assert read_manifest(b"<quiesceManifest providerName='p'/>") == (QuiesceManifest("manifest", "p"),)
    assert isinstance(read_manifest(zipped({"w.xml": offer("")}))[0], WriterMetadata)
    for other in (offer(""), b"", b"no zip"):
        with pytest.raises(ManifestUnreadable):
            read_manifest(other)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_manifest_with_a_huge_system_writer_is_classified(encoding, record_property):
    content = manifest_zip(Request(), ManifestRecipe(huge=20_000, encoding=encoding))
    started_s = time.process_time()
    verdict = classify_manifest(content)
    cpu_s = time.process_time() - started_s
    record_property("cpu_s", cpu_s)
    print(f"{encoding}: a manifest with 20,000 file entries classified in {cpu_s:.3f} CPU-s")
    assert verdict.level is Level.APPLICATION
    (system,) = (
        one for one in read_manifest(content) if getattr(one, "friendly_name", "") == "System Writer"
    )
    assert [component.files for component in system.components] == [10_000, 10_000]


@pytest.mark.slow
@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(manifests())
def test_whatever_hypothesis_draws_gives_a_verdict(manifest):
    verdict = judge(manifest)
    assert verdict is not None
    assert verdict.level.value in json.dumps(verdict.as_dict())


@pytest.mark.slow
def test_a_short_campaign_of_hostile_manifests_breaks_no_promise():
    found = [judge(content) for _, _, content in drawn(1, range(40))]
    assert any(verdict is None for verdict in found)
    assert any(verdict is not None for verdict in found)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_measure_sees_memory_time_and_errors(monkeypatch):
    manifest = zipped({"a.xml": offer("")})
    assert measure(1, "harmless", manifest).wrong == ""
    kept = []
    monkeypatch.setattr(
        "vadpipe.lab.vss_fuzz.read_manifest", lambda content: kept.append(b"x" * MOST_MEMORY * 2) or ()
    )
    assert "took 1" in measure(1, "greedy", manifest).wrong
    monkeypatch.setattr("vadpipe.lab.vss_fuzz.read_manifest", lambda content: 1 / 0)
    assert "ZeroDivisionError" in measure(1, "wrong", manifest).wrong


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_fuzzer_makes_a_number_again_in_its_own_process():
    command = [sys.executable, "-m", "vadpipe.lab.vss_fuzz", "--seed", "20240501", "--only", "526"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 manifests, " in done.stdout
    assert "most memory: " in done.stdout
    assert "(number 526, " in done.stdout
    assert done.stdout.endswith("promises broken: 0\n")
