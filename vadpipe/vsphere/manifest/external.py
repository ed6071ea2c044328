"""VMware's own tools as ways to fetch a manifest: vifs of the vSphere CLI, and Copy-DatastoreItem of PowerCLI.

A tool gets exact arguments, a clean environment and no secret in either. It works in a private directory (mode
0700), which also takes its output and is removed afterwards. A cancelled tool is killed with all its children.

vifs reads a session from a file only, never from an argument or its standard input. So the session's id is for
these seconds in a file of mode 0600 in the private directory. A vadpipe that is killed meanwhile leaves the
file behind; the id is valid until the session ends, after 30 idle minutes.

PowerShell reads the script with the session's id from its standard input. Every text in it is Base64 of its
UTF-8, so that no name can be taken for code, whatever its quotes (PowerShell knows nine) and whatever the
encoding of the console. The script is one line, because PowerShell runs standard input line by line and reports
nothing about a line that it cannot parse. The datastore is named by its id, because names can repeat in another
datacenter and are patterns to PowerCLI. The session stays open: Disconnect-VIServer would end it for us too.

Sources: vSphere CLI reference, vifs; Getting Started with vSphere Command-Line Interfaces, "Using a Session
File"; Perl's HTTP::Cookies (format Set-Cookie3) and LWP::UserAgent (variables that switch verification on);
PowerShell, about_Pwsh (-Command -); VCF PowerCLI reference: Connect-VIServer (-Session), Get-Datastore (-Id),
New-PSDrive with the VimDatastore provider, Copy-DatastoreItem, Set-PowerCLIConfiguration
(InvalidCertificateAction).
"""

from __future__ import annotations

import base64
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from pipeline.errors import SourceError
from vadpipe.vss.archive import MAX_ARCHIVE_SIZE

from ..api.faults import VsphereError
from ..api.session import VcenterSession
from ..api.soap import COOKIE, session_id
from .fetch import Fetched, ManifestPlace, too_large

log = logging.getLogger(__name__)

# What tools need of our environment. Excluded are settings of these tools, so that a command has one meaning, and
# proxies, whose addresses can contain passwords.
_INHERITED = (
    "APPDATA", "COMSPEC", "HOME", "HOMEDRIVE", "HOMEPATH", "LANG", "LANGUAGE", "LOCALAPPDATA", "LOGNAME", "PATH",
    "PATHEXT", "PERL5LIB", "PROGRAMDATA", "PROGRAMFILES", "PSMODULEPATH", "SYSTEMDRIVE", "SYSTEMROOT", "TEMP",
    "TMP", "TMPDIR", "TZ", "USER", "USERPROFILE", "WINDIR",
)  # fmt: skip
_INHERITED_PREFIXES = ("LC_", "XDG_")

_QUOTED = 300  # characters at the end of a tool's output that an error quotes
_PRINTED = 1 << 16  # bytes of its output that are read

# What the output means; the first match counts. Both tools pass on what the server or their HTTP library says.
_MEANINGS = (
    (r"VMware\.VimAutomation\.Core.*not loaded|Can't locate \S+\.pm", "VMware's modules for it are missing"),
    (r"certificate|SSL|TLS", "it does not trust the certificate of the server"),
    (r"\b401\b|not ?authenticated|unauthorized|session.*(expired|not valid)", "its login was not accepted"),
    (r"\b403\b|forbidden|no ?permission|permission.*denied", "the account may not read files there (privileges "
     "Datastore.Browse and Datastore.FileManagement)"),
    (r"\b404\b|not found|does not exist|cannot find", "there is no such file"),
)  # fmt: skip


_POWERSHELL = ("-NoLogo", "-NoProfile", "-NonInteractive", "-Command", "-")
_MODULE = "VMware.VimAutomation.Core"


