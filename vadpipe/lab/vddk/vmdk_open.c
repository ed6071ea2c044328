/* Opening a chain: descriptors, their extents, and the parents they name, each checked against its child. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "vmdk.h"

/* More links than any product allows; it also ends a chain that bites its own tail. */
enum { MAX_LINKS = 255 };

/* A name from a descriptor: absolute, or beside the descriptor. */
static char *beside(const char *descriptor_path, const char *name)
{
    const char *slash = strrchr(descriptor_path, '/');
    char *path = NULL;
    if (*name == '/' || slash == NULL) {
        return strdup(name);
    }
    return asprintf(&path, "%.*s/%s", (int)(slash - descriptor_path), descriptor_path, name) < 0 ? NULL
                                                                                                 : path;
}

static int open_flat(struct extent *extent, const char *path)
{
    uint64_t size;
    int code = file_size(&extent->file, &size);
    if (code == VIX_OK && size / SECTOR_SIZE < extent->flat_offset + extent->sectors) {
        log_warn("%s: truncated: %llu bytes, the descriptor promises %llu\n", path, (unsigned long long)size,
                 (unsigned long long)(extent->flat_offset + extent->sectors) * SECTOR_SIZE);
        code = VIX_E_FILE_ERROR;
    }
    return code;
}

static int extent_open(struct link *link, struct extent *extent, const char *name, bool writable)
{
    if (extent->type == EXTENT_ZERO) {
        return VIX_OK;
    }
    if (link->descriptor.room > 0 && extent->type == EXTENT_SPARSE) {
        /* The name inside an embedded descriptor is stale after a rename; the file itself is meant. */
        extent->file = link->file;
        extent->shares_file = true;
        return sparse_open(&extent->file, writable, extent->sectors, &extent->sparse);
    }
    char *path = beside(link->file.path, name);
    if (path == NULL) {
        return VIX_E_OUT_OF_MEMORY;
    }
    int code = file_open(&extent->file, path, writable && extent->writable);
    if (code == VIX_OK) {
        code = extent->type == EXTENT_FLAT
                   ? open_flat(extent, path)
                   : sparse_open(&extent->file, writable, extent->sectors, &extent->sparse);
    }
    free(path);
    return code;
}

static int list_extents(struct link *link)
{
    const char *cursor = link->descriptor.text;
    for (;;) {
        struct extent_line line;
        bool found;
        int code = descriptor_next_extent(&cursor, &line, &found);
        if (code != VIX_OK || !found) {
            return code;
        }
        size_t count = link->extent_count + 1;
        struct extent *extents = reallocarray(link->extents, count, sizeof *extents);
        if (extents == NULL) {
            return VIX_E_OUT_OF_MEMORY;
        }
        link->extents = extents;
        link->extent_count = count;
        extents[count - 1] = (struct extent){.type = line.type,
                                             .writable = line.writable,
                                             .first = link->capacity,
                                             .sectors = line.sectors,
                                             .flat_offset = line.offset};
        link->capacity += line.sectors;
    }
}

static uint32_t content_id(const struct descriptor *descriptor, const char *key)
{
    char *text = descriptor_get(descriptor, key);
    uint32_t id = text == NULL ? NO_PARENT : (uint32_t)strtoul(text, NULL, 16);
    free(text);
    return id;
}

static void link_close(struct link *link)
{
    while (link != NULL) {
        struct link *parent = link->parent;
        for (size_t i = 0; i < link->extent_count; i++) {
            sparse_close(link->extents[i].sparse);
            if (!link->extents[i].shares_file && link->extents[i].type != EXTENT_ZERO) {
                file_close(&link->extents[i].file);
            }
        }
        free(link->extents);
        free(link->descriptor.text);
        file_close(&link->file);
        free(link);
        link = parent;
    }
}

/* Open one link; the extents only after all are listed, because sparse extents keep their address. */
static int link_open(const char *path, bool writable, struct link **result)
{
    struct link *link = calloc(1, sizeof *link);
    if (link == NULL) {
        return VIX_E_OUT_OF_MEMORY;
    }
    *result = link;
    int code = file_open(&link->file, path, writable);
    if (code == VIX_OK) {
        code = descriptor_read(&link->file, &link->descriptor);
    }
    if (code == VIX_OK) {
        code = list_extents(link);
    }
    bool embedded = link->descriptor.room > 0;
    if (code == VIX_OK && (link->extent_count == 0 || (embedded && link->extent_count > 1))) {
        log_warn("%s: the descriptor names %zu extents\n", path, link->extent_count);
        code = VIX_E_DISK_NEEDSREPAIR;
    }
    const char *cursor = link->descriptor.text;
    for (size_t i = 0; code == VIX_OK && i < link->extent_count; i++) {
        struct extent_line line;
        bool found;
        descriptor_next_extent(&cursor, &line, &found);
        code = extent_open(link, &link->extents[i], line.name, writable);
    }
    if (code == VIX_OK) {
        link->cid = content_id(&link->descriptor, "CID");
        link->has_parent = content_id(&link->descriptor, "parentCID") != NO_PARENT;
    }
    return code;
}

static int parent_open(struct link *link)
{
    char *hint = descriptor_get(&link->descriptor, "parentFileNameHint");
    char *path = hint == NULL ? NULL : beside(link->file.path, hint);
    free(hint);
    if (path == NULL) {
        log_warn("%s: has a parent but does not name it\n", link->file.path);
        return VIX_E_DISK_PARTIALCHAIN;
    }
    int code = link_open(path, false, &link->parent);
    if (code == VIX_E_FILE_NOT_FOUND) {
        log_warn("%s: a file of the parent %s is missing\n", link->file.path, path);
        code = VIX_E_DISK_PARTIALCHAIN;
    }
    uint32_t expected = content_id(&link->descriptor, "parentCID");
    if (code == VIX_OK && link->parent->cid != expected) {
        log_warn("%s: was made for a parent with content id %08x, %s has %08x\n", link->file.path, expected,
                 path, link->parent->cid);
        code = VIX_E_DISK_CID_MISMATCH;
    }
    if (code == VIX_OK && link->parent->capacity != link->capacity) {
        log_warn("%s: has %llu sectors, its parent %s has %llu\n", link->file.path,
                 (unsigned long long)link->capacity, path, (unsigned long long)link->parent->capacity);
        code = VIX_E_DISK_CAPACITY_MISMATCH;
    }
    free(path);
    return code;
}

int chain_open(const char *path, bool writable, bool single_link, struct chain **result)
{
    struct chain *chain = calloc(1, sizeof *chain);
    if (chain == NULL) {
        return VIX_E_OUT_OF_MEMORY;
    }
    chain->single_link = single_link;
    chain->writable = writable;
    chain->links = 1;
    int code = link_open(path, writable, &chain->leaf);
    if (code == VIX_OK) {
        code = file_lock(&chain->leaf->file, writable);
    }
    struct link *link = chain->leaf;
    while (code == VIX_OK && !single_link && link->has_parent) {
        if (++chain->links > MAX_LINKS) {
            log_warn("%s: the chain has more than %d links\n", path, MAX_LINKS);
            code = VIX_E_DISK_TOOMANYREDO;
            break;
        }
        code = parent_open(link);
        link = link->parent;
    }
    if (code != VIX_OK) {
        chain_close(chain);
        return code;
    }
    *result = chain;
    return VIX_OK;
}

void chain_close(struct chain *chain)
{
    link_close(chain->leaf);
    free(chain);
}
