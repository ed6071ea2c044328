/* Writing sparse extents, with the lock of the extent held throughout. How they work: vmdk_sparse.h. */
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "vmdk_sparse.h"

static int append(struct sparse *sparse, uint64_t sectors, const void *data, uint64_t *place)
{
    if (sparse->next_sector + sectors > UINT32_MAX) {
        log_warn("%s: a sparse extent cannot grow beyond 2 TiB\n", sparse->file->path);
        return VIX_E_FILE_TOO_BIG;
    }
    *place = sparse->next_sector;
    int code = file_write(sparse->file, *place * SECTOR_SIZE, sectors * SECTOR_SIZE, data);
    if (code == VIX_OK) {
        sparse->next_sector += (sectors + sparse->grain - 1) / sparse->grain * sparse->grain;
    }
    return code;
}

/* Give one of the two directories a zeroed table. */
static int add_table(struct sparse *sparse, uint64_t table, uint32_t *directory, uint64_t directory_sector)
{
    static const uint32_t none[MAX_ENTRIES];
    uint64_t place;
    uint64_t sectors = (sparse->entries * sizeof(uint32_t) + SECTOR_SIZE - 1) / SECTOR_SIZE;
    int code = append(sparse, sectors, none, &place);
    if (code != VIX_OK) {
        return code;
    }
    directory[table] = (uint32_t)place;
    return file_write(sparse->file, directory_sector * SECTOR_SIZE + table * sizeof(uint32_t),
                      sizeof(uint32_t), &directory[table]);
}

/* Append whole grains that all belong to one table, and enter them. */
static int add_grains(struct sparse *sparse, uint64_t grain, uint64_t grains, const uint8_t *data)
{
    uint64_t table = grain / sparse->entries;
    uint64_t position = grain % sparse->entries;
    uint64_t place;
    uint32_t *entries;
    int code = VIX_OK;
    if (sparse->directory[table] == 0) {
        code = add_table(sparse, table, sparse->directory, sparse->directory_sector);
    }
    if (code == VIX_OK && sparse->redundant != NULL && sparse->redundant[table] == 0) {
        code = add_table(sparse, table, sparse->redundant, sparse->redundant_sector);
    }
    if (code == VIX_OK) {
        code = sparse_table(sparse, table, true, &entries);
    }
    if (code == VIX_OK) {
        code = append(sparse, grains * sparse->grain, data, &place);
    }
    if (code != VIX_OK) {
        return code;
    }
    for (uint64_t i = 0; i < grains; i++) {
        entries[position + i] = (uint32_t)(place + i * sparse->grain);
    }
    sparse->empty[table / 8] &= (uint8_t)~(1u << table % 8);
    uint64_t skip = position * sizeof(uint32_t);
    size_t length = grains * sizeof(uint32_t);
    code = file_write(sparse->file, (uint64_t)sparse->directory[table] * SECTOR_SIZE + skip, length,
                      entries + position);
    if (code == VIX_OK && sparse->redundant != NULL) {
        code = file_write(sparse->file, (uint64_t)sparse->redundant[table] * SECTOR_SIZE + skip, length,
                          entries + position);
    }
    if (code != VIX_OK) {
        sparse->cache[table % CACHED_TABLES].tag = 0; /* what the file holds now is to be read again */
    }
    return code;
}

/* A new grain that the caller fills in part: the rest is what was visible there before. */
static int add_partial(const struct extent *extent, const struct link *parent, enum run_kind before,
                       uint64_t start, uint64_t count, const uint8_t *buffer)
{
    struct sparse *sparse = extent->sparse;
    uint64_t grain = start / sparse->grain;
    uint64_t first = grain * sparse->grain;
    uint64_t visible = extent->sectors - first < sparse->grain ? extent->sectors - first : sparse->grain;
    uint8_t *data = calloc(sparse->grain, SECTOR_SIZE);
    if (data == NULL) {
        return VIX_E_OUT_OF_MEMORY;
    }
    int code = VIX_OK;
    if (before == RUN_PARENT && parent != NULL) {
        code = link_read(parent, extent->first + first, visible, data);
    }
    if (code == VIX_OK) {
        memcpy(data + (start - first) * SECTOR_SIZE, buffer, count * SECTOR_SIZE);
        code = add_grains(sparse, grain, 1, data);
    }
    free(data);
    return code;
}

/* Write the beginning of a range: up to the end of the run, the table or the grain, whichever comes first. */
static int write_some(const struct extent *extent, const struct link *parent, uint64_t start, uint64_t count,
                      const uint8_t *buffer, uint64_t *written)
{
    struct sparse *sparse = extent->sparse;
    struct run run;
    int code = sparse_run_locked(sparse, start, count, &run);
    if (code != VIX_OK) {
        return code;
    }
    if (run.kind == RUN_DATA) {
        *written = run.length;
        return file_write(sparse->file, run.file_sector * SECTOR_SIZE, run.length * SECTOR_SIZE, buffer);
    }
    uint64_t inside = start % sparse->grain;
    uint64_t grains = run.length / sparse->grain;
    if (inside == 0 && grains > 0) {
        uint64_t room = sparse->entries - start / sparse->grain % sparse->entries;
        grains = grains < room ? grains : room;
        *written = grains * sparse->grain;
        return add_grains(sparse, start / sparse->grain, grains, buffer);
    }
    *written = sparse->grain - inside < run.length ? sparse->grain - inside : run.length;
    return add_partial(extent, parent, run.kind, start, *written, buffer);
}

int sparse_write(const struct extent *extent, const struct link *parent, uint64_t start, uint64_t count,
                 const uint8_t *buffer)
{
    int code = VIX_OK;
    pthread_mutex_lock(&extent->sparse->lock);
    while (count > 0 && code == VIX_OK) {
        uint64_t written = 0;
        code = write_some(extent, parent, start, count, buffer, &written);
        start += written;
        count -= written;
        buffer += written * SECTOR_SIZE;
    }
    pthread_mutex_unlock(&extent->sparse->lock);
    return code;
}
