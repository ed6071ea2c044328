#include <stdlib.h>
#include <string.h>

#include "disk.h"
#include "errors.h"
#include "log.h"

static int check_query(const struct disk *disk, uint64_t start, uint64_t count, uint64_t chunk)
{
    uint64_t capacity = disk->chain->leaf->capacity;
    if (knobs.allocated == ALLOCATED_UNSUPPORTED) {
        log_warn("QueryAllocatedBlocks: not supported by this host\n");
        return VIX_E_NOT_SUPPORTED;
    }
    if (chunk < MIN_CHUNK_SECTORS || chunk > MAX_CHUNK_SECTORS) {
        log_warn("QueryAllocatedBlocks: a chunk of %llu sectors is not within %d to %d\n",
                 (unsigned long long)chunk, MIN_CHUNK_SECTORS, MAX_CHUNK_SECTORS);
        return VIX_E_INVALID_ARG;
    }
    if (count == 0 || start % chunk != 0 || count % chunk != 0 || count / chunk > MAX_CHUNKS_PER_CALL) {
        log_warn("QueryAllocatedBlocks: %llu + %llu sectors: not 1 to %d whole chunks of %llu\n",
                 (unsigned long long)start, (unsigned long long)count, MAX_CHUNKS_PER_CALL,
                 (unsigned long long)chunk);
        return VIX_E_INVALID_ARG;
    }
    if (start > capacity || count > capacity - start) {
        log_warn("QueryAllocatedBlocks: %llu + %llu sectors lie beyond the capacity of %llu\n",
                 (unsigned long long)start, (unsigned long long)count, (unsigned long long)capacity);
        return VIX_E_DISK_OUTOFRANGE;
    }
    return VIX_OK;
}

struct block_row {
    VixDiskLibBlock *blocks;
    size_t count;
    size_t room;
};

static bool append_block(struct block_row *row, uint64_t start, uint64_t end)
{
    VixDiskLibBlock *last = row->count == 0 ? NULL : &row->blocks[row->count - 1];
    if (last != NULL && last->offset + last->length >= start) {
        last->length = end - last->offset;
        return true;
    }
    if (row->count == row->room) {
        size_t room = row->room == 0 ? 64 : row->room * 2;
        VixDiskLibBlock *blocks = reallocarray(row->blocks, room, sizeof *blocks);
        if (blocks == NULL) {
            return false;
        }
        row->blocks = blocks;
        row->room = room;
    }
    row->blocks[row->count++] = (VixDiskLibBlock){.offset = start, .length = end - start};
    return true;
}

static atomic_uint_fast64_t allocated_here; /* chunks, by all handles of this process */

int disk_note_write(struct disk *disk, uint64_t start, uint64_t count)
{
    uint64_t capacity = disk->chain->leaf->capacity;
    uint64_t chunk = start / MIN_CHUNK_SECTORS;
    uint64_t end = (start + count + MIN_CHUNK_SECTORS - 1) / MIN_CHUNK_SECTORS;
    while (chunk < end) {
        bool allocated;
        uint64_t first = chunk * MIN_CHUNK_SECTORS;
        uint64_t length = end * MIN_CHUNK_SECTORS < capacity ? end * MIN_CHUNK_SECTORS : capacity;
        int code = chain_allocated(disk->chain, first, length - first, &allocated, &length);
        if (code != VIX_OK) {
            return code;
        }
        uint64_t part = length % MIN_CHUNK_SECTORS != 0;
        uint64_t touched = length / MIN_CHUNK_SECTORS + part;
        uint64_t whole = first + length == capacity ? touched : touched - part;
        if (!allocated && atomic_fetch_add(&allocated_here, whole) + whole > knobs.space) {
            log_warn("the datastore has no space left, as asked\n");
            return VIX_E_DISK_FULL;
        }
        pthread_mutex_lock(&disk->lock);
        for (uint64_t i = 0; !allocated && i < whole; i++) {
            disk->taken[(chunk + i) / 8] |= (uint8_t)(1 << (chunk + i) % 8);
        }
        pthread_mutex_unlock(&disk->lock);
        chunk += touched; /* a chunk of which a part is allocated counts as allocated */
    }
    return VIX_OK;
}

