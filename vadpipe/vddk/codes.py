"""The error codes of VDDK: meaning, remedy, and whether a new connection may help.

A VixError has 64 bits: the code is the low 16, the others vary.

Source: vix.h of open-vm-tools for the numbers and names.
"""

from __future__ import annotations

from dataclasses import dataclass

from .abi import CODE_MASK


@dataclass(frozen=True)
class Code:
    """One error code. `transient`: worth a new connection and another try."""

    number: int
    name: str
    meaning: str
    remedy: str = ""
    transient: bool = False


_FIT = "Check that the transports asked for, the version of VDDK and the host fit together."
_NETWORK = "Check the network between this machine and the ESXi hosts: TCP port 902 to every host, by name."
_LOAD = "Read fewer disks at once from this ESXi host, or make the requests smaller."
_REDO = "Take a new snapshot; if it fails again, check the disk with vmkfstools on an ESXi host."
_KEY = (
    "Give the backup user the cryptographic privileges (Cryptographer.Access) and a proxy that may decrypt."
)
_HOST = "A new connection lets vCenter choose another host; try again when the host has left maintenance."
_LOGIN = "Check the user, the password and the privileges of the user on the VM and its datastores."
_MOVED = "Look the snapshot and its disks up again: their names are void once the snapshot is removed."

_FINAL = (
    (1, "FAIL", "unknown error", "Look at the library's log below, and in its tmpDirectory."),
    (3, "INVALID_ARG", "a parameter is invalid", ""),
    (4, "FILE_NOT_FOUND", "the disk's file was not found", _MOVED),
    (6, "NOT_SUPPORTED", "this is not supported here", _FIT),
    (7, "FILE_ERROR", "a file could not be accessed", ""),
    (8, "DISK_FULL", "there is no space left", "Make room on the datastore."),
    (9, "INCORRECT_FILE_TYPE", "the file is not a virtual disk", "Name the descriptor, not -flat or -delta."),
    (10, "CANCELLED", "the call was cancelled", ""),
    (11, "FILE_READ_ONLY", "the disk is open for reading only", ""),
    (12, "FILE_ALREADY_EXISTS", "the file exists already", ""),
    (14, "REQUIRES_LARGE_FILES", "the file system cannot hold files of this size", ""),
    (15, "FILE_ALREADY_LOCKED", "the disk is in use by a running VM", "Read a snapshot of the VM instead."),
    (20, "NOT_SUPPORTED_ON_REMOTE_OBJECT", "this is not supported on a remote disk", ""),
    (21, "FILE_TOO_BIG", "the file is too big", ""),
    (22, "FILE_NAME_INVALID", "the file name is invalid", "Write it as [datastore] folder/disk.vmdk."),
    (23, "ALREADY_EXISTS", "the object exists already", ""),
    (24, "BUFFER_TOOSMALL", "the buffer is too small", ""),
    (25, "OBJECT_NOT_FOUND", "the object was not found", _MOVED),
    (27, "INVALID_UTF8_STRING", "a string is not valid UTF-8", ""),
    (29, "UNFINISHED_JOB", "a job of the library has not ended", ""),
    (30, "NEED_KEY", "a key is needed", _KEY),
    (31, "OPERATION_ALREADY_IN_PROGRESS", "the operation is already in progress", ""),
    (32, "LICENSE", "the host's licence does not allow it", "A free ESXi cannot be read through VDDK."),
    (35, "AUTHENTICATION_FAIL", "the VM is encrypted and access was denied", _KEY),
    (41, "DUPLICATE_NAME", "the name is taken", ""),
    (44, "ARGUMENT_TOO_BIG", "an argument is too long", ""),
    (1000, "INVALID_HANDLE", "the handle is invalid", ""),
    (1001, "NOT_SUPPORTED_ON_HANDLE_TYPE", "this handle does not support it", ""),
    (1002, "TOO_MANY_HANDLES", "too many handles are open", ""),
    (3014, "HOST_USER_PERMISSIONS", "login or privileges are insufficient", _LOGIN),
    (4000, "VM_NOT_FOUND", "the VM was not found", "Look its moref up again: vCenter and ESXi differ."),
    (13003, "SNAPSHOT_NOTFOUND", "the snapshot was not found", "Somebody removed it: take a new one."),
    (14004, "HOST_DISK_SECTORSIZE", "the disk's sector size is not supported", ""),
    (16000, "DISK_INVAL", "the disk or the request is invalid", ""),
    (16001, "DISK_NOINIT", "the library is not initialised", ""),
    (16002, "DISK_NOIO", "the disk reported an I/O error", "Check the datastore and the host's version."),
    (16003, "DISK_PARTIALCHAIN", "a link of the disk's chain is missing", _REDO),
    (16006, "DISK_NEEDSREPAIR", "the disk needs repair", _REDO),
    (16007, "DISK_OUTOFRANGE", "the request lies beyond the end of the disk", "It was resized: start again."),
    (16008, "DISK_CID_MISMATCH", "a parent was changed after its child was made", _REDO),
    (16009, "DISK_CANTSHRINK", "the disk cannot be shrunk", ""),
    (16010, "DISK_PARTMISMATCH", "the partition tables differ", ""),
    (16011, "DISK_UNSUPPORTEDDISKVERSION", "the disk's format is newer than this VDDK", "Use a newer VDDK."),
    (16013, "DISK_NOTSUPPORTED", "this type of disk is not supported", ""),
    (16014, "DISK_NEEDKEY", "the disk is encrypted and its key is needed", _KEY),
    (16017, "DISK_NOKEY", "the disk is encrypted and its key is missing", _KEY),
    (16027, "DISK_TOOMANYOPENFILES", "too many files are open", "Raise the limit of open files (ulimit -n)."),
    (16028, "DISK_TOOMANYREDO", "the disk's chain is too long", "Consolidate the VM's disks."),
    (16030, "DISK_INVALIDCHAIN", "the disk's chain is invalid", _REDO),
    (16052, "DISK_KEY_NOTFOUND", "the metadata key does not exist", ""),
    (16053, "DISK_SUBSYSTEM_INIT_FAIL", "a part of the library did not start", "Check libdir."),
    (16054, "DISK_INVALID_CONNECTION", "the connection is invalid", ""),
    (16064, "DISK_NOLICENSE", "the host's licence does not allow it", ""),
    (16065, "DISK_NODEVICE", "the device does not exist", ""),
    (16066, "DISK_UNSUPPORTEDDEVICE", "the device is not supported", ""),
    (16067, "DISK_CAPACITY_MISMATCH", "the links of the chain differ in capacity", _REDO),
    (16068, "DISK_PARENT_NOTALLOWED", "the disk must not have a parent", ""),
    (16069, "DISK_ATTACH_ROOTLINK", "the root of the chain cannot be attached", ""),
    (18001, "NOT_FOR_REMOTE_HOST", "this is not possible on a remote host", ""),
    (18002, "INVALID_HOSTNAME_SPECIFICATION", "the host name is invalid", "Check `server`."),
    (26000, "ASYNC_MIXEDMODE_UNSUPPORTED", "synchronous and asynchronous calls were mixed", ""),
)

