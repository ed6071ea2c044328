"""libguestfs by its shell, guestfish, as a child process over our own NBD server.

guestfish boots a small appliance under QEMU, in which the kernel mounts the volumes: it reads whatever Linux reads,
replays journals into an overlay that is thrown away, and keeps forged file systems inside a virtual machine.

Source: guestfish(1), guestfs(3).
"""

from __future__ import annotations

import logging
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from pipeline.errors import ConfigError
from pipeline.units import MiB
from vadpipe.repository.format.restore_point import RestorePoint, StoredDisk
from vadpipe.repository.reader import RepositoryReader
from vadpipe.serve.point import serve_point

from .contract import Content, Entry, FileSystem, Kind, Unreadable
from .volumes import Volume

log = logging.getLogger(__name__)

PROGRAM: Final = "guestfish"
_START_S: Final = 300  # an appliance without KVM took 40 s
_ANSWER_S: Final = 600
_POLL_S: Final = 0.2
_ENDS_S: Final = 5
_PIECE: Final = 16 * MiB  # fetched at once
_PLAIN: Final = re.compile(rb"[A-Za-z0-9_./:=+,@-]+")
_FIELD: Final = re.compile(r"^st_(\w+): (-?\d+)$", re.MULTILINE)
_ERROR: Final = re.compile(r"^(?:libguestfs: error: |\*stdin\*:\d+: ?libguestfs: error: )(.*)$", re.MULTILINE)
_KINDS: Final = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.LINK}


