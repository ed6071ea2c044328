/* What a backup and a restore cannot avoid, by one thread of C: the floor that bench/scoreboard.py measures against.
 *
 *     floor full IMAGE PACK [LEVEL]            read, zero test, cuts, digests, dedupe, zstd, write
 *     floor again KNOWN IMAGE PACK [LEVEL]     the same, where the chunks of KNOWN need not be stored
 *     floor scan IMAGE                         read, zero test, cuts, digests: a run that finds nothing new
 *     floor decode PACK                        decode each frame of a pack of `full` and digest its chunks
 *     floor restore PACK RAW                   the same, and write a sparse raw image
 *
 * The rules are those of vadpipe/kernels: spans of 4 MiB, clusters of 4 KiB, runs of four zero clusters (zeros.py),
 * chunks of 16 to 256 KiB that end after a cluster by its xxh3 (chunks.py), keyed BLAKE3 (digest.py), frames of at
 * most 1 MiB of the new chunks of a span (dedupe.py), stored as they are where zstd does not shrink them (codecs.py).
 * There is no index beyond a table in memory, no map of the disk but a list, and nothing that survives a crash.
 * One JSON object is printed: CPU-seconds of the process, and by steps CPU-seconds of the thread and bytes. What
 * `again` spends on KNOWN is left out.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>
#include <zstd.h>

#include "blake3.h"

enum {
    CLUSTER = 4 << 10,
    SPAN = 4 << 20,
    FRAME = 1 << 20,
    SMALLEST = 16 << 10,
    LARGEST = 256 << 10,
    MASK = 15,
    SHORTEST_RUN = 4,
    CLUSTERS = SPAN / CLUSTER,
    CHUNKS = SPAN / SMALLEST + CLUSTERS, /* the most in a span: every run of data ends with a short one */
    BUFFERED = 8 << 20,
};

enum step { READ, ZERO_TEST, CUT, DIGEST, DEDUPE, COMPRESS, WRITE, DECODE, STEPS };
static const char *const step_names[STEPS] = {
    "read", "zero_test", "cut", "digest", "dedupe", "compress", "write", "decode",
};

struct tally {
    double cpu_s;
    uint64_t bytes;
};
static struct tally steps[STEPS];

static const uint8_t key[BLAKE3_KEY_LEN] = "the floor of a backup: any key.";

struct digest {
    uint8_t bytes[BLAKE3_OUT_LEN];
};

struct chunk {
    uint32_t place; /* in the span, later in the frame */
    uint32_t length;
    struct digest digest;
};

/* Where a stretch of the disk lies. */
struct piece {
    uint64_t offset;
    uint32_t frame, place, length, pad;
};

struct header {
    uint32_t length, stored, chunks, raw;
};

/* At the end of a pack. */
struct trailer {
    uint64_t pieces, frames, capacity, begin; /* begin: of the list of pieces */
};

