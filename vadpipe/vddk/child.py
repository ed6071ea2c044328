"""The program of the child process that holds one VDDK connection with one open disk, or makes a single call.

Why a process: the library brings its own OpenSSL, which crashes beside Python's; it needs LD_LIBRARY_PATH from the
start of the process; nothing may fork once it is initialised; and it hangs and crashes in the field. So this
program imports almost nothing, and it is started as a file, not as a module of the project.

Threads: the main thread makes every call of the library, as its manual demands for opening, closing and querying,
and as one handle demands for its I/O. Reads and writes are asynchronous: their completions come inside ReadAsync
and WriteAsync on the main thread or on threads of the library. A completion writes one record to standard output
and wakes the main thread, which issues the next waiting request itself: the mover keeps a few requests waiting
here, so that no completion waits for the mover. The bytes go straight between the library and memory that is
shared with the mover. A second thread ends the process when the mover died, even while a call of the library hangs.

Standard error carries the library's log. Secrets come over standard input.
"""

from __future__ import annotations

import _thread
import ctypes
import json
import mmap
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from . import abi, wire
    from .child_log import Log, forbid_core_dumps, send
else:
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    import abi
    import wire
    from child_log import Log, forbid_core_dumps, send

ERROR_TEXT = 300  # characters of an error's text: an answer with three of them must fit a record

# Records leave over a copy of standard output: what the library prints joins its log.
RECORDS = os.dup(1)
os.dup2(2, 1)


class CallFailed(Exception):
    """A call of the library returned an error."""

    def __init__(self, call: str, error: int, text: str) -> None:
        super().__init__(call, error, text)
        self.answer = {"call": call, "error": error, "text": text[:ERROR_TEXT]}


def answer(call: int, content: dict[str, object], runs: bytes = b"") -> None:
    for place in range(0, len(runs), wire.PART_SIZE):
        part = runs[place : place + wire.PART_SIZE]
        send(RECORDS, wire.RECORD.pack(wire.PART, call, len(part)) + part)
    text = json.dumps(content).encode()
    send(RECORDS, wire.RECORD.pack(wire.ANSWER, call, len(text)) + text)


def leave_with_parent(grace_s: float) -> None:
    """End the process when the input has ended, at the latest `grace_s` later."""
    poll = select.poll()
    poll.register(0, 0)  # hang-up is always reported
    poll.poll()
    time.sleep(grace_s)
    os._exit(75)


class Requests:
    """Reads and writes that wait, and those that the library works on, at most `depth`."""

    def __init__(self) -> None:
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.memory: list[int] = []  # addresses of the shared memory files
        self._waiting: list[tuple[int, int, int, int, int]] = []  # the next one last
        # Appending and popping are atomic, so threads of the library need no lock.
        self._places: list[None] = []
        self._completed = abi.CompletionFunction(self._complete)

    def allow(self, depth: int) -> None:
        self._places = [None] * depth

    def add(self, records: bytes) -> None:
        self._waiting[:0] = reversed(list(wire.REQUEST.iter_unpack(records)))

    def issue(self, library: abi.Library, handle: abi.Handle) -> None:
        """Issue waiting requests while there are free places. Main thread."""
        while self._waiting and self._places:
            self._places.pop()
            position, start, count, request, flags = self._waiting.pop()
            call = library.WriteAsync if flags & wire.WRITE else library.ReadAsync
            address = self.memory[flags & wire.SCRATCH > 0] + position
            error = call(handle, start, count, address, self._completed, request)
            if error != abi.VIX_ASYNC:  # refused or done: no callback will come
                self._complete(request, error)

    def _complete(self, request: int, error: int) -> None:
        # The report goes first: should the next request crash the process, this one is known to be done.
        send(RECORDS, wire.RECORD.pack(wire.DONE, request, error))
        self._places.append(None)
        if self._waiting:
            os.eventfd_write(self.wake, 1)