/* Whether this handle did not allocate that chunk itself. */
static bool listed(struct disk *disk, uint64_t place)
{
    uint64_t chunk = place / MIN_CHUNK_SECTORS;
    pthread_mutex_lock(&disk->lock);
    bool taken = (disk->taken[chunk / 8] >> chunk % 8 & 1) != 0;
    pthread_mutex_unlock(&disk->lock);
    return !taken;
}

/* The chunks from start to next that are listed. */
static bool append_listed(struct disk *disk, uint64_t start, uint64_t next, uint64_t chunk,
                          struct block_row *row)
{
    if (disk->taken == NULL) {
        return append_block(row, start / chunk * chunk, next);
    }
    for (uint64_t place = start / MIN_CHUNK_SECTORS * MIN_CHUNK_SECTORS; place < next;
         place += MIN_CHUNK_SECTORS) {
        uint64_t first = place / chunk * chunk;
        if (listed(disk, place) && !append_block(row, first, first + chunk)) {
            return false;
        }
    }
    return true;
}

/* Runs of the chain, rounded outward to chunks; the rest of an allocated chunk is not looked at. */
static int collect(struct disk *disk, uint64_t start, uint64_t count, uint64_t chunk, struct block_row *row)
{
    const struct chain *chain = disk->chain;
    uint64_t end = start + count;
    while (start < end) {
        bool allocated;
        uint64_t length;
        int code = chain_allocated(chain, start, end - start, &allocated, &length);
        if (code != VIX_OK) {
            return code;
        }
        uint64_t next = start + length;
        if (allocated) {
            next = (next + chunk - 1) / chunk * chunk;
            if (!append_listed(disk, start, next, chunk, row)) {
                return VIX_E_OUT_OF_MEMORY;
            }
        }
        start = next;
    }
    return VIX_OK;
}

static int answer_query(struct disk *disk, uint64_t start, uint64_t count, uint64_t chunk,
                        VixDiskLibBlockList **list)
{
    struct block_row row = {0};
    int code;
    if (knobs.allocated == ALLOCATED_NULL) {
        return VIX_OK;
    }
    if (knobs.allocated == ALLOCATED_ALL || disk->eager) { /* of a lazy or thin disk, what was written */
        code = append_block(&row, start, start + count) ? VIX_OK : VIX_E_OUT_OF_MEMORY;
    } else {
        code = collect(disk, start, count, chunk, &row);
    }
    if (code == VIX_OK) {
        size_t length = row.count * sizeof *row.blocks;
        *list = object_new(OBJECT_BLOCK_LIST, sizeof **list + length);
        if (*list == NULL) {
            code = VIX_E_OUT_OF_MEMORY;
        } else {
            (*list)->numBlocks = (uint32_t)row.count;
            if (row.count > 0) {
                memcpy((*list)->blocks, row.blocks, length);
            }
        }
    }
    free(row.blocks);
    return code;
}

VIX_EXPORT VixError VixDiskLib_QueryAllocatedBlocks(VixDiskLibHandle handle, VixDiskLibSectorType start,
                                                    VixDiskLibSectorType count, VixDiskLibSectorType chunk,
                                                    VixDiskLibBlockList **list)
{
    struct disk *disk = disk_enter(handle, __func__);
    require(list, __func__, "blockList");
    *list = NULL;
    VixError error = fault_blocking(CALL_QUERY);
    if (error == VIX_OK) {
        int code = check_query(disk, start, count, chunk);
        error = vix_error(code == VIX_OK ? answer_query(disk, start, count, chunk, list) : code);
    }
    disk_leave(disk);
    return error;
}

VIX_EXPORT VixError VixDiskLib_FreeBlockList(VixDiskLibBlockList *list)
{
    object_free(OBJECT_BLOCK_LIST, list, __func__);
    return VIX_OK;
}
