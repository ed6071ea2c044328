"""The REST API as far as tags go: the newer generation below /api (7.0 Update 2 and later), the older below /rest.

Source: developer.broadcom.com/xapis/vsphere-automation-api ('Cis Tagging', 'Create Session') and the REST API
reference of vSphere 6.5 to 7.0 U1. Strict: a request without a session is answered with 401, an unknown id with
404, a body that is not what the operation wants with 400. An ESXi host has none of it.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from ..state.tagging import Tagging

if TYPE_CHECKING:
    from ..service import Service

_T = TypeVar("_T")

SESSION_HEADER = "vmware-api-session-id"
_NEWER, _OLDER = "/api", "/rest"
_SINCE = (7, 0, 2)
_ASSIGN = "InventoryService.Tagging.AttachTag"
_PATHS = {
    _NEWER: ("/api/session", "/api/cis/tagging/", "action"),
    _OLDER: ("/rest/com/vmware/cis/session", "/rest/com/vmware/cis/tagging/", "~action"),
}
_ERRORS = {
    HTTPStatus.BAD_REQUEST: "invalid_argument",
    HTTPStatus.UNAUTHORIZED: "unauthenticated",
    HTTPStatus.FORBIDDEN: "unauthorized",
    HTTPStatus.NOT_FOUND: "not_found",
}


@dataclass(frozen=True)
class RestRequest:
    """An HTTP request as it came."""

    method: str
    target: str
    headers: Message
    body: bytes

    @property
    def family(self) -> str:
        """The generation, by how its paths begin: '/api' or '/rest'."""
        return _NEWER if self.target.startswith(f"{_NEWER}/") else _OLDER


@dataclass(frozen=True)
class RestAnswer:
    status: HTTPStatus
    body: bytes = b""


class RestError(Exception):
    def __init__(self, status: HTTPStatus, message: str) -> None:
        self.status = status
        super().__init__(message)


def is_served(target: str) -> bool:
    """Whether this is the place to answer a request for `target`."""
    return target.startswith((f"{_NEWER}/", f"{_OLDER}/"))


def serve(service: Service, request: RestRequest) -> RestAnswer:
    """Answer one request."""
    newer = request.family == _NEWER
    try:
        status, value = _answer(service, request)
    except RestError as error:
        return RestAnswer(error.status, json.dumps(_error(error, newer)).encode())
    if value is None:
        return RestAnswer(status)
    return RestAnswer(status, json.dumps(value if newer else {"value": value}).encode())


def _error(error: RestError, newer: bool) -> dict[str, object]:
    kind = _ERRORS[error.status]
    messages = [{"id": f"lab.{kind}", "default_message": str(error), "args": []}]
    if newer:
        return {"error_type": kind.upper(), "messages": messages}
    return {"type": f"com.vmware.vapi.std.errors.{kind}", "value": {"messages": messages}}


def _answer(service: Service, request: RestRequest) -> tuple[HTTPStatus, object]:
    settings = service.settings
    version = tuple(int(part) for part in settings.api_version.split(".") if part.isdigit())
    if settings.api_type != "VirtualCenter" or (request.family == _NEWER and version < _SINCE):
        raise RestError(HTTPStatus.NOT_FOUND, "There is no such API here.")
    session, resources, action_name = _PATHS[request.family]
    url = urlsplit(request.target)
    if url.path == session and request.method == "POST":
        created = HTTPStatus.CREATED if request.family == _NEWER else HTTPStatus.OK
        return created, _logged_in(service, request.headers.get("Authorization"))
    token = request.headers.get(SESSION_HEADER)
    if not service.tagging.is_session(token):
        raise RestError(HTTPStatus.UNAUTHORIZED, "Authentication required.")
    if url.path == session and request.method == "DELETE":
        service.tagging.end_session(token or "")
        return (HTTPStatus.NO_CONTENT if request.family == _NEWER else HTTPStatus.OK), None
    if not url.path.startswith(resources):
        raise RestError(HTTPStatus.NOT_FOUND, f"There is no resource {url.path}.")
    action = parse_qs(url.query).get(action_name, [""])[0]
    operation = f"{request.method} {action}".strip()
    resource = _resource(url.path.removeprefix(resources), request.family)
    if (request.family, operation, resource[0]) == (_OLDER, "POST list-tags-for-category", "tag"):
        return HTTPStatus.OK, _tags_of(service.tagging, resource[1])  # there the path names the category
    if action in ("attach", "detach"):
        if _ASSIGN in service.denied_privileges:
            raise RestError(HTTPStatus.FORBIDDEN, f"The account lacks {_ASSIGN}.")
        done = HTTPStatus.NO_CONTENT if request.family == _NEWER else HTTPStatus.OK
        return done, _operate(service.tagging, operation, resource, request.body)
    return HTTPStatus.OK, _operate(service.tagging, operation, resource, request.body)


def _logged_in(service: Service, authorization: str | None) -> str:
    scheme, _, encoded = (authorization or "").partition(" ")
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        user = password = ""
    if scheme != "Basic" or not service.password_matches(user, password):
        raise RestError(HTTPStatus.UNAUTHORIZED, "Authentication required.")
    return service.tagging.open_session()


def _resource(path: str, family: str) -> tuple[str, str | None]:
    """'tag/<id>', in the older generation 'tag/id:<id>', as ('tag', id); the id is None for the collection."""
    kind, slash, id = path.partition("/")
    if family == _OLDER and slash:
        if not id.startswith("id:"):
            raise RestError(HTTPStatus.NOT_FOUND, f"There is no resource {path}.")
        id = id.removeprefix("id:")
    return kind, unquote(id) if slash else None


def _operate(tagging: Tagging, operation: str, resource: tuple[str, str | None], body: bytes) -> object:
    match operation, resource:
        case "GET", ("category", None):
            return list(tagging.categories)
        case "GET", ("category", str(id)) if id in tagging.categories:
            return {"id": id, "name": tagging.categories[id].name, "description": "", "used_by": []}
        case "GET", ("tag", str(id)) if id in tagging.carriers:
            [(category_id, name)] = [
                (key, one.tags[id]) for key, one in tagging.categories.items() if id in one.tags
            ]
            return {"id": id, "category_id": category_id, "name": name, "description": "", "used_by": []}
        case "POST list-tags-for-category", ("tag", None):
            return _tags_of(tagging, _parameter(body, "category_id", str))
        case "POST attach", ("tag-association", str(id)):
            tagging.attach_once(_known_tag(tagging, id), *_object(body))
            return None
        case "POST detach", ("tag-association", str(id)):
            tagging.detach(_known_tag(tagging, id), *_object(body))
            return None
        case "POST list-attached-tags", ("tag-association", None):
            kind, moref = _object(body)
            return [id for id, carriers in tagging.carriers.items() if (kind, moref) in carriers]
        case "POST list-attached-objects-on-tags", ("tag-association", None):
            ids = _parameter(body, "tag_ids", list)
            return [{"tag_id": id, "object_ids": _carriers(tagging, id)} for id in ids]
    raise RestError(HTTPStatus.NOT_FOUND, f"There is no {operation} for {resource}.")


def _known_tag(tagging: Tagging, id: str) -> str:
    if id not in tagging.carriers:
        raise RestError(HTTPStatus.NOT_FOUND, f"There is no tag {id}.")
    return id


def _object(body: bytes) -> tuple[str, str]:
    """The type and the moref of the object that an operation is about."""
    named: dict[str, str] = _parameter(body, "object_id", dict)
    if set(named) != {"type", "id"}:
        raise RestError(HTTPStatus.BAD_REQUEST, "object_id must have type and id.")
    return named["type"], named["id"]


def _tags_of(tagging: Tagging, category_id: str | None) -> list[str]:
    if category_id not in tagging.categories:
        raise RestError(HTTPStatus.NOT_FOUND, f"There is no category {category_id}.")
    return list(tagging.categories[category_id].tags)


def _carriers(tagging: Tagging, tag_id: str) -> list[dict[str, str]]:
    if tag_id not in tagging.carriers:
        raise RestError(HTTPStatus.NOT_FOUND, f"There is no tag {tag_id}.")
    return [{"type": kind, "id": moref} for kind, moref in tagging.carriers[tag_id]]


def _parameter(body: bytes, name: str, kind: type[_T]) -> _T:
    """The one parameter of an operation, which its body is."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict) or set(document) != {name} or not isinstance(document[name], kind):
        raise RestError(HTTPStatus.BAD_REQUEST, f"The body must be an object with {name}.")
    value: _T = document[name]
    return value
