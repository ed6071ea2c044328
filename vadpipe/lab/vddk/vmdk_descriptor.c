#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "log.h"
#include "vmdk.h"

/* A descriptor of 2048 split extents takes 130 KiB; what is larger is not a descriptor. */
enum { MAX_DESCRIPTOR = 1 << 20 };

static const char SIGNATURE[] = "# Disk DescriptorFile";

/* Find where the text lies: behind a sparse header, or in all of the file. */
static int locate(const struct vmdk_file *file, uint64_t size, struct descriptor *descriptor, size_t *length)
{
    char start[SECTOR_SIZE] = {0};
    size_t available = size < sizeof start ? (size_t)size : sizeof start;
    int code = file_read(file, 0, available, start);
    if (code != VIX_OK) {
        return code;
    }
    if (memcmp(start, SPARSE_MAGIC, 4) == 0) {
        struct sparse_header header;
        memcpy(&header, start, sizeof header);
        if (available < sizeof start || header.descriptor_size > MAX_DESCRIPTOR / SECTOR_SIZE ||
            header.descriptor_offset > size / SECTOR_SIZE ||
            (header.descriptor_offset + header.descriptor_size) * SECTOR_SIZE > size) {
            log_warn("%s: truncated: the file ends at %llu, inside its header\n", file->path,
                     (unsigned long long)size);
            return VIX_E_FILE_ERROR;
        }
        if (header.descriptor_offset == 0 || header.descriptor_size == 0) {
            log_warn("%s: an extent without a descriptor: open the descriptor file that names it\n",
                     file->path);
            return VIX_E_INCORRECT_FILE_TYPE;
        }
        descriptor->offset = header.descriptor_offset * SECTOR_SIZE;
        descriptor->room = *length = (size_t)header.descriptor_size * SECTOR_SIZE;
        return VIX_OK;
    }
    if (size == 0) {
        log_warn("%s: truncated: the file is empty\n", file->path);
        return VIX_E_FILE_ERROR;
    }
    if (size > MAX_DESCRIPTOR) {
        log_warn("%s: not a virtual disk descriptor\n", file->path);
        return VIX_E_INCORRECT_FILE_TYPE;
    }
    *length = (size_t)size;
    return VIX_OK;
}

int descriptor_read(const struct vmdk_file *file, struct descriptor *descriptor)
{
    uint64_t size;
    size_t length = 0;
    *descriptor = (struct descriptor){0};
    int code = file_size(file, &size);
    if (code == VIX_OK) {
        code = locate(file, size, descriptor, &length);
    }
    if (code != VIX_OK) {
        return code;
    }
    descriptor->text = calloc(1, length + 1);
    if (descriptor->text == NULL) {
        return VIX_E_OUT_OF_MEMORY;
    }
    code = file_read(file, descriptor->offset, length, descriptor->text);
    const char *text = descriptor->text + strspn(descriptor->text, " \t\r\n");
    if (code == VIX_OK && strncasecmp(text, SIGNATURE, strlen(SIGNATURE)) != 0) {
        log_warn("%s: not a virtual disk descriptor; an extent is opened by the descriptor that names it\n",
                 file->path);
        code = VIX_E_INCORRECT_FILE_TYPE;
    }
    return code;
}

int descriptor_write(const struct vmdk_file *file, const struct descriptor *descriptor)
{
    size_t length = strlen(descriptor->text);
    if (descriptor->room == 0) {
        int code = file_write(file, descriptor->offset, length, descriptor->text);
        if (code == VIX_OK && ftruncate(file->fd, (off_t)length) != 0) {
            code = VIX_E_FILE_ERROR;
        }
        return code;
    }
    if (length > descriptor->room) {
        log_warn("%s: the embedded descriptor has room for %zu bytes, %zu are needed\n", file->path,
                 descriptor->room, length);
        return VIX_E_FILE_TOO_BIG;
    }
    char *padded = calloc(1, descriptor->room);
    if (padded == NULL) {
        return VIX_E_OUT_OF_MEMORY;
    }
    memcpy(padded, descriptor->text, length);
    int code = file_write(file, descriptor->offset, descriptor->room, padded);
    free(padded);
    return code;
}

/* ---- lines ------------------------------------------------------------------------------------------ */

static bool next_line(const char **cursor, const char **line, size_t *length)
{
    const char *start = *cursor + strspn(*cursor, " \t\r\n");
    if (*start == '\0') {
        return false;
    }
    *line = start;
    *length = strcspn(start, "\r\n");
    *cursor = start + *length;
    return true;
}

