/*
 * Records what a process does to the files below a directory, as a library to preload (ld.so(8), LD_PRELOAD).
 *
 * CRASH_ROOT  the directory, absolute and without links
 * CRASH_LOG   the file that the operations are appended to
 *
 * Each operation is done and recorded under one lock, so the log has the order in which they happened. Only operations
 * that succeeded are recorded. A call to open() of CRASH_ROOT/.mark/TEXT records a mark and fails with ENOENT.
 *
 * A record: u8 operation, u64 file (inode number), u64 offset or size, u32 length of path, u32 length of the second
 * path, u32 length of the data, then the three. Paths are relative to CRASH_ROOT. Numbers are in the byte order of
 * the machine.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 'c', WRITE = 'w', TRUNCATE = 't', FLUSH = 'f', RENAME = 'r', UNLINK = 'u', MKDIR = 'm', RMDIR = 'd',
       LINK = 'l', MARK = '!' };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_length;
static int log_file = -1;

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void)
{
    const char *where = getenv("CRASH_ROOT"), *log = getenv("CRASH_LOG");
    if (!where || !log || strlen(where) >= sizeof root)
        return;
    strcpy(root, where);
    root_length = strlen(root);
    log_file = NEXT(open)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

/* The path below the root, or NULL for one that lies elsewhere. `full` has room for PATH_MAX bytes. */
static const char *below(int directory, const char *path, char *full)
{
    if (log_file < 0 || !path)
        return NULL;
    if (path[0] == '/') {
        if (strlen(path) >= PATH_MAX)
            return NULL;
        strcpy(full, path);
    } else {
        char link[64], base[PATH_MAX];
        ssize_t length;
        if (directory == AT_FDCWD) {
            if (!getcwd(base, sizeof base))
                return NULL;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
            length = readlink(link, base, sizeof base - 1);
            if (length < 0)
                return NULL;
            base[length] = 0;
        }
        if (snprintf(full, PATH_MAX, "%s/%s", base, path) >= PATH_MAX)
            return NULL;
    }
    if (strncmp(full, root, root_length) != 0 || (full[root_length] != '/' && full[root_length] != 0))
        return NULL;
    return full[root_length] ? full + root_length + 1 : "";
}

/* The path of an open file below the root. NULL for one that lies elsewhere, or has no name: no crash leaves it. */
static const char *path_of(int file, char *full)
{
    char link[64];
    struct stat facts;
    ssize_t length;
    if (fstat(file, &facts) != 0 || facts.st_nlink == 0)
        return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, full, PATH_MAX - 1);
    if (length < 0)
        return NULL;
    full[length] = 0;
    if (strncmp(full, root, root_length) != 0 || (full[root_length] != '/' && full[root_length] != 0))
        return NULL;
    return full[root_length] ? full + root_length + 1 : "";
}

static uint64_t inode_of(int file)
{
    struct stat facts;
    return fstat(file, &facts) == 0 ? facts.st_ino : 0;
}

static void note(char operation, uint64_t file, uint64_t offset, const char *path, const char *second,
                 const struct iovec *parts, int count, size_t size)
{
    uint32_t lengths[3] = {path ? strlen(path) : 0, second ? strlen(second) : 0, size};
    char head[1 + 8 + 8 + 12];
    ssize_t done;
    head[0] = operation;
    memcpy(head + 1, &file, 8);
    memcpy(head + 9, &offset, 8);
    memcpy(head + 17, lengths, 12);
    done = NEXT(write)(log_file, head, sizeof head);
    if (lengths[0])
        done = NEXT(write)(log_file, path, lengths[0]);
    if (lengths[1])
        done = NEXT(write)(log_file, second, lengths[1]);
    for (int part = 0; part < count && size; part++) {
        size_t length = parts[part].iov_len < size ? parts[part].iov_len : size;
        done = NEXT(write)(log_file, parts[part].iov_base, length);
        size -= length;
    }
    if (done < 0)
        abort();
}

