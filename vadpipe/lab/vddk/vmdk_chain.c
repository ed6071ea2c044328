#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "log.h"
#include "vmdk.h"

static const struct extent *extent_at(const struct link *link, uint64_t sector)
{
    size_t low = 0;
    size_t high = link->extent_count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (link->extents[middle].first <= sector) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return &link->extents[low];
}

/*
 * Holes of the flat file are unallocated, as on thin VMFS; where the file system cannot tell, all is data. What lies
 * behind the end of a file that lost its tail is no hole either: reading it has to fail.
 */
static void flat_holes(const struct extent *extent, uint64_t start, struct run *run)
{
    off_t begin = (off_t)((extent->flat_offset + start) * SECTOR_SIZE);
    off_t end = begin + (off_t)(run->length * SECTOR_SIZE);
    off_t data = lseek(extent->file.fd, begin, SEEK_DATA);
    off_t hole = data < 0 ? -1 : lseek(extent->file.fd, data, SEEK_HOLE);
    if (data < 0 || hole < 0) {
        bool at_tail = errno == ENXIO && lseek(extent->file.fd, 0, SEEK_END) >= end;
        run->kind = at_tail ? RUN_ZERO : RUN_DATA;
    } else if (data / SECTOR_SIZE > begin / SECTOR_SIZE) {
        run->kind = RUN_ZERO;
        run->length = (uint64_t)((data < end ? data : end) - begin) / SECTOR_SIZE;
    } else if (hole < end) {
        run->length = (uint64_t)(hole - begin + SECTOR_SIZE - 1) / SECTOR_SIZE;
    }
}

/* The run of one link at a sector. Reading takes the holes of flat files as data: the kernel fills them. */
static int link_run(const struct link *link, uint64_t start, uint64_t count, bool holes, struct run *run,
                    const struct extent **extent)
{
    *extent = extent_at(link, start);
    start -= (*extent)->first;
    uint64_t left = (*extent)->sectors - start;
    count = count < left ? count : left;
    if ((*extent)->type == EXTENT_SPARSE) {
        return sparse_run((*extent)->sparse, start, count, run);
    }
    run->kind = (*extent)->type == EXTENT_ZERO ? RUN_ZERO : RUN_DATA;
    run->length = count;
    run->file_sector = (*extent)->flat_offset + start;
    if (holes && (*extent)->type == EXTENT_FLAT) {
        flat_holes(*extent, start, run);
    }
    return VIX_OK;
}

int link_read(const struct link *link, uint64_t start, uint64_t count, uint8_t *buffer)
{
    while (count > 0) {
        struct run run;
        const struct extent *extent;
        int code = link_run(link, start, count, false, &run, &extent);
        size_t length = code == VIX_OK ? run.length * SECTOR_SIZE : 0;
        if (code == VIX_OK && run.kind == RUN_DATA) {
            code = file_read(&extent->file, run.file_sector * SECTOR_SIZE, length, buffer);
        } else if (code == VIX_OK && run.kind == RUN_PARENT && link->parent != NULL) {
            code = link_read(link->parent, start, run.length, buffer);
        } else if (code == VIX_OK) {
            memset(buffer, 0, length);
        }
        if (code != VIX_OK) {
            return code;
        }
        start += run.length;
        count -= run.length;
        buffer += length;
    }
    return VIX_OK;
}

int chain_read(const struct chain *chain, uint64_t start, uint64_t count, uint8_t *buffer)
{
    return link_read(chain->leaf, start, count, buffer);
}

int chain_allocated(const struct chain *chain, uint64_t start, uint64_t count, bool *allocated,
                    uint64_t *length)
{
    const struct link *link = chain->leaf;
    for (;;) {
        struct run run;
        const struct extent *extent;
        int code = link_run(link, start, count, true, &run, &extent);
        if (code != VIX_OK) {
            return code;
        }
        count = run.length;
        if (run.kind != RUN_PARENT || link->parent == NULL) {
            /* Zeroes of a single link say something: they hide what the parent has there. */
            bool hides = run.kind == RUN_ZERO && chain->single_link && link->has_parent;
            *allocated = run.kind == RUN_DATA || hides;
            *length = run.length;
            return VIX_OK;
        }
        link = link->parent;
    }
}

/* ---- writing ---------------------------------------------------------------------------------------- */

/* The first write of an open changes the content id, so that children of the old content are refused. */
static int renew_content_id(struct chain *chain)
{
    if (atomic_flag_test_and_set(&chain->modified)) {
        return VIX_OK;
    }
    struct link *link = chain->leaf;
    uint32_t id = 0;
    while (id == 0 || id == link->cid || id == NO_PARENT) {
        if (getrandom(&id, sizeof id, 0) != (ssize_t)sizeof id) {
            return VIX_E_FAIL;
        }
    }
    char text[9];
    snprintf(text, sizeof text, "%08x", id);
    int code = descriptor_set(&link->descriptor, "CID", text);
    link->cid = id;
    return code == VIX_OK ? descriptor_write(&link->file, &link->descriptor) : code;
}

int chain_write(struct chain *chain, uint64_t start, uint64_t count, const uint8_t *buffer)
{
    int code = renew_content_id(chain);
    while (count > 0 && code == VIX_OK) {
        const struct extent *extent = extent_at(chain->leaf, start);
        uint64_t inside = start - extent->first;
        uint64_t length = extent->sectors - inside < count ? extent->sectors - inside : count;
        if (extent->type == EXTENT_ZERO || !extent->writable) {
            log_warn("%s: sector %llu lies in an extent that cannot be written\n", chain->leaf->file.path,
                     (unsigned long long)start);
            code = VIX_E_FILE_READ_ONLY;
        } else if (extent->type == EXTENT_FLAT) {
            code = file_write(&extent->file, (extent->flat_offset + inside) * SECTOR_SIZE,
                              length * SECTOR_SIZE, buffer);
        } else {
            code = sparse_write(extent, chain->leaf->parent, inside, length, buffer);
        }
        start += length;
        count -= length;
        buffer += length * SECTOR_SIZE;
    }
    return code;
}

int chain_flush(const struct chain *chain)
{
    const struct link *leaf = chain->leaf;
    int failed = fsync(leaf->file.fd);
    for (size_t i = 0; i < leaf->extent_count; i++) {
        if (leaf->extents[i].type != EXTENT_ZERO) {
            failed |= fsync(leaf->extents[i].file.fd);
        }
    }
    if (failed != 0) {
        log_warn("%s: cannot flush: %s\n", leaf->file.path, strerror(errno));
        return VIX_E_DISK_NOIO;
    }
    return VIX_OK;
}
