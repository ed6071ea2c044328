"""`/folder`, the datastore browser and FileManager."""

import base64
import http.client
import ssl

import pytest
from pyVmomi import vim

from vadpipe.lab.vcenter.faults.injection import Drop

CONTENT = bytes(range(256)) * 400


@pytest.fixture
def files(vcenter):
    """A directory with awkward names in the datastore."""
    directory = vcenter.datastore("datastore1") / "web 01 #1"
    directory.mkdir()
    (directory / "100% ä.zip").write_bytes(CONTENT)
    (directory / "b.vmx").write_text("x")
    return directory


PATH = "/folder/web%2001%20%231/100%25%20%C3%A4.zip"
QUERY = "?dcPath=Datacenter&dsName=datastore1"
BASIC = {"Authorization": f"Basic {base64.b64encode(b'backup:lab').decode()}"}


@pytest.fixture
def fetch(vcenter):
    """A function that makes one request: status, headers, body."""
    context = ssl.create_default_context(cafile=vcenter.certificate)

    def fetch(target, headers=BASIC, method="GET"):
        connection = http.client.HTTPSConnection(vcenter.address, vcenter.port, context=context)
        try:
            connection.request(method, target, headers=headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    return fetch


def test_a_file_is_served_for_basic_login_and_for_the_session_cookie(files, fetch, client):
    assert fetch(PATH + QUERY)[::2] == (200, CONTENT)
    cookie = {"Cookie": client._stub.cookie.partition(";")[0]}
    assert fetch(PATH + QUERY, cookie)[::2] == (200, CONTENT)


def test_head_and_ranges_are_answered(files, fetch):
    status, headers, body = fetch(PATH + QUERY, method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len(CONTENT)), b"")
    status, headers, body = fetch(PATH + QUERY, BASIC | {"Range": "bytes=100-299"})
    assert (status, body) == (206, CONTENT[100:300])
    assert headers["Content-Range"] == f"bytes 100-299/{len(CONTENT)}"
    assert fetch(PATH + QUERY, BASIC | {"Range": "bytes=-5"})[2] == CONTENT[-5:]
    assert fetch(PATH + QUERY, BASIC | {"Range": "bytes=102395-"})[2] == CONTENT[-5:]
    assert fetch(PATH + QUERY, BASIC | {"Range": "bytes=999999-"})[0] == 416


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        (PATH + QUERY, {}, 401),
        (PATH + QUERY, {"Authorization": "Basic bm86bm8="}, 401),
        (PATH + QUERY, {"Authorization": "Basic %%%"}, 400),
        (PATH + QUERY, {"Cookie": 'vmware_soap_session="0"'}, 401),
        ("/folder/none.zip" + QUERY, BASIC, 404),
        (PATH + "?dcPath=Other&dsName=datastore1", BASIC, 404),
        (PATH + "?dcPath=Datacenter&dsName=other", BASIC, 404),
        ("/folder/../../vddk.conf" + QUERY, BASIC, 404),
        ("/folder/%2e%2e/%2e%2e/vddk.conf" + QUERY, BASIC, 404),
        ("/other", BASIC, 404),
    ],
)
def test_wrong_requests_are_refused_with_their_status(files, fetch, target, headers, status):
    assert fetch(target, headers)[0] == status


def test_status_401_says_how_to_log_in(files, fetch):
    assert fetch(PATH + QUERY, {})[1]["WWW-Authenticate"].startswith("Basic realm=")


def test_a_forbidden_datastore_is_refused(vcenter, files, fetch, client, finish):
    vcenter.forbid_datastore("datastore1")
    assert fetch(PATH + QUERY)[0] == 403
    browser = client.content.rootFolder.childEntity[0].datastore[0].browser
    with pytest.raises(vim.fault.NoPermission):
        finish(client, browser.SearchDatastore_Task("[datastore1] web 01 #1", None))


def test_listings_lead_to_the_files(files, fetch):
    target = "/folder"
    for name in ("Datacenter", "datastore1", "web 01 #1/", "100% ä.zip"):
        page = fetch(target)[2].decode()
        link = next(line for line in page.splitlines() if f">{name}</a>" in line)
        target = link.split('"')[1].replace("&amp;", "&")
    assert fetch(target)[2] == CONTENT


def test_ticket_admits_one_request(files, fetch, client, vcenter):
    url = f"https://{vcenter.address}{PATH}?dsName=datastore1"
    spec = vim.SessionManager.HttpServiceRequestSpec(method="httpGet", url=url)
    ticket = client.content.sessionManager.AcquireGenericServiceTicket(spec)
    assert ticket.sslThumbprint == vcenter.thumbprint
    cookie = {"Cookie": f"vmware_cgi_ticket={ticket.id}"}
    assert fetch(PATH + "?dsName=datastore1", cookie, "HEAD")[0] == 401
    assert fetch(PATH + "?dsName=datastore1", cookie)[::2] == (200, CONTENT)
    assert fetch(PATH + "?dsName=datastore1", cookie)[0] == 401


def test_a_download_may_break_off_in_the_middle(vcenter, files, fetch):
    vcenter.inject("/folder", Drop.AFTER)
    with pytest.raises((http.client.IncompleteRead, ssl.SSLError)):
        fetch(PATH + QUERY)
    assert fetch(PATH + QUERY)[2] == CONTENT


@pytest.fixture
def browser(client):
    return client.content.rootFolder.childEntity[0].datastore[0].browser


