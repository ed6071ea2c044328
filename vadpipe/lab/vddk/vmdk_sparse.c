/* Reading sparse extents. How they work: vmdk_sparse.h. */
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "vmdk_sparse.h"

enum {
    MAX_VERSION = 3,
    MIN_GRAIN = 8,       /* sectors */
    MAX_GRAIN = 1 << 14, /* 8 MiB; usual is 128 */
    MAX_TABLES = 1 << 22,
};

#define FLAG_COMPRESSED 0x10000u
#define FLAG_REDUNDANT 0x2u

static int damaged(const struct vmdk_file *file, const char *what)
{
    log_warn("%s: damaged sparse extent: %s\n", file->path, what);
    return VIX_E_DISK_NEEDSREPAIR;
}

static int check_header(const struct vmdk_file *file, const struct sparse_header *header, uint64_t sectors)
{
    if (memcmp(header->magic, SPARSE_MAGIC, 4) != 0) {
        log_warn("%s: not a hosted sparse extent\n", file->path);
        return VIX_E_DISK_NOTSUPPORTED;
    }
    if ((header->flags & FLAG_COMPRESSED) != 0 || header->compression != 0 ||
        header->directory == UINT64_MAX) {
        log_warn("%s: compressed (stream-optimized) extents are not supported\n", file->path);
        return VIX_E_DISK_NOTSUPPORTED;
    }
    if (header->version < 1 || header->version > MAX_VERSION) {
        return damaged(file, "unknown version");
    }
    if (header->grain_size < MIN_GRAIN || header->grain_size > MAX_GRAIN ||
        (header->grain_size & (header->grain_size - 1)) != 0) {
        return damaged(file, "the grain size is not a power of two of at least 8 sectors");
    }
    if (header->entries_per_table == 0 || header->entries_per_table > MAX_ENTRIES) {
        return damaged(file, "the number of grain table entries is out of range");
    }
    if (header->capacity < sectors || header->capacity > UINT64_MAX >> 16) {
        return damaged(file, "the header's capacity does not match the descriptor's");
    }
    return VIX_OK;
}

static int load_directory(const struct sparse *sparse, uint64_t sector, uint32_t **directory)
{
    size_t length = sparse->tables * sizeof(uint32_t);
    uint64_t size;
    int code = file_size(sparse->file, &size);
    if (code != VIX_OK) {
        return code;
    }
    if (sector > size / SECTOR_SIZE || sector * SECTOR_SIZE + length > size) {
        log_warn("%s: truncated: the file ends at %llu, inside its grain directory\n", sparse->file->path,
                 (unsigned long long)size);
        return VIX_E_FILE_ERROR;
    }
    *directory = malloc(length);
    return *directory == NULL ? VIX_E_OUT_OF_MEMORY
                              : file_read(sparse->file, sector * SECTOR_SIZE, length, *directory);
}

static int load(struct sparse *sparse, bool writable, uint64_t sectors)
{
    struct sparse_header header;
    uint64_t size;
    int code = file_size(sparse->file, &size);
    if (code == VIX_OK && size < SECTOR_SIZE) {
        log_warn("%s: truncated: the file ends at %llu, inside its header\n", sparse->file->path,
                 (unsigned long long)size);
        code = VIX_E_FILE_ERROR;
    }
    if (code == VIX_OK) {
        code = file_read(sparse->file, 0, sizeof header, &header);
    }
    if (code == VIX_OK) {
        code = check_header(sparse->file, &header, sectors);
    }
    if (code != VIX_OK) {
        return code;
    }
    uint64_t covered = header.grain_size * header.entries_per_table;
    sparse->grain = (uint32_t)header.grain_size;
    sparse->entries = header.entries_per_table;
    sparse->tables = (header.capacity + covered - 1) / covered;
    uint64_t grain_bytes = header.grain_size * SECTOR_SIZE;
    sparse->next_sector = (size + grain_bytes - 1) / grain_bytes * header.grain_size;
    sparse->directory_sector = header.directory;
    sparse->redundant_sector = (header.flags & FLAG_REDUNDANT) != 0 ? header.redundant_directory : 0;
    if (sparse->tables > MAX_TABLES) {
        return damaged(sparse->file, "the grain directory is too large");
    }
    sparse->empty = calloc(1, sparse->tables / 8 + 1);
    code = sparse->empty == NULL ? VIX_E_OUT_OF_MEMORY
                                 : load_directory(sparse, sparse->directory_sector, &sparse->directory);
    if (code == VIX_OK && writable && sparse->redundant_sector != 0) {
        code = load_directory(sparse, sparse->redundant_sector, &sparse->redundant);
    }
    return code;
}

