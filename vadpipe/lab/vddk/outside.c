/*
 * What a client leaves outside of its process, and has to take back itself:
 *
 *   locks/<vm>           Storage vMotion of the VM is disabled; holds the identity that may end it
 *   hotadd/<vm>/<disk>   the disk is attached to this machine; holds the tmpDirectory it was attached under
 *   calls.log            what happened, in order, one line each
 *
 * A process that has a hot-added disk open holds a lock on its file, which the system ends with the process.
 */
#include "outside.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "errors.h"
#include "log.h"

char tmp_directory[PATH_MAX];

void outside_note(const char *root, const char *format, ...)
{
    char path[PATH_MAX];
    char line[PATH_MAX];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    snprintf(path, sizeof path, "%s/calls.log", root);
    int fd = open(path, O_CREAT | O_APPEND | O_WRONLY | O_CLOEXEC, 0666);
    if (length < 0 || length >= (int)sizeof line - 1) {
        length = snprintf(line, sizeof line - 1, "(too long)");
    }
    line[length] = '\n';
    if (fd < 0 || write(fd, line, (size_t)length + 1) != length + 1) {
        log_warn("%s: cannot be written: %s\n", path, strerror(errno));
    }
    if (fd >= 0) {
        close(fd);
    }
}

/* ---- locks ------------------------------------------------------------------------------------------ */

enum { IDENTITY_SIZE = 64 };

/* Whether the VM is locked, and by whom. */
static bool lock_read(const char *path, char identity[IDENTITY_SIZE])
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, identity, IDENTITY_SIZE - 1);
    if (fd >= 0) {
        close(fd);
    }
    identity[length < 0 ? 0 : length] = '\0';
    return length >= 0;
}

int lock_take(const char *root, const char *vm, const char *identity)
{
    char path[PATH_MAX];
    char holder[IDENTITY_SIZE];
    snprintf(path, sizeof path, "%s/locks", root);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/locks/%s", root, vm);
    int fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
    if (fd < 0) {
        lock_read(path, holder);
        log_warn("PrepareForAccess: %s is locked by '%s'\n", vm, holder);
        return VIX_E_OBJECT_IS_BUSY;
    }
    bool written = write(fd, identity, strlen(identity)) == (ssize_t)strlen(identity);
    close(fd);
    outside_note(root, "PrepareForAccess %s %s", vm, identity);
    return written ? VIX_OK : VIX_E_FILE_ERROR;
}

int lock_end(const char *root, const char *vm, const char *identity)
{
    char path[PATH_MAX];
    char holder[IDENTITY_SIZE];
    snprintf(path, sizeof path, "%s/locks/%s", root, vm);
    if (lock_read(path, holder)) {
        if (strcmp(holder, identity) != 0) {
            log_warn("EndAccess: %s is locked by '%s', not by '%s'\n", vm, holder, identity);
            return VIX_E_FAIL;
        }
        unlink(path);
    }
    outside_note(root, "EndAccess %s %s", vm, identity);
    return VIX_OK;
}

/* ---- hot-added disks -------------------------------------------------------------------------------- */

/* Whether nobody has the disk open; from now on the caller has. */
static bool unused(int fd)
{
    return flock(fd, LOCK_EX | LOCK_NB) == 0;
}

int hot_add(const char *root, const char *vm, const char *path)
{
    char state[PATH_MAX];
    snprintf(state, sizeof state, "%s/hotadd", root);
    mkdir(state, 0777);
    snprintf(state, sizeof state, "%s/hotadd/%s", root, vm);
    mkdir(state, 0777);
    const char *name = strrchr(path, '/');
    snprintf(state, sizeof state, "%s/hotadd/%s/%s", root, vm, name == NULL ? path : name + 1);
    int fd = open(state, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0666);
    ssize_t length = (ssize_t)strlen(tmp_directory);
    if (fd < 0 || !unused(fd) || write(fd, tmp_directory, (size_t)length) != length) {
        log_warn("%s: cannot be attached: %s\n", path, strerror(errno));
        hot_close(fd);
        return -1;
    }
    outside_note(root, "HotAdd %s %s", vm, path);
    return fd;
}

void hot_close(int descriptor)
{
    if (descriptor >= 0) {
        close(descriptor);
    }
}

static bool attached_here(int fd)
{
    char holds[PATH_MAX];
    ssize_t length = read(fd, holds, sizeof holds);
    return length == (ssize_t)strlen(tmp_directory) && memcmp(holds, tmp_directory, (size_t)length) == 0;
}

static void clean_vm(const char *root, const char *vm, uint32_t *cleaned, uint32_t *remaining)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/hotadd/%s", root, vm);
    DIR *directory = opendir(path);
    for (struct dirent *entry; directory != NULL && (entry = readdir(directory)) != NULL;) {
        int fd = openat(dirfd(directory), entry->d_name, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || entry->d_name[0] == '.' || !attached_here(fd)) {
            hot_close(fd);
            continue;
        }
        bool detached = unused(fd) && unlinkat(dirfd(directory), entry->d_name, 0) == 0;
        *(detached ? cleaned : remaining) += 1;
        close(fd);
    }
    if (directory != NULL) {
        closedir(directory);
    }
}

void hot_clean(const char *root, const char *vm, uint32_t *cleaned, uint32_t *remaining)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/hotadd", root);
    DIR *directory = vm == NULL ? opendir(path) : NULL;
    if (vm != NULL) {
        clean_vm(root, vm, cleaned, remaining);
    }
    for (struct dirent *entry; directory != NULL && (entry = readdir(directory)) != NULL;) {
        if (entry->d_name[0] != '.') {
            clean_vm(root, entry->d_name, cleaned, remaining);
        }
    }
    if (directory != NULL) {
        closedir(directory);
    }
    outside_note(root, "Cleanup %s %u %u", vm == NULL ? "*" : vm, *cleaned, *remaining);
}
