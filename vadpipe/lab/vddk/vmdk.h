/*
 * Virtual disks as files: descriptors, flat, zero and sparse extents, redo-log chains.
 *
 * A chain is a list of links, leaf first. A link is a row of extents. An extent answers one question, "what
 * lies at this sector and for how long does that go on?", with a run: bytes at a place in a file, zeroes that
 * hide the parent, or nothing (look at the parent). Reading and listing allocated ranges are both walks over
 * runs, so they cannot disagree. Functions return an enum vix_code and log the reason of every failure.
 * Unit: sectors, except where a name says bytes.
 *
 * Source: VMware's public "Virtual Disk Format" technical note 5.0.
 */
#ifndef VMDK_H
#define VMDK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "errors.h"

struct vmdk_file {
    char *path;
    int fd;
};

/* Whole transfers or an error; reading past the end and reading a removed file are errors. Units: bytes. */
int file_open(struct vmdk_file *file, const char *path, bool writable);
void file_close(struct vmdk_file *file);
/* One writer alone, or any number of readers, as long as the file is open. */
int file_lock(const struct vmdk_file *file, bool exclusive);
int file_size(const struct vmdk_file *file, uint64_t *size);
int file_read(const struct vmdk_file *file, uint64_t offset, size_t length, void *buffer);
int file_write(const struct vmdk_file *file, uint64_t offset, size_t length, const void *buffer);

struct descriptor {
    char *text;
    uint64_t offset; /* bytes, in the file that holds it */
    size_t room;     /* bytes reserved when embedded; 0 when the text is the whole file */
};

/* Whether the file starts with a sparse header that embeds the descriptor, or is the descriptor itself. */
int descriptor_read(const struct vmdk_file *file, struct descriptor *descriptor);
int descriptor_write(const struct vmdk_file *file, const struct descriptor *descriptor);
char *descriptor_get(const struct descriptor *descriptor, const char *key); /* malloc'ed, unquoted; or NULL */
int descriptor_set(struct descriptor *descriptor, const char *key, const char *value);
bool descriptor_next_key(const char **cursor, const char *prefix, const char **key, size_t *length);

enum extent_type { EXTENT_FLAT, EXTENT_ZERO, EXTENT_SPARSE };

struct extent_line {
    bool writable;
    enum extent_type type;
    uint64_t sectors;
    uint64_t offset; /* flat: sectors into the file */
    char name[1024];
};

/* The next extent line after *cursor: VIX_OK, or an error; *found tells whether there was one. */
int descriptor_next_extent(const char **cursor, struct extent_line *line, bool *found);

enum run_kind { RUN_DATA, RUN_ZERO, RUN_PARENT };

struct run {
    enum run_kind kind;
    uint64_t length;
    uint64_t file_sector; /* RUN_DATA: where it starts in the extent's file */
};

struct sparse;

#define NO_PARENT UINT32_C(0xffffffff) /* a content id that means none */

struct extent {
    enum extent_type type;
    bool writable;
    uint64_t first;
    uint64_t sectors;
    uint64_t flat_offset;
    struct vmdk_file file;
    bool shares_file; /* with the link: the descriptor is embedded */
    struct sparse *sparse;
};

struct link {
    struct vmdk_file file;
    struct descriptor descriptor;
    struct extent *extents;
    size_t extent_count;
    uint64_t capacity;
    uint32_t cid;
    bool has_parent; /* also when it was not opened */
    struct link *parent;
};

struct chain {
    struct link *leaf;
    int links;
    bool single_link;
    bool writable;
    atomic_flag modified; /* the content id is renewed once per open */
};

int chain_open(const char *path, bool writable, bool single_link, struct chain **chain);
void chain_close(struct chain *chain);
int chain_read(const struct chain *chain, uint64_t start, uint64_t count, uint8_t *buffer);
int chain_write(struct chain *chain, uint64_t start, uint64_t count, const uint8_t *buffer);
int chain_flush(const struct chain *chain);
/* Whether start is allocated, and for how many sectors (at most count) the answer stays the same. */
int chain_allocated(const struct chain *chain, uint64_t start, uint64_t count, bool *allocated,
                    uint64_t *length);
int link_read(const struct link *link, uint64_t start, uint64_t count, uint8_t *buffer);

int sparse_open(const struct vmdk_file *file, bool writable, uint64_t sectors, struct sparse **sparse);
void sparse_close(struct sparse *sparse);
int sparse_run(struct sparse *sparse, uint64_t start, uint64_t count, struct run *run);
/* Fills partly written grains from the extent's view of the parent. */
int sparse_write(const struct extent *extent, const struct link *parent, uint64_t start, uint64_t count,
                 const uint8_t *buffer);

/* The start of a hosted sparse extent file, little-endian on disk. */
struct sparse_header {
    uint8_t magic[4];
    uint32_t version;
    uint32_t flags;
    uint64_t capacity;
    uint64_t grain_size;
    uint64_t descriptor_offset;
    uint64_t descriptor_size;
    uint32_t entries_per_table;
    uint64_t redundant_directory;
    uint64_t directory;
    uint64_t overhead;
    uint8_t unclean_shutdown;
    uint8_t line_ends[4];
    uint16_t compression;
} __attribute__((packed));

_Static_assert(sizeof(struct sparse_header) == 79, "sparse header");

#define SPARSE_MAGIC "KDMV"

#endif