static int opened(int directory, const char *path, int flags, mode_t mode)
{
    char full[PATH_MAX];
    const char *inside = below(directory, path, full);
    struct stat before;
    int file, existed;
    if (!inside)
        return NEXT(openat)(directory, path, flags, mode);
    pthread_mutex_lock(&lock);
    if (strncmp(inside, ".mark/", 6) == 0) {
        note(MARK, 0, 0, inside + 6, NULL, NULL, 0, 0);
        pthread_mutex_unlock(&lock);
        errno = ENOENT;
        return -1;
    }
    existed = stat(full, &before) == 0;
    file = NEXT(openat)(directory, path, flags, mode);
    if (file >= 0 && (flags & O_CREAT) && !existed)
        note(CREATE, inode_of(file), 0, inside, NULL, NULL, 0, 0);
    else if (file >= 0 && (flags & O_TRUNC) && existed && before.st_size)
        note(TRUNCATE, inode_of(file), 0, inside, NULL, NULL, 0, 0);
    pthread_mutex_unlock(&lock);
    return file;
}

#define OPEN(name, first, directory)                                                                                   \
    int name first                                                                                                     \
    {                                                                                                                  \
        mode_t mode = 0;                                                                                               \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                                           \
            va_list rest;                                                                                              \
            va_start(rest, flags);                                                                                     \
            mode = va_arg(rest, mode_t);                                                                               \
            va_end(rest);                                                                                              \
        }                                                                                                              \
        return opened(directory, path, flags, mode);                                                                   \
    }

OPEN(open, (const char *path, int flags, ...), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD)
OPEN(openat, (int at, const char *path, int flags, ...), at)
OPEN(openat64, (int at, const char *path, int flags, ...), at)

/* Where the next write() of a file goes. */
static uint64_t place_of(int file)
{
    if (fcntl(file, F_GETFL) & O_APPEND) {
        struct stat facts;
        return fstat(file, &facts) == 0 ? (uint64_t)facts.st_size : 0;
    }
    return lseek(file, 0, SEEK_CUR);
}

#define WRITER(name, arguments, call, offset, iov, iov_count)                                                          \
    ssize_t name arguments                                                                                             \
    {                                                                                                                  \
        char full[PATH_MAX];                                                                                           \
        ssize_t done;                                                                                                  \
        uint64_t place;                                                                                                \
        if (log_file < 0 || file == log_file || !path_of(file, full))                                                  \
            return call;                                                                                               \
        pthread_mutex_lock(&lock);                                                                                     \
        place = offset;                                                                                                \
        done = call;                                                                                                   \
        if (done > 0)                                                                                                  \
            note(WRITE, inode_of(file), place, NULL, NULL, iov, iov_count, done);                                      \
        pthread_mutex_unlock(&lock);                                                                                   \
        return done;                                                                                                   \
    }

#define ONE (&(struct iovec){(void *)data, size})

WRITER(write, (int file, const void *data, size_t size), NEXT(write)(file, data, size), place_of(file), ONE, 1)
WRITER(pwrite, (int file, const void *data, size_t size, off_t at), NEXT(pwrite)(file, data, size, at), at, ONE, 1)
WRITER(pwrite64, (int file, const void *data, size_t size, off64_t at), NEXT(pwrite64)(file, data, size, at), at, ONE, 1)
WRITER(writev, (int file, const struct iovec *parts, int count), NEXT(writev)(file, parts, count), place_of(file), parts,
       count)
WRITER(pwritev, (int file, const struct iovec *parts, int count, off_t at), NEXT(pwritev)(file, parts, count, at), at,
       parts, count)

static int truncated(int file, uint64_t size, int done)
{
    if (done == 0)
        note(TRUNCATE, inode_of(file), size, NULL, NULL, NULL, 0, 0);
    return done;
}

#define ON_FILE(name, arguments, call, then)                                                                           \
    int name arguments                                                                                                 \
    {                                                                                                                  \
        char full[PATH_MAX];                                                                                           \
        const char *inside = log_file < 0 ? NULL : path_of(file, full);                                                \
        int done;                                                                                                      \
        if (!inside)                                                                                                   \
            return call;                                                                                               \
        pthread_mutex_lock(&lock);                                                                                     \
        done = call;                                                                                                   \
        then;                                                                                                          \
        pthread_mutex_unlock(&lock);                                                                                   \
        return done;                                                                                                   \
    }