@dataclass(frozen=True)
class Vifs:
    """Download with `vifs --get`. It verifies the server by the pinned certificate, `ca_file` or the system's.

    Args:
        program: Its name or path.
        timeout_s: Seconds for the whole download.
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
        async with _tool_run(session, place) as tool:
            session_file = tool.directory / "session"
            _write_private(session_file, session_file_text(session.settings.server, tool.session_id))
            datacenter = ["--dc", place.datacenter_path] if session.is_vcenter else []
            target = tool.download / "manifest"
            arguments = [
                *("--server", session.settings.server, "--portnumber", str(session.settings.port)),
                *("--sessionfile", str(session_file)),
                *datacenter,
                *("--get", str(place.path), str(target)),
            ]
            environment = {"PERL_LWP_SSL_VERIFY_HOSTNAME": "1"}
            if tool.authorities is not None:
                environment["PERL_LWP_SSL_CA_FILE"] = str(tool.authorities)
            return Fetched(await tool.run(self.program, arguments, environment=environment))


@dataclass(frozen=True)
class CopyDatastoreItem:
    """Download with Copy-DatastoreItem. It verifies the server, on Windows by the system's authorities only.

    Args:
        program: PowerShell's name or path.
        timeout_s: Seconds for the whole download. Loading the modules alone can take half a minute.
    """

    program: str = "pwsh"
    timeout_s: float = 180.0

    @property
    def way(self) -> str:
        return "Copy-DatastoreItem"

    def effects(self) -> Sequence[str]:
        return [f"Hands the session to {self.program} on its standard input."]

    async def fetch(self, session: VcenterSession, place: ManifestPlace) -> Fetched:
        """Raises VsphereError, SourceError."""
        async with _tool_run(session, place) as tool:
            if place.datastore is None:
                raise tool.failed(f"The datastore of {place.path} is none of the VM's, so its id is unknown.")
            order = script(
                session.settings.server,
                session.settings.port,
                tool.session_id,
                place.datastore,
                place.path.path,
                str(tool.download),
            )
            environment = {"POWERSHELL_TELEMETRY_OPTOUT": "1", "POWERSHELL_UPDATECHECK": "Off"}
            if tool.authorities is not None:
                environment["SSL_CERT_FILE"] = str(tool.authorities)  # read by .NET where TLS is OpenSSL's
            content = await tool.run(
                self.program, _POWERSHELL, order=order.encode("ascii"), environment=environment
            )
            return Fetched(content)


def session_file_text(server: str, session_id: str) -> str:
    """A saved session as a cookie jar. libwww-perl treats a name without dots as one in `.local`."""
    domain = server if "." in server or ":" in server else f"{server}.local"
    cookie = (
        f'{COOKIE}="\\"{session_id}\\""; path="/"; domain={domain}; path_spec; secure; discard; version=0'
    )
    return f"#LWP-Cookies-1.0\nSet-Cookie3: {cookie}\n"


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def script(server: str, port: int, session_id: str, datastore: str, path: str, target: str) -> str:
    """The line that copies the file at `path` of the datastore (a moref) into the directory `target`."""
    item = "[WildcardPattern]::Escape(" + _text("\\".join(["vadpipe:", *path.split("/")])) + ")"
    steps = [
        f"Import-Module {_MODULE} | Out-Null",
        "Set-PowerCLIConfiguration -Scope Session -InvalidCertificateAction Fail -Confirm:$false | Out-Null",
        f"$server = Connect-VIServer -Server {_text(server)} -Port {port} -Session {_text(session_id)}",
        f"$datastore = Get-Datastore -Server $server -Id {_text(f'Datastore-{datastore}')}",
        "New-PSDrive -Name vadpipe -PSProvider VimDatastore -Root '\\' -Location $datastore | Out-Null",
        f"Copy-DatastoreItem -Item ({item}) -Destination {_text(target)}",
        "exit 0",
    ]
    caught = "[Console]::Error.WriteLine($_.Exception.Message); exit 1"
    settings = "$ErrorActionPreference = 'Stop'; $ProgressPreference = 'SilentlyContinue'"
    return f"{settings}; try {{ {'; '.join(steps)} }} catch {{ {caught} }}\n"


def _text(value: str) -> str:
    encoded = base64.b64encode(value.encode()).decode()
    return f"([Text.Encoding]::UTF8.GetString([Convert]::FromBase64String('{encoded}')))"


@dataclass(frozen=True)
class _ToolRun:
    """One run of one tool, in a private directory."""

    directory: Path
    session: VcenterSession
    place: ManifestPlace

    @property
    def download(self) -> Path:
        """The directory for the download. It is empty before, so the one file in it afterwards is the download."""
        return self.directory / "download"

    @property
    def session_id(self) -> str:
        """The bare id of our session, a secret."""
        return session_id(self.session.cookie)

    @property
    def authorities(self) -> Path | None:
        """A PEM file with the pinned certificate or `ca_file`; None for the system's authorities."""
        settings = self.session.settings
        if settings.ca_file is not None:
            return Path(settings.ca_file).absolute()
        return None if settings.thumbprint is None else self.directory / "server.pem"

    async def run(
        self, program: str, arguments: Sequence[str], *, order: bytes = b"", environment: Mapping[str, str]
    ) -> bytes:
        """Run the tool.

        Args:
            program: Its name or path.
            arguments: Its arguments.
            order: Its standard input.
            environment: Variables in addition to the inherited ones.

        Returns:
            The bytes of the one file that it downloaded.

        Raises:
            VsphereError: It failed, or left another number of files.
        """
        command, started = [self._absolute(program), *arguments], time.monotonic()
        printed = self.directory / "printed"
        with printed.open("wb") as output:
            try:
                ended = await trio.run_process(
                    command,
                    stdin=order,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    check=False,
                    cwd=self.directory,
                    env={**self._inherited(), **environment},
                    start_new_session=True,
                    deliver_cancel=_kill_tree,
                )
            except OSError as exc:
                raise self.failed(f"{program} cannot be run: {exc.strerror or exc}.") from exc
        log.debug("%s: status %d, %.3f s", program, ended.returncode, time.monotonic() - started)
        return await trio.to_thread.run_sync(self._result, program, ended.returncode, printed)

    def _absolute(self, program: str) -> str:
        if (found := shutil.which(program)) is None:
            raise self.failed(
                f"{program} is not installed on this machine, or not on the PATH.",
                remedy="Install it, give its path (program=), or choose another way to fetch the manifest.",
            )
        return os.path.abspath(found)

    def failed(self, problem: str, *, remedy: str = "") -> VsphereError:
        return VsphereError(problem, remedy=remedy, server=self.session.server, path=str(self.place.path))

    def _inherited(self) -> dict[str, str]:
        settings = self.session.settings
        secrets = [
            self.session_id,
            *(secret.reveal() for secret in (settings.password, settings.cookie) if secret),
        ]
        return {
            name: value
            for name, value in os.environ.items()
            if (name.upper() in _INHERITED or name.startswith(_INHERITED_PREFIXES))
            and not any(secret in value for secret in secrets)
        }

    def _result(self, program: str, status: int, printed: Path) -> bytes:
        """The downloaded bytes. Blocks."""
        files = list(self.download.iterdir())
        if status != 0:
            raise self.failed(f"{program} {_ending(status)}{self._last_words(printed)}.")
        if len(files) != 1:
            output = self._last_words(printed)
            raise self.failed(
                f"{program} ended without an error, but left {len(files)} files instead of one{output}."
            )
        if files[0].stat().st_size > MAX_ARCHIVE_SIZE:
            raise self.failed(too_large(self.place.path))
        return files[0].read_bytes()

    def _last_words(self, printed: Path) -> str:
        """The end of the tool's output after its meaning, without the session's id."""
        with printed.open("rb") as file:
            file.seek(max(0, printed.stat().st_size - _PRINTED))
            text = file.read().decode(errors="replace").replace(self.session_id, "***")
        words = " ".join(re.sub(r"[^\x20-\x7e\xa0-\U0010ffff]+", " ", text).split())[-_QUOTED:]
        meaning = next(
            (cause for pattern, cause in _MEANINGS if re.search(pattern, words, re.IGNORECASE)), ""
        )
        parts = [part for part in (meaning, f"its output ends: {words.rstrip('.')}" if words else "") if part]
        return f": {'; '.join(parts)}" if parts else ""


@asynccontextmanager
async def _tool_run(session: VcenterSession, place: ManifestPlace) -> AsyncIterator[_ToolRun]:
    """A run whose directory exists inside the block. The session is alive at its start: no tool can renew it.

    Raises:
        SourceError: The directory cannot be made; VsphereError when the session cannot be renewed.
    """
    await session.keep_alive()
    try:
        directory = tempfile.TemporaryDirectory(prefix="vadpipe-")
    except OSError as exc:
        raise SourceError(f"No temporary directory can be made: {exc.strerror}.") from exc
    with directory as path:
        run = _ToolRun(Path(path), session, place)
        run.download.mkdir(mode=0o700)
        if (pinned := run.directory / "server.pem") == run.authorities:
            pinned.write_text(session.certificate_pem)
        yield run


async def _kill_tree(process: trio.Process) -> None:
    """Kill the tool with its children: it leads a process group of its own."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _ending(status: int) -> str:
    return f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"
