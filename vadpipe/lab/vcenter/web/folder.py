"""`/folder`: files of datastores over HTTPS, as vCenter serves them, takes them and deletes them.

    /folder/<path in the datastore>?dcPath=<inventory path of the datacenter>&dsName=<datastore>

Whoever asks shows a session's cookie, HTTP Basic credentials, or a ticket of AcquireGenericServiceTicket for
exactly this method and path. With parts of the address left out it lists datacenters, datastores, directories.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from pyVmomi import vim

from ..api.managed import escaped
from ..api.sessions import COOKIE
from ..api.soap import message_of
from ..faults.on_demand import FolderError
from ..objects.datastore import locate

if TYPE_CHECKING:
    from ..service import Service

_TICKET_COOKIE = "vmware_cgi_ticket"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True)
class FileContent:
    """`length` bytes of a file from `offset` on. size: of the whole file; partial: a Range was asked for."""

    path: Path
    offset: int
    length: int
    size: int
    partial: bool


@dataclass(frozen=True)
class FolderRequest:
    """One request: `target` is path and query as sent, cookies by name, the headers None when absent."""

    method: str
    target: str
    cookies: dict[str, str]
    authorization: str | None
    range: str | None


def change(service: Service, request: FolderRequest, content: bytes | None) -> HTTPStatus:
    """Write a file, or delete it where `content` is None; the status of the answer. Raises FolderError."""
    url = urlsplit(request.target)
    _authenticate(service, request, url.path)
    query = parse_qs(url.query)
    path, datastore = unquote(url.path.removeprefix("/folder")).strip("/"), query.get("dsName", [""])[0]
    if "Datastore.FileManagement" in service.denied_privileges:
        raise FolderError(HTTPStatus.FORBIDDEN, "Permission to perform this operation was denied.")
    _need_datacenter(service, request, query)
    local = _located(service, datastore, path)
    if content is None:
        if not local.is_file():
            raise FolderError(HTTPStatus.NOT_FOUND, f"There is no file {path!r} in {datastore!r}.")
        local.unlink()
        return HTTPStatus.NO_CONTENT
    if not path or local.is_dir():
        raise FolderError(HTTPStatus.CONFLICT, f"{path!r} in {datastore!r} is a directory.")
    if not local.parent.is_dir():
        raise FolderError(HTTPStatus.NOT_FOUND, f"There is no directory for {path!r} in {datastore!r}.")
    status = HTTPStatus.OK if local.exists() else HTTPStatus.CREATED
    local.write_bytes(content)
    return status


def _need_datacenter(service: Service, request: FolderRequest, query: dict[str, list[str]]) -> None:
    datacenter = "/".join(escaped(name) for name in service.inventory.datacenter.split("/"))
    on_a_host = service.settings.api_type == "HostAgent" or _TICKET_COOKIE in request.cookies
    named = query.get("dcPath", [datacenter if on_a_host else ""])[0].strip("/")
    if named != datacenter:
        raise FolderError(HTTPStatus.NOT_FOUND, f"There is no datacenter {named!r}.")


def _located(service: Service, datastore: str, path: str) -> Path:
    try:
        return locate(service, datastore, path).local
    except vim.fault.NoPermission as fault:
        raise FolderError(HTTPStatus.FORBIDDEN, message_of(fault)) from None
    except (vim.fault.InvalidDatastore, vim.fault.InvalidDatastorePath) as fault:
        raise FolderError(HTTPStatus.NOT_FOUND, message_of(fault)) from None


def serve(service: Service, request: FolderRequest) -> FileContent | str:
    """The file, or the HTML of a listing. Raises FolderError."""
    url = urlsplit(request.target)
    _authenticate(service, request, url.path)
    query = parse_qs(url.query)
    path = unquote(url.path.removeprefix("/folder")).strip("/")
    datacenter = "/".join(escaped(name) for name in service.inventory.datacenter.split("/"))
    on_a_host = service.settings.api_type == "HostAgent" or _TICKET_COOKIE in request.cookies
    if "dcPath" not in query and not on_a_host:
        return _listing([(datacenter, f"/folder?{urlencode({'dcPath': datacenter})}")])
    if query.get("dcPath", [datacenter])[0].strip("/") != datacenter:
        raise FolderError(HTTPStatus.NOT_FOUND, f"There is no datacenter {query['dcPath'][0]!r}.")
    if "dsName" not in query:
        return _listing([(name, _address("", datacenter, name)) for name in service.inventory.datastores])
    datastore = query["dsName"][0]
    local = _located(service, datastore, path)
    if local.is_dir():
        return _directory(local, path, datacenter, datastore)
    if not local.is_file():
        raise FolderError(HTTPStatus.NOT_FOUND, f"There is no file {path!r} in {datastore!r}.")
    return _content(local, request.range if service.folder.ranges else None)


def _authenticate(service: Service, request: FolderRequest, path: str) -> None:
    accepts = service.folder.accepts
    if "cookie" in accepts and service.sessions.find(request.cookies.get(COOKIE)) is not None:
        return
    ticket = request.cookies.get(_TICKET_COOKIE) if "ticket" in accepts else None
    if ticket is not None and service.sessions.redeem_ticket(ticket, request.method, path):
        return
    scheme, _, credentials = (request.authorization or "").partition(" ")
    if scheme.lower() == "basic" and "basic" in accepts:
        try:
            user, _, password = base64.b64decode(credentials, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise FolderError(HTTPStatus.BAD_REQUEST, "The Authorization header is not Basic.") from None
        if service.password_matches(user, password):
            return
    raise FolderError(HTTPStatus.UNAUTHORIZED, "Log in with a session cookie or a user name and password.")


def _content(path: Path, wanted: str | None) -> FileContent:
    size = path.stat().st_size
    match = _RANGE.fullmatch(wanted or "")
    if match is None or match[0] == "bytes=-":
        return FileContent(path, 0, size, size, partial=False)
    first, last = match[1], match[2]
    if first:
        start, end = int(first), min(int(last) + 1 if last else size, size)
    else:
        start, end = max(size - int(last), 0), size
    if start >= end:
        raise FolderError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"The file has {size} bytes.")
    return FileContent(path, start, end - start, size, partial=True)


def _directory(local: Path, path: str, datacenter: str, datastore: str) -> str:
    entries = []
    for child in sorted(local.iterdir()):
        name = f"{child.name}/" if child.is_dir() else child.name
        entries.append((name, _address(f"{path}/{name}".lstrip("/"), datacenter, datastore)))
    return _listing(entries)


def _address(path: str, datacenter: str, datastore: str) -> str:
    query = urlencode({"dcPath": datacenter, "dsName": datastore}, quote_via=quote)
    return f"/folder/{quote(path)}?{query}" if path else f"/folder?{query}"


def _listing(entries: list[tuple[str, str]]) -> str:
    rows = "".join(
        f'<tr><td><a href="{html.escape(address)}">{html.escape(name)}</a></td></tr>\n'
        for name, address in entries
    )
    return f"<!DOCTYPE html>\n<html><body><table>\n{rows}</table></body></html>\n"
