#include <stdlib.h>

#include "disk.h"
#include "errors.h"
#include "log.h"
#include "outside.h"
#include "params.h"

uint64_t session_buffer_bytes = 65536;
uint64_t session_buffer_count = 4;

/* Above this Open fails, VDDK 7.0.3 release notes. */
enum { MAX_SESSION_BYTES = 16 << 20 };

static struct disk *_Atomic disks; /* changed only inside Open, which excludes itself and Close */
static struct exclusion opening;

/* ---- entering a call -------------------------------------------------------------------------------- */

struct disk *disk_enter(VixDiskLibHandle handle, const char *call)
{
    guard_call(call);
    require(handle, call, "diskHandle");
    struct disk *disk = disks;
    while (disk != NULL && disk != handle) {
        disk = disk->next;
    }
    if (disk == NULL) {
        misuse(call, "%p is not a disk handle of this library", (void *)handle);
    }
    if (disk->state != DISK_OPEN) {
        misuse(call, "the disk handle was used after %s",
               disk->state == DISK_CLOSED ? "Close" : "Disconnect");
    }
    exclusion_enter(&disk->busy, call, "of the same disk handle");
    return disk;
}

void disk_leave(struct disk *disk)
{
    exclusion_leave(&disk->busy);
}

unsigned disk_outstanding(struct disk *disk)
{
    pthread_mutex_lock(&disk->lock);
    unsigned outstanding = disk->outstanding;
    pthread_mutex_unlock(&disk->lock);
    return outstanding;
}

void disk_wait(struct disk *disk)
{
    pthread_mutex_lock(&disk->lock);
    while (disk->outstanding > 0 || disk->delivering > 0) {
        pthread_cond_wait(&disk->settled, &disk->lock);
    }
    pthread_mutex_unlock(&disk->lock);
}

unsigned disks_outstanding(void)
{
    unsigned outstanding = 0;
    for (struct disk *disk = disks; disk != NULL; disk = disk->next) {
        outstanding += disk_outstanding(disk);
    }
    return outstanding;
}

/* ---- opening and closing ---------------------------------------------------------------------------- */

static int check_flags(const struct connection *connection, uint32_t flags)
{
    uint32_t compression = flags & OPEN_COMPRESSION_MASK;
    uint32_t known = OPEN_UNBUFFERED | OPEN_SINGLE_LINK | OPEN_READ_ONLY | OPEN_COMPRESSION_MASK;
    if ((flags & ~known) != 0 || (compression & (compression - 1)) != 0) {
        log_warn("Open: flags 0x%x: unknown, or more than one compression\n", flags);
        return VIX_E_INVALID_ARG;
    }
    if (connection->read_only && (flags & OPEN_READ_ONLY) == 0) {
        log_warn("Open: a disk cannot be opened for writing through a read-only connection\n");
        return VIX_E_FILE_READ_ONLY;
    }
    if (connection->remote && (flags & OPEN_SINGLE_LINK) != 0) {
        log_warn("Open: a single link can be opened on local disks only\n");
        return VIX_E_NOT_SUPPORTED;
    }
    return VIX_OK;
}

/* The rules of a disk that is opened for writing, after it was opened. Closes it when they forbid it. */
static int allow_writing(const struct connection *connection, struct disk *disk)
{
    const char *snapshot = connection->snapshot;
    int code = VIX_OK;
    if (connection->remote && !connection_may_write(connection)) {
        code = VIX_E_FILE_ALREADY_LOCKED;
    } else if (disk->transport == SAN && (snapshot == NULL || *snapshot == '\0')) {
        log_warn("Open: over san a disk is written only while its VM has a snapshot\n");
        code = VIX_E_NOT_SUPPORTED;
    } else if (disk->transport == SAN && disk->chain->leaf->has_parent) {
        log_warn("Open: over san only the base disk is written, not a link above it\n");
        code = VIX_E_NOT_SUPPORTED;
    } else {
        uint64_t chunks = disk->chain->leaf->capacity / MIN_CHUNK_SECTORS + 1;
        disk->taken = calloc(chunks / 8 + 1, 1);
        code = disk->taken == NULL ? VIX_E_OUT_OF_MEMORY : VIX_OK;
    }
    if (code != VIX_OK) {
        chain_close(disk->chain);
    }
    return code;
}

