"""The lab's REST API as an HTTP client sees it: logins, both generations, strictness."""

import base64
import http.client
import json
import ssl

import pytest

from vadpipe.lab.vcenter.server import LabVcenter

NEWER = ("/api/session", "/api/cis/tagging", "?action=", "/")
OLDER = ("/rest/com/vmware/cis/session", "/rest/com/vmware/cis/tagging", "?~action=", "/id:")


class Client:
    def __init__(self, lab):
        context = ssl.create_default_context(cafile=str(lab.certificate))
        self.connection = http.client.HTTPSConnection(lab.address, lab.port, context=context, timeout=10)
        self.token = None

    def ask(self, method, path, body=None, **headers):
        if self.token:
            headers["vmware-api-session-id"] = self.token
        content = body if isinstance(body, bytes | None) else json.dumps(body)
        self.connection.request(method, path, content, headers)
        response = self.connection.getresponse()
        answer = response.read()
        return response.status, json.loads(answer) if answer else None

    def log_in(self, path, password="lab"):
        account = base64.b64encode(f"backup:{password}".encode()).decode()
        return self.ask("POST", path, Authorization=f"Basic {account}")


@pytest.fixture
def rest(vcenter):
    client = Client(vcenter)
    yield client
    client.connection.close()


def test_the_newer_generation_serves_categories_and_tags(vcenter, rest):
    daily = vcenter.tags.create("backup", "daily")
    weekly = vcenter.tags.create("backup", "weekly")
    vcenter.tags.attach(daily, "vm-42")
    session, tagging, action, by_id = NEWER
    status, rest.token = rest.log_in(session)
    assert status == 201
    [category] = rest.ask("GET", f"{tagging}/category")[1]
    assert category.startswith("urn:vmomi:InventoryServiceCategory:")
    assert category.endswith(":GLOBAL")
    assert rest.ask("GET", f"{tagging}/category{by_id}{category}")[1]["name"] == "backup"
    listing = {"category_id": category}
    assert rest.ask("POST", f"{tagging}/tag{action}list-tags-for-category", listing) == (200, [daily, weekly])
    told = rest.ask("GET", f"{tagging}/tag{by_id}{weekly}")[1]
    assert (told["name"], told["category_id"]) == ("weekly", category)
    found = rest.ask(
        "POST", f"{tagging}/tag-association{action}list-attached-objects-on-tags", {"tag_ids": [daily]}
    )
    on_vm = [{"tag_id": daily, "object_ids": [{"type": "VirtualMachine", "id": "vm-42"}]}]
    assert found == (200, on_vm)
    assert rest.ask("DELETE", session) == (204, None)
    assert rest.ask("GET", f"{tagging}/category")[0] == 401
    assert vcenter.tags.live_sessions == 0


def test_the_older_generation_wraps_its_answers(vcenter, rest):
    daily = vcenter.tags.create("backup", "daily")
    session, tagging, action, by_id = OLDER
    status, answer = rest.log_in(session)
    assert status == 200
    rest.token = answer["value"]
    assert rest.ask("GET", f"{tagging}/tag{by_id}{daily}")[1]["value"]["name"] == "daily"
    assert rest.ask("GET", f"{tagging}/tag/{daily}")[0] == 404
    [category] = rest.ask("GET", f"{tagging}/category")[1]["value"]
    listing = f"{tagging}/tag{by_id}{category}{action}list-tags-for-category"
    assert rest.ask("POST", listing)[1]["value"] == [daily]
    assert (
        rest.ask("POST", f"{tagging}/tag{action}list-tags-for-category", {"category_id": category})[0] == 404
    )
    path = f"{tagging}/tag-association{action}list-attached-objects-on-tags"
    assert rest.ask("POST", path, {"tag_ids": [daily]})[1]["value"][0]["object_ids"] == []
    assert rest.ask("DELETE", session)[0] == 200


@pytest.mark.parametrize("generation", [NEWER, OLDER])
def test_the_rest_api_refuses_wrong_logins_and_unknown_paths(vcenter, rest, generation):
    session, tagging, action, by_id = generation
    assert rest.ask("GET", f"{tagging}/category")[0] == 401
    assert rest.log_in(session, "wrong")[0] == 401
    assert rest.ask("POST", session)[0] == 401
    answer = rest.log_in(session)[1]
    rest.token = answer["value"] if generation is OLDER else answer
    assert rest.ask("GET", f"{tagging}/tag{by_id}urn:vmomi:InventoryServiceTag:none:GLOBAL")[0] == 404
    assert rest.ask("GET", f"{tagging}/nothing")[0] == 404
    in_path = f"{by_id}none" if generation is OLDER else ""
    listing = f"{tagging}/tag{in_path}{action}list-tags-for-category"
    assert rest.ask("POST", listing, {"category_id": "none"})[0] == 404
    on_tags = f"{tagging}/tag-association{action}list-attached-objects-on-tags"
    assert rest.ask("POST", on_tags, {"tag_ids": ["none"]})[0] == 404
    for body in (b"", b"{", {"tags": []}, {"tag_ids": 3}):
        assert rest.ask("POST", on_tags, body)[0] == 400
    wrong_form = OLDER[2] if generation is NEWER else NEWER[2]
    assert (
        rest.ask("POST", f"{tagging}/tag{wrong_form}list-tags-for-category", {"category_id": "x"})[0] == 404
    )
    vcenter.tags.end_sessions()
    assert rest.ask("GET", f"{tagging}/category")[0] == 401