/* The length of the key when a line has the form "key = value", else 0. */
static size_t key_length(const char *line, size_t length)
{
    const char *equals = memchr(line, '=', length);
    if (equals == NULL || *line == '#') {
        return 0;
    }
    size_t key = (size_t)(equals - line);
    while (key > 0 && isspace((unsigned char)line[key - 1])) {
        key--;
    }
    return key;
}

static bool find_key(const char *text, const char *key, const char **line, size_t *length)
{
    const char *cursor = text;
    while (next_line(&cursor, line, length)) {
        if (key_length(*line, *length) == strlen(key) && strncasecmp(*line, key, strlen(key)) == 0) {
            return true;
        }
    }
    return false;
}

char *descriptor_get(const struct descriptor *descriptor, const char *key)
{
    const char *line;
    size_t length;
    if (!find_key(descriptor->text, key, &line, &length)) {
        return NULL;
    }
    const char *value = (const char *)memchr(line, '=', length) + 1;
    const char *end = line + length;
    while (value < end && (isspace((unsigned char)*value) || *value == '"')) {
        value++;
    }
    while (end > value && (isspace((unsigned char)end[-1]) || end[-1] == '"')) {
        end--;
    }
    return strndup(value, (size_t)(end - value));
}

/* Values of metadata keys are quoted, the content ids are bare. */
int descriptor_set(struct descriptor *descriptor, const char *key, const char *value)
{
    const char *quote = strncasecmp(key, "ddb.", 4) == 0 ? "\"" : "";
    const char *separator = *quote == '\0' ? "=" : " = ";
    const char *line;
    size_t length;
    const char *before = "";
    const char *after = "";
    if (!find_key(descriptor->text, key, &line, &length)) {
        line = descriptor->text + strlen(descriptor->text);
        length = 0;
        before = line > descriptor->text && line[-1] != '\n' ? "\n" : "";
        after = "\n";
    }
    char *changed;
    if (asprintf(&changed, "%.*s%s%s%s%s%s%s%s%s", (int)(line - descriptor->text), descriptor->text, before,
                 key, separator, quote, value, quote, after, line + length) < 0) {
        return VIX_E_OUT_OF_MEMORY;
    }
    free(descriptor->text);
    descriptor->text = changed;
    return VIX_OK;
}

bool descriptor_next_key(const char **cursor, const char *prefix, const char **key, size_t *length)
{
    const char *line;
    size_t line_length;
    while (next_line(cursor, &line, &line_length)) {
        size_t n = key_length(line, line_length);
        if (n > strlen(prefix) && strncasecmp(line, prefix, strlen(prefix)) == 0) {
            *key = line + strlen(prefix);
            *length = n - strlen(prefix);
            return true;
        }
    }
    return false;
}

static int parse_extent(const char *text, struct extent_line *extent)
{
    char access[16] = "";
    char type[16] = "";
    unsigned long long sectors = 0;
    unsigned long long offset = 0;
    *extent = (struct extent_line){0};
    int fields =
        sscanf(text, "%15s %llu %15s \"%1023[^\"]\" %llu", access, &sectors, type, extent->name, &offset);
    extent->writable = strcmp(access, "RW") == 0;
    extent->sectors = sectors;
    extent->offset = offset;
    if (fields == 3 && strcmp(type, "ZERO") == 0) {
        extent->type = EXTENT_ZERO;
    } else if (fields >= 4 && (strcmp(type, "FLAT") == 0 || strcmp(type, "VMFS") == 0)) {
        extent->type = EXTENT_FLAT;
    } else if (fields >= 4 && strcmp(type, "SPARSE") == 0) {
        extent->type = EXTENT_SPARSE;
    } else {
        log_warn("extent line '%s': only FLAT, VMFS, ZERO and SPARSE extents are supported\n", text);
        return VIX_E_DISK_NOTSUPPORTED;
    }
    if (strcmp(access, "NOACCESS") == 0 || extent->sectors == 0 || extent->sectors > UINT64_MAX >> 16) {
        log_warn("extent line '%s': nothing that can be read\n", text);
        return VIX_E_DISK_NOTSUPPORTED;
    }
    return VIX_OK;
}

int descriptor_next_extent(const char **cursor, struct extent_line *extent, bool *found)
{
    const char *line;
    size_t length;
    *found = false;
    while (next_line(cursor, &line, &length)) {
        if (strncmp(line, "RW ", 3) == 0 || strncmp(line, "RDONLY ", 7) == 0 ||
            strncmp(line, "NOACCESS ", 9) == 0) {
            char text[1200];
            snprintf(text, sizeof text, "%.*s", (int)length, line);
            *found = true;
            return parse_extent(text, extent);
        }
    }
    return VIX_OK;
}
