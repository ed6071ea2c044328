/* Error codes of the interface (the low 16 bits of a VixError), with the texts that GetErrorText gives. */
#ifndef ERRORS_H
#define ERRORS_H

#include "vixdisklib.h"

#define VIX_ERRORS(X)                                                                                        \
    X(VIX_OK, 0, "The operation was successful")                                                             \
    X(VIX_E_FAIL, 1, "Unknown error")                                                                        \
    X(VIX_E_OUT_OF_MEMORY, 2, "Memory allocation failed")                                                    \
    X(VIX_E_INVALID_ARG, 3, "One of the parameters was invalid")                                             \
    X(VIX_E_FILE_NOT_FOUND, 4, "A file was not found")                                                       \
    X(VIX_E_OBJECT_IS_BUSY, 5, "The object is busy")                                                         \
    X(VIX_E_NOT_SUPPORTED, 6, "The operation is not supported")                                              \
    X(VIX_E_FILE_ERROR, 7, "A file access error occurred")                                                   \
    X(VIX_E_DISK_FULL, 8, "There is not enough space on the file system")                                    \
    X(VIX_E_INCORRECT_FILE_TYPE, 9, "The file has the wrong type")                                           \
    X(VIX_E_FILE_READ_ONLY, 11, "The file is write-protected")                                               \
    X(VIX_E_FILE_ACCESS_ERROR, 13, "Access to the file was denied")                                          \
    X(VIX_E_FILE_ALREADY_LOCKED, 15, "The file is already in use")                                           \
    X(VIX_E_FILE_TOO_BIG, 21, "The file is too big for its format")                                          \
    X(VIX_E_FILE_NAME_INVALID, 22, "The file name is invalid")                                               \
    X(VIX_E_BUFFER_TOOSMALL, 24, "The buffer is too small")                                                  \
    X(VIX_E_HOST_NOT_CONNECTED, 26, "The host is not connected")                                             \
    X(VIX_E_HOST_CONNECTION_LOST, 36, "The connection to the host was lost")                                 \
    X(VIX_E_HOST_USER_PERMISSIONS, 3014, "The login was refused or lacks privileges")                        \
    X(VIX_E_VM_NOT_FOUND, 4000, "The virtual machine was not found")                                         \
    X(VIX_E_SNAPSHOT_NOTFOUND, 13003, "The snapshot was not found")                                          \
    X(VIX_E_HOST_SERVER_NOT_FOUND, 14008, "The host name could not be resolved")                             \
    X(VIX_E_HOST_NETWORK_CONN_REFUSED, 14009, "The host refused the connection")                             \
    X(VIX_E_HOST_TCP_SOCKET_ERROR, 14010, "A socket error occurred")                                         \
    X(VIX_E_HOST_TCP_CONN_LOST, 14011, "The network connection was lost")                                    \
    X(VIX_E_HOST_SERVER_SHUTDOWN, 14014, "The host is entering maintenance mode")                            \
    X(VIX_E_HOST_SERVER_NOT_AVAILABLE, 14015, "The host is in maintenance mode")                             \
    X(VIX_E_DISK_NOIO, 16002, "An I/O error occurred on the virtual disk")                                   \
    X(VIX_E_DISK_PARTIALCHAIN, 16003, "A part of the disk chain is missing")                                 \
    X(VIX_E_DISK_NEEDSREPAIR, 16006, "The virtual disk is damaged")                                          \
    X(VIX_E_DISK_OUTOFRANGE, 16007, "The request lies outside the virtual disk")                             \
    X(VIX_E_DISK_CID_MISMATCH, 16008, "The parent disk was modified after its child was created")            \
    X(VIX_E_DISK_NOTSUPPORTED, 16013, "This type of virtual disk is not supported")                          \
    X(VIX_E_DISK_TOOMANYOPENFILES, 16027, "Too many open files")                                             \
    X(VIX_E_DISK_TOOMANYREDO, 16028, "The disk chain has too many links")                                    \
    X(VIX_E_DISK_KEY_NOTFOUND, 16052, "The metadata key was not found")                                      \
    X(VIX_E_DISK_SUBSYSTEM_INIT_FAIL, 16053, "The library could not be initialised")                         \
    X(VIX_E_DISK_CAPACITY_MISMATCH, 16067, "Parent and child have different capacities")                     \
    X(VIX_E_CANNOT_CONNECT_TO_HOST, 18000, "The host cannot be reached")                                     \
    X(VIX_ASYNC, 25000, "The request was accepted")                                                          \
    X(VIX_E_ASYNC_MIXEDMODE_UNSUPPORTED, 26000, "Synchronous I/O while asynchronous requests are outstanding")

#define VIX_ENUMERATOR(name, code, text) name = code,
enum vix_code { VIX_ERRORS(VIX_ENUMERATOR) };
#undef VIX_ENUMERATOR

/* The VixError of a code: failures carry changing detail bits above the code, as the real
 * library's do, except BUFFER_TOOSMALL. */
VixError vix_error(int code);

#endif
