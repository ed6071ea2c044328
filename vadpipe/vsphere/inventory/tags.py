"""Tags of vSphere: which objects have a tag. Only the REST API knows them.

The API has two generations with the same answers on other paths; the newer one exists since 7.0 Update 2. It
needs a login of its own with user and password.

Source: developer.broadcom.com/xapis/vsphere-automation-api, 'Cis Tagging' and 'Create Session' (since 7.0 U2), and
the REST API reference of vSphere 6.5 to 7.0 U1 (com.vmware.cis.tagging, com.vmware.cis.session). Statuses there:
401 for no session, 403 for a missing privilege, 404 for an id that does not exist.
"""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pipeline.errors import ConfigError, SourceError

from ..api.faults import LoginRefused, NotOffered, ObjectGone, SessionExpired, VsphereError
from ..api.http import HttpClient, Refusal
from ..api.session import Vcenter, VcenterSession
from .lookup import nearest

_NEWER_SINCE = (7, 0, 2)
_SESSION_HEADER = "vmware-api-session-id"
_MAX_ANSWER_SIZE = 64 << 20  # an attached object takes about 50 bytes

_LOGIN_WANTED = Refusal("it requires a login", error=SessionExpired)
_CHECK_AGAIN = (
    "Run again if tags were just changed; otherwise check that this server is a vCenter with REST API."
)
_REFUSALS = {
    http.client.UNAUTHORIZED: _LOGIN_WANTED,
    http.client.FORBIDDEN: Refusal(
        "the account may not read it", "Give it read access to tags and to the tagged objects."
    ),
    http.client.NOT_FOUND: Refusal("there is no such object", _CHECK_AGAIN, ObjectGone),
}
_LOGIN_REFUSALS = {
    http.client.UNAUTHORIZED: _LOGIN_WANTED,
    http.client.NOT_FOUND: Refusal("there is no such resource", _CHECK_AGAIN, NotOffered),
}


@dataclass(frozen=True)
class _Generation:
    """How one generation spells its paths.

    Args:
        session: Path of a login.
        resources: Path above the resources.
        action: What stands before the name of an action.
        identified: What stands before an id in a path.
        tags_of: The resource that lists the tags of a category.
        association: The resource of what has a tag.
        wrapped: Answers are the member `value` of an object.
    """

    session: str
    resources: str
    action: str
    identified: str
    tags_of: str
    association: str
    wrapped: bool


_NEWER = _Generation(
    "/api/session",
    "/api/cis/tagging",
    "?action=",
    "/",
    "tag",
    "tag-association/{tag}",
    wrapped=False,
)
_OLDER = _Generation(
    "/rest/com/vmware/cis/session",
    "/rest/com/vmware/cis/tagging",
    "?~action=",
    "/id:",
    "tag/id:{category}",
    "tag-association/id:{tag}",
    wrapped=True,
)


async def tagged(session: VcenterSession, tag: str) -> frozenset[tuple[str, str]]:
    """The objects with the tag 'category/tag'.

    Returns:
        (type, moref) of each object, e.g. ('VirtualMachine', 'vm-42').

    Raises:
        ConfigError: The session has no password.
        SourceError: There is no such tag (with near names), or the server is an ESXi host.
        VsphereError: The server refuses.
    """
    require_password(session.settings)
    if not session.is_vcenter:
        raise SourceError(
            f"{session.server} is an ESXi host. Only a vCenter has tags.",
            remedy="Select by pattern= or inside=, or through the vCenter.",
            server=session.server,
        )
    return await session.call(f"tagged {tag}", lambda: _tagged(session, tag))


async def tags_of(session: VcenterSession, kind: str, moref: str) -> list[tuple[str, str]]:
    """The tags of an object as (category, name), sorted.

    Args:
        session: The session.
        kind: The API's type of the object, e.g. 'VirtualMachine'.
        moref: Its managed object reference.

    Raises:
        ConfigError: The session has no password.
        VsphereError: The server refuses.
    """
    require_password(session.settings)
    return await session.call(f"tags of {moref}", lambda: _tags_of(session, kind, moref))


async def known_tags(session: VcenterSession) -> dict[tuple[str, str], str]:
    """The ids of all tags, by category and name; none on an ESXi host. Raises as `tagged`."""
    require_password(session.settings)
    if not session.is_vcenter:
        return {}
    return await session.call("known tags", lambda: _known_tags(session))


async def attach_tags(session: VcenterSession, vm_moref: str, tags: Sequence[str]) -> None:
    """Attach the tags with these ids to a VM; one that it has already stays. Raises as `tagged`."""
    subject = {"type": "VirtualMachine", "id": vm_moref}

    def attach() -> None:
        with _Client.opened(session) as client:
            for tag in tags:
                client.attach(tag, subject)

    await session.call("attach tags", attach)


def _known_tags(session: VcenterSession) -> dict[tuple[str, str], str]:
    with _Client.opened(session) as client:
        return dict(client.all_tags())


def require_password(settings: Vcenter) -> None:
    """Raise ConfigError unless the settings have user and password."""
    if settings.password is None:
        raise ConfigError(
            f"Tags of {settings.server} cannot be read with the cookie of a session: their API requires a login.",
            remedy="Give user and password, or select by pattern= or inside=.",
        )


def _tagged(session: VcenterSession, tag: str) -> frozenset[tuple[str, str]]:
    with _Client.opened(session) as client:
        tag_id = client.find(tag)
        found = client.ask(
            "POST", "tag-association", action="list-attached-objects-on-tags", tag_ids=[tag_id]
        )
        return frozenset((one["type"], one["id"]) for entry in found for one in entry["object_ids"])


