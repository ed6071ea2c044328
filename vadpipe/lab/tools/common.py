"""What the stand-ins share: a record of how they were started, moods, and a download through `/folder`."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, urlencode

USAGE = 64  # EX_USAGE of sysexits.h
_HOME = Path(sys.argv[0]).parent


def record(order: str = "") -> None:
    """Write down how this command was started, for the tests to read."""
    started = {"arguments": sys.argv[1:], "environment": dict(os.environ), "order": order}
    (_HOME / "seen.json").write_text(json.dumps(started))


def refuse(reason: str) -> NoReturn:
    print(f"usage: {reason}", file=sys.stderr)
    sys.exit(USAGE)


def mood() -> str:
    """What to do instead of the work: hang (with a child), nothing, half, flood; a text to fail with; or empty."""
    path = _HOME / "mood"
    told = path.read_text() if path.exists() else ""
    if told == "hang":
        child = subprocess.Popen(["sleep", "600"])
        (_HOME / "pids").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(600)
    if told == "nothing":
        sys.exit(0)
    if told not in ("", "half", "twice"):
        print(told, file=sys.stderr)
        sys.exit(1)
    return told


def download(
    target: Path,
    *,
    server: str,
    port: int,
    authorities: str | None,
    headers: dict[str, str],
    path: str,
    **query: str,
) -> None:
    """Fetch a file of a datastore into `target`; the status of the answer is what the command fails with."""
    context = ssl.create_default_context(cafile=authorities)
    connection = http.client.HTTPSConnection(server, port, context=context, timeout=30)
    connection.request("GET", f"/folder/{quote(path)}?{urlencode(query)}", headers=headers)
    response = connection.getresponse()
    if response.status != http.client.OK:
        print(f"Error: GET failed: {response.status} {response.reason}", file=sys.stderr)
        sys.exit(1)
    content = response.read()
    told = mood()
    target.write_bytes(content[: len(content) // 2] if told == "half" else content)
    if told == "twice":
        target.with_name("another").write_bytes(content)