class Guestfish:
    """A running guestfish. The methods block, and are for one worker thread of trio at a time.

    Args:
        keys: The disks, by the names of their exports.
        socket: Where a server of NBD listens.
        directory: For what it fetches; is private.
    """

    def __init__(self, keys: Sequence[str], socket: Path, directory: Path) -> None:
        self._socket, self._directory = socket, directory
        self._disks = {key: f"/dev/sd{chr(ord('a') + number)}" for number, key in enumerate(keys)}
        self._child = subprocess.Popen(
            [PROGRAM, "--ro"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that it and its QEMU end together
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        self._said = b""
        self._number = 0
        self._mounted = 0

    def launch(self) -> None:
        """Start the appliance. Raises Unreadable."""
        begun = time.monotonic()
        server = f"server:unix:{self._socket}"
        for key in self._disks:
            # Not as a URI: guestfish knows no `nbd+unix`, and takes it for the name of a file.
            self.run("add-drive", key, "readonly:true", "format:raw", "protocol:nbd", server)
        self.run("run", limit_s=_START_S)
        log.info("guestfish: the appliance runs after %.1f s", time.monotonic() - begun)

    @staticmethod
    def is_installed() -> bool:
        return shutil.which(PROGRAM) is not None

    def open(self, volume: Volume) -> FileSystem:
        """Mount a volume, read-only. Raises Unreadable."""
        if volume.number is not None:
            device = f"{self._disks[volume.disk]}{volume.number}"
        else:
            device = self._disks.get(volume.name, f"/dev/{volume.name}")
        place = f"/v{self._mounted}"
        self._mounted += 1
        label = self.run("-vfs-label", device).strip()  # first: of a mounted NTFS it cannot be asked
        self.run("mkmountpoint", place)
        self.run("mount-ro", device, place)
        return _Mounted(self, place, "" if _ERROR.search(label) else label)

    def run(self, command: str, *arguments: str | bytes, limit_s: float = _ANSWER_S) -> str:
        """Run a command; what it prints. One that begins with `-` may fail. Raises Unreadable."""
        return self.run_all([(command, *arguments)], limit_s)[0]

    def run_all(self, commands: Sequence[Sequence[str | bytes]], limit_s: float = _ANSWER_S) -> list[str]:
        """Run several commands, all sent at once. Raises Unreadable for the first that fails."""
        lines, marks = [], []
        for command, *arguments in commands:
            self._number += 1
            marks.append(f"vadpipe {self._number} {os.urandom(8).hex()}".encode())
            name = os.fsencode(command).removeprefix(b"-")
            lines.append(b" ".join([b"-" + name, *map(_quoted, arguments)]))
            lines.append(b"echo " + _quoted(marks[-1]))
        self._send(b"\n".join(lines) + b"\n")
        found = []
        for (command, *_), mark in zip(commands, marks, strict=True):
            said = self._until(mark + b"\n", limit_s).decode("utf-8", "surrogateescape")
            error = _ERROR.search(said)
            if error and not str(command).startswith("-"):
                raise Unreadable(f"libguestfs: {command!s}: {error.group(1)}.")
            found.append(said)
        return found

    def fetched(self) -> Path:
        """A new path for what is fetched."""
        self._number += 1
        return self._directory / f"{self._number}"

    def close(self) -> None:
        """End it and its appliance. Blocks."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(_ENDS_S)
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _send(self, content: bytes) -> None:
        """Write, and keep what is said meanwhile, so that neither side waits for the other."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        left = memoryview(content)
        into, out = self._child.stdin.fileno(), self._child.stdout.fileno()
        while left:
            readable, writable, _ = select.select([out], [into], [], _POLL_S)
            trio.from_thread.check_cancelled()
            if readable:
                self._take(out)
            if writable:
                try:
                    left = left[os.write(into, left[: select.PIPE_BUF]) :]
                except BrokenPipeError:
                    raise self._ended() from None

    def _until(self, mark: bytes, limit_s: float) -> bytes:
        assert self._child.stdout is not None
        out = self._child.stdout.fileno()
        end = time.monotonic() + limit_s
        while mark not in self._said:
            trio.from_thread.check_cancelled()
            if time.monotonic() > end:
                raise Unreadable(f"libguestfs did not answer within {limit_s:.0f} s.")
            if select.select([out], [], [], _POLL_S)[0]:
                self._take(out)
        said, self._said = self._said.split(mark, 1)
        return said

    def _take(self, out: int) -> None:
        content = os.read(out, 65536)
        if not content:
            raise self._ended()
        self._said += content

    def _ended(self) -> Unreadable:
        said = self._said.decode("utf-8", "replace").strip().splitlines()
        return Unreadable(
            f"guestfish ended: {' '.join(said[-3:]) or 'it said nothing'}.",
            remedy="`libguestfs-test-tool` tells what is missing.",
        )


class _Mounted:
    """A mounted volume as a FileSystem. Streams of NTFS are not seen."""

    reader = "libguestfs"
    notes: Sequence[str] = ()

    def __init__(self, shell: Guestfish, place: str, label: str) -> None:
        self._shell, self._place, self.label = shell, place, label

    def root(self) -> Entry:
        return self._entries([("/", self._place.encode())])[0]

    def entries(self, directory: Entry) -> Sequence[Entry]:
        parent = _path(directory)
        names = self._shell.fetched()
        self._shell.run("ls0", parent, os.fsencode(names))
        try:
            found = [name for name in names.read_bytes().split(b"\0") if name not in (b"", b".", b"..")]
        finally:
            names.unlink()
        return self._entries([(os.fsdecode(name), parent + b"/" + name) for name in found])

    def find(self, directory: Entry, name: str) -> Entry | None:
        return next((each for each in self.entries(directory) if each.name == name), None)

    def open(self, entry: Entry, stream: str = "") -> Content:
        return _Fetched(self._shell, _path(entry), entry.size)

    def link(self, entry: Entry) -> str:
        said = self._shell.run("readlink", _path(entry))
        return said.removesuffix("\n")

    def _entries(self, names: Sequence[tuple[str, bytes]]) -> list[Entry]:
        answers = self._shell.run_all([("lstatns", path) for _, path in names])
        found = []
        for (name, path), said in zip(names, answers, strict=True):
            facts = {key: int(value) for key, value in _FIELD.findall(said)}
            mode = facts["mode"]
            kind = _KINDS.get(stat.S_IFMT(mode), Kind.SPECIAL)
            modified = facts["mtime_sec"] * 1_000_000_000 + facts["mtime_nsec"]
            identity = (facts["dev"], facts["ino"])
            found.append(Entry(name, kind, facts["size"], modified, stat.S_IMODE(mode), identity, node=path))
        return found


class _Fetched:
    """The content of a file, fetched in pieces."""

    def __init__(self, shell: Guestfish, path: bytes, size: int) -> None:
        self._shell, self._path, self.size = shell, path, size
        self._start, self._piece = 0, b""

    def extents(self) -> Sequence[tuple[int, int]]:
        return [(0, self.size)] if self.size else []

    def read(self, offset: int, length: int) -> bytes:
        found = b""
        while length:
            skip = offset - self._start
            if not 0 <= skip < len(self._piece):
                self._fetch(offset)
                skip = 0
            part = self._piece[skip : skip + length]
            found += part
            offset += len(part)
            length -= len(part)
        return found

    def _fetch(self, offset: int) -> None:
        local = self._shell.fetched()
        wanted = min(_PIECE, self.size - offset)
        try:
            self._shell.run("download-offset", self._path, os.fsencode(local), str(offset), str(wanted))
            self._start, self._piece = offset, local.read_bytes()
        finally:
            local.unlink(missing_ok=True)
        if len(self._piece) != wanted:
            raise Unreadable(f"libguestfs gave {len(self._piece)} of {wanted} bytes at {offset} of a file.")


def _path(entry: Entry) -> bytes:
    assert isinstance(entry.node, bytes)
    return entry.node


def _quoted(argument: str | bytes) -> bytes:
    """An argument for a line of guestfish: what is not plain is written as hexadecimal escapes."""
    raw = argument if isinstance(argument, bytes) else os.fsencode(argument)
    if _PLAIN.fullmatch(raw):
        return raw
    return b'"' + b"".join(b"\\x%02x" % byte for byte in raw) + b'"'


@asynccontextmanager
async def guestfish(
    reader: RepositoryReader, point: RestorePoint, disks: Sequence[StoredDisk]
) -> AsyncIterator[Callable[[], Guestfish]]:
    """Yields what starts guestfish over some disks of a point, once, on a worker thread.

    The disks are served on a private Unix socket as long as the block runs. What it raises: ConfigError where
    guestfish is not installed, Unreadable where its appliance does not start.
    """
    started: list[Guestfish] = []
    async with AsyncExitStack() as stack:
        keys = [disk.key for disk in disks]

        async def serve(socket: Path) -> None:
            await stack.enter_async_context(serve_point(reader, point, keys=keys, listen=socket))

        def start() -> Guestfish:
            if not started:
                if not Guestfish.is_installed():
                    raise ConfigError(
                        f"{PROGRAM} is not installed.",
                        remedy="Install it (Debian: guestfish), or name no --reader.",
                    )
                directory = Path(tempfile.mkdtemp(prefix="vadpipe-"))
                stack.callback(shutil.rmtree, directory, ignore_errors=True)
                trio.from_thread.run(serve, directory / "nbd")
                # Before it is launched, so that it is ended in any case.
                started.append(Guestfish(keys, directory / "nbd", directory))
                started[0].launch()
            return started[0]

        try:
            yield start
        finally:
            with trio.CancelScope(shield=True):
                for each in started:
                    await trio.to_thread.run_sync(each.close)
