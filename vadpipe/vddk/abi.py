"""The binary interface of libvixDiskLib, 6.5 to 9.x on x86-64 Linux, as far as reading and writing need it.

One table of symbols serves loading and call timing, and tests compare the stand-in with it. Names are the library's
own, so that its manual can be searched for them. The child process imports this file and must start fast: only
ctypes and time.

Source: vixDiskLib.h of 6.7 and 7.0 (vmware-archive/safekeeping), the VDDK programming guides.
"""

from __future__ import annotations

import ctypes
import time

TYPE_CHECKING = False  # as in typing, without importing it
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SECTOR = 512
MIN_CHUNK = 128  # sectors, 64 KiB: the finest granularity of QueryAllocatedBlocks
MAX_CHUNKS = 524288  # per call of QueryAllocatedBlocks

VIX_OK = 0
VIX_E_OUT_OF_MEMORY = 2
VIX_E_NOT_SUPPORTED = 6
VIX_E_FILE_READ_ONLY = 11
VIX_E_FILE_ALREADY_LOCKED = 15
VIX_E_BUFFER_TOOSMALL = 24  # the answer to a question for the size of metadata
VIX_ASYNC = 25000  # ReadAsync accepted the request; the callback gets the result
CODE_MASK = 0xFFFF  # higher bits of a VixError carry detail that varies

# A client asks for the oldest version it can work with, not for the one installed. 6.7 brought
# AllocateConnectParams and QueryAllocatedBlocks, and every later library accepts it; a library without them is
# asked for 6.5.
API_MAJOR, API_MINOR = 6, 7
OLD_API_MINOR = 5

CRED_UID, CRED_SESSIONID = 1, 2
SPEC_VMX, SPEC_DATASTORE = 0, 2  # the second from 8.0.1 on

OPEN_UNBUFFERED = 0x1
OPEN_READ_ONLY = 0x4
OPEN_COMPRESSION = {"none": 0, "zlib": 0x10, "fastlz": 0x20, "skipz": 0x40}

VixError = ctypes.c_uint64
Sectors = ctypes.c_uint64
Count = ctypes.c_uint32
Handle = ctypes.c_void_p
Pointer = ctypes.c_void_p
Text = ctypes.c_char_p
Size = ctypes.c_size_t

# Arguments of a log function: format and va_list. The latter is a pointer on x86-64, good for vsnprintf.
LogFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
CompletionFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p, VixError)


class UserCredentials(ctypes.Structure):
    _fields_ = [("userName", Text), ("password", Text)]


class SessionCredentials(ctypes.Structure):
    _fields_ = [("cookie", Text), ("userName", Text), ("key", Text)]


class Credentials(ctypes.Union):
    _fields_ = [("uid", UserCredentials), ("sessionId", SessionCredentials)]


class ConnectParams(ctypes.Structure):
    """128 bytes, from AllocateConnectParams where the library has it: that also sets the private fields."""

    _fields_ = [
        ("vmxSpec", Text),
        ("serverName", Text),
        ("thumbPrint", Text),
        ("privateUse", ctypes.c_long),
        ("credType", ctypes.c_int),
        ("creds", Credentials),
        ("port", ctypes.c_uint32),
        ("nfcHostPort", ctypes.c_uint32),
        ("vimApiVer", Text),
        ("reserved", ctypes.c_char * 8),
        ("state", Pointer),
        ("spec", Text * 3),  # of SPEC_DATASTORE: moref of the datastore, folder
        ("specType", ctypes.c_int),
    ]


class Geometry(ctypes.Structure):
    _fields_ = [("cylinders", ctypes.c_uint32), ("heads", ctypes.c_uint32), ("sectors", ctypes.c_uint32)]


class Info(ctypes.Structure):
    """The 56 bytes that all versions have; two sector sizes of 7.0 are garbage on 6.7 (RHBZ 2066655)."""

    _fields_ = [
        ("biosGeo", Geometry),
        ("physGeo", Geometry),
        ("capacity", Sectors),
        ("adapterType", ctypes.c_int),
        ("numLinks", ctypes.c_int),
        ("parentFileNameHint", Text),
        ("uuid", Text),
    ]