static int open_chain(const struct connection *connection, const char *path, uint32_t flags,
                      struct disk *disk)
{
    int code = check_flags(connection, flags);
    if (code == VIX_OK && connection->remote) {
        code = connection_authorise(connection);
    }
    if (code != VIX_OK) {
        return code;
    }
    disk->transport = connection_transport(connection);
    if (disk->transport == NULL) {
        log_warn("Open: none of the transport modes %s can be used for '%s'\n", connection->modes, path);
        return VIX_E_NOT_SUPPORTED;
    }
    if (connection->remote && session_buffer_bytes * session_buffer_count > MAX_SESSION_BYTES) {
        log_warn("Open: NFC session buffers of %llu x %llu bytes exceed 16 MiB\n",
                 (unsigned long long)session_buffer_count, (unsigned long long)session_buffer_bytes);
        return VIX_E_OUT_OF_MEMORY;
    }
    char *file;
    code = connection_resolve(connection, path, &file);
    if (code == VIX_OK) {
        code = chain_open(file, (flags & OPEN_READ_ONLY) == 0, (flags & OPEN_SINGLE_LINK) != 0, &disk->chain);
    }
    free(file);
    disk->eager = code == VIX_OK && connection->remote && connection_eager(connection, path);
    if (code == VIX_OK && disk->chain->writable) {
        code = allow_writing(connection, disk);
    }
    if (code == VIX_OK && disk->transport == SAN) {
        disk->remote = false; /* reads are synchronous, and writes are made one at a time */
    }
    if (code == VIX_OK && disk->transport == HOTADD) {
        disk->remote = false; /* its reads are synchronous, as those of a local disk */
        disk->attached = hot_add(connection->root, params_vm(connection->params), path);
        if (disk->attached < 0) {
            chain_close(disk->chain);
            code = VIX_E_FILE_ACCESS_ERROR; /* as where no slot is free */
        }
    }
    return code;
}

static struct disk *disk_new(struct connection *connection, uint32_t flags)
{
    struct disk *disk = calloc(1, sizeof *disk);
    if (disk != NULL) {
        disk->connection = connection;
        disk->flags = flags;
        disk->remote = connection->remote;
        disk->attached = -1;
        pthread_mutex_init(&disk->lock, NULL);
        pthread_cond_init(&disk->settled, NULL);
    }
    return disk;
}

VIX_EXPORT VixError VixDiskLib_Open(const VixDiskLibConnection handle, const char *path, uint32_t flags,
                                    VixDiskLibHandle *result)
{
    struct connection *connection = connection_enter(handle, __func__);
    require(path, __func__, "path");
    require(result, __func__, "diskHandle");
    exclusion_enter(&opening, __func__, "(Open and Close must not overlap)");
    *result = NULL;
    VixError error = fault_blocking(CALL_OPEN);
    struct disk *disk = error == VIX_OK ? disk_new(connection, flags) : NULL;
    if (error == VIX_OK) {
        error = vix_error(disk == NULL ? VIX_E_OUT_OF_MEMORY : open_chain(connection, path, flags, disk));
    }
    if (error == VIX_OK) {
        disk->next = disks;
        disks = disk;
        atomic_fetch_add(&totals.live_disks, 1);
        *result = disk;
        log_info("Open: '%s' over %s, %d links, %llu sectors\n", path, disk->transport, disk->chain->links,
                 (unsigned long long)disk->chain->leaf->capacity);
    } else {
        free(disk == NULL ? NULL : disk->taken);
        free(disk);
        if (knobs.garbage) {
            *result = (VixDiskLibHandle)(uintptr_t)0xdead;
        }
    }
    exclusion_leave(&opening);
    connection_leave(connection);
    return error;
}

/* Callbacks that still run are waited for; requests still to be answered are the client's mistake. */
static void disk_shut(struct disk *disk, enum disk_state state, const char *call)
{
    unsigned outstanding = disk_outstanding(disk);
    if (outstanding > 0) {
        misuse(call, "%u asynchronous requests are outstanding: Wait first", outstanding);
    }
    disk_wait(disk);
    disk->state = state;
    chain_close(disk->chain);
    free(disk->taken);
    disk->taken = NULL;
    disk->chain = NULL;
    disk->connection = NULL;
    hot_close(disk->attached);
    atomic_fetch_sub(&totals.live_disks, 1);
}

VIX_EXPORT VixError VixDiskLib_Close(VixDiskLibHandle handle)
{
    struct disk *disk = disk_enter(handle, __func__);
    exclusion_enter(&opening, __func__, "(Open and Close must not overlap)");
    VixError error = fault_blocking(CALL_CLOSE);
    disk_shut(disk, DISK_CLOSED, __func__);
    if (error == VIX_OK) {
        error = fault_late(CALL_CLOSE);
    }
    exclusion_leave(&opening);
    disk_leave(disk);
    return error;
}

void disks_disconnect(const struct connection *connection, const char *call)
{
    for (struct disk *disk = disks; disk != NULL; disk = disk->next) {
        if (disk->state == DISK_OPEN && disk->connection == connection) {
            exclusion_enter(&disk->busy, call, "of a disk handle of this connection");
            log_warn("Disconnect: a disk is still open, its handle is now invalid\n");
            disk_shut(disk, DISK_DISCONNECTED, call);
            disk_leave(disk);
        }
    }
}
