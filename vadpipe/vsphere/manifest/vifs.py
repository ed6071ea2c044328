"""vifs, the file command of the vSphere CLI (vCLI, vMA).

It takes a session from a file only, never from an argument or its standard input. So the session's id is for these
seconds in a file of mode 0600 in a directory of mode 0700; both are gone when the tool has ended. A vadpipe that is
killed meanwhile leaves them behind; the id opens something until the session ends, after 30 idle minutes.

Sources: vSphere CLI reference, vifs; Getting Started with vSphere Command-Line Interfaces, "Using a Session File";
Perl's HTTP::Cookies for the file's format (Set-Cookie3), LWP::UserAgent for the variables that make it verify.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..api.session import VcenterSession
from ..api.soap import COOKIE
from .external_tool import open_workplace
from .fetch import Fetched, ManifestPlace


@dataclass(frozen=True)
class Vifs:
    """Download with `vifs --get`. `program`: its name or path. Cancel: killed, its directory removed.

    The server's certificate is verified: the pinned one, else `ca_file`, else the system's authorities.
    """

    program: str = "vifs"
    timeout_s: float = 120.0

    @property
    def way(self) -> str:
        return "vifs"

    def effects(self) -> Sequence[str]:
        return [f"Hands the session to {self.program} in a private file, which is removed at once."]

    async def fetch(self, session: VcenterSession, place: ManifestPlace) -> Fetched:
        """Raises VsphereError, SourceError."""
        async with open_workplace(session, place) as workplace:
            session_file = workplace.directory / "session"
            _write_private(session_file, session_file_text(session.settings.server, workplace.session_id))
            datacenter = ["--dc", place.datacenter_path] if session.is_vcenter else []
            target = workplace.download / "manifest"
            arguments = [
                *("--server", session.settings.server, "--portnumber", str(session.settings.port)),
                *("--sessionfile", str(session_file)),
                *datacenter,
                *("--get", str(place.path), str(target)),
            ]
            environment = {"PERL_LWP_SSL_VERIFY_HOSTNAME": "1"}
            if workplace.authorities is not None:
                environment["PERL_LWP_SSL_CA_FILE"] = str(workplace.authorities)
            return Fetched(await workplace.run(self.program, arguments, environment=environment))


def session_file_text(server: str, session_id: str) -> str:
    """The cookie jar that a saved session is. libwww-perl takes a name without dots for one in `.local`."""
    domain = server if "." in server or ":" in server else f"{server}.local"
    cookie = (
        f'{COOKIE}="\\"{session_id}\\""; path="/"; domain={domain}; path_spec; secure; discard; version=0'
    )
    return f"#LWP-Cookies-1.0\nSet-Cookie3: {cookie}\n"


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
