"""vifs and PowerCLI, by stand-ins that really download: arguments, secrets, failures, leftovers."""

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pipeline.secrets import Secret
from tests.vadpipe.vsphere.manifest.fetching_kit import CONTENT, DIRECTORY, NAME, lying
from vadpipe.lab.tools import install_tools
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.manifest import external
from vadpipe.vsphere.manifest import fetch as ways
from vadpipe.vsphere.manifest.external import CopyDatastoreItem, Vifs, script, session_file_text
from vadpipe.vsphere.manifest.fetch import ManifestFetcher

pytestmark = pytest.mark.slow  # each starts a process
TOOLS = {"vifs": Vifs, "pwsh": CopyDatastoreItem}


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    install_tools(tmp_path / "bin")
    return tmp_path / "bin"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made; empty at the end of each test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    yield tmp_path / "tmp"
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.fixture(params=["vifs", "pwsh"])
def name(request) -> str:
    return request.param


@pytest.fixture
def way(tools: Path, name: str) -> ManifestFetcher:
    return TOOLS[name](program=str(tools / name))


def seen(tools: Path) -> dict[str, object]:
    return json.loads((tools / "seen.json").read_text())


async def test_both_tools_fetch_files_with_special_characters(lab, vcenter, way):
    async with lying(lab, vcenter) as there:
        fetched = await there.fetched(way)
    assert [one.as_dict() for one in fetched.attempts] == [{"way": way.way}]
    assert fetched.content == CONTENT


async def test_both_tools_fetch_with_authorities_from_a_datacenter_in_folders(tmp_path, vcenter, way):
    with LabVcenter(tmp_path / "other", task_s=0.02, datacenter="Sites/50% B") as other:
        trusting = replace(vcenter, port=other.port, thumbprint=None, ca_file=str(other.certificate))
        async with lying(other, trusting) as there:
            assert (await there.fetched(way)).content == CONTENT


async def test_vifs_gets_exact_arguments(lab, vcenter, tools, temporary):
    async with lying(lab, vcenter) as there:
        await there.fetched(Vifs(program=str(tools / "vifs")))
    *arguments, target = seen(tools)["arguments"]
    at = arguments.index("--sessionfile") + 1
    private = Path(arguments[at]).parent
    assert private.parent == temporary
    assert [*arguments[:at], "...", *arguments[at + 1 :]] == [
        *("--server", lab.address, "--portnumber", str(lab.port), "--sessionfile", "..."),
        *("--dc", "Datacenter", "--get", f"[data store] {DIRECTORY}/{NAME}"),
    ]
    assert Path(target).parent.parent == private


async def test_powershell_gets_exact_arguments(lab, vcenter, tools):
    async with lying(lab, vcenter) as there:
        await there.fetched(CopyDatastoreItem(program=str(tools / "pwsh")))
    assert seen(tools)["arguments"] == ["-NoLogo", "-NoProfile", "-NonInteractive", "-Command", "-"]


async def test_no_secret_reaches_an_argument_or_the_environment(lab, vcenter, way, tools, monkeypatch):
    monkeypatch.setenv("LC_OF_A_JOB", "the password is lab")
    monkeypatch.setenv("VC_PASSWORD", "lab")
    monkeypatch.setenv("VI_PASSWORD", "another")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy:3128")
    async with lying(lab, vcenter) as there:
        await there.fetched(way)
        session_id = there.session.cookie.split('"')[1]
    started = seen(tools)
    assert session_id not in json.dumps([started["arguments"], started["environment"]])
    environment = started["environment"]
    assert not {"LC_OF_A_JOB", "VC_PASSWORD", "VI_PASSWORD", "HTTPS_PROXY"} & set(environment)
    assert environment["PATH"] == os.environ["PATH"]


async def test_an_ended_session_is_renewed_before_the_tool_starts(lab, vcenter, way):
    async with lying(lab, vcenter) as there:
        lab.expire_sessions()
        assert (await there.fetched(way)).content == CONTENT


SAID = {
    "Error: GET failed: 401 Unauthorized": "its login was not accepted",
    "Copy-DatastoreItem: The session is not authenticated.": "its login was not accepted",
    "Error: GET failed: 403 Forbidden": "Datastore.Browse",
    "Permission to perform this operation was denied.": "Datastore.Browse",
    "Error: GET failed: 404 Not Found": "no such file",
    "Cannot find path 'vadpipe:\\x' because it does not exist.": "no such file",
    "500 Can't connect (certificate verify failed)": "does not trust the certificate",
    "The module 'VMware.VimAutomation.Core' was not loaded": "VMware's modules for it are missing",
    "Can't locate VMware/VIRuntime.pm in @INC": "VMware's modules for it are missing",
    "something\x1b[31m of\nits own": "status 1: its output ends: something [31m of its own.",
}


async def test_the_output_of_a_failed_tool_is_quoted_with_its_meaning(lab, vcenter, tools):
    async with lying(lab, vcenter) as there:
        for said, told in SAID.items():
            (tools / "mood").write_text(said)
            problem = await there.problem(Vifs(program=str(tools / "vifs")))
            assert "ended with status 1: " in problem
            assert told in problem