def _tags_of(session: VcenterSession, kind: str, moref: str) -> list[tuple[str, str]]:
    with _Client.opened(session) as client:
        subject = {"type": kind, "id": moref}
        ids = client.ask("POST", "tag-association", action="list-attached-tags", object_id=subject)
        tags = [client.described("tag", one) for one in ids]
        categories = {
            one: client.described("category", one)["name"] for one in {tag["category_id"] for tag in tags}
        }
        return sorted((str(categories[tag["category_id"]]), str(tag["name"])) for tag in tags)


class _Client:
    """A login at the REST API, on one connection. Blocks."""

    def __init__(self, session: VcenterSession, http: HttpClient) -> None:
        self._settings = session.settings
        self._generation = _NEWER if session.api_version >= _NEWER_SINCE else _OLDER
        self._http = http
        self._headers = {"Accept": "application/json"}

    @classmethod
    @contextmanager
    def opened(cls, session: VcenterSession) -> Iterator[_Client]:
        """Log in; log out at the end."""
        with HttpClient(session.endpoint) as http:
            client = cls(session, http)
            client._login()
            try:
                yield client
            finally:
                client._logout()

    def find(self, tag: str) -> str:
        """The id of the tag 'category/tag'. Both names can contain slashes."""
        names = {self._name("category", one): one for one in self.ask("GET", "category")}
        known: list[str] = []
        for category, category_id in names.items():
            if not tag.startswith(f"{category}/"):
                continue
            for tag_id in self._tags_of(category_id):
                known.append(f"{category}/{self._name('tag', tag_id)}")
                if known[-1] == tag:
                    return str(tag_id)
        near = nearest(tag, known) or nearest(tag.partition("/")[0], names)
        raise SourceError(
            f"There is no tag {tag!r} on {self._settings.server}.",
            remedy=f"Near names: {', '.join(near)}."
            if near
            else "Check the spelling of category and tag, and that the account may read them.",
            tag=tag,
            server=self._settings.server,
            near=near,
        )

    def all_tags(self) -> Iterator[tuple[tuple[str, str], str]]:
        """(category, name) and id of every tag."""
        for category_id in self.ask("GET", "category") or ():  # a simulator says null for none
            category = self._name("category", category_id)
            for tag_id in self._tags_of(category_id):
                yield (category, self._name("tag", tag_id)), tag_id

    def attach(self, tag_id: str, subject: Mapping[str, str]) -> None:
        resource = self._generation.association.format(tag=_in_path(tag_id))
        self.ask("POST", resource, action="attach", object_id=subject)

    def _tags_of(self, category_id: str) -> list[str]:
        resource = self._generation.tags_of.format(category=_in_path(category_id))
        return list(self.ask("POST", resource, action="list-tags-for-category", category_id=category_id))

    def _name(self, kind: str, id: str) -> str:
        return str(self.described(kind, id)["name"])

    def described(self, kind: str, id: str) -> Any:  # noqa: ANN401
        """What the server says of a tag or a category."""
        return self.ask("GET", f"{kind}{self._generation.identified}{_in_path(id)}")

    def ask(self, method: str, resource: str, *, action: str = "", **parameters: object) -> Any:  # noqa: ANN401
        """The answer of one operation. The caller knows its shape."""
        path = f"{self._generation.resources}/{resource}"
        if action:
            path += f"{self._generation.action}{action}"
        return self._request(method, path, parameters if action else None)

    def _login(self) -> None:
        settings = self._settings
        assert settings.password is not None  # see require_password
        account = f"{settings.user}:{settings.password.reveal()}".encode()
        headers = {"Authorization": f"Basic {base64.b64encode(account).decode()}"}
        try:
            token = self._request("POST", self._generation.session, headers=headers, refusals=_LOGIN_REFUSALS)
        except SessionExpired:
            raise LoginRefused(
                f"{settings.server} refuses {settings.user} at its REST API, which has the tags.",
                remedy="Check user (with its domain, as in backup@vsphere.local) and password.",
                server=settings.server,
            ) from None
        self._headers[_SESSION_HEADER] = str(token)

    def _logout(self) -> None:
        """A failed logout has no remedy: the server ends an idle session by itself."""
        if self._http.is_open:  # a lost connection is not replaced for this
            with suppress(VsphereError):
                self._request("DELETE", self._generation.session)

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        refusals: Mapping[int, Refusal] = _REFUSALS,
    ) -> Any:  # noqa: ANN401
        sent, content, call = {**self._headers, **(headers or {})}, None, f"{method} {path}"
        if body is not None:
            content = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        response = self._http.request(
            method, path, call=call, limit=_MAX_ANSWER_SIZE, headers=sent, body=content
        )
        answer = response.require_success(refusals)
        if not answer:
            return None
        try:
            document = json.loads(answer)
            return document["value"] if self._generation.wrapped else document
        except (ValueError, KeyError, TypeError) as exc:
            raise VsphereError(
                f"{self._settings.server} answered {call} with something that is no answer of vSphere.",
                remedy="Check the name and port of the server.",
                server=self._settings.server,
                call=call,
            ) from exc


def _in_path(id: str) -> str:
    """E.g. 'urn:vmomi:InventoryServiceTag:...:GLOBAL', whose colons stay."""
    return quote(id, safe=":")