class OpenDisk:
    """The library, a connection, a disk: opened by `start`, given back by `end` as far as it got.

    `access` instead of `start` makes one call about a VM, without a connection. Return codes decide what is open,
    never the pointers that a failed call left behind.
    """

    def __init__(self) -> None:
        self.log = Log()
        self.requests = Requests()
        self.library: abi.Library | None = None
        self.params: Any = None
        self.remote = False
        self.connection, self.connected = abi.Handle(), False
        self.handle, self.opened = abi.Handle(), False
        self.transport = ""
        self.writable = False
        self.failures: list[dict[str, object]] = []  # calls that failed in closing
        self.kept: list[object] = []  # strings and memory that the library points to

    def start(self, order: dict[str, Any]) -> dict[str, object]:
        for descriptor in order["memory"]:
            shared = mmap.mmap(descriptor, 0)
            os.close(descriptor)
            self.requests.memory.append(ctypes.addressof(ctypes.c_char.from_buffer(shared)))
            self.kept.append(shared)
        self.requests.allow(order["depth"])
        self.writable = order["write"]
        library = self.load(order)
        if self.writable:
            self.demand(library, "WriteAsync", "Flush")
        self.connect(library, order)
        flags = abi.OPEN_COMPRESSION[order["compression"]]
        flags |= 0 if self.writable else abi.OPEN_READ_ONLY
        flags |= abi.OPEN_UNBUFFERED if order["unbuffered"] else 0
        path = order["path"].encode()
        self.check("Open", library, library.Open(self.connection, path, flags, ctypes.byref(self.handle)))
        self.opened = True
        return self.describe(library)

    def access(self, order: dict[str, Any]) -> dict[str, object]:
        library, call = self.load(order), order["call"]
        self.demand(library, call)
        self.allocate(library)
        self.fill(self.params.contents, order)
        counts = ctypes.c_uint32(), ctypes.c_uint32()  # Cleanup's
        if call == "Cleanup":
            error = library.Cleanup(self.params, *map(ctypes.byref, counts))
        else:
            error = getattr(library, call)(self.params, self.text(order["identity"]))
        self.check(call, library, error)
        return {"cleaned": counts[0].value, "remaining": counts[1].value}

    def load(self, order: dict[str, Any]) -> abi.Library:
        self.log.keep_secret(order["password"], order["cookie"])
        try:
            library = abi.Library(order["library"])
        except OSError as exc:
            raise CallFailed("dlopen", 0, str(exc)) from exc
        minor = abi.API_MINOR if library.has("AllocateConnectParams") else abi.OLD_API_MINOR
        root, config = order["root"].encode(), order["config"].encode()
        error = library.InitEx(abi.API_MAJOR, minor, *self.log.functions, root, config)
        if error:
            raise CallFailed("InitEx", error, "")  # a library that does not run has no texts either
        self.library = library
        return library

    def demand(self, library: abi.Library, *names: str) -> None:
        for name in names:
            if not library.has(name):
                raise CallFailed(name, abi.VIX_E_NOT_SUPPORTED, "this library has no such function")

    def allocate(self, library: abi.Library) -> None:
        if not library.has("AllocateConnectParams"):
            own = abi.ConnectParams()
            self.kept.append(own)
            self.params = ctypes.pointer(own)
            return
        self.params = library.AllocateConnectParams()
        if not self.params:
            raise CallFailed("AllocateConnectParams", abi.VIX_E_OUT_OF_MEMORY, "no memory")

    def connect(self, library: abi.Library, order: dict[str, Any]) -> None:
        self.allocate(library)
        self.remote = bool(order["vm"] or order["datastore"])
        if self.remote:
            self.fill(self.params.contents, order)
        snapshot = self.text(order["snapshot"]) if self.remote else None
        modes = self.text(order["transports"])
        read_only = int(not self.writable)
        error = library.ConnectEx(self.params, read_only, snapshot, modes, ctypes.byref(self.connection))
        self.check("ConnectEx", library, error)
        self.connected = True

    def fill(self, params: abi.ConnectParams, order: dict[str, Any]) -> None:
        params.vmxSpec = self.text(order["vm"] and "moref=" + order["vm"])
        params.serverName = self.text(order["server"])
        params.port = order["port"]
        params.nfcHostPort = order["nfc_port"]
        params.thumbPrint = self.text(order["thumbprint"])
        params.specType = abi.SPEC_VMX
        if order["datastore"]:
            params.specType = abi.SPEC_DATASTORE
            params.spec[0], params.spec[1] = self.text(order["datastore"]), self.text(order["folder"])
        user, cookie = self.text(order["user"]), self.text(order["cookie"])
        if cookie:
            params.credType = abi.CRED_SESSIONID
            session = params.creds.sessionId
            session.cookie, session.userName, session.key = cookie, user, cookie  # any key but NULL
        else:
            params.credType = abi.CRED_UID
            params.creds.uid.userName = user
            params.creds.uid.password = self.text(order["password"])

    def text(self, value: object) -> bytes | None:
        """A string for the library, which may keep pointing to it; NULL for an empty one."""
        if not isinstance(value, str) or not value:
            return None
        text = value.encode()
        self.kept.append(text)
        return text

    def describe(self, library: abi.Library) -> dict[str, object]:
        info = ctypes.POINTER(abi.Info)()
        self.check("GetInfo", library, library.GetInfo(self.handle, ctypes.byref(info)))
        capacity = info.contents.capacity
        library.FreeInfo(info)
        self.transport = (library.GetTransportMode(self.handle) or b"").decode(errors="replace")
        lacks = [name for name in library.lacks if self.writable or name not in abi.FOR_WRITING]
        return {"capacity": capacity, "transport": self.transport, "lacks": lacks}

    def query(self, order: dict[str, Any]) -> bytes:
        """Allocated runs as pairs of int64: first sector, sector count."""
        library = self.library
        assert library is not None
        self.demand(library, "QueryAllocatedBlocks", "FreeBlockList")
        found = ctypes.POINTER(abi.BlockList)()
        self.log.probing = order["probing"]
        try:
            error = library.QueryAllocatedBlocks(
                self.handle, order["start"], order["count"], abi.MIN_CHUNK, ctypes.byref(found)
            )
            self.check("QueryAllocatedBlocks", library, error)
        finally:
            self.log.probing = False
        if not found:
            raise CallFailed("QueryAllocatedBlocks", abi.VIX_E_NOT_SUPPORTED, "the library gave no list")
        try:
            first = ctypes.addressof(found.contents) + abi.BlockList.blocks.offset
            return ctypes.string_at(first, found.contents.numBlocks * ctypes.sizeof(abi.Block))
        finally:
            library.FreeBlockList(found)

    def flush(self, order: dict[str, Any]) -> bytes:
        """Everything that was written reaches the disk."""
        library = self.settled()
        self.check("Flush", library, library.Flush(self.handle))
        return b""

    def metadata(self, order: dict[str, Any]) -> bytes:
        """Write a value; or a value, or all keys, each with a NUL behind it."""
        library, action = self.settled(), order["action"]
        self.demand(library, action)
        key = order["key"].encode()
        if action == "WriteMetadata":
            self.check(action, library, library.WriteMetadata(self.handle, key, order["value"].encode()))
            return b""
        asked = (self.handle, key) if action == "ReadMetadata" else (self.handle,)
        call, size = getattr(library, action), ctypes.c_size_t()
        error = call(*asked, None, 0, ctypes.byref(size))
        if error & abi.CODE_MASK != abi.VIX_E_BUFFER_TOOSMALL:
            self.check(action, library, error)
            return b""
        buffer = ctypes.create_string_buffer(max(1, size.value))
        self.check(action, library, call(*asked, ctypes.addressof(buffer), size, ctypes.byref(size)))
        return buffer.raw[: size.value]

    def settled(self) -> abi.Library:
        """The library, once it works on no request any more."""
        assert self.library is not None
        self.check("Wait", self.library, self.library.Wait(self.handle))
        return self.library

    def issue(self) -> None:
        if self.library is not None and self.opened:
            self.requests.issue(self.library, self.handle)

    def end(self) -> None:
        """Give everything back in the library's order, and report what failed: a writer has to know it."""
        library = self.library
        if library is None:
            return
        remaining = 0
        if self.opened:
            self.note("Wait", library, library.Wait(self.handle))
            self.note("Close", library, library.Close(self.handle))
        if self.connected:
            self.note("Disconnect", library, library.Disconnect(self.connection))
            if self.remote:
                remaining = self.detached(library)
        if self.params and library.has("AllocateConnectParams", "FreeConnectParams"):
            library.FreeConnectParams(self.params)
        library.Exit()
        used = {name: times for name, times in library.times.items() if times[0]}
        answer(wire.FAREWELL, {"times": used, "remaining": remaining, "failures": self.failures})

    def note(self, call: str, library: abi.Library, error: int) -> None:
        """Remember the failure of a call, and go on."""
        try:
            self.check(call, library, error)
        except CallFailed as failed:
            self.failures.append(failed.answer)

    def detached(self, library: abi.Library) -> int:
        """Detach hot-added disks, before their snapshot is removed. Returns how many may remain."""
        if not library.has("Cleanup"):
            return int(self.transport == "hotadd")
        remaining = ctypes.c_uint32()
        error = library.Cleanup(self.params, None, ctypes.byref(remaining))
        return max(1, remaining.value) if error else remaining.value

    def check(self, call: str, library: abi.Library, error: int) -> None:
        if error == abi.VIX_OK:
            return
        pointer = library.GetErrorText(error, None)
        text = ctypes.string_at(pointer).decode(errors="replace") if pointer else ""
        library.FreeErrorText(pointer)
        raise CallFailed(call, error, text)


