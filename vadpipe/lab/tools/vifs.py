"""Stand-in for vifs: `--get` with a saved session, as the vSphere CLI reference has it."""

from __future__ import annotations

import argparse
import os
import re
import stat
import urllib.request
from http.cookiejar import LoadError, LWPCookieJar
from pathlib import Path
from typing import NoReturn

from . import common


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        common.refuse(message)


def main() -> None:
    common.record()
    parser = _Arguments(allow_abbrev=False, add_help=False)
    parser.add_argument("--server", required=True)
    parser.add_argument("--portnumber", type=int, default=443)
    parser.add_argument("--sessionfile", required=True, type=Path)
    parser.add_argument("--dc")
    parser.add_argument("--get", required=True)
    parser.add_argument("target", type=Path)
    given = parser.parse_args()
    place = re.fullmatch(r"\[(.+?)\] (.+)", given.get, re.DOTALL)
    if place is None:
        common.refuse(f"--get {given.get}")
    if given.target.exists():
        common.refuse("it would ask whether to overwrite the target")
    if any(name.startswith("VI_") for name in os.environ):
        common.refuse("its own variables say something else than its arguments")
    common.mood()
    common.download(
        given.target,
        server=given.server,
        port=given.portnumber,
        authorities=_authorities(),
        headers={"Cookie": _cookie(given.sessionfile, given.server)},
        path=place[2],
        dsName=place[1],
        **({"dcPath": given.dc} if given.dc else {}),
    )
    print(f"Downloaded file to {given.target} successfully.")


def _cookie(session: Path, server: str) -> str:
    """The session's cookie as libwww-perl would send it; a file that others may read is refused."""
    for path, allowed in ((session, 0o600), (session.parent, 0o700)):
        if stat.S_IMODE(path.stat().st_mode) != allowed:
            common.refuse(f"{path} is not private")
    jar = LWPCookieJar()
    try:
        jar.load(str(session), ignore_discard=True)
    except LoadError as error:
        common.refuse(str(error))
    request = urllib.request.Request(f"https://{server}/folder")
    jar.add_cookie_header(request)
    cookie = request.get_header("Cookie")
    if cookie is None:
        common.refuse(f"the session is none of {server}")
    return cookie.replace('\\"', '"').replace('""', '"')  # one pair of quotes is the jar's


def _authorities() -> str | None:
    if os.environ.get("PERL_LWP_SSL_VERIFY_HOSTNAME") != "1":
        common.refuse("the server's certificate would not be verified")
    return os.environ.get("PERL_LWP_SSL_CA_FILE")
