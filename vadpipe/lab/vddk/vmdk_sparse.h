/*
 * Hosted sparse extents: a grain directory names grain tables, a grain table names the place of each grain.
 *
 * A 4 TiB disk has 131072 tables (256 MiB), nearly all empty when it is thin. So tables are loaded when
 * touched, into a cache of fixed size, and an empty one is remembered by one bit and never read again.
 * Requests of one disk run on several threads: a lookup turns entries into a run under the lock, the data is
 * read without it. Writers append a grain, then its table entry, then the redundant entry: a crash loses a
 * grain, never a table.
 */
#ifndef VMDK_SPARSE_H
#define VMDK_SPARSE_H

#include <pthread.h>

#include "vmdk.h"

enum {
    GRAIN_NONE = 0,
    GRAIN_ZERO = 1,
    MAX_ENTRIES = 512,   /* per table, by the specification */
    CACHED_TABLES = 512, /* 1 MiB per extent at most; covers 16 GiB of disk */
};

struct cached_table {
    uint64_t tag; /* table number + 1; 0 when unused */
    uint32_t *entries;
};

struct sparse {
    const struct vmdk_file *file;
    uint32_t grain;   /* sectors */
    uint32_t entries; /* per table */
    uint64_t tables;
    uint64_t directory_sector;
    uint64_t redundant_sector; /* 0 when there is none */
    uint32_t *directory;
    uint32_t *redundant; /* loaded for writers only */
    uint8_t *empty;      /* one bit per table */
    struct cached_table cache[CACHED_TABLES];
    uint64_t next_sector; /* where a writer appends */
    pthread_mutex_t lock;
};

/* Both with the lock held. */
/* The cached entries of a table, NULL in *entries when all are GRAIN_NONE; for_writing never gives NULL. */
int sparse_table(struct sparse *sparse, uint64_t table, bool for_writing, uint32_t **entries);
int sparse_run_locked(struct sparse *sparse, uint64_t start, uint64_t count, struct run *run);

#endif