int sparse_open(const struct vmdk_file *file, bool writable, uint64_t sectors, struct sparse **result)
{
    struct sparse *sparse = calloc(1, sizeof *sparse);
    if (sparse == NULL) {
        return VIX_E_OUT_OF_MEMORY;
    }
    sparse->file = file;
    pthread_mutex_init(&sparse->lock, NULL);
    int code = load(sparse, writable, sectors);
    if (code != VIX_OK) {
        sparse_close(sparse);
        return code;
    }
    *result = sparse;
    return VIX_OK;
}

void sparse_close(struct sparse *sparse)
{
    if (sparse == NULL) {
        return;
    }
    for (size_t i = 0; i < CACHED_TABLES; i++) {
        free(sparse->cache[i].entries);
    }
    free(sparse->directory);
    free(sparse->redundant);
    free(sparse->empty);
    pthread_mutex_destroy(&sparse->lock);
    free(sparse);
}

/* ---- tables (with the lock held) -------------------------------------------------------------------- */

static bool is_empty(const struct sparse *sparse, uint64_t table)
{
    return sparse->directory[table] == 0 || (sparse->empty[table / 8] >> table % 8 & 1) != 0;
}

int sparse_table(struct sparse *sparse, uint64_t table, bool for_writing, uint32_t **entries)
{
    struct cached_table *slot = &sparse->cache[table % CACHED_TABLES];
    size_t length = sparse->entries * sizeof(uint32_t);
    *entries = NULL;
    if (!for_writing && is_empty(sparse, table)) {
        return VIX_OK;
    }
    if (slot->tag == table + 1) {
        *entries = slot->entries;
        return VIX_OK;
    }
    if (slot->entries == NULL && (slot->entries = malloc(length)) == NULL) {
        return VIX_E_OUT_OF_MEMORY;
    }
    slot->tag = 0;
    int code =
        file_read(sparse->file, (uint64_t)sparse->directory[table] * SECTOR_SIZE, length, slot->entries);
    if (code != VIX_OK) {
        return code;
    }
    static const uint32_t none[MAX_ENTRIES];
    if (!for_writing && memcmp(slot->entries, none, length) == 0) {
        sparse->empty[table / 8] |= (uint8_t)(1u << table % 8);
        return VIX_OK;
    }
    slot->tag = table + 1;
    *entries = slot->entries;
    return VIX_OK;
}

static enum run_kind kind_of(uint32_t entry)
{
    return entry == GRAIN_NONE ? RUN_PARENT : entry == GRAIN_ZERO ? RUN_ZERO : RUN_DATA;
}

/* How many of count entries continue the run that begins with first; data must be adjacent in the file. */
static uint64_t same_kind(const struct sparse *sparse, const uint32_t *entries, uint64_t count,
                          uint64_t first)
{
    enum run_kind kind = kind_of((uint32_t)first);
    uint64_t n = 0;
    while (n < count && kind_of(entries[n]) == kind &&
           (kind != RUN_DATA || entries[n] == first + n * sparse->grain)) {
        n++;
    }
    return n;
}

int sparse_run_locked(struct sparse *sparse, uint64_t start, uint64_t count, struct run *run)
{
    uint64_t inside = start % sparse->grain;
    uint64_t grain = start / sparse->grain;
    uint64_t wanted = (inside + count + sparse->grain - 1) / sparse->grain;
    uint64_t found = 0;
    uint64_t first = GRAIN_NONE;
    while (found < wanted) {
        uint64_t position = (grain + found) % sparse->entries;
        uint64_t here = sparse->entries - position;
        here = here < wanted - found ? here : wanted - found;
        uint32_t *entries;
        int code = sparse_table(sparse, (grain + found) / sparse->entries, false, &entries);
        if (code != VIX_OK) {
            return code;
        }
        if (found == 0) {
            first = entries == NULL ? GRAIN_NONE : entries[position];
        }
        uint64_t expected = first > GRAIN_ZERO ? first + found * sparse->grain : first;
        uint64_t same = entries == NULL ? (first == GRAIN_NONE ? here : 0)
                                        : same_kind(sparse, entries + position, here, expected);
        found += same;
        if (same < here) {
            break;
        }
    }
    run->kind = kind_of((uint32_t)first);
    run->file_sector = first + inside;
    run->length = found * sparse->grain - inside;
    run->length = run->length < count ? run->length : count;
    return VIX_OK;
}

int sparse_run(struct sparse *sparse, uint64_t start, uint64_t count, struct run *run)
{
    pthread_mutex_lock(&sparse->lock);
    int code = sparse_run_locked(sparse, start, count, run);
    pthread_mutex_unlock(&sparse->lock);
    return code;
}