@pytest.mark.parametrize(
    ("settings", "newer", "older"),
    [
        ({"api_version": "7.0.1.0"}, 404, 200),
        ({"api_version": "7.0.2.0"}, 201, 200),
        ({"api_type": "HostAgent"}, 404, 404),
    ],
)
def test_what_a_server_has_depends_on_its_version_and_kind(tmp_path, settings, newer, older):
    with LabVcenter(tmp_path / "lab", **settings) as lab:
        client = Client(lab)
        assert client.log_in(NEWER[0])[0] == newer
        assert client.log_in(OLDER[0])[0] == older
        client.connection.close()


def test_sessions_end_when_idle_and_tags_outlive_the_server(tmp_path):
    now = [0.0]
    with LabVcenter(tmp_path / "lab", session_idle_s=60, clock=lambda: now[0]) as lab:
        daily = lab.tags.create("backup", "daily")
        lab.tags.attach(daily, "vm-42")
        client = Client(lab)
        client.token = client.log_in(NEWER[0])[1]
        now[0] = 59
        assert client.ask("GET", f"{NEWER[1]}/category")[0] == 200
        now[0] = 120
        assert client.ask("GET", f"{NEWER[1]}/category")[0] == 401
        client.connection.close()
    with LabVcenter(tmp_path / "lab") as again:
        assert again.tags.carriers == {daily: [("VirtualMachine", "vm-42")]}
        assert again.tags.create("backup", "weekly") in again.tags.carriers
        assert len(again.tags.categories) == 1


def test_the_lab_keeps_folders_of_vms(tmp_path):
    with LabVcenter(tmp_path / "lab") as lab:
        directory = lab.datastore("datastore1")
        first = lab.register_vm(directory / "a", "web01", [], folder="Web/Test")
        second = lab.register_vm(directory / "b", "web01", [], folder="Web")
        gone = lab.register_vm(directory / "c", "web02", [], folder="Web")
        lab.unregister_vm(gone)
        folders = dict(lab._inventory.folders)
        assert list(folders) == ["Web/Test", "Web"]
    with LabVcenter(tmp_path / "lab") as again:
        assert again._inventory.folders == folders
        top = again._service._vm_folders.at("Web")
        assert [child.moref for child in top.children] == [folders["Web/Test"], second]
        assert [child.moref for child in again._service._vm_folders.at("Web/Test").children] == [first]


@pytest.mark.parametrize(("generation", "done"), [(NEWER, 204), (OLDER, 200)])
def test_a_tag_is_attached_and_detached(vcenter, rest, generation, done):
    daily = vcenter.tags.create("backup", "daily")
    session, tagging, action, by_id = generation
    token = rest.log_in(session)[1]
    rest.token = token if isinstance(token, str) else token["value"]
    body = {"object_id": {"type": "VirtualMachine", "id": "vm-42"}}
    association = f"{tagging}/tag-association{by_id}{daily}"
    for _ in range(2):  # the second time changes nothing
        assert rest.ask("POST", f"{association}{action}attach", body)[0] == done
    assert vcenter.tags.carriers[daily] == [("VirtualMachine", "vm-42")]
    listed = rest.ask("POST", f"{tagging}/tag-association{action}list-attached-tags", body)[1]
    assert (listed if isinstance(listed, list) else listed["value"]) == [daily]
    assert rest.ask("POST", f"{association}{action}detach", body)[0] == done
    assert vcenter.tags.carriers[daily] == []


def test_an_attachment_is_refused(vcenter, rest):
    daily = vcenter.tags.create("backup", "daily")
    session, tagging, action, by_id = NEWER
    rest.token = rest.log_in(session)[1]
    body = {"object_id": {"type": "VirtualMachine", "id": "vm-42"}}
    assert rest.ask("POST", f"{tagging}/tag-association/no-such{action}attach", body)[0] == 404
    association = f"{tagging}/tag-association{by_id}{daily}"
    assert rest.ask("POST", f"{association}{action}attach", {"object_id": "vm-42"})[0] == 400
    vcenter.denied_privileges.add("InventoryService.Tagging.AttachTag")
    assert rest.ask("POST", f"{association}{action}attach", body)[0] == 403
    assert vcenter.tags.carriers[daily] == []