@pytest.mark.parametrize(
    ("status", "told"), [(401, "login"), (403, "Datastore.Browse"), (404, "no such file")]
)
async def test_a_refusal_of_the_server_is_reported(lab, vcenter, way, status, told):
    async with lying(lab, vcenter) as there:
        match status:
            case 401:
                lab.folder.accepts = {"basic"}
            case 403:
                lab.forbid_datastore("data store")
            case 404:
                there.path.unlink()
        assert told in await there.problem(way)


async def test_an_incomplete_download_is_detected(lab, vcenter, way, tools):
    (tools / "mood").write_text("half")
    async with lying(lab, vcenter) as there:
        assert f"the datastore lists {len(CONTENT)}" in await there.problem(way)
        there.place = replace(there.place, size=None)
        fetched = await there.fetched(way)  # nobody knows better, so it is kept as it came
    assert fetched.content == CONTENT[: len(CONTENT) // 2]
    assert "not a complete zip" in fetched.attempts[0].problem


@pytest.mark.parametrize("mood", ["nothing", "twice"])
async def test_a_tool_must_leave_exactly_one_file(lab, vcenter, way, tools, mood):
    (tools / "mood").write_text(mood)
    async with lying(lab, vcenter) as there:
        assert "files instead of one" in await there.problem(way)


async def test_a_file_above_the_size_limit_is_refused(lab, vcenter, way, monkeypatch):
    monkeypatch.setattr(external, "MAX_ARCHIVE_SIZE", 100)
    async with lying(lab, vcenter) as there:
        assert "larger than" in await there.problem(way)


async def test_a_missing_tool_is_reported(lab, vcenter, tools, name, monkeypatch):
    async with lying(lab, vcenter) as there:
        monkeypatch.setenv("PATH", str(tools / "nowhere"))
        assert f"{name} is not installed on this machine" in await there.problem(TOOLS[name]())
        monkeypatch.setenv("PATH", str(tools))
        assert (await there.fetched(TOOLS[name]())).content == CONTENT
        (tools / name).write_text("no program at all")
        assert f"{name} cannot be run" in await there.problem(TOOLS[name]())


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_tool_that_takes_too_long_is_stopped(lab, vcenter, tools, name):
    (tools / "mood").write_text("hang")
    async with lying(lab, vcenter) as there:
        way = TOOLS[name](program=str(tools / name), timeout_s=0.2)
        assert "did not arrive within 0.2 s" in await there.problem(way)


async def test_a_cancelled_tool_leaves_no_process_and_no_file(
    lab, vcenter, tools, way, temporary, wait_until
):
    (tools / "mood").write_text("hang")
    async with lying(lab, vcenter) as there, trio.open_nursery() as nursery:
        nursery.start_soon(there.fetched, way)
        await wait_until(lambda: (tools / "pids").exists() and len((tools / "pids").read_text().split()) == 2)
        assert os.listdir(temporary)
        nursery.cancel_scope.cancel()
    assert os.listdir(temporary) == []
    pids = [int(pid) for pid in (tools / "pids").read_text().split()]
    await wait_until(lambda: not any(is_running(pid) for pid in pids))


async def test_the_session_id_is_removed_from_quoted_output(lab, vcenter, way, tools):
    async with lying(lab, vcenter) as there:
        session_id = there.session.cookie.split('"')[1]
        (tools / "mood").write_text(f"At line:1 char:9 -Session '{session_id}'")
        problem = await there.problem(way)
    assert session_id not in problem
    assert "-Session '***'" in problem


async def test_a_server_that_the_tool_cannot_verify_gets_nothing(lab, vcenter, way, tmp_path, monkeypatch):
    with LabVcenter(tmp_path / "impostor") as impostor:
        async with lying(lab, vcenter) as there:
            monkeypatch.setattr(
                type(there.session), "certificate_pem", property(lambda _: impostor.certificate.read_text())
            )
            assert "does not trust the certificate" in await there.problem(way)
            assert "/folder" not in lab.calls


async def test_powercli_needs_the_id_of_the_datastore(lab, vcenter, tools):
    async with lying(lab, vcenter) as there:
        there.place = replace(there.place, datastore=None)
        assert "none of the VM's" in await there.problem(CopyDatastoreItem(program=str(tools / "pwsh")))


async def test_a_session_by_cookie_works_with_both_tools(lab, vcenter, way):
    async with lying(lab, vcenter) as there:
        by_cookie = replace(vcenter, password=None, cookie=Secret.from_text(there.session.cookie))
        async with by_cookie.connect() as there.session:
            assert (await there.fetched(way)).content == CONTENT
        assert (await ways.fetch_within(way, there.session, there.place)).content == CONTENT  # not logged out


def test_a_session_file_names_the_domain_local_for_a_name_without_dots():
    text = session_file_text("vc01", "52-a")
    assert text.startswith("#LWP-Cookies-1.0\n")
    assert 'vmware_soap_session="\\"52-a\\""; path="/"; domain=vc01.local; path_spec; secure;' in text
    assert "domain=vc01.example.com;" in session_file_text("vc01.example.com", "x")


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(texts, texts, texts)
def test_no_text_in_the_script_can_become_code(server, path, target):
    line = script(server, 443, "id", "datastore-1", path, target)
    plain = script("", 443, "id", "datastore-1", "", "")
    assert line.isascii()
    assert line.count("\n") == 1
    for sign in "'\"`$;{}|&\n":
        assert line.count(sign) == plain.count(sign)
