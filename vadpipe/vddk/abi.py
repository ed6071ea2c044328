"""The binary interface of libvixDiskLib, 6.7 to 9.x on x86-64 Linux, as far as a reader needs it.

One table of symbols serves loading and call timing; what stands in for the library is compared with it.
Names are the library's own, so that its manual can be searched for them. Imported by the child process,
which must start fast and stay small: only ctypes and time.
"""

from __future__ import annotations

import ctypes
import time

TYPE_CHECKING = False  # as in typing, without importing it
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SECTOR = 512
MIN_CHUNK = 128  # sectors; what allocation is asked for in, 64 KiB
MAX_CHUNKS = 524288  # per call of QueryAllocatedBlocks

VIX_OK = 0
VIX_ASYNC = 25000  # the success of ReadAsync: the result comes to the callback
CODE_MASK = 0xFFFF  # higher bits of a VixError carry detail that varies

# The version that a client asks for is the oldest it can work with, not the one installed: 6.7 brought
# QueryAllocatedBlocks and the parameters of 128 bytes, and every later library accepts it.
API_MAJOR, API_MINOR = 6, 7

CRED_UID, CRED_SESSIONID = 1, 2
SPEC_VMX = 0

OPEN_READ_ONLY = 0x4
OPEN_COMPRESSION = {"none": 0, "zlib": 0x10, "fastlz": 0x20, "skipz": 0x40}

VixError = ctypes.c_uint64
Sectors = ctypes.c_uint64
Handle = ctypes.c_void_p
Pointer = ctypes.c_void_p
Text = ctypes.c_char_p

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
    """128 bytes; always obtained from AllocateConnectParams, which also sets the private fields."""

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
        ("spec", Pointer * 3),
        ("specType", ctypes.c_int),
    ]


class Geometry(ctypes.Structure):
    _fields_ = [("cylinders", ctypes.c_uint32), ("heads", ctypes.c_uint32), ("sectors", ctypes.c_uint32)]


class Info(ctypes.Structure):
    """The 56 bytes that all versions have. 7.0 appended two sector sizes: on 6.7 they would be garbage."""

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
    """`numBlocks` blocks; the array is declared with one and goes on behind the struct."""

    _fields_ = [("numBlocks", ctypes.c_uint32), ("blocks", Block * 1)]


Params = ctypes.POINTER(ConnectParams)

PREFIX = "VixDiskLib_"

# name -> (result, arguments)
SYMBOLS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "InitEx": (
        VixError,
        (ctypes.c_uint32, ctypes.c_uint32, LogFunction, LogFunction, LogFunction, Text, Text),
    ),
    "Exit": (None, ()),
    "GetErrorText": (Pointer, (VixError, Text)),  # a pointer, to be freed: not Text, which would lose it
    "FreeErrorText": (None, (Pointer,)),
    "AllocateConnectParams": (Params, ()),
    "FreeConnectParams": (None, (Params,)),
    "ConnectEx": (VixError, (Params, ctypes.c_byte, Text, Text, ctypes.POINTER(Handle))),
    "Disconnect": (VixError, (Handle,)),
    "PrepareForAccess": (VixError, (Params, Text)),
    "EndAccess": (VixError, (Params, Text)),
    "Cleanup": (VixError, (Params, ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_uint32))),
    "Open": (VixError, (Handle, Text, ctypes.c_uint32, ctypes.POINTER(Handle))),
    "Close": (VixError, (Handle,)),
    "GetInfo": (VixError, (Handle, ctypes.POINTER(ctypes.POINTER(Info)))),
    "FreeInfo": (None, (ctypes.POINTER(Info),)),
    "GetTransportMode": (Text, (Handle,)),
    "ReadAsync": (VixError, (Handle, Sectors, Sectors, Pointer, CompletionFunction, Pointer)),
    "Wait": (VixError, (Handle,)),
    "QueryAllocatedBlocks": (
        VixError,
        (Handle, Sectors, Sectors, Sectors, ctypes.POINTER(ctypes.POINTER(BlockList))),
    ),
    "FreeBlockList": (VixError, (ctypes.POINTER(BlockList),)),
}


class Library:
    """The loaded library: every symbol of the table is a method, without the prefix, timed and counted.

    `times` is name -> [calls, seconds]. Raises OSError when the file or one of its symbols is missing.
    """

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        self.times: dict[str, list[float]] = {}
        for name, (result, arguments) in SYMBOLS.items():
            try:
                function = library[PREFIX + name]
            except AttributeError:
                raise OSError(f"{path} has no symbol {PREFIX}{name}: VDDK 6.7 or later is needed") from None
            function.restype, function.argtypes = result, arguments
            setattr(self, name, self._timed(name, function))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., Any]: ...

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        tally = self.times[name] = [0.0, 0.0]
        clock = time.perf_counter

        def call(*arguments: object) -> object:
            started = clock()
            try:
                return function(*arguments)
            finally:
                tally[0] += 1
                tally[1] += clock() - started

        return call