static void flushed(int file, const char *path, int done)
{
    if (done == 0)
        note(FLUSH, inode_of(file), 0, path, NULL, NULL, 0, 0);
}

ON_FILE(ftruncate, (int file, off_t size), NEXT(ftruncate)(file, size), truncated(file, size, done))
ON_FILE(ftruncate64, (int file, off64_t size), NEXT(ftruncate64)(file, size), truncated(file, size, done))
ON_FILE(fsync, (int file), NEXT(fsync)(file), flushed(file, inside, done))
ON_FILE(fdatasync, (int file), NEXT(fdatasync)(file), flushed(file, inside, done))

/* An operation on one or two names: recorded where it succeeded and one of them lies below the root. */
static int on_names(char operation, int at, const char *path, int second_at, const char *second, int (*call)(void *),
                    void *arguments)
{
    char full[PATH_MAX], second_full[PATH_MAX];
    const char *inside = below(at, path, full);
    const char *second_inside = second ? below(second_at, second, second_full) : NULL;
    int done;
    if (!inside && !second_inside)
        return call(arguments);
    pthread_mutex_lock(&lock);
    done = call(arguments);
    if (done == 0)
        note(operation, 0, 0, inside, second_inside, NULL, 0, 0);
    pthread_mutex_unlock(&lock);
    return done;
}

struct names { int at, second_at; const char *path, *second; unsigned flags; };

static int do_rename(void *of) { struct names *n = of; return NEXT(renameat)(n->at, n->path, n->second_at, n->second); }
static int do_rename2(void *of)
{
    struct names *n = of;
    return NEXT(renameat2)(n->at, n->path, n->second_at, n->second, n->flags);
}
static int do_unlink(void *of) { struct names *n = of; return NEXT(unlinkat)(n->at, n->path, n->flags); }
static int do_mkdir(void *of) { struct names *n = of; return NEXT(mkdirat)(n->at, n->path, n->flags); }
static int do_link(void *of)
{
    struct names *n = of;
    return NEXT(linkat)(n->at, n->path, n->second_at, n->second, n->flags);
}

#define NAMES(...) (&(struct names){__VA_ARGS__})

int rename(const char *path, const char *second)
{
    return on_names(RENAME, AT_FDCWD, path, AT_FDCWD, second, do_rename, NAMES(AT_FDCWD, AT_FDCWD, path, second, 0));
}
int renameat(int at, const char *path, int second_at, const char *second)
{
    return on_names(RENAME, at, path, second_at, second, do_rename, NAMES(at, second_at, path, second, 0));
}
int renameat2(int at, const char *path, int second_at, const char *second, unsigned flags)
{
    return on_names(RENAME, at, path, second_at, second, do_rename2, NAMES(at, second_at, path, second, flags));
}
int unlink(const char *path)
{
    return on_names(UNLINK, AT_FDCWD, path, 0, NULL, do_unlink, NAMES(AT_FDCWD, 0, path, NULL, 0));
}
int unlinkat(int at, const char *path, int flags)
{
    return on_names(flags & AT_REMOVEDIR ? RMDIR : UNLINK, at, path, 0, NULL, do_unlink, NAMES(at, 0, path, NULL, flags));
}
int rmdir(const char *path)
{
    return on_names(RMDIR, AT_FDCWD, path, 0, NULL, do_unlink, NAMES(AT_FDCWD, 0, path, NULL, AT_REMOVEDIR));
}
int mkdir(const char *path, mode_t mode)
{
    return on_names(MKDIR, AT_FDCWD, path, 0, NULL, do_mkdir, NAMES(AT_FDCWD, 0, path, NULL, mode));
}
int mkdirat(int at, const char *path, mode_t mode)
{
    return on_names(MKDIR, at, path, 0, NULL, do_mkdir, NAMES(at, 0, path, NULL, mode));
}
int link(const char *path, const char *second)
{
    return on_names(LINK, AT_FDCWD, path, AT_FDCWD, second, do_link, NAMES(AT_FDCWD, AT_FDCWD, path, second, 0));
}
int linkat(int at, const char *path, int second_at, const char *second, int flags)
{
    return on_names(LINK, at, path, second_at, second, do_link, NAMES(at, second_at, path, second, flags));
}
