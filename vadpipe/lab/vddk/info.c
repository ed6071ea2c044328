#include <stdlib.h>
#include <string.h>

#include "disk.h"
#include "errors.h"
#include "generation.h"

static uint32_t descriptor_number(const struct descriptor *descriptor, const char *key)
{
    char *text = descriptor_get(descriptor, key);
    uint32_t number = text == NULL ? 0 : (uint32_t)strtoul(text, NULL, 10);
    free(text);
    return number;
}

static int32_t adapter_of(const struct descriptor *descriptor)
{
    static const struct {
        const char *name;
        int32_t type;
    } adapters[] = {{"ide", ADAPTER_IDE}, {"buslogic", ADAPTER_BUSLOGIC}, {"lsilogic", ADAPTER_LSILOGIC}};
    int32_t type = ADAPTER_UNKNOWN;
    char *name = descriptor_get(descriptor, "ddb.adapterType");
    for (size_t i = 0; name != NULL && i < sizeof adapters / sizeof *adapters; i++) {
        if (strcmp(name, adapters[i].name) == 0) {
            type = adapters[i].type;
        }
    }
    free(name);
    return type;
}

/* One block: the struct of this generation, then its strings. */
static VixDiskLibInfo *info_of(const struct chain *chain)
{
    const struct descriptor *descriptor = &chain->leaf->descriptor;
    size_t size = vddk_generation >= 7 ? sizeof(VixDiskLibInfo) : offsetof(VixDiskLibInfo, logicalSectorSize);
    VixDiskLibInfo *info = object_new(OBJECT_INFO, size);
    if (info == NULL) {
        return NULL;
    }
    info->biosGeo.cylinders = descriptor_number(descriptor, "ddb.geometry.cylinders");
    info->biosGeo.heads = descriptor_number(descriptor, "ddb.geometry.heads");
    info->biosGeo.sectors = descriptor_number(descriptor, "ddb.geometry.sectors");
    info->physGeo = info->biosGeo;
    info->capacity = chain->leaf->capacity;
    info->adapterType = adapter_of(descriptor);
    info->numLinks = chain->links;
    info->parentFileNameHint = descriptor_get(descriptor, "parentFileNameHint");
    info->uuid = descriptor_get(descriptor, "ddb.uuid");
    if (vddk_generation >= 7) {
        info->logicalSectorSize = SECTOR_SIZE;
        info->physicalSectorSize = SECTOR_SIZE;
    }
    return info;
}

VIX_EXPORT VixError VixDiskLib_GetInfo(VixDiskLibHandle handle, VixDiskLibInfo **info)
{
    struct disk *disk = disk_enter(handle, __func__);
    require(info, __func__, "info");
    *info = NULL;
    VixError error = fault_blocking(CALL_INFO);
    if (error == VIX_OK) {
        *info = info_of(disk->chain);
        error = vix_error(*info == NULL ? VIX_E_OUT_OF_MEMORY : VIX_OK);
    }
    disk_leave(disk);
    return error;
}

VIX_EXPORT void VixDiskLib_FreeInfo(VixDiskLibInfo *info)
{
    if (info != NULL && object_known(OBJECT_INFO, info)) {
        free(info->parentFileNameHint);
        free(info->uuid);
    }
    object_free(OBJECT_INFO, info, __func__);
}

VIX_EXPORT const char *VixDiskLib_GetTransportMode(VixDiskLibHandle handle)
{
    struct disk *disk = disk_enter(handle, __func__);
    const char *transport = disk->transport;
    disk_leave(disk);
    return transport;
}
