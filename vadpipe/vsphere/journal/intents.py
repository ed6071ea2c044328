"""What we are about to do outside, written down durably before we do it: each an intent, of one kind.

An intent is one small JSON file. It is on disk, with its directory entry, before the call that it announces, and
is removed only after the undoing succeeded. So whatever a killed run leaves behind on a server is named by a file
here, and the next start removes exactly that. An intent belongs to the process that wrote it while that process
lives: the pid alone would lie after a reboot or a wrap-around, so it is kept with the start time and the boot.

No secrets are in it. Everything here blocks: call it from a worker thread.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pipeline.errors import SourceError
from vadpipe.files import flush_directory, state_directory

_SUFFIX = ".intent.json"


class Kind(StrEnum):
    """What there is to undo, in the order in which it is undone for a VM."""

    HOT_ADD = "hot-added disks"
    SNAPSHOT = "snapshot"
    RELOCATION_LOCK = "relocation lock"
    POWER = "power"


@dataclass(frozen=True)
class Intent:
    """Something that we are about to do to a VM, and what its undoing needs. `token` is ours and nobody else's.

    snapshot          the token is in its description
    relocation lock   the token is in its identity; ended through the VDDK in `libdir`
    hot-added disks   detached through the VDDK in `libdir`, which remembers them in `tmp_directory`
    power             the VM ran, was shut down by us, and has to be powered on

    `server_id`: the server's own identity; `vm_uuid`: the VM's instance UUID. `abandoned`: its process lives on,
    but gave up on undoing it.
    """

    token: str
    server: str
    server_id: str
    vm_moref: str
    vm_uuid: str
    vm_name: str
    snapshot_name: str
    run: str
    created: str
    host: str
    pid: int
    process_start: str
    abandoned: bool = False
    kind: Kind = Kind.SNAPSHOT  # what an entry without a kind is: there was no other
    libdir: str = ""
    tmp_directory: str = ""

    @property
    def title(self) -> str:
        """What it is about, for people."""
        name = f" {self.snapshot_name!r}" if self.kind is Kind.SNAPSHOT else ""
        return f"{self.kind}{name} of {self.vm_name}"

    @property
    def identity(self) -> str:
        """The identity of a relocation lock; VDDK takes 50 characters."""
        return f"vadpipe {self.token}"

    @property
    def origin(self) -> str:
        """Which run of which process made it, for people."""
        return f"run {self.run} (process {self.pid} on {self.host})"

    @property
    def age_s(self) -> float:
        """Seconds since it was written, by this machine's clock."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.created)).total_seconds()

    def is_live(self) -> bool:
        """Whether its process may still be at work on it; True also for one of another machine: who could tell?"""
        if self.abandoned:
            return False
        if self.host != socket.gethostname():
            return True
        return process_start(self.pid) == self.process_start


def new_intent(
    *,
    server: str,
    server_id: str,
    vm_moref: str,
    vm_uuid: str,
    vm_name: str,
    run: str,
    kind: Kind = Kind.SNAPSHOT,
    libdir: str = "",
    tmp_directory: str = "",
) -> Intent:
    """An intent of this process, with a token of its own."""
    return Intent(
        token=uuid.uuid4().hex,
        server=server,
        server_id=server_id,
        vm_moref=vm_moref,
        vm_uuid=vm_uuid,
        vm_name=vm_name,
        snapshot_name=f"vadpipe {run}" if kind is Kind.SNAPSHOT else "",
        run=run,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        host=socket.gethostname(),
        pid=os.getpid(),
        process_start=process_start(os.getpid()) or "",
        kind=kind,
        libdir=libdir,
        tmp_directory=tmp_directory,
    )


@dataclass(frozen=True)
class Journal:
    """The intents of this machine, in one directory."""

    directory: Path = field(default_factory=state_directory)

    def write(self, intent: Intent) -> None:
        """Write the intent, or its new version; durable when this returns. Raises SourceError."""
        path = self.path(intent)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with self._errors():
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                with open(temporary, "w", encoding="utf-8") as file:
                    json.dump(asdict(intent), file, indent=1)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            flush_directory(self.directory)

    def abandon(self, intent: Intent) -> None:
        """This process gave up on undoing it: the next sweep may, even one of this process. Raises SourceError."""
        self.write(replace(intent, abandoned=True))

    def remove(self, intent: Intent) -> None:
        """Forget an intent that was undone or never came into being. Raises SourceError."""
        with self._errors():
            self.path(intent).unlink(missing_ok=True)
            flush_directory(self.directory)

    def intents(self) -> Sequence[Intent]:
        """All of them, oldest first. Raises SourceError for a file that cannot be read as one."""
        paths = sorted(self.directory.glob(f"*{_SUFFIX}"))
        found = [intent for intent in map(_load, paths) if intent is not None]
        return sorted(found, key=lambda intent: (intent.created, intent.token))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise SourceError(
                f"The journal {self.directory} cannot be written: {exc.strerror or exc}.",
                remedy="Make the directory writable, or give another one with Journal(directory).",
                directory=str(self.directory),
            ) from exc

    def path(self, intent: Intent) -> Path:
        """The file of this intent."""
        return self.directory / f"{intent.token}{_SUFFIX}"


def _load(path: Path) -> Intent | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        missing = {item.name: item.default for item in fields(Intent) if item.default is not MISSING}
        known = {item.name: {**missing, **document}[item.name] for item in fields(Intent)}
        return Intent(**{**known, "kind": Kind(known["kind"])})
    except FileNotFoundError:  # another process removed it just now
        return None
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise SourceError(
            f"The journal entry {path} cannot be read: {exc}.",
            remedy="It may name a snapshot or a lock that still exists: look into it, undo that, remove the file.",
        ) from exc


def process_start(pid: int) -> str | None:
    """What tells this process from any other that ever has its pid; None: there is no such process.

    Without /proc the pid is all there is: a left intent may wait until its pid is free, which is the safe side.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown" if _exists(pid) else None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *numbers = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return (
        None if state in "ZX" else f"{boot}/{numbers[18]}"
    )  # field 22 of proc(5): start time in clock ticks


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
