#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"
#include "vmdk.h"

static int code_of_errno(int number)
{
    switch (number) {
    case ENOENT:
    case ENOTDIR:
        return VIX_E_FILE_NOT_FOUND;
    case EACCES:
    case EPERM:
    case EROFS:
        return VIX_E_FILE_ACCESS_ERROR;
    case EMFILE:
    case ENFILE:
        return VIX_E_DISK_TOOMANYOPENFILES;
    case ENOSPC:
    case EDQUOT:
        return VIX_E_DISK_FULL;
    case EIO:
        return VIX_E_DISK_NOIO;
    default:
        return VIX_E_FILE_ERROR;
    }
}

static int failed(const struct vmdk_file *file, const char *action)
{
    int number = errno;
    log_warn("%s: cannot %s: %s\n", file->path, action, strerror(number));
    return code_of_errno(number);
}

int file_open(struct vmdk_file *file, const char *path, bool writable)
{
    file->fd = -1;
    file->path = strdup(path);
    if (file->path == NULL) {
        return VIX_E_OUT_OF_MEMORY;
    }
    file->fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    struct stat status;
    if (file->fd < 0 || fstat(file->fd, &status) != 0) {
        return failed(file, writable ? "open for writing" : "open");
    }
    if (!S_ISREG(status.st_mode)) {
        log_warn("%s: not a regular file\n", path);
        return VIX_E_INCORRECT_FILE_TYPE;
    }
    return VIX_OK;
}

void file_close(struct vmdk_file *file)
{
    if (file->path != NULL && file->fd >= 0) {
        close(file->fd);
    }
    free(file->path);
    *file = (struct vmdk_file){.fd = -1};
}

int file_lock(const struct vmdk_file *file, bool exclusive)
{
    if (flock(file->fd, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) == 0 || errno != EWOULDBLOCK) {
        return VIX_OK; /* where the file system knows no locks, nobody has one */
    }
    log_warn("%s: another process has the disk open%s\n", file->path, exclusive ? "" : " for writing");
    return VIX_E_FILE_ALREADY_LOCKED;
}

int file_size(const struct vmdk_file *file, uint64_t *size)
{
    struct stat status;
    if (fstat(file->fd, &status) != 0) {
        return failed(file, "stat");
    }
    *size = (uint64_t)status.st_size;
    return VIX_OK;
}

int file_read(const struct vmdk_file *file, uint64_t offset, size_t length, void *buffer)
{
    size_t done = 0;
    while (done < length) {
        ssize_t n = pread(file->fd, (char *)buffer + done, length - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return failed(file, "read");
        }
        if (n == 0) {
            log_warn("%s: truncated: %zu bytes wanted at offset %llu, the file ends at %llu\n", file->path,
                     length, (unsigned long long)offset, (unsigned long long)(offset + done));
            return VIX_E_DISK_NOIO;
        }
        done += (size_t)n;
    }
    /* A removed file stays readable here, on a datastore it does not: its blocks belong to somebody else. */
    struct stat status;
    if (fstat(file->fd, &status) == 0 && status.st_nlink == 0) {
        log_warn("%s: removed while the disk is open\n", file->path);
        return VIX_E_FILE_NOT_FOUND;
    }
    return VIX_OK;
}

int file_write(const struct vmdk_file *file, uint64_t offset, size_t length, const void *buffer)
{
    size_t done = 0;
    while (done < length) {
        ssize_t n = pwrite(file->fd, (const char *)buffer + done, length - done, (off_t)(offset + done));
        if (n < 0 && errno != EINTR) {
            return failed(file, "write");
        }
        done += n > 0 ? (size_t)n : 0;
    }
    return VIX_OK;
}