def found(result):
    return result.folderPath, {file.path: file.fileSize for file in result.file}


def test_browser_matches_patterns_and_gives_sizes(files, browser, vm):
    details = vim.host.DatastoreBrowser.FileInfo.Details(
        fileSize=True, fileType=True, modification=False, fileOwner=False
    )
    spec = vim.host.DatastoreBrowser.SearchSpec(
        matchPattern=["*.ZIP"], details=details, searchCaseInsensitive=True
    )
    task = browser.SearchDatastore_Task("[datastore1] web 01 #1/", spec)
    assert found(vm.finish(task)) == ("[datastore1] web 01 #1/", {"100% ä.zip": len(CONTENT)})
    everywhere = vm.finish(browser.SearchDatastoreSubFolders_Task("[datastore1]", spec))
    assert [found(result) for result in everywhere] == [
        ("[datastore1]", {}),
        ("[datastore1] web 01 #1/", {"100% ä.zip": len(CONTENT)}),
        ("[datastore1] web01/", {}),
    ]


def test_browser_without_a_spec_names_everything(files, browser, vm):
    result = vm.finish(browser.SearchDatastore_Task("[datastore1] web 01 #1", None))
    assert found(result)[1] == {"100% ä.zip": None, "b.vmx": None}


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("[datastore1] none", vim.fault.FileNotFound),
        ("[other] x", vim.fault.InvalidDatastore),
        ("web01", vim.fault.InvalidDatastorePath),
        ("[datastore1] ../..", vim.fault.InvalidDatastorePath),
    ],
)
def test_the_browser_refuses_what_the_api_forbids(browser, vm, path, fault):
    with pytest.raises(fault):
        vm.finish(browser.SearchDatastore_Task(path, None))


def test_the_file_manager_makes_directories_and_copies_files(vcenter, client, files, vm):
    manager = client.content.fileManager
    manager.MakeDirectory("[datastore1] a/b", None, True)
    with pytest.raises(vim.fault.FileAlreadyExists):
        manager.MakeDirectory("[datastore1] a/b", None, True)
    source, saved = "[datastore1] web 01 #1/100% ä.zip", "[datastore1] a/b/saved.zip"
    vm.finish(manager.CopyDatastoreFile_Task(source, None, saved, None, None))
    assert (vcenter.datastore("datastore1") / "a/b/saved.zip").read_bytes() == CONTENT
    with pytest.raises(vim.fault.FileAlreadyExists):
        vm.finish(manager.CopyDatastoreFile_Task(source, None, saved, None, False))
    url = f"https://{vcenter.address}{PATH}{QUERY}"
    vm.finish(manager.CopyDatastoreFile_Task(url, None, saved, None, True))
    vm.finish(manager.DeleteDatastoreFile_Task("[datastore1] a", None))
    assert not (vcenter.datastore("datastore1") / "a").exists()
    with pytest.raises(vim.fault.FileNotFound):
        vm.finish(manager.DeleteDatastoreFile_Task(saved, None))


@pytest.fixture
def upload(vcenter):
    """A function that makes one request with a body: status."""
    context = ssl.create_default_context(cafile=vcenter.certificate)

    def upload(target, content=None, headers=BASIC, method="PUT"):
        connection = http.client.HTTPSConnection(vcenter.address, vcenter.port, context=context)
        try:
            connection.request(method, target, body=content, headers=headers)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    return upload


NVRAM = "/folder/web%2001%20%231/b.nvram"


def test_a_file_is_uploaded_replaced_and_deleted(files, upload, client):
    cookie = {"Cookie": client._stub.cookie.partition(";")[0]}
    assert upload(NVRAM + QUERY, CONTENT, cookie) == 201
    assert (files / "b.nvram").read_bytes() == CONTENT
    assert upload(NVRAM + QUERY, b"short", cookie) == 200
    assert (files / "b.nvram").read_bytes() == b"short"
    assert upload(NVRAM + QUERY, None, cookie, "DELETE") == 204
    assert not (files / "b.nvram").exists()
    assert upload(NVRAM + QUERY, None, cookie, "DELETE") == 404


def test_an_upload_is_refused(files, upload, vcenter):
    assert upload(NVRAM + QUERY, CONTENT, {}) == 401
    assert upload(NVRAM + "?dcPath=Other&dsName=datastore1", CONTENT) == 404
    assert upload(NVRAM + "?dcPath=Datacenter&dsName=datastore9", CONTENT) == 404
    assert upload("/folder/no%20such/b.nvram" + QUERY, CONTENT) == 404
    assert upload("/folder/web%2001%20%231" + QUERY, CONTENT) == 409
    assert upload("/folder/../../b.nvram" + QUERY, CONTENT) == 404
    vcenter.denied_privileges.add("Datastore.FileManagement")
    assert upload(NVRAM + QUERY, CONTENT) == 403
    vcenter.denied_privileges.clear()
    vcenter.forbid_datastore("datastore1")
    assert upload(NVRAM + QUERY, CONTENT) == 403
    assert not (files / "b.nvram").exists()


def test_an_upload_is_there_when_its_answer_is_lost(files, upload, vcenter):
    vcenter.inject("/folder", Drop.AFTER)
    with pytest.raises(http.client.RemoteDisconnected):
        upload(NVRAM + QUERY, CONTENT)
    assert (files / "b.nvram").read_bytes() == CONTENT
    assert vcenter.calls["/folder"] == 1