def obey(disk: OpenDisk, kind: int, body: bytes) -> None:
    if kind == wire.REQUESTS:
        disk.requests.add(body)
        return
    order = json.loads(body)
    try:
        if kind in (wire.START, wire.ACCESS):  # the first order
            _thread.start_new_thread(leave_with_parent, (order["grace_s"],))
        if kind == wire.START:
            answer(order["id"], disk.start(order))
        elif kind == wire.ACCESS:
            answer(order["id"], disk.access(order))
        else:
            obeyed = {wire.QUERY: disk.query, wire.FLUSH: disk.flush, wire.METADATA: disk.metadata}
            answer(order["id"], {}, obeyed[kind](order))
    except CallFailed as failed:
        answer(order["id"], failed.answer)


def obey_all(disk: OpenDisk, received: bytes) -> bytes:
    """Obey all complete messages. Returns the beginning of the next one."""
    while len(received) >= wire.HEADER.size:
        kind, length = wire.HEADER.unpack_from(received)
        end = wire.HEADER.size + length
        if len(received) < end:
            break
        body, received = received[wire.HEADER.size : end], received[end:]
        obey(disk, kind, body)
    return received


def main() -> None:
    forbid_core_dumps()
    disk = OpenDisk()
    poll = select.poll()
    for descriptor in (0, disk.requests.wake):
        poll.register(descriptor, select.POLLIN)
    received = b""
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == disk.requests.wake:
                os.eventfd_read(descriptor)
            elif chunk := os.read(0, 65536):
                received = obey_all(disk, received + chunk)
            else:  # requests that still wait here go to the next child, or to nobody
                disk.end()
                os._exit(0)  # the library's own end of process is known to hang
        disk.issue()


main()
