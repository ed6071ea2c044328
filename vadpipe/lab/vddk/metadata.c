/* Metadata keys are the "ddb." lines of the leaf's descriptor. */
#include <stdlib.h>
#include <string.h>

#include "disk.h"
#include "errors.h"
#include "log.h"

static const char PREFIX[] = "ddb.";

static char *full_key(const char *key)
{
    char *full = malloc(sizeof PREFIX + strlen(key));
    return full == NULL ? NULL : strcat(strcpy(full, PREFIX), key);
}

/* Copy out, or say how much room is needed: the two-call protocol of all metadata reads. */
static int hand_over(const char *value, size_t length, char *buffer, size_t room, size_t *required)
{
    if (required != NULL) {
        *required = length;
    }
    if (buffer == NULL || room < length) {
        return VIX_E_BUFFER_TOOSMALL;
    }
    memcpy(buffer, value, length);
    return VIX_OK;
}

VIX_EXPORT VixError VixDiskLib_ReadMetadata(VixDiskLibHandle handle, const char *key, char *buffer,
                                            size_t room, size_t *required)
{
    struct disk *disk = disk_enter(handle, __func__);
    require(key, __func__, "key");
    VixError error = fault_blocking(CALL_METADATA);
    char *full = full_key(key);
    char *value = full == NULL ? NULL : descriptor_get(&disk->chain->leaf->descriptor, full);
    if (error == VIX_OK) {
        error = vix_error(value == NULL ? VIX_E_DISK_KEY_NOTFOUND
                                        : hand_over(value, strlen(value) + 1, buffer, room, required));
    }
    free(full);
    free(value);
    disk_leave(disk);
    return error;
}

static int write_value(struct disk *disk, const char *key, const char *value)
{
    struct link *leaf = disk->chain->leaf;
    if (!disk->chain->writable) {
        return VIX_E_FILE_READ_ONLY;
    }
    if (*key == '\0' || strpbrk(key, "=\"\r\n") != NULL || strpbrk(value, "\"\r\n") != NULL) {
        log_warn("WriteMetadata: '%s' = '%s' cannot be written to a descriptor\n", key, value);
        return VIX_E_INVALID_ARG;
    }
    if (disk_outstanding(disk) > 0) {
        return VIX_E_ASYNC_MIXEDMODE_UNSUPPORTED;
    }
    char *full = full_key(key);
    int code = full == NULL ? VIX_E_OUT_OF_MEMORY : descriptor_set(&leaf->descriptor, full, value);
    free(full);
    return code == VIX_OK ? descriptor_write(&leaf->file, &leaf->descriptor) : code;
}

VIX_EXPORT VixError VixDiskLib_WriteMetadata(VixDiskLibHandle handle, const char *key, const char *value)
{
    struct disk *disk = disk_enter(handle, __func__);
    require(key, __func__, "key");
    require(value, __func__, "val");
    VixError error = fault_blocking(CALL_METADATA);
    if (error == VIX_OK) {
        error = vix_error(write_value(disk, key, value));
    }
    disk_leave(disk);
    return error;
}

VIX_EXPORT VixError VixDiskLib_GetMetadataKeys(VixDiskLibHandle handle, char *buffer, size_t room,
                                               size_t *required)
{
    struct disk *disk = disk_enter(handle, __func__);
    VixError error = fault_blocking(CALL_METADATA);
    const char *text = disk->chain->leaf->descriptor.text;
    char *keys = calloc(1, strlen(text) + 2); /* the keys are shorter than their lines */
    if (error == VIX_OK && keys == NULL) {
        error = vix_error(VIX_E_OUT_OF_MEMORY);
    } else if (error == VIX_OK) {
        char *end = keys;
        const char *cursor = text;
        const char *key;
        size_t length;
        while (descriptor_next_key(&cursor, PREFIX, &key, &length)) {
            end = (char *)memcpy(end, key, length) + length + 1;
        }
        error = vix_error(hand_over(keys, (size_t)(end - keys) + 1, buffer, room, required));
    }
    free(keys);
    disk_leave(disk);
    return error;
}