static void fail(const char *what)
{
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *allocated(size_t size)
{
    void *memory = aligned_alloc(CLUSTER, (size + CLUSTER - 1) / CLUSTER * CLUSTER);
    if (!memory)
        fail("memory");
    return memory;
}

static void *grown(void *memory, size_t size)
{
    memory = realloc(memory, size);
    if (!memory)
        fail("memory");
    return memory;
}

/* ---- time */

static double seconds_of(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static double seconds(struct timeval time)
{
    return (double)time.tv_sec + (double)time.tv_usec / 1e6;
}

static double last;

/* What this thread spent since the step before belongs to this one. */
static void spent(enum step step, uint64_t bytes)
{
    double now = seconds_of(CLOCK_THREAD_CPUTIME_ID);
    steps[step].cpu_s += now - last;
    steps[step].bytes += bytes;
    last = now;
}

/* ---- files */

static void read_all(int fd, void *memory, size_t length, uint64_t offset)
{
    for (size_t done = 0; done < length;) {
        ssize_t got = pread(fd, (uint8_t *)memory + done, length - done, (off_t)(offset + done));
        if (got < 0)
            fail("read");
        if (!got) { /* the tail of an image that is no whole number of clusters */
            memset((uint8_t *)memory + done, 0, length - done);
            return;
        }
        done += (size_t)got;
    }
}

static void write_all(int fd, const void *memory, size_t length, uint64_t offset)
{
    for (size_t done = 0; done < length;) {
        ssize_t wrote = pwrite(fd, (const uint8_t *)memory + done, length - done, (off_t)(offset + done));
        if (wrote < 0)
            fail("write");
        done += (size_t)wrote;
    }
}

/* ---- the pack that is written */

static struct {
    int fd;
    uint64_t end;    /* of what the file holds */
    size_t used;     /* of the buffer */
    uint8_t *buffer; /* of BUFFERED bytes */
    uint32_t frames;
    struct piece *pieces;
    size_t count, room;
} pack;

static void flush(void)
{
    write_all(pack.fd, pack.buffer, pack.used, pack.end);
    pack.end += pack.used;
    spent(WRITE, pack.used);
    pack.used = 0;
}

static uint8_t *room_for(size_t size)
{
    if (pack.used + size > BUFFERED)
        flush();
    return pack.buffer + pack.used;
}

static void add_piece(uint64_t offset, uint32_t frame, uint32_t place, uint32_t length)
{
    struct piece *before = pack.count ? &pack.pieces[pack.count - 1] : NULL;
    if (before && before->frame == frame && before->offset + before->length == offset &&
        before->place + before->length == place) {
        before->length += length;
        return;
    }
    if (pack.count == pack.room) {
        pack.room = pack.room ? 2 * pack.room : 1 << 12;
        pack.pieces = grown(pack.pieces, pack.room * sizeof *pack.pieces);
    }
    pack.pieces[pack.count++] = (struct piece){offset, frame, place, length, 0};
}

/* ---- known chunks: a table with open addressing */

#define ELSEWHERE UINT32_MAX /* the frame of a chunk that this pack does not hold */

struct known {
    struct digest digest;
    uint32_t frame, place; /* frame is one more than the number; 0 marks an empty row */
};

static struct {
    struct known *rows;
    size_t capacity, used;
} table;

static struct known *row_of(const struct digest *digest)
{
    uint64_t head;
    memcpy(&head, digest, sizeof head);
    for (size_t at = head & (table.capacity - 1);; at = (at + 1) & (table.capacity - 1)) {
        struct known *row = &table.rows[at];
        if (!row->frame || !memcmp(&row->digest, digest, sizeof *digest))
            return row;
    }
}

static void grow_table(void)
{
    struct known *old = table.rows;
    size_t rows = table.capacity;
    table.capacity = rows ? 2 * rows : 1 << 16;
    table.rows = calloc(table.capacity, sizeof *table.rows);
    if (!table.rows)
        fail("memory");
    for (size_t at = 0; at < rows; at++)
        if (old[at].frame)
            *row_of(&old[at].digest) = old[at];
    free(old);
}

/* ---- kernels */

static bool is_zero(const uint8_t *cluster)
{
    const uint64_t *words = (const uint64_t *)cluster;
    uint64_t any = 0;
    for (size_t at = 0; at < CLUSTER / 8; at += 64) /* nearly every cluster with data shows it here */
        any |= words[at];
    if (any)
        return false;
    for (size_t at = 0; at < CLUSTER / 8; at++)
        any |= words[at];
    return !any;
}

/* Which clusters of an extent are left out; true where all of them are. */
static bool mark_zeros(const uint8_t *data, size_t clusters, bool *zero)
{
    size_t found = 0;
    for (size_t at = 0; at < clusters; at++)
        found += zero[at] = is_zero(data + at * CLUSTER);
    if (found == clusters)
        return true;
    for (size_t at = 0; found && at < clusters;) {
        size_t end = at;
        while (end < clusters && zero[end])
            end++;
        if (end - at < SHORTEST_RUN)
            memset(zero + at, 0, end - at);
        at = end + 1;
    }
    return false;
}

static size_t cut(const uint8_t *span, size_t begun, size_t size, struct chunk *chunks)
{
    size_t count = 0;
    while (begun < size) {
        size_t largest = begun + LARGEST < size ? begun + LARGEST : size;
        size_t end = begun + SMALLEST;
        while (end < largest && XXH3_64bits(span + end - CLUSTER, CLUSTER) & MASK)
            end += CLUSTER;
        end = end < largest ? end : largest;
        chunks[count].place = (uint32_t)begun;
        chunks[count++].length = (uint32_t)(end - begun);
        begun = end;
    }
    return count;
}

static struct digest digest_of(const uint8_t *data, size_t length)
{
    static blake3_hasher keyed;
    static bool made;
    if (!made)
        blake3_hasher_init_keyed(&keyed, key);
    made = true;
    blake3_hasher hasher = keyed;
    struct digest digest;
    blake3_hasher_update(&hasher, data, length);
    blake3_hasher_finalize(&hasher, digest.bytes, sizeof digest.bytes);
    return digest;
}

/* ---- a backup */

static ZSTD_CCtx *compressor;

static void store(const uint8_t *span, const struct chunk *chunks, size_t count, int level)
{
    static uint8_t *gathered;
    size_t length = 0;
    bool adjacent = true;
    for (size_t at = 0; at < count; at++) {
        adjacent = adjacent && (!at || chunks[at].place == chunks[at - 1].place + chunks[at - 1].length);
        length += chunks[at].length;
    }
    const uint8_t *data = span + chunks[0].place;
    if (!adjacent) {
        if (!gathered)
            gathered = allocated(FRAME);
        size_t place = 0;
        for (size_t at = 0; at < count; at++) {
            memcpy(gathered + place, span + chunks[at].place, chunks[at].length);
            place += chunks[at].length;
        }
        data = gathered;
    }
    size_t head = sizeof(struct header) + count * sizeof(struct chunk);
    uint8_t *frame = room_for(head + ZSTD_compressBound(length));
    size_t stored = ZSTD_compressCCtx(compressor, frame + head, BUFFERED - pack.used - head, data, length, level);
    if (ZSTD_isError(stored)) {
        fprintf(stderr, "floor: zstd: %s\n", ZSTD_getErrorName(stored));
        exit(1);
    }
    struct header header = {(uint32_t)length, (uint32_t)stored, (uint32_t)count, stored >= length};
    if (header.raw) {
        memcpy(frame + head, data, length);
        header.stored = (uint32_t)length;
    }
    memcpy(frame, &header, sizeof header);
    uint32_t place = 0;
    for (size_t at = 0; at < count; at++) {
        struct chunk listed = chunks[at];
        listed.place = place;
        memcpy(frame + sizeof header + at * sizeof listed, &listed, sizeof listed);
        place += listed.length;
    }
    pack.used += head + header.stored;
    pack.frames++;
    spent(COMPRESS, length);
}

static uint64_t known_bytes, new_bytes, zero_bytes, chunk_count;

/* Nothing is stored: the chunks are there already. */
static void remember(const struct chunk *chunks, size_t count)
{
    for (size_t at = 0; at < count; at++) {
        if (2 * table.used >= table.capacity)
            grow_table();
        struct known *row = row_of(&chunks[at].digest);
        table.used += !row->frame;
        *row = (struct known){chunks[at].digest, ELSEWHERE, 0};
    }
}

/* The new chunks of a span in frames. */
static void dedupe(const uint8_t *span, uint64_t offset, const struct chunk *chunks, size_t count, int level)
{
    static struct chunk fresh[CHUNKS];
    size_t fill = 0, first = 0, new = 0;
    uint32_t frame = pack.frames;
    size_t ends[CHUNKS];
    size_t frames = 0;
    for (size_t at = 0; at < count; at++) {
        if (2 * table.used >= table.capacity)
            grow_table();
        struct known *row = row_of(&chunks[at].digest);
        if (row->frame) {
            known_bytes += chunks[at].length;
        } else {
            if (new > first && fill + chunks[at].length > FRAME) {
                ends[frames++] = new;
                first = new;
                fill = 0;
                frame++;
            }
            *row = (struct known){chunks[at].digest, frame + 1, (uint32_t)fill};
            table.used++;
            fresh[new++] = chunks[at];
            fill += chunks[at].length;
            new_bytes += chunks[at].length;
        }
        add_piece(offset + chunks[at].place, row->frame - 1, row->place, chunks[at].length);
    }
    if (new > first)
        ends[frames++] = new;
    spent(DEDUPE, 0);
    for (size_t at = 0, begin = 0; at < frames; begin = ends[at++])
        store(span, fresh + begin, ends[at] - begin, level);
}

struct extent {
    uint64_t begin, end;
};

/* What happens to chunks that were found. */
enum end { FORGET, REMEMBER, STORE };

/* Read the extents of one span, and find its chunks. */
static void move_span(int image, uint64_t offset, const struct extent *extents, size_t count, enum end end, int level)
{
    static uint8_t *span;
    static bool zero[CLUSTERS];
    static struct chunk chunks[CHUNKS];
    static struct extent data[CLUSTERS];
    size_t runs = 0, found = 0;
    uint64_t read = 0, left = 0;
    if (!span)
        span = allocated(SPAN);
    for (size_t at = 0; at < count; at++) {
        uint64_t length = extents[at].end - extents[at].begin;
        read_all(image, span + (extents[at].begin - offset), length, extents[at].begin);
        read += length;
    }
    spent(READ, read);
    for (size_t at = 0; at < count; at++) {
        uint64_t begin = extents[at].begin - offset;
        size_t clusters = (extents[at].end - extents[at].begin) / CLUSTER;
        if (mark_zeros(span + begin, clusters, zero))
            continue;
        for (size_t first = 0, last; first < clusters; first = last + 1) {
            for (last = first; last < clusters && !zero[last];)
                last++;
            if (last > first) {
                data[runs++] = (struct extent){begin + first * CLUSTER, begin + last * CLUSTER};
                left += (last - first) * CLUSTER;
            }
        }
    }
    zero_bytes += read - left;
    spent(ZERO_TEST, read);
    for (size_t at = 0; at < runs; at++)
        found += cut(span, data[at].begin, data[at].end, chunks + found);
    chunk_count += found;
    spent(CUT, left);
    for (size_t at = 0; at < found; at++)
        chunks[at].digest = digest_of(span + chunks[at].place, chunks[at].length);
    spent(DIGEST, left);
    if (end == STORE)
        dedupe(span, offset, chunks, found, level);
    else if (end == REMEMBER)
        remember(chunks, found);
}

/* The image's allocated extents, span by span. */
static uint64_t move_image(const char *path, enum end what, int level)
{
    static struct extent extents[CLUSTERS];
    int image = open(path, O_RDONLY);
    struct stat about;
    if (image < 0 || fstat(image, &about))
        fail(path);
    uint64_t size = (uint64_t)about.st_size, capacity = (size + CLUSTER - 1) / CLUSTER * CLUSTER;
    uint64_t span = 0, at = 0;
    size_t count = 0;
    while (at < size) {
        off_t found = lseek(image, (off_t)at, SEEK_DATA);
        if (found < 0) /* nothing but a hole up to the end */
            break;
        uint64_t end = ((uint64_t)lseek(image, found, SEEK_HOLE) + CLUSTER - 1) / CLUSTER * CLUSTER;
        uint64_t begin = (uint64_t)found / CLUSTER * CLUSTER;
        begin = begin < at ? at : begin;
        end = end < capacity ? end : capacity;
        for (at = begin; at < end;) {
            uint64_t base = at / SPAN * SPAN, stop = base + SPAN < end ? base + SPAN : end;
            if (count && base != span) {
                move_span(image, span, extents, count, what, level);
                count = 0;
            }
            span = base;
            extents[count++] = (struct extent){at, stop};
            at = stop;
        }
    }
    if (count)
        move_span(image, span, extents, count, what, level);
    close(image);
    return size;
}

static void back_up(const char *image, const char *out, int level)
{
    pack.fd = open(out, O_CREAT | O_TRUNC | O_RDWR, 0600);
    pack.buffer = allocated(BUFFERED);
    compressor = ZSTD_createCCtx();
    if (pack.fd < 0 || !compressor)
        fail(out);
    struct trailer trailer = {.capacity = move_image(image, STORE, level)};
    flush();
    trailer.pieces = pack.count;
    trailer.frames = pack.frames;
    trailer.begin = pack.end;
    size_t listed = pack.count * sizeof *pack.pieces;
    write_all(pack.fd, pack.pieces, listed, pack.end);
    write_all(pack.fd, &trailer, sizeof trailer, pack.end + listed);
    pack.end += listed + sizeof trailer;
    if (fdatasync(pack.fd) || close(pack.fd))
        fail(out);
    spent(WRITE, listed + sizeof trailer);
}

/* ---- a restore */

static int by_frame(const void *left, const void *right)
{
    const struct piece *one = left, *other = right;
    if (one->frame != other->frame)
        return one->frame < other->frame ? -1 : 1;
    return (one->offset > other->offset) - (one->offset < other->offset);
}

static void restore(const char *from, const char *to)
{
    int in = open(from, O_RDONLY), out = -1;
    struct stat about;
    struct trailer trailer;
    if (in < 0 || fstat(in, &about) || (uint64_t)about.st_size < sizeof trailer)
        fail(from);
    read_all(in, &trailer, sizeof trailer, (uint64_t)about.st_size - sizeof trailer);
    struct piece *pieces = allocated(trailer.pieces * sizeof *pieces + 1);
    if (to) {
        read_all(in, pieces, trailer.pieces * sizeof *pieces, trailer.begin);
        qsort(pieces, trailer.pieces, sizeof *pieces, by_frame);
        out = open(to, O_CREAT | O_TRUNC | O_RDWR, 0600);
        if (out < 0 || ftruncate(out, (off_t)trailer.capacity))
            fail(to);
    }
    uint8_t *buffer = allocated(BUFFERED), *data = allocated(FRAME);
    ZSTD_DCtx *decompressor = ZSTD_createDCtx();
    if (!decompressor)
        fail(from);
    uint64_t at = 0, begin = 0, held = 0; /* the buffer holds `held` bytes from `begin` on */
    size_t piece = 0;
    for (uint32_t number = 0; number < trailer.frames; number++) {
        const uint8_t *frame = buffer + (at - begin);
        struct header header = {0};
        if (begin + held - at >= sizeof header)
            memcpy(&header, frame, sizeof header);
        size_t head = sizeof header + header.chunks * sizeof(struct chunk);
        if (!header.length || begin + held - at < head + header.stored) {
            begin = at;
            held = trailer.begin - at < BUFFERED ? trailer.begin - at : BUFFERED;
            read_all(in, buffer, held, begin);
            spent(READ, held);
            frame = buffer;
            memcpy(&header, frame, sizeof header);
            head = sizeof header + header.chunks * sizeof(struct chunk);
        }
        const uint8_t *content = frame + head;
        if (!header.raw) {
            size_t length = ZSTD_decompressDCtx(decompressor, data, FRAME, content, header.stored);
            if (ZSTD_isError(length) || length != header.length) {
                fprintf(stderr, "floor: frame %" PRIu32 " does not decode\n", number);
                exit(1);
            }
            content = data;
        }
        spent(DECODE, header.length);
        for (uint32_t place = 0; place < header.chunks; place++) {
            struct chunk chunk;
            memcpy(&chunk, frame + sizeof header + place * sizeof chunk, sizeof chunk);
            struct digest digest = digest_of(content + chunk.place, chunk.length);
            if (memcmp(&digest, &chunk.digest, sizeof digest)) {
                fprintf(stderr, "floor: frame %" PRIu32 " has another digest\n", number);
                exit(1);
            }
        }
        chunk_count += header.chunks;
        spent(DIGEST, header.length);
        uint64_t wrote = 0;
        for (; to && piece < trailer.pieces && pieces[piece].frame == number; piece++) {
            write_all(out, content + pieces[piece].place, pieces[piece].length, pieces[piece].offset);
            wrote += pieces[piece].length;
        }
        if (to)
            spent(WRITE, wrote);
        at += head + header.stored;
    }
    if (to && (fdatasync(out) || close(out)))
        fail(to);
    close(in);
    pack.frames = (uint32_t)trailer.frames;
    pack.end = (uint64_t)about.st_size;
}

int main(int count, char **words)
{
    const char *mode = count > 2 ? words[1] : "";
    bool full = !strcmp(mode, "full") && (count == 4 || count == 5), known = true;
    bool again = !strcmp(mode, "again") && (count == 5 || count == 6);
    int level = (full && count == 5) || (again && count == 6) ? atoi(words[count - 1]) : 1;
    double begun = seconds_of(CLOCK_MONOTONIC);
    last = seconds_of(CLOCK_THREAD_CPUTIME_ID);
    struct rusage before = {0}, used;
    if (again) {
        move_image(words[2], REMEMBER, 0);
        zero_bytes = chunk_count = 0;
        memset(steps, 0, sizeof steps);
        getrusage(RUSAGE_SELF, &before);
        begun = seconds_of(CLOCK_MONOTONIC);
        last = seconds_of(CLOCK_THREAD_CPUTIME_ID);
    }
    if (full || again)
        back_up(words[2 + again], words[3 + again], level);
    else if (!strcmp(mode, "scan") && count == 3)
        move_image(words[2], FORGET, 0);
    else if (!strcmp(mode, "decode") && count == 3)
        restore(words[2], NULL);
    else if (!strcmp(mode, "restore") && count == 4)
        restore(words[2], words[3]);
    else
        known = false;
    if (!known) {
        fprintf(stderr, "floor full IMAGE PACK [LEVEL] | again KNOWN IMAGE PACK [LEVEL] | scan IMAGE | decode PACK | "
                        "restore PACK RAW\n");
        return 2;
    }
    getrusage(RUSAGE_SELF, &used);
    double user_s = seconds(used.ru_utime) - seconds(before.ru_utime);
    double system_s = seconds(used.ru_stime) - seconds(before.ru_stime);
    printf("{\"mode\": \"%s\", \"cpu_s\": %.4f, \"user_s\": %.4f, \"system_s\": %.4f, \"wall_s\": %.4f, ", mode,
           user_s + system_s, user_s, system_s, seconds_of(CLOCK_MONOTONIC) - begun);
    printf("\"peak_rss\": %ld, \"zero\": %" PRIu64 ", \"known\": %" PRIu64 ", \"new\": %" PRIu64
           ", \"stored\": %" PRIu64 ", \"chunks\": %" PRIu64 ", \"frames\": %" PRIu32 ", ",
           used.ru_maxrss * 1024, zero_bytes, known_bytes, new_bytes, pack.end, chunk_count, pack.frames);
    printf("\"zstd\": \"%s\", \"blake3\": \"%s\", \"steps\": {", ZSTD_versionString(), blake3_version());
    const char *between = "";
    for (size_t at = 0; at < STEPS; at++) {
        if (!steps[at].bytes && steps[at].cpu_s == 0)
            continue;
        printf("%s\"%s\": {\"cpu_s\": %.4f, \"bytes\": %" PRIu64 "}", between, step_names[at], steps[at].cpu_s,
               steps[at].bytes);
        between = ", ";
    }
    printf("}}\n");
    return 0;
}