class Block(ctypes.Structure):
    _fields_ = [("offset", Sectors), ("length", Sectors)]


class BlockList(ctypes.Structure):
    """`numBlocks` blocks: the array is declared with one element and continues behind the struct."""

    _fields_ = [("numBlocks", ctypes.c_uint32), ("blocks", Block * 1)]


Params = ctypes.POINTER(ConnectParams)
Blocks = ctypes.POINTER(BlockList)

PREFIX = "VixDiskLib_"

# name -> (result, arguments)
SYMBOLS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "InitEx": (VixError, (Count, Count, LogFunction, LogFunction, LogFunction, Text, Text)),
    "Exit": (None, ()),
    "GetErrorText": (Pointer, (VixError, Text)),  # a pointer, to be freed: not Text, which would lose it
    "FreeErrorText": (None, (Pointer,)),
    "AllocateConnectParams": (Params, ()),
    "FreeConnectParams": (None, (Params,)),
    "ConnectEx": (VixError, (Params, ctypes.c_byte, Text, Text, ctypes.POINTER(Handle))),
    "Disconnect": (VixError, (Handle,)),
    "PrepareForAccess": (VixError, (Params, Text)),
    "EndAccess": (VixError, (Params, Text)),
    "Cleanup": (VixError, (Params, ctypes.POINTER(Count), ctypes.POINTER(Count))),
    "Open": (VixError, (Handle, Text, Count, ctypes.POINTER(Handle))),
    "Close": (VixError, (Handle,)),
    "GetInfo": (VixError, (Handle, ctypes.POINTER(ctypes.POINTER(Info)))),
    "FreeInfo": (None, (ctypes.POINTER(Info),)),
    "GetTransportMode": (Text, (Handle,)),
    "ReadAsync": (VixError, (Handle, Sectors, Sectors, Pointer, CompletionFunction, Pointer)),
    "WriteAsync": (VixError, (Handle, Sectors, Sectors, Pointer, CompletionFunction, Pointer)),
    "Wait": (VixError, (Handle,)),
    "Flush": (VixError, (Handle,)),
    "ReadMetadata": (VixError, (Handle, Text, Pointer, Size, ctypes.POINTER(Size))),
    "WriteMetadata": (VixError, (Handle, Text, Text)),
    "GetMetadataKeys": (VixError, (Handle, Pointer, Size, ctypes.POINTER(Size))),
    "QueryAllocatedBlocks": (VixError, (Handle, Sectors, Sectors, Sectors, ctypes.POINTER(Blocks))),
    "FreeBlockList": (VixError, (Blocks,)),
}

# Only a disk that is open for writing needs these.
FOR_WRITING = frozenset({"WriteAsync", "Flush", "ReadMetadata", "WriteMetadata", "GetMetadataKeys"})

# VDDK 6.5 and free drop-ins lack these; a reader can work without each of them.
OPTIONAL = FOR_WRITING | frozenset(
    {
        "AllocateConnectParams", "FreeConnectParams", "PrepareForAccess", "EndAccess", "Cleanup",
        "QueryAllocatedBlocks", "FreeBlockList",
    }
)  # fmt: skip


class Library:
    """The loaded library: every symbol of the table is a method, without the prefix, timed and counted.

    `times` maps a name to [calls, seconds]; `lacks` are the optional symbols that the library does not export.

    Raises:
        OSError: The file cannot be loaded or lacks a symbol that a reader needs.
    """

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        self.times: dict[str, list[float]] = {}
        self.lacks: list[str] = []
        for name, (result, arguments) in SYMBOLS.items():
            try:
                function = library[PREFIX + name]
            except AttributeError:
                if name not in OPTIONAL:
                    raise OSError(f"{path} has no symbol {PREFIX}{name}") from None
                self.lacks.append(name)
                continue
            function.restype, function.argtypes = result, arguments
            setattr(self, name, self._timed(name, function))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., Any]: ...

    def has(self, *names: str) -> bool:
        return not any(name in self.lacks for name in names)

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        times = self.times[name] = [0.0, 0.0]
        clock = time.perf_counter

        def call(*arguments: object) -> object:
            started = clock()
            try:
                return function(*arguments)
            finally:
                times[0] += 1
                times[1] += clock() - started

        return call