_TRANSIENT = (
    (2, "OUT_OF_MEMORY", "the host's memory for disk transfers is exhausted", _LOAD),
    (5, "OBJECT_IS_BUSY", "the object is busy", "Wait for other tasks on this VM to end."),
    (13, "FILE_ACCESS_ERROR", "the disk could not be accessed", _NETWORK),
    (26, "HOST_NOT_CONNECTED", "the host is not connected", _NETWORK),
    (34, "VM_HOST_DISCONNECTED", "the VM's host is disconnected", _NETWORK),
    (36, "HOST_CONNECTION_LOST", "the connection to the host was lost", _NETWORK),
    (14006, "HOST_NETBLKDEV_HANDSHAKE", "the host did not complete the handshake", _NETWORK),
    (14007, "HOST_SOCKET_CREATION_ERROR", "no connection to the host could be made", _NETWORK),
    (14008, "HOST_SERVER_NOT_FOUND", "the host's name could not be resolved", _NETWORK),
    (14009, "HOST_NETWORK_CONN_REFUSED", "the host refused the connection", _NETWORK),
    (14010, "HOST_TCP_SOCKET_ERROR", "the connection to the host failed", _NETWORK),
    (14011, "HOST_TCP_CONN_LOST", "the connection to the host was lost", _NETWORK),
    (14014, "HOST_SERVER_SHUTDOWN", "the host is entering maintenance mode", _HOST),
    (14015, "HOST_SERVER_NOT_AVAILABLE", "the host is in maintenance mode", _HOST),
    (18000, "CANNOT_CONNECT_TO_HOST", "the host cannot be reached", _NETWORK),
)

CODES = {
    number: Code(number, name, meaning, remedy, transient)
    for table, transient in ((_FINAL, False), (_TRANSIENT, True))
    for number, name, meaning, remedy in table
}

# Families whose members differ in detail only.
_SNAPSHOT = range(13000, 13025)
_HTTP = range(30001, 30203)


def code_of(error: int) -> Code:
    """The code of a VixError, also for numbers that no table lists."""
    number = error & CODE_MASK
    if number in CODES:
        return CODES[number]
    if number in _SNAPSHOT:
        return Code(number, "SNAPSHOT", "the snapshot cannot be used", "Take a new snapshot.")
    if number in _HTTP:
        remedy = "Check that this machine reaches the server on TCP port 443."
        return Code(number, "NET_HTTP", "a request to the server failed", remedy, transient=True)
    return Code(number, "unlisted", "an error that the documentation does not list")
