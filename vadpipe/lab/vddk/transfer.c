/* Reads and writes, synchronous and asynchronous: the same checks, faults and delays for all four calls. */
#include <unistd.h>

#include "async.h"
#include "disk.h"
#include "errors.h"
#include "log.h"

/* Buffers of sectors; over NBD also ranges of 4 KiB, except the rest of a disk (KB 313937). */
static bool unbuffered_allows(const struct disk *disk, uint64_t start, uint64_t count, const void *buffer)
{
    enum { NBD_SECTORS = 8 };
    bool tail = start + count == disk->chain->leaf->capacity;
    bool range = start % NBD_SECTORS == 0 && (count % NBD_SECTORS == 0 || tail);
    return (uintptr_t)buffer % SECTOR_SIZE == 0 && (!disk->remote || range);
}

/* The argument rules of reads and writes; a vix code, with the reason logged. */
static int check(const struct disk *disk, const char *call, uint64_t start, uint64_t count,
                 const void *buffer, bool write)
{
    uint64_t capacity = disk->chain->leaf->capacity;
    require(buffer, call, "buffer");
    if (count == 0) {
        log_warn("%s: no sectors asked for\n", call);
        return VIX_E_INVALID_ARG;
    }
    if (start > capacity || count > capacity - start) {
        log_warn("%s: sectors %llu + %llu lie beyond the capacity of %llu\n", call, (unsigned long long)start,
                 (unsigned long long)count, (unsigned long long)capacity);
        return VIX_E_DISK_OUTOFRANGE;
    }
    if (write && !disk->chain->writable) {
        log_warn("%s: the disk was opened read-only\n", call);
        return VIX_E_FILE_READ_ONLY;
    }
    if ((disk->flags & OPEN_UNBUFFERED) != 0 && !unbuffered_allows(disk, start, count, buffer)) {
        log_warn("%s: UNBUFFERED needs aligned buffers, and over NBD multiples of 4 KiB\n", call);
        return VIX_E_INVALID_ARG;
    }
    return VIX_OK;
}

int disk_transfer(struct disk *disk, uint64_t start, uint64_t count, uint8_t *buffer, bool write)
{
    int code = write ? disk_note_write(disk, start, count) : VIX_OK;
    if (code == VIX_OK) {
        code = write ? chain_write(disk->chain, start, count, buffer)
                     : chain_read(disk->chain, start, count, buffer);
    }
    if (code == VIX_OK) {
        atomic_fetch_add(write ? &totals.bytes_written : &totals.bytes_read, count * SECTOR_SIZE);
    }
    return code;
}

static VixError transfer_now(VixDiskLibHandle handle, const char *call, uint64_t start, uint64_t count,
                             uint8_t *buffer, bool write)
{
    struct disk *disk = disk_enter(handle, call);
    int code = check(disk, call, start, count, buffer, write);
    if (code == VIX_OK && disk_outstanding(disk) > 0) {
        log_warn("%s: asynchronous requests of this disk are outstanding\n", call);
        code = VIX_E_ASYNC_MIXEDMODE_UNSUPPORTED;
    }
    VixError error = vix_error(code);
    if (code == VIX_OK) {
        struct request request = {
            .disk = disk, .start = start, .count = count, .buffer = buffer, .write = write};
        request.injected = fault_next(write ? CALL_WRITE : CALL_READ, &request.fate);
        if (!request.fate.hang) {
            async_delay(disk, count * SECTOR_SIZE);
            error = request_run(&request);
        }
        while (request.fate.hang) {
            pause();
        }
    }
    disk_leave(disk);
    return error;
}

VIX_EXPORT VixError VixDiskLib_Read(VixDiskLibHandle handle, VixDiskLibSectorType start,
                                    VixDiskLibSectorType count, uint8_t *buffer)
{
    return transfer_now(handle, __func__, start, count, buffer, false);
}

VIX_EXPORT VixError VixDiskLib_Write(VixDiskLibHandle handle, VixDiskLibSectorType start,
                                     VixDiskLibSectorType count, const uint8_t *buffer)
{
    return transfer_now(handle, __func__, start, count, (uint8_t *)buffer, true);
}

VIX_EXPORT VixError VixDiskLib_Flush(VixDiskLibHandle handle)
{
    struct disk *disk = disk_enter(handle, __func__);
    VixError error = fault_blocking(CALL_FLUSH);
    if (error == VIX_OK && disk->chain->writable) {
        error = vix_error(chain_flush(disk->chain));
    }
    if (error == VIX_OK) {
        error = fault_late(CALL_FLUSH);
    }
    disk_leave(disk);
    return error;
}

VIX_EXPORT VixError VixDiskLib_Wait(VixDiskLibHandle handle)
{
    struct disk *disk = disk_enter(handle, __func__);
    VixError error = fault_blocking(CALL_WAIT);
    disk_wait(disk);
    disk_leave(disk);
    return error;
}

static VixError transfer_later(VixDiskLibHandle handle, const char *call, struct request request)
{
    request.disk = disk_enter(handle, call);
    require((const void *)(uintptr_t)request.callback, call, "callback");
    int code = check(request.disk, call, request.start, request.count, request.buffer, request.write);
    VixError error = vix_error(code);
    if (code == VIX_OK) {
        atomic_fetch_add(&totals.async_requests, 1);
        error = async_submit(&request);
    }
    disk_leave(request.disk);
    return error;
}

VIX_EXPORT VixError VixDiskLib_ReadAsync(VixDiskLibHandle handle, VixDiskLibSectorType start,
                                         VixDiskLibSectorType count, uint8_t *buffer,
                                         VixDiskLibCompletionCB callback, void *data)
{
    return transfer_later(
        handle, __func__,
        (struct request){
            .start = start, .count = count, .buffer = buffer, .callback = callback, .data = data});
}

VIX_EXPORT VixError VixDiskLib_WriteAsync(VixDiskLibHandle handle, VixDiskLibSectorType start,
                                          VixDiskLibSectorType count, const uint8_t *buffer,
                                          VixDiskLibCompletionCB callback, void *data)
{
    return transfer_later(handle, __func__,
                          (struct request){.start = start,
                                           .count = count,
                                           .buffer = (uint8_t *)buffer,
                                           .write = true,
                                           .callback = callback,
                                           .data = data});
}
