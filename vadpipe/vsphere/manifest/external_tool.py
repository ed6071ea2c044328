"""Running another vendor's tool: exact arguments, a clean environment, no secret in either, an end in any case.

A tool works in a private directory (mode 0700) that is gone afterwards; what it prints goes there, too. Cancelled,
it is killed with everything it started.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from pipeline.errors import SourceError
from vadpipe.vss.archive import MAX_ARCHIVE_SIZE

from ..api.faults import VsphereError
from ..api.session import VcenterSession
from ..api.soap import session_id
from .fetch import ManifestPlace, too_large

# What tools need of our environment. Not what configures these tools: an exact command has one meaning. Nor
# proxies, whose addresses may hold passwords.
_INHERITED = (
    "APPDATA", "COMSPEC", "HOME", "HOMEDRIVE", "HOMEPATH", "LANG", "LANGUAGE", "LOCALAPPDATA", "LOGNAME", "PATH",
    "PATHEXT", "PERL5LIB", "PROGRAMDATA", "PROGRAMFILES", "PSMODULEPATH", "SYSTEMDRIVE", "SYSTEMROOT", "TEMP",
    "TMP", "TMPDIR", "TZ", "USER", "USERPROFILE", "WINDIR",
)  # fmt: skip
_INHERITED_PREFIXES = ("LC_", "XDG_")

_SAID = 300  # characters of a tool's last words that an error repeats
_PRINTED = 1 << 16  # bytes of its output that are looked at

# What a tool's last words mean, the first that fits: both tools pass on what the server or their HTTP library says.
_MEANINGS = (
    (r"VMware\.VimAutomation\.Core.*not loaded|Can't locate \S+\.pm", "VMware's modules for it are missing"),
    (r"certificate|SSL|TLS", "it does not trust the certificate of the server"),
    (r"\b401\b|not ?authenticated|unauthorized|session.*(expired|not valid)", "its login was not accepted"),
    (r"\b403\b|forbidden|no ?permission|permission.*denied", "the account may not read files there (privileges "
     "Datastore.Browse and Datastore.FileManagement)"),
    (r"\b404\b|not found|does not exist|cannot find", "there is no such file"),
)  # fmt: skip


@dataclass(frozen=True)
class Workplace:
    """A private directory for one run of one tool."""

    directory: Path
    session: VcenterSession
    place: ManifestPlace

    @property
    def download(self) -> Path:
        """The directory for the downloaded file; empty, so that whatever is there afterwards is it."""
        return self.directory / "download"

    @property
    def session_id(self) -> str:
        """The bare id of our session; a secret."""
        return session_id(self.session.cookie)

    @property
    def authorities(self) -> Path | None:
        """A file with the certificates (PEM) to trust, None for the system's: the pinned one, or `ca_file`."""
        settings = self.session.settings
        if settings.ca_file is not None:
            return Path(settings.ca_file).absolute()
        return None if settings.thumbprint is None else self.directory / "server.pem"

    async def run(
        self, program: str, arguments: Sequence[str], *, order: bytes = b"", environment: Mapping[str, str]
    ) -> bytes:
        """Run the tool with `order` on its standard input; the one file that it downloaded. Raises VsphereError."""
        command = [self._absolute(program), *arguments]
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
        return await trio.to_thread.run_sync(self._result, program, ended.returncode, printed)

    def _absolute(self, program: str) -> str:
        if (found := shutil.which(program)) is None:
            raise self.failed(
                f"{program} is not installed here, or not on the PATH.",
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
        """The downloaded bytes of a tool that ended well. Blocks."""
        files = list(self.download.iterdir())
        if status != 0:
            raise self.failed(f"{program} {_ending(status)}{self._last_words(printed)}.")
        if len(files) != 1:
            said = self._last_words(printed)
            raise self.failed(
                f"{program} ended without an error, but left {len(files)} files instead of one{said}."
            )
        if files[0].stat().st_size > MAX_ARCHIVE_SIZE:
            raise self.failed(too_large(self.place.path))
        return files[0].read_bytes()

    def _last_words(self, printed: Path) -> str:
        """What the tool said at last, after its meaning; the session's id is blotted out."""
        with printed.open("rb") as file:
            file.seek(max(0, printed.stat().st_size - _PRINTED))
            text = file.read().decode(errors="replace").replace(self.session_id, "***")
        said = " ".join(re.sub(r"[^\x20-\x7e\xa0-\U0010ffff]+", " ", text).split())[-_SAID:]
        meaning = next((told for pattern, told in _MEANINGS if re.search(pattern, said, re.IGNORECASE)), "")
        parts = [part for part in (meaning, f"it said: {said.rstrip('.')}" if said else "") if part]
        return f": {'; '.join(parts)}" if parts else ""


@asynccontextmanager
async def open_workplace(session: VcenterSession, place: ManifestPlace) -> AsyncIterator[Workplace]:
    """A workplace that exists inside the block. The session is alive then, since no tool can renew it.

    Raises SourceError when the directory cannot be made, VsphereError.
    """
    await session.keep_alive()
    try:
        directory = tempfile.TemporaryDirectory(prefix="vadpipe-")
    except OSError as exc:
        raise SourceError(f"No temporary directory can be made: {exc.strerror}.") from exc
    with directory as path:
        workplace = Workplace(Path(path), session, place)
        workplace.download.mkdir(mode=0o700)
        if workplace.authorities == workplace.directory / "server.pem":
            workplace.authorities.write_text(session.certificate_pem)
        yield workplace


async def _kill_tree(process: trio.Process) -> None:
    """Kill the tool with what it started: it is the first of a process group of its own."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _ending(status: int) -> str:
    return f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"
