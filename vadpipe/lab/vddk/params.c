#include <string.h>

#include "errors.h"
#include "generation.h"
#include "guard.h"
#include "log.h"
#include "params.h"

/* The strings of the struct, in a fixed order; which creds are strings depends on the type. */
enum { MAX_STRINGS = 9 };

static size_t strings_of(VixDiskLibConnectParams *params, char **places[MAX_STRINGS])
{
    size_t count = 0;
    places[count++] = &params->vmxSpec;
    places[count++] = &params->serverName;
    places[count++] = &params->thumbPrint;
    places[count++] = &params->vimApiVer;
    places[count++] = &params->creds.uid.userName;
    places[count++] = &params->creds.uid.password;
    if (params->credType == CRED_SESSIONID) {
        places[count++] = &params->creds.sessionId.key;
    }
    if (params->specType == SPEC_DATASTORE) {
        places[count++] = &params->spec.datastore.datastoreMoRef;
        places[count++] = &params->spec.datastore.diskFolder;
    }
    return count;
}

/* One block with struct and strings, so that FreeConnectParams never has to free a string. */
VixDiskLibConnectParams *params_copy(const VixDiskLibConnectParams *params)
{
    VixDiskLibConnectParams source = *params;
    char **places[MAX_STRINGS];
    size_t count = strings_of(&source, places);
    size_t size = sizeof source;
    for (size_t i = 0; i < count; i++) {
        size += *places[i] == NULL ? 0 : strlen(*places[i]) + 1;
    }
    char *block = object_new(OBJECT_PARAMS, size);
    if (block == NULL) {
        return NULL;
    }
    char *end = block + sizeof source;
    for (size_t i = 0; i < count; i++) {
        if (*places[i] != NULL) {
            char *text = end;
            end = stpcpy(end, *places[i]) + 1;
            *places[i] = text;
        }
    }
    memcpy(block, &source, sizeof source);
    return (VixDiskLibConnectParams *)block;
}

VIX_EXPORT VixDiskLibConnectParams *VixDiskLib_AllocateConnectParams(void)
{
    return object_new(OBJECT_PARAMS, sizeof(VixDiskLibConnectParams));
}

VIX_EXPORT void VixDiskLib_FreeConnectParams(VixDiskLibConnectParams *params)
{
    object_free(OBJECT_PARAMS, params, __func__);
}

bool params_local(const VixDiskLibConnectParams *params)
{
    return params == NULL || (params->vmxSpec == NULL && params->serverName == NULL);
}

const char *params_vm(const VixDiskLibConnectParams *params)
{
    static const char prefix[] = "moref=";
    const char *spec = params->vmxSpec;
    return spec == NULL || strncmp(spec, prefix, strlen(prefix)) != 0 ? NULL : spec + strlen(prefix);
}

int params_check(const char *call, const VixDiskLibConnectParams *params, bool vm_needed)
{
    if (!object_known(OBJECT_PARAMS, params)) {
        log_warn("%s: the parameters do not come from AllocateConnectParams\n", call);
    }
    require(params->serverName, call, "serverName");
    if (vm_needed && params->specType != SPEC_DATASTORE) {
        require(params->vmxSpec, call, "vmxSpec");
    }
    if (params->credType == CRED_UID) {
        require(params->creds.uid.userName, call, "creds.uid.userName");
        require(params->creds.uid.password, call, "creds.uid.password");
    } else if (params->credType == CRED_SESSIONID) {
        require(params->creds.sessionId.cookie, call, "creds.sessionId.cookie");
        require(params->creds.sessionId.userName, call, "creds.sessionId.userName");
        require(params->creds.sessionId.key, call, "creds.sessionId.key");
    } else {
        log_warn("%s: credential type %d is not supported\n", call, params->credType);
        return VIX_E_INVALID_ARG;
    }
    if (params->specType == SPEC_DATASTORE && vddk_generation >= 8) {
        require(params->spec.datastore.datastoreMoRef, call, "spec.dsSpec.datastoreMoRef");
        require(params->spec.datastore.diskFolder, call, "spec.dsSpec.diskFolder");
    } else if (params->specType != SPEC_VMX) {
        log_warn("%s: spec type %d is not supported\n", call, params->specType);
        return VIX_E_NOT_SUPPORTED;
    }
    return VIX_OK;
}
