import pytest

from lab.vss import manifest_zip
from pipeline import MachineId
from stages.vss import FetchedManifest, ManifestKind, VssManifest
from stages.vss.fetched import FetchAttempt


class Request:
    backup_type, bootable_system_state, partial_file_support, timeout_min, vm_name = (
        5,
        True,
        False,
        15,
        "web01",
    )

    def __init__(self, context):
        self.context = context


class Capture:
    machine = MachineId("uuid", "web01")
    disks = ()
    configuration = {}  # noqa: RUF012

    def __init__(self, asked, fetched):
        self.quiescing_asked = asked
        self.fetched = fetched

    async def fetch_vss_manifest(self):
        return self.fetched


APPLICATION = FetchedManifest(manifest_zip(Request("application")), "", "[ds] web01/m.zip")
FILE_SYSTEM = FetchedManifest(manifest_zip(Request("file-system")), "", "[ds] web01/m.zip")
ABSENT = FetchedManifest(None, "no manifest file appeared", None, absent=True)
UNFETCHED = FetchedManifest(None, "403 Forbidden", "[ds] web01/m.zip")
BROKEN = FetchedManifest(b"PK\x03\x04 broken", "", "[ds] web01/m.zip")


@pytest.mark.parametrize(
    ("asked", "fetched", "reached", "satisfied"),
    [
        ("application", APPLICATION, "application", True),
        ("application", FILE_SYSTEM, "file-system", False),
        ("application", ABSENT, "crash", False),
        ("application", UNFETCHED, "unknown", False),
        ("application", BROKEN, "unknown", False),
        ("file-system", FILE_SYSTEM, "file-system", True),
        ("file-system", APPLICATION, "application", True),
        ("file-system", UNFETCHED, "unknown", False),
        ("none", ABSENT, "crash", True),
    ],
)
async def test_the_evidence_of_a_point(asked, fetched, reached, satisfied):
    evidence = await VssManifest().finish(Capture(asked, fetched))
    assert evidence.reached == reached
    assert evidence.satisfied is satisfied
    assert evidence.reasons
    assert evidence.verdict["manifest"] == fetched.path
    kept = {} if fetched.content is None else {"vss-manifest.zip": fetched.content}
    assert evidence.documents == kept


async def test_how_it_was_fetched_and_what_it_is_go_into_the_point():
    attempts = [
        FetchAttempt("vifs", "it is not installed."),
        FetchAttempt("HTTPS (cookie)", remark="A copy."),
    ]
    content = b'<quiesceManifest productVersion="12" providerName="x"/>'
    fetched = FetchedManifest(content, "", "[ds] a/b.xml", kind=ManifestKind.LINUX_XML, attempts=attempts)
    evidence = await VssManifest().finish(Capture("application", fetched))
    assert evidence.verdict["fetching"] == [
        {"way": "vifs", "problem": "it is not installed."},
        {"way": "HTTPS (cookie)", "remark": "A copy."},
    ]
    assert evidence.documents == {"quiesce-manifest.xml": content}
